//! What `--device metal` would run, recorded on the emulated GPU.
//!
//! On Metal every operator takes its reference path, through candle's own kernels. With `ZOO_INSTRUCTION_SET=reference`
//! they take it on the emulated GPU, too, where each kernel of candle has a name and a type; so what a training and an
//! evaluation launch is compared with `metal.txt`, the list of what candle implements for Metal.

use crate::command::Shell;
use crate::gpu::{command, shell_with_sentences};
use std::collections::BTreeSet;

/// `kernel_type` of everything that Metal has.
fn implemented() -> BTreeSet<String> {
    let lines = include_str!("metal.txt").lines().filter(|line| !line.starts_with('#'));
    let all = lines.flat_map(|line| {
        let (kernel, types) = line.split_once(": ").unwrap();
        types.split(' ').map(move |of| format!("{kernel}_{of}"))
    });
    all.collect()
}

/// `kernel_type` of all that `zoo LINE` launches.
fn launched(shell: &Shell, line: &str) -> BTreeSet<String> {
    let report = shell.path("report.json");
    let _ = std::fs::remove_file(&report);
    let options = format!("report={}", report.display());
    let done = command(shell, &options, line).env("ZOO_INSTRUCTION_SET", "reference").output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let names = report["counts"].as_object().unwrap().keys();
    let kernels = names.filter_map(|name| match name.strip_prefix("cuBLAS ") {
        Some(of) => Some(format!("cuBLAS_{of}")),
        None => name.strip_prefix("kernel ").map(ToOwned::to_owned),
    });
    kernels.collect()
}

/// What of `launched` is not among what is implemented.
fn lacking(launched: &BTreeSet<String>, implemented: &BTreeSet<String>) -> Vec<String> {
    launched.difference(implemented).cloned().collect()
}

/// Networks that have every operator between them. GoogLeNet's loss is NaN on this path here, at 32 pixels, which is not
/// understood: on the CPU it is not.
const NETWORKS: [(&str, &str); 9] = [
    ("airbench94", ""),
    ("densenet_bc_100_12", ""),
    ("efficientnet_b0", ""),
    ("mobilenet_v3_small", ""),
    ("nin", ""),
    ("resnest50", ""),
    ("shufflenet_v1", ""),
    ("textcnn", ""),
    ("zfnet", "--image-size 64"),
];

#[test]
fn metal_implements_what_a_training_launches() {
    let implemented = implemented();
    let mut needed = BTreeSet::new();
    for (network, options) in &NETWORKS {
        let shell = shell_with_sentences();
        let data = if *network == "textcnn" { "--data-dir reviews.tsv" } else { "--dataset shapes" };
        let batches = if options.contains("--batch-size") { "" } else { "--batch-size 2 --limit-train 2" };
        let line = format!(
            "train --model {network} {data} {batches} --limit-test 2 --epochs 1 --lr 1e-3 --threads 1 \
             --clip-grad 1 --ema 0.9 --label-smoothing 0.1 --device cuda --out run -q {options}"
        );
        let launched = launched(&shell, &line);
        assert_eq!(lacking(&launched, &implemented), [""; 0], "{network} on Metal");
        needed.extend(launched);
    }
    // Each of these, once missing, would be found.
    for kernel in &needed {
        let without: BTreeSet<String> = implemented.iter().filter(|name| *name != kernel).cloned().collect();
        assert_eq!(lacking(&needed, &without), std::slice::from_ref(kernel));
    }
    assert!(needed.len() > 15, "{needed:?}");
}

#[test]
fn metal_implements_what_settings_launch() {
    let implemented = implemented();
    let base =
        "--dataset shapes --limit-train 8 --limit-test 4 --batch-size 4 --epochs 1 --lr 1e-3 --threads 1";
    for options in [
        "--model lenet5 --dtype bf16",
        "--model cifar_resnet20 --dtype f16",
        "--model lenet5 --mixup 0.2 --cutmix 1 --grad-accum 2",
        "--model cifar_resnet20 --freeze backbone --augment standard",
        "--model caffe_lenet --layer-decay 0.5 --dropout 0.3 --lookahead 0.5",
    ] {
        let line = format!("train {options} {base} --device cuda --out run -q");
        let launched = launched(&Shell::new(), &line);
        assert_eq!(lacking(&launched, &implemented), [""; 0], "{options} on Metal");
    }
}
