//! Runs that start from weights, by the plain command.

use crate::command::{Shell, bytes};

/// A network without batch-norm that has learnt the ten kinds of figures, and its accuracy on 1,000 others.
fn learnt() -> (Shell, f64) {
    let shell = Shell::new();
    let line =
        "train --model lenet5 --dataset shapes --limit-test 1000 --epochs 8 --threads 2 --out base --json";
    let top1 = shell.zoo(line).json()["best_val_top1"].as_f64().unwrap();
    assert!(top1 > 55.0, "{top1}");
    (shell, top1)
}

/// Best and last accuracy of a run from these weights on few figures.
fn fine_tuned(shell: &Shell, options: &str, out: &str) -> [f64; 2] {
    let line = format!(
        "train --model lenet5 --dataset shapes --weights base --limit-train 300 --limit-test 1000 --threads 2 \
         --json --out {out} {options}"
    );
    let record = shell.zoo(&line).json();
    ["best_val_top1", "val_top1"].map(|key| record[key].as_f64().unwrap())
}

/// What is fine-tuned plainly stays as good as it was where it knows the classes, and is at least what its features
/// allow to a new head where it does not, for few epochs and for many.
#[test]
fn the_plain_command_ruins_nothing() {
    let (shell, start) = learnt();
    for (options, out) in [("", "same"), ("--epochs 3", "same-3"), ("--epochs 25", "same-25")] {
        let [best, last] = fine_tuned(&shell, options, out);
        assert!(best > start - 1.0 && last > start - 2.0, "{options}: {best} and {last} from {start}");
    }
    // A head for one class more is a new one.
    let [probe, _] = fine_tuned(&shell, "--num-classes 11 --freeze backbone", "probe");
    assert!(probe > start - 8.0, "{probe} from {start}");
    let [best, last] = fine_tuned(&shell, "--num-classes 11", "new-head");
    assert!(best > probe - 1.5 && last > probe - 2.5, "{best} and {last}, the probe {probe}");
}

/// The choice is told with its reasons and saved, what is given goes before it, and a run made again from what was saved is
/// the same.
#[test]
fn what_is_chosen_is_told_and_saved_and_gives_way() {
    let (shell, _) = learnt();
    let line =
        "train --model lenet5 --dataset shapes --weights base --limit-train 300 --limit-test 100 --threads 1";
    let text = shell.zoo(&format!("{line} --num-classes 11 --out plain")).ok().to_string();
    let told = text.lines().find(|line| line.starts_with("fine-tuning defaults: ")).unwrap_or_default();
    for part in
        ["16 for 300 images", "10 epochs", "rate 0.05 for a new head, without batch-norm", "0.03 for the"]
    {
        assert!(told.contains(part), "not '{part}' in {text}");
    }
    let saved = std::fs::read_to_string(shell.path("plain/config.toml")).unwrap();
    for line in ["lr = 0.05", "batch_size = 16", "epochs = 10", "backbone_lr_scale = 0.03", "clip_grad = 1.0"]
    {
        assert!(saved.lines().any(|found| found == line), "not '{line}' in {saved}");
    }
    shell.zoo("train --recipe plain/config.toml --out again").ok();
    assert!(bytes(&shell.path("again/last.safetensors")) == bytes(&shell.path("plain/last.safetensors")));

    shell.write("recipe.toml", "epochs = 2\nema = 0.5\nlr = 0.5\n");
    let text = shell.zoo(&format!("{line} --recipe recipe.toml --lr 0.004 --out given")).ok().to_string();
    assert!(text.contains("2 epochs of") && text.contains("learning rate 0.004,"), "{text}");
    let saved = std::fs::read_to_string(shell.path("given/config.toml")).unwrap();
    for line in ["lr = 0.004", "epochs = 2", "ema = 0.5", "batch_size = 16"] {
        assert!(saved.lines().any(|found| found == line), "not '{line}' in {saved}");
    }
    // Without weights nothing of it applies.
    let scratch =
        "train --model lenet5 --dataset shapes --limit-train 64 --limit-test 16 --epochs 1 --out scratch";
    let text = shell.zoo(scratch).ok().to_string();
    assert!(!text.contains("fine-tuning") && text.contains("learning rate 0.02,"), "{text}");
}
