//! Runs of the binary on the emulated GPU, and what they leave.

use crate::command::{Done, Shell, bytes};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Every order that the emulated GPU can execute operations of several streams in.
pub(crate) const SCHEDULES: [&str; 4] =
    ["schedule=eager", "schedule=late", "schedule=mirror", "schedule=random,seed=7"];

/// The folder of the emulated libraries, which are built once for each run of the tests.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated_gpu");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulated_gpu/build.sh");
        let built = Command::new(script).arg(&folder).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        folder
    })
}

/// `zoo LINE`, on an emulated GPU with these options, such as `schedule=late,devices=2`.
pub(crate) fn command(shell: &Shell, options: &str, line: &str) -> Command {
    let mut command = shell.command(line.split_whitespace());
    command.env("LD_LIBRARY_PATH", libraries()).env("EMULATED_GPU", options);
    // Where kernels are kept.
    command.env("XDG_CACHE_HOME", libraries().join("cache"));
    command
}

/// Runs `zoo LINE` on an emulated GPU.
pub(crate) fn zoo(shell: &Shell, options: &str, line: &str) -> Done {
    command(shell, options, line).output().unwrap().into()
}

/// What a training left: its losses as they are written, and its variables after the last epoch.
#[derive(PartialEq)]
pub(crate) struct Trained {
    /// Of each step, then of each epoch on the validation images.
    pub(crate) losses: Vec<f64>,
    /// The bits of all tensors of `last.safetensors`, in the order of their names.
    variables: Vec<u8>,
}

impl std::fmt::Debug for Trained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "losses {:?} and {} bytes of variables", self.losses, self.variables.len())
    }
}

impl Trained {
    /// Reads the folder of a run.
    pub(crate) fn read(run: &Path) -> Self {
        let text = String::from_utf8(bytes(&run.join("metrics.jsonl"))).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let losses = lines.filter_map(|line| line["loss"].as_f64().or(line["val_loss"].as_f64())).collect();
        let file = bytes(&run.join("last.safetensors"));
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        Self { losses, variables: file[8 + header..].to_vec() }
    }

    /// Whether the variables are those of another training, bit for bit.
    pub(crate) fn has_variables_of(&self, other: &Self) -> bool {
        self.variables == other.variables
    }

    /// Trains by `zoo train LINE` and reads what it left.
    #[track_caller]
    pub(crate) fn by(shell: &Shell, options: &str, line: &str) -> Self {
        let run = format!("run-{}", options.replace([',', '='], "-"));
        zoo(shell, options, &format!("train {line} --log-every 1 --device cuda --out {run} -q")).ok();
        Self::read(&shell.path(&run))
    }
}

/// A folder with a file of sentences.
pub(crate) fn shell_with_sentences() -> Shell {
    let shell = Shell::new();
    shell.write("reviews.tsv", "good\tthe film was great\nbad\ta dull story\n".repeat(10));
    shell
}

/// A training has the same bits in these schedules as in the first of them, and losses near the CPU's.
#[track_caller]
pub(crate) fn same_in(schedules: &[&str], line: &str, tolerance: (f64, f64)) {
    let shell = shell_with_sentences();
    let first = Trained::by(&shell, schedules[0], line);
    for schedule in &schedules[1..] {
        assert!(Trained::by(&shell, schedule, line) == first, "{line}: {schedule}");
    }
    assert_near_cpu(&shell, &first, line, tolerance);
}

/// Losses of a training are no further from the CPU's than these shares of them: after one step, and after all with what
/// rounding does to later steps.
#[track_caller]
pub(crate) fn assert_near_cpu(shell: &Shell, trained: &Trained, line: &str, (first, later): (f64, f64)) {
    // The CPU has no f16; its losses in f32 are near those of f16.
    let cpu = line.replace("--dtype f16", "--dtype f32");
    shell.zoo(&format!("train {cpu} --log-every 1 --device cpu --out cpu -q")).ok();
    let cpu = Trained::read(&shell.path("cpu"));
    assert_eq!(cpu.losses.len(), trained.losses.len(), "{line}");
    assert!(trained.losses.len() > 2, "{line}: {trained:?}");
    for (i, (on_gpu, on_cpu)) in trained.losses.iter().zip(&cpu.losses).enumerate() {
        let tolerance = if i == 0 { first } else { later };
        let far = (on_gpu - on_cpu).abs() / on_cpu.abs().max(0.1);
        assert!(far < tolerance, "{line}: loss {i} is {on_gpu}, on the CPU {on_cpu}");
    }
}
