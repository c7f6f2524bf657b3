//! What changes how batches reach a GPU, or what a step does there.

use crate::command::Shell;
use crate::gpu::{SCHEDULES, Trained, command, same_in, zoo};

const STEPS: &str =
    "--dataset shapes --limit-train 48 --limit-test 16 --batch-size 8 --epochs 1 --lr 0.02 --threads 1";

#[test]
fn batches_from_the_host_are_those_that_were_sent() {
    // Mixed images are made on the host, so every batch is sent: while the GPU is steps behind, too.
    let line = "--model lenet5 --dataset shapes --limit-train 96 --limit-test 32 --batch-size 8 --epochs 1 --threads 1";
    for mixing in ["--mixup 0.2", "--cutmix 1 --label-smoothing 0.1"] {
        same_in(&SCHEDULES, &format!("{line} {mixing}"), (1e-5, 1e-3));
    }
}

#[test]
fn a_folder_of_jpegs() {
    let shell = Shell::new();
    for (class, color) in [("red", [200, 40, 40]), ("blue", [40, 40, 200])] {
        for i in 0..12u8 {
            let image = image::RgbImage::from_fn(40, 36, |x, y| {
                image::Rgb(color.map(|value: u8| value.saturating_add((x * 3 + y * 5) as u8 % 40 + i)))
            });
            let part = if i < 8 { "train" } else { "val" };
            let path = shell.write(&format!("photos/{part}/{class}/{i}.jpg"), "");
            image.save(path).unwrap();
        }
    }
    let line = "--model cifar_resnet20 --dataset folder --data-dir photos --image-size 32 --batch-size 4 --epochs 1 --lr \
                0.01 --threads 1 --augment standard";
    let eager = Trained::by(&shell, SCHEDULES[0], line);
    for schedule in &SCHEDULES[1..] {
        assert!(Trained::by(&shell, schedule, line) == eager, "{schedule}");
    }
}

#[test]
fn what_a_step_can_do() {
    for options in [
        "--clip-grad 0.5 --grad-accum 2",
        "--ema 0.9 --dropout 0.3",
        "--model caffe_lenet --freeze backbone --lookahead 0.5",
        "--model caffe_lenet --layer-decay 0.5 --nesterov --weight-decay 0.01",
        "--strict-f32",
    ] {
        let model = if options.contains("--model") { "" } else { "--model lenet5" };
        same_in(&SCHEDULES[..3], &format!("{model} {STEPS} {options}"), (1e-5, 1e-3));
    }
}

#[test]
fn groups_of_channels() {
    let line = "--model resnext29_32x4d --dataset shapes --limit-train 4 --limit-test 2 --batch-size 2 --epochs 1 --lr 1e-3 \
                --threads 1";
    same_in(&SCHEDULES[..1], line, (1e-4, 1e-2));
}

#[test]
fn kernels_meet_at_their_barriers() {
    let shell = Shell::new();
    let line = format!(
        "--model cifar_resnet20 {} --limit-train 8 --batch-size 4",
        STEPS.replace("--limit-train 48", "")
    );
    let line = line.replacen("--batch-size 8", "", 1);
    let loops = Trained::by(&shell, "schedule=eager", &line);
    for kernels in ["kernels=fibres", "kernels=reversed,schedule=late"] {
        assert!(Trained::by(&shell, kernels, &line) == loops, "{kernels}");
    }
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_bytes() {
    let shell = Shell::new();
    let line = "--model lenet5 --dataset shapes --limit-train 160 --limit-test 16 --batch-size 4 --epochs 2 --lr 0.02 \
                --threads 1 --augment standard --dropout 0.2 --save-every 10";
    let whole = Trained::by(&shell, SCHEDULES[0], line);
    let train = format!("train {line} --log-every 1 --device cuda --out killed -q");
    let mut child =
        command(&shell, SCHEDULES[0], &train).stdout(std::process::Stdio::null()).spawn().unwrap();
    let state = shell.path("killed/state.safetensors");
    while !state.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "killed before its end");
    zoo(&shell, SCHEDULES[1], "train --resume killed --device cuda -q").ok();
    assert!(Trained::read(&shell.path("killed")).has_variables_of(&whole));
}

#[test]
fn what_is_trained_is_evaluated_and_used() {
    let shell = Shell::new();
    zoo(&shell, SCHEDULES[0], "train --model lenet5 --dataset shapes --limit-train 1500 --limit-test 40 --epochs 2 --device cuda --out run -q").ok();
    let on_cpu = shell.zoo("eval run --limit-test 300 --tta --per-class --json --device cpu").json();
    for schedule in SCHEDULES {
        let on_gpu =
            zoo(&shell, schedule, "eval run --limit-test 300 --tta --per-class --json --device cuda").json();
        assert_eq!(
            (&on_gpu["n"], &on_gpu["top1"], &on_gpu["per_class"]),
            (&on_cpu["n"], &on_cpu["top1"], &on_cpu["per_class"])
        );
        assert!((on_gpu["loss"].as_f64().unwrap() - on_cpu["loss"].as_f64().unwrap()).abs() < 1e-5);
    }
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 8) as u8, (y * 8) as u8, 90]))
        .save(shell.path("a.png"))
        .unwrap();
    let on_cpu = shell.zoo("predict run a.png --logits --json --device cpu").json();
    let on_gpu = zoo(&shell, SCHEDULES[1], "predict run a.png --logits --json --device cuda").json();
    assert_eq!(on_cpu[0]["predictions"][0]["label"], on_gpu[0]["predictions"][0]["label"]);
    for mode in ["train", "infer"] {
        let line = format!(
            "bench --model cifar_resnet20 --mode {mode} --batch-size 2 --steps 2 --warmup 1 --device cuda --json"
        );
        let record = zoo(&shell, SCHEDULES[1], &line).json();
        assert_eq!((&record["device"], &record["mode"]), (&"cuda".into(), &mode.into()));
    }
}
