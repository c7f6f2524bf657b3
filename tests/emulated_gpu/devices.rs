//! Several GPUs, and those that cannot be used.

use crate::command::Shell;
use crate::gpu::{SCHEDULES, Trained, zoo};

#[test]
fn two_gpus_are_one_with_the_whole_batch() {
    let shell = Shell::new();
    let line = "--dataset shapes --limit-train 24 --limit-test 8 --epochs 1 --lr 1e-3 --threads 1";
    for network in ["--model caffe_lenet", "--model cifar_resnet20 --sync-batch-norm"] {
        let one = Trained::by(&shell, SCHEDULES[0], &format!("{network} {line} --batch-size 8"));
        let mut of_schedules = Vec::new();
        for schedule in &SCHEDULES[..3] {
            let two = format!("{network} {line} --batch-size 4 --devices 2");
            of_schedules.push(Trained::by(&shell, &format!("{schedule},devices=2"), &two));
        }
        assert!(of_schedules.windows(2).all(|pair| pair[0] == pair[1]), "{network}: {of_schedules:?}");
        for (a, b) in one.losses.iter().zip(&of_schedules[0].losses) {
            assert!((a - b).abs() < 1e-3 * a.abs(), "{network}: {one:?} {of_schedules:?}");
        }
        for run in std::fs::read_dir(shell.path("")).unwrap() {
            std::fs::remove_dir_all(run.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn a_gpu_that_cannot_be_used_is_one_line() {
    let shell = Shell::new();
    for (options, device, expected) in [
        ("init=100", "cuda", "this machine has no GPU of NVIDIA; use --device cpu"),
        ("devices=0", "cuda", "this machine has no GPU of NVIDIA; use --device cpu"),
        (
            "init=803",
            "cuda",
            "the driver of the GPU and its library are of two versions; restart the machine",
        ),
        ("init=3", "cuda:0", "the driver of the GPU cannot be used: unknown error; use --device cpu"),
        (
            "driver=12020",
            "cuda",
            "the driver of the GPU is for CUDA 12.2, and this program needs one for 13.0 (580 or newer)",
        ),
        // A GPU that is there and cannot be used is no reason to compute for hours on the CPU.
        (
            "driver=12020",
            "auto",
            "the driver of the GPU is for CUDA 12.2, and this program needs one for 13.0 (580 or newer)",
        ),
        ("", "cuda:1", "there is no GPU 1; this machine has one, cuda:0"),
        ("devices=2", "cuda:5", "there is no GPU 5; this machine has 2, cuda:0 to cuda:1"),
        ("capability=75", "cuda", "GPU 0 has compute capability 7.5; 8.0 is needed: Ampere or newer"),
    ] {
        let done = zoo(&shell, options, &format!("bench --model lenet5 --steps 1 --device {device}"));
        assert_eq!(done.error(), expected, "{options}");
    }
    let done = zoo(&shell, "init=100", "bench --model lenet5 --steps 1 --warmup 1");
    assert_eq!(done.stderr.trim(), "note: computing on the CPU, because this machine has no GPU of NVIDIA");
    done.ok();
}

#[test]
fn a_build_with_cuda_runs_without_its_libraries() {
    let shell = Shell::new();
    shell.zoo("list lenet5").ok();
    let train =
        "train --model lenet5 --dataset shapes --limit-train 64 --limit-test 16 --epochs 1 --out run -q";
    let done = shell.zoo(train);
    let note = "note: computing on the CPU, because this machine has no driver of NVIDIA (libcuda.so.1)";
    assert_eq!(done.stderr.lines().next(), Some(note));
    done.ok();
    let error = "this machine has no driver of NVIDIA (libcuda.so.1); use --device cpu";
    assert_eq!(shell.zoo("eval run --device cuda").error(), error);
}

#[test]
fn kernels_are_compiled_once_for_a_gpu_and_kept() {
    let shell = Shell::new();
    let cache = shell.path("cache");
    let bench = |options: &str| {
        let report = shell.path("report.json");
        let _ = std::fs::remove_file(&report);
        let line = "bench --model lenet5 --steps 1 --warmup 1 --mode train --device cuda";
        let options = format!("{options},report={}", report.display());
        let done =
            crate::gpu::command(&shell, &options, line).env("XDG_CACHE_HOME", &cache).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        let count = |what: &str| report["counts"][what].as_i64().unwrap_or(0);
        (count("nvrtcCompileProgram"), count("module of kernels as cubin"), count("module of kernels as ptx"))
    };
    assert_eq!(bench("capability=90"), (1, 1, 0));
    assert_eq!(bench("capability=90"), (0, 1, 0));
    // Another architecture has its own file.
    assert_eq!(bench("capability=80"), (1, 1, 0));
    // A file that is damaged is written anew.
    for file in std::fs::read_dir(cache.join("zoo/kernels")).unwrap() {
        std::fs::write(file.unwrap().path(), "damaged").unwrap();
    }
    assert_eq!(bench("capability=90"), (1, 1, 0));
    // An NVRTC that does not know the GPU makes PTX, which the driver compiles.
    assert_eq!(bench("capability=120,nvrtc=12"), (2, 0, 1));
    assert_eq!(bench("capability=120,nvrtc=13"), (1, 1, 0));
}

#[test]
fn too_little_memory_is_said_with_what_would_fit() {
    let shell = Shell::new();
    let line = "train --model cifar_resnet20 --dataset shapes --limit-train 512 --batch-size 512 --epochs 1 --device cuda --out run -q";
    let error = zoo(&shell, "memory=300000000", line).error().to_owned();
    assert!(error.starts_with("out of memory on the GPU with batches of 512 images"), "{error}");
}

#[test]
fn a_device_that_is_lost_ends_the_run_in_one_line() {
    let shell = Shell::new();
    let line = "train --model lenet5 --dataset shapes --limit-train 256 --limit-test 16 --batch-size 16 --epochs 9 --device cuda --out run -q";
    let done = zoo(&shell, "lost_after=3000", line);
    assert!(done.error().contains("ECC"), "{}", done.stderr);
    // What was saved is whole.
    zoo(&shell, "", "train --resume run --device cuda -q").ok();
}
