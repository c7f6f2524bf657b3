//! Trains, then evaluates, predicts and converts with what was trained.

use crate::command::{Done, Shell, bytes, fields};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A run that is over in a moment, and still learns: the classes are told apart by their colour alone.
const TRAIN: &str = "train --dataset folder --data-dir photos --model lenet5 --image-size 16 --num-classes 3 \
                     --epochs 8 --batch-size 6 --lr 0.02 --threads 1";

const CLASSES: [(&str, [u8; 3]); 3] =
    [("blue", [20, 30, 200]), ("green", [30, 190, 40]), ("red", [210, 30, 20])];

/// A picture of one colour with a little of a pattern, as PNG or, where the name says so, JPEG.
pub(crate) fn paint(path: &Path, colour: [u8; 3], seed: u32) {
    let picture = image::RgbImage::from_fn(20, 24, |x, y| {
        let noise = (x * 7 + y * 13 + seed * 31) % 40;
        image::Rgb(colour.map(|c| c.saturating_add(noise as u8)))
    });
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture.save(path).unwrap();
}

/// A folder of pictures, and the run `out` trained on them.
fn trained() -> Shell {
    let shell = Shell::new();
    for (class, colour) in CLASSES {
        for i in 0..6 {
            let ending = if i == 0 { "jpg" } else { "png" };
            paint(&shell.path(&format!("photos/train/{class}/{i}.{ending}")), colour, i);
        }
        for i in 10..12 {
            paint(&shell.path(&format!("photos/val/{class}/{i}.png")), colour, i);
        }
    }
    shell.zoo(&format!("{TRAIN} --out out --log-every 5")).ok();
    shell
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_is_recorded() {
    let shell = trained();
    let epoch_fields = [
        "elapsed_s",
        "epoch",
        "images_per_second",
        "lr",
        "step",
        "train_loss",
        "train_top1",
        "val_loss",
        "val_top1",
        "val_top5",
    ];
    let metrics = lines(&shell.path("out/metrics.jsonl"));
    let (epochs, steps): (Vec<_>, Vec<_>) = metrics.iter().partition(|line| line.get("epoch").is_some());
    assert_eq!((epochs.len(), steps.len()), (8, 4));
    assert!(epochs.iter().all(|line| fields(line) == epoch_fields));
    assert!(steps.iter().all(|line| fields(line) == ["loss", "lr", "step"]));
    let loss = |line: &Value| line["train_loss"].as_f64().unwrap();
    assert!(loss(epochs[7]) < loss(epochs[0]) / 2.0, "{metrics:?}");
    for file in ["config.toml", "best.safetensors", "last.safetensors", "state.safetensors"] {
        assert!(shell.path("out").join(file).is_file(), "{file}");
    }

    // The folder is refused for another run, and its settings give the same run again.
    let error = shell.zoo(&format!("{TRAIN} --out out")).error().to_string();
    assert!(error.contains("out holds a run already") && error.contains("--resume out"), "{error}");
    let again = shell.zoo("train --recipe out/config.toml --json").json();
    assert_eq!(again["dir"], "runs/lenet5-folder-1");
    assert_eq!((again["epoch"].as_u64(), again["finished"].as_bool()), (Some(8), Some(true)));
    assert!(epoch_fields.iter().all(|field| again.get(field).is_some()), "{again}");
    for file in ["best.safetensors", "last.safetensors"] {
        assert_eq!(
            bytes(&shell.path("out").join(file)),
            bytes(&shell.path("runs/lenet5-folder-1").join(file))
        );
    }
    let error = shell.zoo("train --resume out --lr 0.5").error().to_string();
    assert!(error.contains("lr was 0.02 and is now 0.5"), "{error}");
    let over = shell.zoo("train --resume --json").json();
    assert_eq!(over["best_val_top1"], again["best_val_top1"]);
}

/// The words at the end of a run are commands that work.
#[test]
fn a_run_says_what_to_do_next() {
    let shell = trained();
    let done = shell.zoo(&format!("{TRAIN} --out again"));
    let next = |verb: &str| -> Done {
        let line = done.ok().lines().find(|line| line.starts_with(verb)).unwrap();
        let words: Vec<&str> = line.split_whitespace().skip(2).collect();
        shell.command(words).output().unwrap().into()
    };
    assert!(next("evaluate").ok().contains("top-1"));
    assert!(next("predict").ok().contains("photos/val/blue/10.png"));
}

#[test]
fn eval_reports() {
    let shell = trained();
    let eval = shell.zoo("eval out --per-class --json").json();
    let expected = [
        "dataset",
        "elapsed_s",
        "images_per_second",
        "loss",
        "model",
        "n",
        "per_class",
        "split",
        "top1",
        "top5",
    ];
    assert_eq!(fields(&eval), expected);
    assert_eq!((eval["n"].as_u64(), eval["split"].as_str()), (Some(6), Some("test")));
    assert_eq!(eval["top5"], 100.0);
    let best = lines(&shell.path("out/metrics.jsonl"));
    let best = best.iter().filter_map(|line| line["val_top1"].as_f64()).fold(0.0, f64::max);
    assert_eq!(eval["top1"], best);
    let classes: Vec<&str> =
        eval["per_class"].as_array().unwrap().iter().map(|class| class["class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["blue", "green", "red"]);

    // Other views of the same images give other logits.
    let views = shell.zoo("eval out --tta --per-class --json").json();
    assert_eq!((fields(&views), &views["n"]), (fields(&eval), &eval["n"]));
    assert_ne!(views["loss"], eval["loss"]);

    let train = shell.zoo("eval out/last.safetensors --split train --json").json();
    assert_eq!((train["n"].as_u64(), train.get("per_class")), (Some(18), None));
    // Foreign weights are the same weights without a description.
    shell.zoo("convert out/best.safetensors bare.safetensors").ok();
    let config: toml::Table = fs::read_to_string(shell.path("out/config.toml")).unwrap().parse().unwrap();
    let list = |key: &str| -> String {
        let values = config[key].as_array().unwrap().iter().map(ToString::to_string);
        values.collect::<Vec<_>>().join(",")
    };
    let foreign = shell.zoo(&format!(
        "eval --model lenet5 --weights bare.safetensors --image-size 16 --dataset folder --data-dir photos \
         --mean {} --std {} --json",
        list("mean"),
        list("std"),
    ));
    assert_eq!((&foreign.json()["top1"], &foreign.json()["loss"]), (&eval["top1"], &eval["loss"]));
    let error = shell.zoo("eval out --dataset shapes").error().to_string();
    assert!(error.contains("cannot evaluate on shapes: the network does not know the classes "), "{error}");
}

/// Both forms of SqueezeNet 1.1 have the same shapes, so that weights alone do not tell which of them was trained.
#[test]
fn a_network_is_evaluated_in_the_form_that_was_trained() {
    let shell = Shell::new();
    let network = "--model squeezenet1_1 --dataset shapes";
    let train =
        format!("train {network} --epochs 1 --limit-train 64 --limit-test 32 --batch-size 16 --lr 0.01");
    let trained = shell.zoo(&format!("{train} --stem imagenet --out out --json")).json();
    // How far the loss of a network is from that of the one that was trained.
    let off = |words: &str| {
        let eval = shell.zoo(&format!("eval {words} --limit-test 32 --json")).json();
        (eval["loss"].as_f64().unwrap() - trained["val_loss"].as_f64().unwrap()).abs()
    };
    assert!(off("out/last.safetensors") < 1e-6);

    // What is converted still knows it, and may be told otherwise.
    shell.zoo("convert out/last.safetensors converted.safetensors").ok();
    let converted = format!("{network} --weights converted.safetensors");
    assert!(off(&converted) < 1e-6);
    assert!(off(&format!("{converted} --stem cifar")) > 1e-3);
}

#[test]
fn predict_answers_for_every_picture() {
    let shell = trained();
    let answers =
        shell.zoo("predict out photos/val/red/10.png photos/val/blue/11.png --logits --json").json();
    let answers = answers.as_array().unwrap();
    assert_eq!(fields(&answers[0]), ["logits", "path", "predictions"]);
    for (answer, label) in answers.iter().zip(["red", "blue"]) {
        let predictions = answer["predictions"].as_array().unwrap();
        assert_eq!(fields(&predictions[0]), ["index", "label", "probability"]);
        assert_eq!((predictions.len(), predictions[0]["label"].as_str()), (3, Some(label)));
        let probability = |prediction: &Value| prediction["probability"].as_f64().unwrap();
        assert!((predictions.iter().map(probability).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(predictions.is_sorted_by(|a, b| probability(a) >= probability(b)));
        let logits: Vec<f64> =
            answer["logits"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let first = predictions[0]["index"].as_u64().unwrap() as usize;
        assert!((logits[first].exp() / sum - probability(&predictions[0])).abs() < 1e-6);
    }
    let best = shell.zoo("predict out photos/val/red/10.png --topk 1 --json").json();
    assert_eq!(best[0]["predictions"].as_array().unwrap().len(), 1);
    assert!(best[0].get("logits").is_none());
    let text = shell.zoo("predict out photos/val/red/10.png");
    assert!(text.ok().starts_with("photos/val/red/10.png\n  red "), "{}", text.stdout);
}

#[test]
fn pictures_that_cannot_be_read_do_not_stop_the_others() {
    let shell = trained();
    shell.write("text.jpg", "this is no picture");
    shell.write("empty.png", "");
    let whole = bytes(&shell.path("photos/val/red/10.png"));
    shell.write("cut.png", &whole[..whole.len() / 2]);
    shell.write("bomb.png", bomb());
    let bad = ["text.jpg", "empty.png", "cut.png", "bomb.png", "missing.png", "photos"];
    let line = format!("predict out {} photos/val/red/10.png --json", bad.join(" "));
    let done = shell.zoo(&line);
    assert_eq!(done.code, Some(1));
    assert_eq!(done.stderr, "error: 6 of 7 pictures could not be read\n");
    let answers: Value = serde_json::from_str(&done.stdout).unwrap();
    for (answer, path) in answers.as_array().unwrap().iter().zip(bad) {
        assert_eq!(fields(answer), ["error", "path"]);
        assert_eq!(answer["path"], path);
        let error = answer["error"].as_str().unwrap();
        assert!(!error.is_empty() && !error.contains('\n') && !error.contains(path), "{error}");
    }
    assert_eq!(answers[6]["predictions"][0]["label"], "red");
}

/// A PNG of a few bytes that says it has 10 billion pixels.
fn bomb() -> Vec<u8> {
    let mut png = vec![];
    image::GrayImage::new(1, 1)
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .unwrap();
    png[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    // The chunk's checksum covers its type and its content.
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[test]
fn pictures_that_cannot_be_read_are_left_out_of_training() {
    let shell = trained();
    shell.write("photos/train/red/text.jpg", "this is no picture");
    let done = shell.zoo(&format!("{TRAIN} --out with-damage"));
    done.ok();
    let warnings: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 1, "{}", done.stderr);
    assert!(warnings[0].contains("photos/train/red/text.jpg"), "{}", warnings[0]);
    let verified = shell.zoo("data verify folder --data-dir photos");
    assert_eq!(verified.code, Some(1));
    assert!(verified.stderr.contains("1 of 25 files"), "{}", verified.stderr);
}

#[test]
fn weights_are_converted_if_they_are_those_of_the_model() {
    let shell = trained();
    let line = "convert out/best.safetensors copy.safetensors --model lenet5 --json";
    let error = shell.zoo(line);
    // A network of linear layers for images of 16 pixels has other shapes than that for the published 28.
    assert_eq!(error.code, Some(1), "{}", error.stderr);
    assert!(!shell.path("copy.safetensors").exists());
    let found: Value = serde_json::from_str(&error.stdout).unwrap();
    assert_eq!(fields(&found), ["missing", "model", "params", "tensors", "unexpected"]);
    shell.zoo("train --model cifar_resnet20 --dataset shapes --epochs 1 --limit-train 16 --limit-test 8 --batch-size 8 --out resnet").ok();
    let converted =
        shell.zoo("convert resnet/last.safetensors copy.safetensors --model cifar_resnet20 --json").json();
    assert_eq!(converted["params"], 269_722);
    assert_eq!(
        (&converted["missing"], &converted["unexpected"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    let other = shell.zoo("convert copy.safetensors other.safetensors --model cifar_resnet32 --json");
    assert_eq!(other.code, Some(1));
    let other: Value = serde_json::from_str(&other.stdout).unwrap();
    assert!(other["missing"].as_array().unwrap().len() > 10, "{other}");
    assert!(!shell.path("other.safetensors").exists());
}

/// Grey pictures of two new classes, on what a network has learnt from coloured ones of three: only the head is
/// trained, and what comes out knows its classes.
#[test]
fn a_network_learns_other_classes() {
    let shell = trained();
    for (class, grey) in [("dark", 20), ("light", 180)] {
        for (split, range) in [("train", 0..6), ("val", 10..12)] {
            range.for_each(|i| paint(&shell.path(&format!("shades/{split}/{class}/{i}.png")), [grey; 3], i));
        }
    }
    let line = "train --model lenet5 --dataset folder --data-dir shades --in-chans 1 --weights out --freeze backbone \
                --mixup 0.2 --cutmix 1 --epochs 12 --batch-size 6 --lr 0.05 --threads 1 --out shades-run";
    let done = shell.zoo(line);
    let text = done.ok();
    let told =
        "weights    out: first convolution adapted from 3 to 1 channels, new head for 2 classes instead of 3";
    for part in [told, "of them frozen, 2 classes", "input      1×16×16", "mixup 0.2, CutMix 1"] {
        assert!(text.contains(part), "not '{part}' in {text}");
    }
    let weights = |file: &str| zoo::weights::read(&shell.path(file)).unwrap().tensors;
    let (before, after) = (weights("out/best.safetensors"), weights("shades-run/last.safetensors"));
    let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for name in ["conv2.weight", "conv2.bias", "fc1.weight", "fc2.bias"] {
        assert_eq!(values(&before[name]), values(&after[name]), "{name}");
    }
    let answers =
        shell.zoo("predict shades-run shades/val/dark/10.png shades/val/light/11.png --json").json();
    for (answer, label) in answers.as_array().unwrap().iter().zip(["dark", "light"]) {
        assert_eq!(answer["predictions"][0]["label"], label, "{answer}");
    }
    let error =
        shell.zoo("train --model lenet5 --dataset folder --data-dir shades --pretrained").error().to_string();
    assert!(error.contains("there are no published weights for lenet5"), "{error}");
}
