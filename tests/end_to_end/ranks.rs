//! Runs of several processes: they give the weights of one, and one that fails ends the others.

use crate::command::{Done, Shell, bytes};
use candle_core::{DType, Device};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A run whose last batch is not full and is shared unequally: 3 of 5 images.
const TRAIN: &str = "train --dataset shapes --limit-train 69 --limit-test 30 --augment standard \
                     --seed 3 --grad-accum 2 --dtype f32 --threads 1 --strict-f32";

/// The largest difference in each variable of two runs, beside its largest element: the median and the largest of all.
fn distances(shell: &Shell, a: &str, b: &str) -> (f32, f32) {
    let read = |run: &str| {
        let path = shell.path(run).join("last.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    };
    let (a, b) = (read(a), read(b));
    assert!(!a.is_empty() && a.len() == b.len());
    let of_tensor = |name: &String| {
        let flat = |tensor: &candle_core::Tensor| {
            tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (a, b) = (flat(&a[name]), flat(&b[name]));
        let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, v| m.max(v.abs()));
        largest(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / largest(&mut a.iter().copied()).max(1e-3)
    };
    let mut sorted: Vec<f32> = a.keys().map(of_tensor).collect();
    sorted.sort_by(f32::total_cmp);
    (sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}

/// Half the batch for each of two ranks, which `two` starts with these arguments.
fn two_ranks_are_one(options: &str, tolerance: f32, two: impl Fn(&Shell, &str)) {
    let shell = Shell::new();
    shell.zoo(&format!("{TRAIN} {options} --epochs 2 --batch-size 16 --out one")).ok();
    two(&shell, &format!("{TRAIN} {options} --epochs 2 --batch-size 8 --out two"));
    let (median, largest) = distances(&shell, "one", "two");
    assert!(median < 1e-5 && largest < tolerance, "{options}: {median}, {largest}");
    // The comparison sees a batch of another size.
    shell.zoo(&format!("{TRAIN} {options} --epochs 2 --batch-size 8 --out other")).ok();
    let (median, largest) = distances(&shell, "one", "other");
    assert!(median > 1e-3 && largest > 10.0 * tolerance, "{options}: {median}, {largest}");
}

/// Networks without batch normalisation, with dropout, and with statistics over both ranks.
const NETWORKS: [(&str, f32); 3] = [
    ("--model caffe_lenet --lr 0.02", 1e-5),
    ("--model mlp --lr 0.02 --dropout 0.3 --ema 0.9", 1e-5),
    // At a small rate: the signs of values near zero decide about gradients here, and rounding about those signs. The
    // biases of a few normalisations then differ by 0.7e-4 to 5.4e-4 (four seeds, three instruction sets), while half of
    // all variables differ by less than 1e-6.
    ("--model cifar_resnet20 --lr 1e-4 --sync-batch-norm", 3e-3),
];

#[test]
fn started_by_the_command() {
    for (options, tolerance) in NETWORKS {
        two_ranks_are_one(options, tolerance, |shell, line| {
            shell.zoo(&format!("{line} --devices 2")).ok();
        });
    }
}

/// Where Open MPI is not installed this cannot be tested.
#[cfg(feature = "mpi")]
#[test]
fn started_by_open_mpi() {
    for (options, tolerance) in NETWORKS {
        two_ranks_are_one(options, tolerance, |shell, line| {
            let zoo = env!("CARGO_BIN_EXE_zoo");
            let mut mpirun = Command::new("mpirun");
            mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", "2", zoo]);
            let done = mpirun.args(line.split_whitespace()).current_dir(shell.path("")).output().unwrap();
            Done::from(done).ok();
        });
    }
}

/// `mpirun` ends the other ranks of one that fails, and names it.
#[cfg(feature = "mpi")]
#[test]
fn a_rank_that_fails_under_open_mpi() {
    let shell = Shell::new();
    let script =
        "[ $OMPI_COMM_WORLD_RANK = 0 ] || set -- \"$@\" --weights missing.safetensors; exec \"$0\" \"$@\"";
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", "2", "sh", "-c", script]);
    mpirun.arg(env!("CARGO_BIN_EXE_zoo")).args(format!("{TRAIN} --model mlp").split_whitespace());
    let done = Done::from(mpirun.current_dir(shell.path("")).output().unwrap());
    assert_ne!(done.code, Some(0));
    assert!(done.stderr.contains("error: rank 1: "), "{}", done.stderr);
    assert!(done.stderr.contains("exited with non-zero status"), "{}", done.stderr);
}

#[test]
fn every_rank_has_the_same_statistics() {
    let shell = Shell::new();
    let line = format!("{TRAIN} --epochs 2 --model cifar_resnet20 --lr 0.02 --batch-size 8 --devices 2");
    shell.zoo(&format!("{line} --out a")).ok();
    shell.zoo(&format!("{line} --out b")).ok();
    assert!(bytes(&shell.path("a/last.safetensors")) == bytes(&shell.path("b/last.safetensors")));
    shell.zoo(&format!("{line} --out c --sync-batch-norm")).ok();
    assert!(distances(&shell, "a", "c").1 > 1e-3, "statistics of half the batch are others");
}

#[test]
fn the_learning_rate_follows_the_number_of_ranks() {
    let shell = Shell::new();
    let line = format!("{TRAIN} --epochs 2 --model mlp");
    shell.zoo(&format!("{line} --batch-size 8 --lr 0.02 --out two --devices 2 --scale-lr")).ok();
    shell.zoo(&format!("{TRAIN} --epochs 2 --model mlp --batch-size 16 --lr 0.04 --out one")).ok();
    let found = distances(&shell, "one", "two").1;
    assert!(found < 1e-5, "{found}");
}

fn tell(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn wait_for(what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not after a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn stopped_and_resumed() {
    let shell = Shell::new();
    let line = format!("{TRAIN} --model lenet5 --batch-size 4 --epochs 30 --save-every 1");
    shell.zoo(&format!("{line} --devices 2 --out whole")).ok();
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let run = if name == "TERM" { format!("{line} --out cut") } else { "train --resume cut".into() };
        let state = shell.path("cut/state.safetensors");
        let saved = || std::fs::metadata(&state).and_then(|file| file.modified()).ok();
        let before = saved();
        let mut child = shell.start(&format!("{run} --devices 2"));
        wait_for("a state", || saved() != before);
        tell(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
    }
    let alone = shell.zoo("train --resume cut");
    assert_eq!(alone.error(), "cannot resume cut: it was trained by 2 processes, now there are 1");
    shell.zoo("train --resume cut --devices 2").ok();
    assert!(bytes(&shell.path("cut/last.safetensors")) == bytes(&shell.path("whole/last.safetensors")));
}

/// One process of a run, as a launcher would start it.
fn rank(shell: &Shell, rank: usize, port: u16, options: &str) -> Command {
    rank_of(shell, rank, port, &rank_line(options, None))
}

/// The line of a rank with these options, one of which is replaced.
fn rank_line(options: &str, replaced: Option<(&str, &str)>) -> String {
    let line = format!("{TRAIN} --model lenet5 --batch-size 4 --quiet --json {options}");
    let Some((name, by)) = replaced else { return line };
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == name);
    let kept = words.iter().enumerate().filter(|(i, _)| at.is_none_or(|at| *i != at && *i != at + 1));
    kept.map(|(_, word)| *word).chain([by]).collect::<Vec<_>>().join(" ")
}

/// One process of a run with a line of its own.
fn rank_of(shell: &Shell, rank: usize, port: u16, line: &str) -> Command {
    let mut command = shell.command(line.split_whitespace());
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("MASTER_PORT", port.to_string());
    command.env("ZOO_RANK_TIMEOUT_SECONDS", "20").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_rank_that_is_killed_ends_the_others() {
    let shell = Shell::new();
    let (port, options) = (free_port(), "--epochs 100000 --save-every 1 --out run");
    let first = rank(&shell, 0, port, options).spawn().unwrap();
    let mut second = rank(&shell, 1, port, options).spawn().unwrap();
    wait_for("a step", || shell.path("run/state.safetensors").exists());
    second.kill().unwrap();
    second.wait().unwrap();
    let done = Done::from(first.wait_with_output().unwrap());
    assert_eq!(done.error(), "rank 1 of 2 has ended, and rank 0 cannot go on without it");
}

#[test]
fn a_rank_that_fails_is_named() {
    let shell = Shell::new();
    // The second rank has no weights to start from.
    let port = free_port();
    let first = rank(&shell, 0, port, "--out run").spawn().unwrap();
    let second = rank(&shell, 1, port, "--out run --weights missing.safetensors").spawn().unwrap();
    let second = Done::from(second.wait_with_output().unwrap());
    assert!(second.error().starts_with("rank 1: "), "{}", second.stderr);
    let first = Done::from(first.wait_with_output().unwrap());
    assert_eq!(first.error(), "rank 1 of 2 has ended, and rank 0 cannot go on without it");
}

#[test]
fn a_rank_that_never_comes() {
    let shell = Shell::new();
    let port = free_port();
    let said = |n: usize| {
        let mut command = rank(&shell, n, port, "--out run");
        Done::from(command.env("ZOO_RANK_TIMEOUT_SECONDS", "1").output().unwrap()).error().to_string()
    };
    assert_eq!(
        said(0),
        format!(
            "rank 1 of 2 did not come to port {port} within 1 s; ZOO_RANK_TIMEOUT_SECONDS lets the others wait longer"
        )
    );
    assert!(
        said(1).starts_with(&format!("rank 1 of 2 did not find rank 0 at 127.0.0.1:{port} within 1 s: "))
    );
    assert!(!shell.path("run").exists());
}

#[test]
fn a_launch_that_fails_says_why() {
    let shell = Shell::new();
    let done =
        shell.zoo(&format!("{TRAIN} --model mlp --batch-size 8 --lr 1e30 --devices 2 --out run --quiet"));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("training diverged"), "{}", done.stderr);
    assert!(done.stderr.contains("failed with exit code 1, and the others were ended"), "{}", done.stderr);
}

#[test]
fn variables_that_make_no_sense() {
    let shell = Shell::new();
    let said = |name: &str, value: &str| {
        let mut command = rank(&shell, 0, 1234, "--out run");
        Done::from(command.env(name, value).output().unwrap()).error().to_string()
    };
    assert_eq!(said("RANK", "2"), "RANK is 2, and WORLD_SIZE 2: it must be less");
    assert_eq!(said("WORLD_SIZE", "two"), "WORLD_SIZE must be a whole number, found 'two'");
    assert_eq!(
        said("ZOO_RANK_TIMEOUT_SECONDS", "0"),
        "ZOO_RANK_TIMEOUT_SECONDS must be a whole number of at least 1, found \"0\""
    );
}

/// What two ranks say that are started with these lines.
fn two_lines(shell: &Shell, first: &str, second: &str) -> [Done; 2] {
    let port = free_port();
    let start = |number: usize, line: &str| rank_of(shell, number, port, line).spawn().unwrap();
    let ranks = [start(0, first), start(1, second)];
    ranks.map(|rank| Done::from(rank.wait_with_output().unwrap()))
}

/// Both ranks end with the same line, which has these parts, well before either would tire of waiting.
#[track_caller]
fn both_refuse(shell: &Shell, first: &str, second: &str, parts: &[&str]) {
    let start = Instant::now();
    let said = two_lines(shell, first, second);
    assert!(start.elapsed() < Duration::from_secs(18), "{:?}", start.elapsed());
    let lines = said.each_ref().map(|done| done.error().trim_start_matches("rank 1: ").to_owned());
    assert_eq!(lines[0], lines[1]);
    for part in parts {
        assert!(lines[0].contains(part), "{} has no {part:?}", lines[0]);
    }
}

#[test]
fn ranks_that_differ_are_refused() {
    let shell = Shell::new();
    for (run, seed) in [("a", 1), ("b", 2)] {
        let line = TRAIN.replace("--seed 3", &format!("--seed {seed}"));
        shell.zoo(&format!("{line} --model lenet5 --batch-size 8 --epochs 1 --out {run}")).ok();
    }
    let same = "--epochs 1 --out run";
    for (second, parts) in [
        (
            "--model mlp",
            &["rank 1 trains with model = \"mlp\"", "rank 0 with model = \"lenet5\"", "the same settings"][..],
        ),
        ("--lr 0.5", &["rank 1 trains with lr = 0.5", "rank 0 with lr = "]),
        ("--seed 9", &["seed = 9", "seed = 3"]),
        ("--dtype bf16", &["dtype = \"bf16\""]),
        ("--limit-train 80", &["limit_train = 80", "limit_train = 69"]),
        ("--epochs 2", &["epochs = 2", "epochs = 1"]),
    ] {
        let name = second.split(' ').next().unwrap();
        both_refuse(&shell, &rank_line(same, None), &rank_line(same, Some((name, second))), parts);
    }
    // Other weights to start from, by their content.
    let from = |run: &str| rank_line(&format!("{same} --weights {run}"), None);
    both_refuse(
        &shell,
        &from("a"),
        &from("b"),
        &["rank 1 starts from weights of SHA-256", "the same weights"],
    );
    both_refuse(&shell, &from("a"), &rank_line(same, None), &["rank 1 starts from random weights"]);
    // Other data of the same names and number.
    for (folder, side) in [("x", 8u32), ("y", 9)] {
        for (part, n) in [("train", 8), ("val", 2)] {
            for i in 0..n {
                let class = if i % 2 == 0 { "dark" } else { "light" };
                let path = shell.write(&format!("{folder}/{part}/{class}/{i}.png"), "");
                image::RgbImage::from_fn(side, 8, |x, y| image::Rgb([(x * 29 + y * 13) as u8, i * 20, 90]))
                    .save(path)
                    .unwrap();
            }
        }
    }
    let of = |folder: &str| {
        format!(
            "train --dataset folder --data-dir {folder} --model softmax --image-size 8 --batch-size 2 --epochs 1 --threads 1 \
             --out run --quiet --json"
        )
    };
    two_lines(&shell, &of("x"), &of("x")).iter().for_each(|done| drop(done.ok().to_owned()));
    let other = of("y").replace("--out run", "--out other");
    both_refuse(
        &shell,
        &of("x").replace("--out run", "--out other"),
        &other,
        &["rank 1 has ", "the same data"],
    );
    assert!(!shell.path("other").exists(), "nothing is left of a run that did not start");
}

#[test]
fn ranks_that_go_on_with_different_runs_are_refused() {
    let shell = Shell::new();
    for (run, seed) in [("a", 1), ("b", 2)] {
        let line = TRAIN.replace("--seed 3", &format!("--seed {seed}"));
        let line = format!("{line} --model mlp --batch-size 8 --epochs 1 --out {run} --devices 2 --quiet");
        shell.zoo(&line).ok();
    }
    let go_on = |run: &str| format!("train --resume {run} --threads 1 --quiet --json");
    both_refuse(&shell, &go_on("a"), &go_on("b"), &["seed = 2", "seed = 1"]);
    let new = rank_line("--epochs 1 --out c", None);
    both_refuse(&shell, &go_on("a"), &new, &["rank 1 starts a new run", "rank 0 goes on with a run"]);
}
