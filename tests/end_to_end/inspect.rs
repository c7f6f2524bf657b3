//! What the commands print that need no trained model: list, summary, bench, data.

use crate::command::{Done, Shell, bytes, fields};
use serde_json::Value;

#[test]
fn list_has_every_field_of_every_model() {
    let list = Shell::new().zoo("list --json").json();
    let models = list.as_array().unwrap();
    assert!(models.len() >= 19, "{}", models.len());
    for model in models {
        let expected = ["family", "input", "macs", "name", "num_classes", "params", "weights", "year"];
        assert_eq!(fields(model), expected);
        assert!(model["macs"].as_u64() > Some(0) && model["year"].as_u64() > Some(1980), "{model}");
        assert!(model["weights"].is_array() && model["input"].as_array().unwrap().len() == 3, "{model}");
    }
}

#[test]
fn list_takes_wildcards() {
    let shell = Shell::new();
    let names = |pattern: &str| -> Vec<String> {
        let list = shell.command(["list", pattern, "--json"]).output().unwrap();
        let list: Value = serde_json::from_slice(&list.stdout).unwrap();
        list.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().into()).collect()
    };
    assert_eq!(names("resnet?8"), ["resnet18"]);
    assert!(names("cifar_*").len() == 10 && names("cifar_*").iter().all(|name| name.starts_with("cifar_")));
    assert!(names("nothing").is_empty());
    let nothing = shell.zoo("list nothing");
    assert!(nothing.ok().is_empty() && nothing.stderr.contains("no model matches 'nothing'"));
}

#[test]
fn summary_adds_up() {
    let summary = Shell::new().zoo("summary resnet18 --json").json();
    assert_eq!(fields(&summary), ["layers", "macs", "model", "params"]);
    assert_eq!(summary["params"], 11_689_512);
    assert_eq!(summary["macs"], 1_814_073_344);
    let layers = summary["layers"].as_array().unwrap();
    for key in ["params", "macs"] {
        let sum: u64 = layers.iter().map(|layer| layer[key].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), summary[key].as_u64(), "{key}");
    }
    assert_eq!(fields(&layers[0]), ["kind", "macs", "name", "output", "params", "receptive_field"]);
    assert_eq!(layers[0]["output"], serde_json::json!([64, 112, 112]));
    assert_eq!(layers[0]["receptive_field"], 7);
}

#[test]
fn summary_takes_another_shape() {
    let small =
        Shell::new().zoo("summary resnet18 --image-size 32 --num-classes 10 --in-chans 1 --json").json();
    assert_eq!(small["layers"][0]["output"], serde_json::json!([64, 32, 32]));
    // 3×3 instead of 7×7, one channel instead of three, 10 classes instead of 1,000.
    let expected = 11_689_512 - 64 * (7 * 7 * 3 - 3 * 3) - 513 * 990;
    assert_eq!(small["params"], expected);
}

#[test]
fn summary_says_which_form_it_shows() {
    let heading = |of: &str| {
        let summary = Shell::new().zoo(&format!("summary {of}"));
        summary.ok().lines().next().unwrap_or_default().to_string()
    };
    let small = heading("squeezenet1_1 --image-size 32");
    assert_eq!(small, "squeezenet1_1 on images of 3×32×32, 1,000 classes, in its form for small images");
    assert_eq!(heading("squeezenet1_1"), "squeezenet1_1 on images of 3×224×224, 1,000 classes");
}

/// The algorithm of each convolution depends on its shape, and `--strict-f32` leaves the less exact ones out.
#[test]
fn bench_explains_its_choices() {
    let algorithms = |more: &str| -> Vec<String> {
        let layers = format!("bench --model cifar_resnet20 --batch-size 128 --explain --json {more}");
        let layers = Shell::new().zoo(&layers).json()["layers"].clone();
        layers.as_array().unwrap().iter().map(|layer| layer["algorithm"].as_str().unwrap().into()).collect()
    };
    let (usual, strict) = (algorithms(""), algorithms("--strict-f32"));
    let count = |algorithms: &[String], name| algorithms.iter().filter(|a| *a == name).count();
    // Three stages of six, but for the first of two, which is strided.
    assert_eq!([count(&usual, "winograd f4x4"), count(&usual, "implicit gemm")], [16, 4]);
    assert_eq!([count(&strict, "winograd f2x2"), count(&strict, "implicit gemm")], [5, 15]);
}

/// Everything that is printed for people fits in 100 columns.
#[test]
fn summaries_fit_in_the_terminal() {
    let shell = Shell::new();
    let list = shell.zoo("list --json").json();
    let names = list.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_string());
    for line in names.map(|name| format!("summary {name}")).chain(["list".into(), "data list".into()]) {
        for printed in shell.zoo(&line).ok().lines() {
            assert!(printed.chars().count() <= 100, "{line}: {printed}");
        }
    }
}

#[test]
fn bench_measures() {
    for mode in ["train", "infer"] {
        let line = format!(
            "bench --model lenet5 --mode {mode} --batch-size 4 --steps 3 --warmup 1 --threads 1 --json"
        );
        let bench = Shell::new().zoo(&line).json();
        let expected = [
            "batch_size",
            "device",
            "dtype",
            "image_size",
            "images_per_second",
            "mode",
            "model",
            "peak_memory_mb",
            "step_ms",
            "threads",
        ];
        assert_eq!(fields(&bench), expected);
        assert_eq!((bench["mode"].as_str(), bench["threads"].as_u64()), (Some(mode), Some(1)));
        let step = |key: &str| bench["step_ms"][key].as_f64().unwrap();
        assert!(0.0 < step("min") && step("min") <= step("median") && step("median") <= step("max"));
        let rate = bench["images_per_second"].as_f64().unwrap();
        assert!((rate * step("median") / 4e3 - 1.0).abs() < 1e-9, "{bench}");
        assert_eq!(bench["peak_memory_mb"].is_f64(), cfg!(target_os = "linux"));
    }
}

#[test]
fn data_list_has_what_train_takes() {
    let list = Shell::new().zoo("data list --json").json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|set| set["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cifar10", "cifar100", "mnist", "fashion-mnist", "folder", "shapes", "text"]);
}

#[test]
fn data_show_draws_a_row_per_class() {
    let shell = Shell::new();
    let shown = shell.zoo("data show shapes --per-class 3 --augment --out sheet.png --json").json();
    let sheet = image::open(shell.path("sheet.png")).unwrap();
    assert_eq!(shown["width"], sheet.width());
    assert_eq!(shown["height"], sheet.height());
    assert_eq!(shown["classes"].as_array().unwrap().len(), 10);
    // Ten rows of three tiles.
    assert!(sheet.height() > 3 * sheet.width(), "{} x {}", sheet.width(), sheet.height());
    shell.zoo("data show --dataset shapes --per-class 3 --out plain.png").ok();
    assert_ne!(bytes(&shell.path("sheet.png")), bytes(&shell.path("plain.png")));
}

#[test]
fn data_verify_judges_each_file() {
    let shell = Shell::new();
    shell.write("cifar/test_batch.bin", vec![0; 3073 * 10_000]);
    shell.write("cifar/data_batch_1.bin", [1, 2, 3]);
    let done = shell.zoo("data verify cifar10 --data-dir cifar --json");
    assert_eq!(done.code, Some(1));
    assert_eq!(done.stderr, "error: 6 of 6 files of cifar10 cannot be used\n");
    let verified: Value = serde_json::from_str(&done.stdout).unwrap();
    let verdict = |name: &str| {
        let file = verified["files"].as_array().unwrap().iter().find(|file| file["name"] == name).unwrap();
        file["verdict"].as_str().unwrap().to_string()
    };
    assert_eq!(verdict("test_batch.bin"), "wrong checksum");
    assert_eq!(verdict("data_batch_1.bin"), "wrong size, expected 30,730,000");
    assert_eq!(verdict("data_batch_2.bin"), "missing");
}

/// A reader that has seen enough is no failure; a full disk is one.
#[cfg(unix)]
#[test]
fn stdout_may_close_but_not_fail() {
    use std::process::Stdio;
    let shell = Shell::new();
    let mut child = shell.command(["list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        let done: Done = shell.command(["list"]).stdout(full).output().unwrap().into();
        assert!(done.error().starts_with("cannot write to stdout: "), "{}", done.stderr);
    }
}
