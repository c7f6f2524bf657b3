//! What a person gets wrong: each ends in one readable line and its exit code.

use crate::command::{Shell, bytes};
use std::path::Path;

/// Options that make a run as short as it can be.
const TINY: &str = "--epochs 1 --batch-size 16 --limit-train 32 --limit-test 16 --threads 1";

/// Runs a command line that must fail, in a folder with some files that are not what they seem.
#[track_caller]
fn fails(line: &str, parts: &[&str]) {
    let shell = Shell::new();
    shell.write("text.jpg", "this is no picture");
    shell.write("text.safetensors", "these are no weights");
    shell.write("recipe.toml", "epochs = 3\nlearning_rate = 0.1\n");
    let done = shell.zoo(line);
    let error = done.error();
    for part in parts {
        assert!(error.contains(part), "`zoo {line}` does not say '{part}' but: {error}");
    }
    assert!(done.stdout.is_empty(), "`zoo {line}` printed {}", done.stdout);
}

#[track_caller]
fn wrong_usage(line: &str, part: &str) {
    let done = Shell::new().zoo(line);
    assert_eq!(done.code, Some(2), "`zoo {line}`: {}", done.stderr);
    assert!(done.stderr.contains(part), "`zoo {line}` does not say '{part}' but: {}", done.stderr);
    assert!(done.stdout.is_empty());
}

#[test]
fn wrong_usage_is_2() {
    wrong_usage("", "Usage: zoo");
    wrong_usage("fly", "unrecognized subcommand 'fly'");
    wrong_usage("train", "--model");
    wrong_usage("train --model lenet5 --batch-size 0", "a whole number of at least 1");
    wrong_usage("train --model lenet5 --epochs many", "a whole number of at least 1");
    wrong_usage("train --model lenet5 --schedule zigzag", "onecycle");
    wrong_usage("train --model lenet5 --resume x --out y", "cannot be used with");
    wrong_usage("train --model lenet5 --lr fast", "expected a number");
    wrong_usage("train --model lenet5 --weights file --pretrained", "cannot be used with");
    wrong_usage("train --model lenet5 --stem wide", "[possible values: auto, cifar, imagenet]");
    wrong_usage("bench", "--model");
    wrong_usage("bench --model lenet5 --threads 0", "--threads");
    wrong_usage("bench --model lenet5 --device gpu", "expected auto, cpu, cuda, cuda:N or metal");
    wrong_usage("bench --model lenet5 --dtype f8", "[possible values: f32, bf16, f16]");
    wrong_usage("eval", "RUN_OR_CHECKPOINT");
    wrong_usage("eval --weights file", "--model");
    wrong_usage("predict run", "there is no picture to predict");
    wrong_usage("data", "Usage: zoo data");
    wrong_usage("data verify", "DATASET");
}

#[test]
fn unknown_models_are_answered_with_the_closest() {
    for line in [
        "summary resnet19",
        "train --model resnet19",
        "bench --model resnet19",
        "convert text.safetensors out.safetensors --model resnet19",
        "eval --model resnet19 --weights text.safetensors --dataset shapes",
        "predict --model resnet19 --weights text.safetensors text.jpg",
    ] {
        fails(line, &["unknown model 'resnet19'", "resnet18"]);
    }
}

#[test]
fn unknown_data_sets_are_answered_with_all() {
    let known = "cifar10, cifar100, mnist, fashion-mnist, folder, shapes";
    fails("train --model lenet5 --dataset cifar", &["unknown data set 'cifar'", known]);
    fails("data fetch cifar", &["unknown data set 'cifar'", known]);
    fails("data show cifar", &["unknown data set 'cifar'", known]);
    fails("data verify cifar --data-dir .", &["unknown data set 'cifar'", known]);
}

#[test]
fn devices_that_this_build_lacks_are_named() {
    fails("bench --model lenet5 --device cuda:1", &["no CUDA support", "--features cuda", "--device cpu"]);
    fails("train --model lenet5 --dataset shapes --device metal", &["no Metal support", "--device cpu"]);
    fails("bench --model lenet5 --dtype f16", &["f16 is for GPUs", "--dtype bf16"]);
}

#[test]
fn images_of_a_wrong_size_are_refused() {
    fails("summary lenet5 --image-size 4", &["lenet5 cannot take images of 4x4 pixels"]);
    fails("bench --model caffe_lenet --image-size 2", &["2x2"]);
    fails(&format!("train --model lenet5 --dataset shapes --image-size 4 {TINY}"), &["4x4"]);
}

/// What cannot be had in one piece is refused by the system; what it lends too freely no program hears of.
#[test]
fn images_that_do_not_fit_in_memory_are_refused() {
    fails("bench --model lenet5 --batch-size 1000000000000", &["no memory", "smaller images or batches"]);
    fails("summary mlp --image-size 1000000", &["no memory", "smaller images or batches"]);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let train = |options: &str, parts: &[&str]| {
        fails(&format!("train --model lenet5 --dataset shapes {TINY} {options}"), parts);
    };
    train("--lr -1", &["lr: ", "-1"]);
    train("--lr nan", &["lr: "]);
    train("--momentum 1.5", &["momentum: ", "1.5"]);
    train("--label-smoothing -0.1", &["label_smoothing: "]);
    train("--val-fraction 1", &["val_fraction: "]);
    train("--mean 0.5 --std 0.5", &["mean: ", "3 channels"]);
    train("--std 0,0,0", &["std: ", "above 0"]);
    train("--num-classes 3", &["num_classes: ", "10 classes"]);
    train("--freeze nothing.*", &["nothing.*"]);
    train("--freeze *", &["freeze: ", "nothing to train"]);
    train("--mixup -1", &["mixup: ", "-1"]);
    train("--cutmix nan", &["cutmix: "]);
    train("--crop-scale 1", &["crop_scale: must be above 0 and below 1"]);
    train("--layer-decay 0", &["layer_decay: ", "above 0"]);
    train("--backbone-lr-scale -1", &["backbone_lr_scale: ", "-1"]);
    train("--resize 16", &["resize", "32", "16"]);
    train("--in-chans 2", &["2"]);
    train("--recipe recipe.toml", &["recipe.toml: ", "learning_rate"]);
    train("--recipe missing.toml", &["missing.toml"]);
    train("--weights missing.pth", &["missing.pth"]);
    train("--weights text.safetensors", &["text.safetensors: not a weight file"]);
}

#[test]
fn a_run_that_did_not_start_leaves_no_folder() {
    let shell = Shell::new();
    shell.zoo(&format!("train --model lenet5 --dataset shapes {TINY} --freeze nothing")).error();
    shell.zoo(&format!("train --model lenet5 --dataset mnist --data-dir nowhere {TINY}")).error();
    assert_eq!(std::fs::read_dir(shell.path("runs")).unwrap().count(), 0);
}

#[test]
fn divergence_names_step_rate_and_checkpoint() {
    let line = format!(
        "train --model lenet5 --dataset shapes --lr 1e20 --schedule constant --warmup-epochs 0 {TINY}"
    );
    let shell = Shell::new();
    let done = shell.zoo(&line);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let error = done.stderr.lines().last().unwrap();
    for part in ["diverged", "step 2", "1.000e20", "no checkpoint"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn files_of_data_sets_are_checked() {
    fails("data show mnist --data-dir nowhere", &["folder of mnist not found; looked for nowhere"]);
    let shell = Shell::new();
    shell.write("cifar/data_batch_1.bin", vec![0; 3000]);
    let error = shell.zoo("train --model lenet5 --dataset cifar10 --data-dir cifar").error().to_string();
    assert!(error.contains("data_batch_1.bin") && error.contains("truncated"), "{error}");
    shell.write("mnist/train-images-idx3-ubyte", [0, 0, 8, 3, 0, 0]);
    shell.write("mnist/train-labels-idx1-ubyte", [0, 0, 8, 1, 0, 0]);
    let error = shell.zoo("train --model lenet5 --dataset mnist --data-dir mnist").error().to_string();
    assert!(error.contains("train-images-idx3-ubyte"), "{error}");
    std::fs::create_dir_all(shell.path("empty/train")).unwrap();
    let error = shell.zoo("train --model lenet5 --dataset folder --data-dir empty").error().to_string();
    assert!(error.contains("empty/train"), "{error}");
    let error = shell.zoo("train --model lenet5 --dataset folder").error().to_string();
    assert!(error.contains("--data-dir"), "{error}");
}

/// With the feature `hub` a download would be tried.
#[cfg(not(feature = "hub"))]
#[test]
fn without_files_the_ways_out_are_named() {
    fails("train --model lenet5 --dataset mnist", &["--data-dir", "--dataset shapes"]);
    fails("data fetch mnist -q", &["--data-dir", "--dataset shapes"]);
    fails("data fetch shapes", &["shapes is not downloaded"]);
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let shell = Shell::new();
    shell.write("file", "in the way");
    let line = format!("train --model lenet5 --dataset shapes --out file/run {TINY}");
    let error = shell.zoo(&line).error().to_string();
    assert!(error.contains("cannot create the folder of the run: file/run: "), "{error}");
    shell.write("runs", "in the way");
    let error = shell.zoo(&format!("train --model lenet5 --dataset shapes {TINY}")).error().to_string();
    assert!(error.contains("runs") && error.contains("--out"), "{error}");
    let error = shell.zoo("data show shapes --out file/sheet.png").error().to_string();
    assert!(error.contains("cannot write file/sheet.png"), "{error}");
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    fails("eval missing", &["missing"]);
    fails("eval .", &["no checkpoint; expected best.safetensors or last.safetensors"]);
    fails("eval text.safetensors", &["text.safetensors: not a weight file"]);
    fails("predict text.safetensors text.jpg", &["text.safetensors: not a weight file"]);
    fails("train --resume missing", &["cannot resume missing"]);
    fails("train --resume", &["there is no run in runs/", "--resume DIR"]);
    fails("convert missing.pth out.safetensors", &["missing.pth"]);
    fails("convert text.safetensors out.pth", &["safetensors only"]);
}

#[test]
fn truncated_weights_are_refused() {
    let shell = Shell::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/zoo/tests/fixtures/zip.pth");
    let whole = bytes(&fixture);
    for len in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
        shell.write("cut.pth", &whole[..len]);
        let error = shell.zoo("convert cut.pth out.safetensors").error().to_string();
        assert!(error.starts_with("cut.pth: "), "{error}");
        assert!(!shell.path("out.safetensors").exists());
    }
    shell.write("whole.pth", &whole);
    shell.zoo("convert whole.pth out.safetensors").ok();
    let whole = bytes(&shell.path("out.safetensors"));
    for len in [4, 20, whole.len() - 1] {
        shell.write("cut.safetensors", &whole[..len]);
        shell.zoo("convert cut.safetensors again.safetensors").error();
    }
}
