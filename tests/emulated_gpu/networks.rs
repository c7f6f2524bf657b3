//! A training of one network of every family.

use crate::command::Shell;
use crate::gpu::{SCHEDULES, same_in};
use std::collections::BTreeSet;

/// Those of [`NETWORKS`] that every run of the tests trains. All of them take a quarter of an hour on two cores:
/// `check.sh all`.
pub(crate) const QUICK: [&str; 7] = [
    "airbench94",
    "alexnet",
    "cifar_resnet20",
    "densenet_bc_100_12",
    "efficientnet_b0",
    "googlenet",
    "inception_bn",
];

/// A network of each family, and what makes its steps small. The Inceptions normalise maps of one pixel,
/// for which two images are too few: batch-norm then gives plus and minus one, whichever way rounding falls.
pub(crate) const NETWORKS: &[(&str, &str)] = &[
    ("airbench94", ""),
    ("alexnet", "--image-size 64"),
    ("cifar_resnet20", ""),
    ("densenet_bc_100_12", ""),
    ("efficientnet_b0", ""),
    ("googlenet", ""),
    ("inception_bn", "--image-size 64"),
    ("inception_resnet_v2", "--image-size 75 --batch-size 4 --limit-train 8"),
    ("inception_v3", "--image-size 75 --batch-size 8 --limit-train 16"),
    ("inception_v4", "--image-size 75 --batch-size 4 --limit-train 8"),
    ("lenet5", ""),
    ("mlp", ""),
    ("mnasnet1_0", ""),
    ("mobilenet_v1_025", ""),
    ("mobilenet_v2_x0_25", ""),
    ("mobilenet_v3_small", ""),
    ("nin", ""),
    ("preact_resnet18", ""),
    ("regnet_y_400mf", ""),
    ("resnest50", ""),
    ("resnet18", ""),
    ("resnext29_32x4d", ""),
    ("se_resnet50", ""),
    ("shufflenet_v1", ""),
    ("shufflenet_v2_x0_5", ""),
    ("squeezenet1_1", "--image-size 64"),
    ("textcnn", ""),
    ("vgg11", ""),
    ("wide_resnet50_2", ""),
    ("wrn_16_4", ""),
    ("zfnet", "--image-size 64"),
];

fn families_train_in(quick: bool, dtype: &str, schedules: &[&str], tolerance: (f64, f64)) {
    let families: BTreeSet<String> = {
        let list = Shell::new().zoo("list --json").json();
        list.as_array().unwrap().iter().map(|model| model["family"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(families.len(), NETWORKS.len(), "a network of every family: {families:?}");
    for (network, options) in NETWORKS.iter().filter(|(network, _)| QUICK.contains(network) == quick) {
        let data = if *network == "textcnn" { "--data-dir reviews.tsv" } else { "--dataset shapes" };
        let batches = if options.contains("--batch-size") { "" } else { "--batch-size 2 --limit-train 4" };
        let line = format!(
            "--model {network} {data} {batches} --limit-test 2 --epochs 1 --lr 1e-3 --threads 1 \
             --dtype {dtype} {options}"
        );
        same_in(schedules, &line, tolerance);
    }
}

#[test]
fn families_train_in_f32() {
    families_train_in(true, "f32", &SCHEDULES[..2], (2e-3, 5e-2));
}

#[test]
fn families_train_in_bf16() {
    families_train_in(true, "bf16", &SCHEDULES[2..3], (5e-2, 3e-1));
}

#[test]
fn families_train_in_f16() {
    families_train_in(true, "f16", &SCHEDULES[3..], (5e-2, 3e-1));
}

#[test]
#[ignore = "takes minutes; check.sh all"]
fn other_families_train_in_f32() {
    families_train_in(false, "f32", &SCHEDULES[..2], (2e-3, 5e-2));
}

#[test]
#[ignore = "takes minutes; check.sh all"]
fn other_families_train_in_bf16() {
    families_train_in(false, "bf16", &SCHEDULES[2..3], (5e-2, 3e-1));
}

#[test]
#[ignore = "takes minutes; check.sh all"]
fn other_families_train_in_f16() {
    families_train_in(false, "f16", &SCHEDULES[3..], (5e-2, 3e-1));
}
