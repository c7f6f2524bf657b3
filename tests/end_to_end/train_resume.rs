//! A run that is killed, at whatever moment and however often, and resumed ends with the bytes of one that was
//! never stopped; so does one that is told to stop.

use crate::command::{Done, Shell, bytes};
use rand::Rng;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

/// Augmentation, mixed images, momentum, a moving average, accumulated gradients, frozen and slower layers: all that
/// a resumed run must remember.
const TRAIN: &str = "train --model lenet5 --dataset shapes --limit-train 600 --limit-test 50 --epochs 5 \
                     --batch-size 16 --grad-accum 2 --augment standard --label-smoothing 0.1 --ema 0.9 \
                     --clip-grad 1 --mixup 0.2 --cutmix 1 --freeze conv1 --backbone-lr-scale 0.5 \
                     --layer-decay 0.9 --log-every 7 --save-every 3 --seed 3";

const FILES: [&str; 2] = ["last.safetensors", "best.safetensors"];

fn uninterrupted(shell: &Shell, options: &str) {
    shell.zoo(&format!("{TRAIN} {options} --out whole")).ok();
}

/// Lines of `metrics.jsonl` without what a clock says.
fn metrics(path: &Path) -> Vec<serde_json::Value> {
    let text = String::from_utf8(bytes(&path.join("metrics.jsonl"))).unwrap();
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in ["elapsed_s", "images_per_second"] {
            value.as_object_mut().unwrap().remove(field);
        }
        value
    };
    text.lines().map(line).collect()
}

#[track_caller]
fn assert_same(shell: &Shell, run: &str) {
    let (resumed, whole) = (metrics(&shell.path(run)), metrics(&shell.path("whole")));
    for (line, expected) in resumed.iter().zip(&whole) {
        assert_eq!(line, expected);
    }
    assert_eq!(resumed.len(), whole.len());
    for file in FILES {
        let same = bytes(&shell.path(run).join(file)) == bytes(&shell.path("whole").join(file));
        assert!(same, "{file} differs");
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// When the state of the run was written last.
fn saved(shell: &Shell) -> Option<SystemTime> {
    std::fs::metadata(shell.path("cut/state.safetensors")).and_then(|state| state.modified()).ok()
}

/// Waits until the run has written another state than that of time `before`.
fn wait_for_state(shell: &Shell, child: &mut Child, before: Option<SystemTime>) {
    let start = Instant::now();
    while saved(shell) == before {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(start.elapsed() < Duration::from_secs(60), "no state after a minute");
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_at_random_moments() {
    let shell = Shell::new();
    let start = Instant::now();
    uninterrupted(&shell, "--threads 1");
    let whole = start.elapsed();
    let mut rng = zoo_ops::rng::stream(u64::from(std::process::id()), "kill", 0);
    let mut kills = 0;
    for attempt in 0.. {
        let line = if shell.path("cut/config.toml").exists() {
            "train --resume cut --threads 1".to_string()
        } else {
            // Killed before it had begun; its folder may be there.
            format!("{TRAIN} --threads 1 --out cut")
        };
        let mut child = shell.start(&line);
        // Later attempts get more time, so that an end is certain on any machine.
        let most = whole.mul_f64(0.4 + 0.15 * f64::from(attempt));
        let deadline = Instant::now() + most.mul_f64(rng.random_range(0.3..1.0));
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() >= deadline => break None,
                None => sleep(Duration::from_millis(1)),
            }
        };
        match ended {
            Some(status) => {
                assert_eq!(status.code(), Some(0), "after {kills} kills: {line}");
                break;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
        }
    }
    assert!(kills >= 2, "only {kills} kills");
    assert_same(&shell, "cut");
}

#[test]
fn told_to_stop() {
    let shell = Shell::new();
    uninterrupted(&shell, "");
    let mut line = format!("{TRAIN} --out cut");
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let before = saved(&shell);
        let mut child = shell.start(&line);
        wait_for_state(&shell, &mut child, before);
        signal(&child, name);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{name}: {status}");
        line = "train --resume cut".into();
    }
    shell.zoo("train --resume cut").ok();
    assert_same(&shell, "cut");
}

#[test]
fn threads_do_not_matter() {
    let shell = Shell::new();
    uninterrupted(&shell, "--threads 1");
    for threads in [2, 4] {
        let out = format!("threads-{threads}");
        shell.zoo(&format!("{TRAIN} --threads {threads} --out {out}")).ok();
        assert_same(&shell, &out);
    }
}

/// Wide layers, strided ones and 1×1 ones have kernels of their own, and so has bf16.
#[test]
fn threads_do_not_matter_to_any_kernel() {
    for (model, dtype) in [("resnet18", "f32"), ("cifar_resnet20b", "bf16")] {
        let shell = Shell::new();
        let line = format!(
            "train --model {model} --dtype {dtype} --dataset shapes --epochs 1 --batch-size 8 --limit-train 24 \
             --limit-test 8"
        );
        shell.zoo(&format!("{line} --threads 1 --out whole")).ok();
        shell.zoo(&format!("{line} --threads 3 --out cut")).ok();
        assert_same(&shell, "cut");
    }
}

/// A disk that fills up while a checkpoint is written, as a limit on the size of files: what was saved before
/// stays, and the run goes on from there when there is room again.
#[test]
fn full_disk_while_saving() {
    let shell = Shell::new();
    uninterrupted(&shell, "");
    // The weights fit, the state with its velocities and averages does not.
    let weights = bytes(&shell.path("whole/last.safetensors")).len();
    let state = bytes(&shell.path("whole/state.safetensors")).len();
    assert!(state > 2 * weights);
    let limited = |line: &str, limit: usize| -> Done {
        // bash counts in 1024 bytes. The signal that comes with the limit is ignored: a full disk sends none.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", limit / 1024);
        let zoo = env!("CARGO_BIN_EXE_zoo");
        let mut sh = Command::new("bash");
        sh.arg("-c").arg(script).arg(zoo).args(line.split_whitespace()).current_dir(shell.path(""));
        sh.env_remove("RUST_BACKTRACE").output().unwrap().into()
    };
    // The first state cannot be written.
    let done = limited(&format!("{TRAIN} --out cut"), (state + weights) / 2);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let error = done.stderr.lines().last().unwrap();
    assert!(error.starts_with("error: cut/state.safetensors: "), "{error}");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    // A later one cannot: the one before is still there, to the byte.
    let before = saved(&shell);
    let mut child = shell.start("train --resume cut");
    wait_for_state(&shell, &mut child, before);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = bytes(&shell.path("cut/state.safetensors"));
    let done = limited("train --resume cut", (state + weights) / 2);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert_eq!(bytes(&shell.path("cut/state.safetensors")), before);
    let files = std::fs::read_dir(shell.path("cut")).unwrap();
    let names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.contains("tmp")), "{names:?}");
    shell.zoo("train --resume cut").ok();
    assert_same(&shell, "cut");
}
