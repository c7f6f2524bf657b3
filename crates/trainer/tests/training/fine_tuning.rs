//! Starting from weights for another task: a new head, other channels, frozen layers, rates of their own.

use crate::tiny;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zoo_data::{Augment, Dataset, Meta, Split};
use zoo_trainer::{Checkpoint, Observer, Result, RunDir, RunInfo, StepInfo, TrainConfig, TrainData, Trainer};

type Weights = BTreeMap<String, Vec<f32>>;

fn weights(file: &Path) -> Weights {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let state = zoo::weights::read(file).unwrap();
    state.tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

/// A run of one epoch on the usual images, and its last checkpoint.
fn pretrained(folder: &Path, model: &str) -> (PathBuf, Weights) {
    let dir = folder.join("pretrained");
    let config = TrainConfig { epochs: 1, ..tiny::config(model) };
    tiny::finish(tiny::new_trainer(&config, &dir).unwrap()).unwrap();
    let file = dir.join(RunDir::LAST);
    let weights = weights(&file);
    (file, weights)
}

/// Images in [c, 8, 8] of `classes` of the usual classes, under names of their own.
fn other_data(c: usize, classes: usize) -> TrainData {
    let part = |split: Split, n| {
        let all = tiny::images(split, n, [c, 8]);
        let kept: Vec<usize> = (0..all.len()).filter(|&i| (all.label(i) as usize) < classes).collect();
        let all = all.subset(kept);
        let meta = Meta {
            name: "other stripes".into(),
            classes: (0..classes).map(|class| format!("other {class}")).collect(),
            mean: vec![0.3; c],
            std: vec![0.2; c],
            ..all.meta().clone()
        };
        let pixels = all.all_pixels().unwrap().into_owned();
        Dataset::from_pixels(meta, split, pixels, all.labels().collect()).unwrap()
    };
    TrainData { train: part(Split::Train, 50), val: part(Split::Test, 20) }
}

fn start(config: &TrainConfig, data: &TrainData, dir: &Path) -> Result<Trainer> {
    Trainer::new(config.clone(), data, RunDir::create(dir)?, &Device::Cpu)
}

/// Notes what is said at the start.
#[derive(Default)]
struct Started {
    adapted: Option<String>,
    frozen: usize,
    losses: Vec<f64>,
}

impl Observer for Started {
    fn started(&mut self, run: &RunInfo<'_>) {
        self.adapted = run.adapted.map(ToString::to_string);
        self.frozen = run.frozen;
    }

    fn step(&mut self, step: &StepInfo) {
        self.losses.push(step.loss);
    }
}

fn run(mut trainer: Trainer) -> Started {
    let mut started = Started::default();
    trainer.run(&false.into(), &mut started).unwrap();
    started
}

#[test]
fn weights_for_other_classes_and_channels() {
    let folder = tiny::folder();
    let (file, before) = pretrained(folder.path(), "cifar_resnet20b");
    // At a rate of 0 the weights stay; only running statistics move.
    let config = TrainConfig { lr: 0.0, epochs: 1, weights: Some(file), ..tiny::config("cifar_resnet20b") };
    let dir = folder.path().join("run");
    let started = run(start(&config, &other_data(1, 4), &dir).unwrap());
    assert_eq!(
        started.adapted.unwrap(),
        "first convolution adapted from 3 to 1 channels, new head for 4 classes instead of 7"
    );
    let after = weights(&dir.join(RunDir::LAST));
    for (name, values) in &before {
        match name.as_str() {
            "conv1.weight" => {
                let summed: Vec<f32> = values
                    .chunks_exact(27)
                    .flat_map(|w| (0..9).map(|i| w[i] + w[9 + i] + w[18 + i]))
                    .collect();
                let distance =
                    summed.iter().zip(&after[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(distance < 1e-6, "{distance}");
            }
            "fc.weight" | "fc.bias" => assert_ne!(values[..4], after[name][..4], "{name}"),
            _ if name.contains("running") => {}
            _ => assert_eq!(*values, after[name], "{name}"),
        }
    }
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!((checkpoint.meta.num_classes, checkpoint.meta.input.in_chans), (4, 1));
    assert_eq!(checkpoint.meta.classes, ["other 0", "other 1", "other 2", "other 3"]);
    // Normalised as the weights were trained, averaged over their channels, and not as the set would be.
    assert_eq!((checkpoint.meta.input.mean, checkpoint.meta.input.std), (vec![0.5], vec![0.25]));
}

#[test]
fn a_head_stays_for_its_own_classes_only() {
    let folder = tiny::folder();
    let (file, before) = pretrained(folder.path(), "cifar_resnet20b");
    let config = TrainConfig { lr: 0.0, epochs: 1, ..tiny::config("cifar_resnet20b") };
    // The folder of a run stands for its best weights, which are its only ones.
    let dir = file.parent().unwrap().to_path_buf();
    for (from, data, words, same) in [
        (&dir, tiny::data("cifar_resnet20b"), "all weights used as they are", true),
        (&file, other_data(3, 7), "new head for 7 other classes", false),
    ] {
        let run_dir = folder.path().join(if same { "same" } else { "other" });
        let config = TrainConfig { weights: Some(from.clone()), ..config.clone() };
        let started = run(start(&config, &data, &run_dir).unwrap());
        assert_eq!(started.adapted.unwrap(), words);
        let after = weights(&run_dir.join(RunDir::LAST));
        assert_eq!(after["fc.weight"] == before["fc.weight"], same);
        assert_eq!(after["layer3.0.conv1.weight"], before["layer3.0.conv1.weight"]);
    }
}

/// The settings that a run from these weights resolves to, for whoever says nothing, in its folder too.
fn decided(flags: &str, file: &Path, data: &TrainData, dir: &Path) -> TrainConfig {
    let flags = format!("model = \"cifar_resnet20b\"\ndataset = \"stripes\"\nweights = {file:?}\n{flags}");
    let config = TrainConfig::resolve(None, &flags.parse().unwrap()).unwrap();
    let trainer = start(&config, data, dir).unwrap();
    let config = trainer.config().clone();
    drop(trainer);
    // A run that goes on has them from there.
    let dir = RunDir::open(dir).unwrap();
    let saved = dir.config().unwrap();
    let resumed = Trainer::resume(saved, data, dir, &Device::Cpu).unwrap();
    assert_eq!(*resumed.config(), config);
    config
}

/// The rate follows from what the weights know and from what is trained.
#[test]
fn the_defaults_are_for_the_weights_and_the_data() {
    let folder = tiny::folder();
    let (file, _) = pretrained(folder.path(), "cifar_resnet20b");
    let known = folder.path().join("known");
    let config = TrainConfig { epochs: 20, augment: Augment::None, ..tiny::config("cifar_resnet20b") };
    tiny::finish(tiny::new_trainer(&config, &known).unwrap()).unwrap();
    let known = known.join(RunDir::BEST);
    let (same, other) = (tiny::data("cifar_resnet20b"), other_data(3, 7));
    for (name, flags, file, data, rates) in [
        ("new", "", &known, &other, (0.035, 0.1)),
        ("kept", "", &known, &same, (0.00035, 1.0)),
        // After one epoch the head knows next to nothing.
        ("weak", "", &file, &same, (0.035, 0.1)),
        ("probe", "freeze = [\"backbone\"]", &known, &other, (0.035, 1.0)),
        ("given", "lr = 0.2", &known, &other, (0.2, 0.1)),
    ] {
        let config = decided(flags, file, data, &folder.path().join(name));
        assert_eq!((config.lr, config.backbone_lr_scale), rates, "{name}");
        assert_eq!((config.batch_size, config.clip_grad), (8, 1.0), "{name}");
    }
}

/// The run is on ImageNet's stem because its weights are, whatever the images' size, and so are its checkpoints.
#[test]
fn the_stem_comes_from_the_weights() {
    let folder = tiny::folder();
    let config = TrainConfig { epochs: 1, stem: zoo::Stem::ImageNet, ..tiny::config("resnet18") };
    let mut data = other_data(3, 4);
    (data.train, data.val) = (data.train.limit(8, 0), data.val.limit(8, 0));
    let first = folder.path().join("first");
    run(start(&config, &data, &first).unwrap());
    assert_eq!(weights(&first.join(RunDir::LAST))["conv1.weight"].len(), 64 * 3 * 49);
    let config = TrainConfig { weights: Some(first), stem: zoo::Stem::Auto, ..config };
    let second = folder.path().join("second");
    run(start(&config, &data, &second).unwrap());
    let checkpoint = Checkpoint::open(&second).unwrap();
    assert_eq!(checkpoint.weights.tensors["conv1.weight"].dims(), [64, 3, 7, 7]);
    checkpoint.model(&Device::Cpu).unwrap();
    assert_eq!(RunDir::open(&second).unwrap().config().unwrap().stem, zoo::Stem::ImageNet);
}

#[test]
fn a_frozen_backbone_does_not_change_in_any_bit() {
    for ema in [0.0, 0.9] {
        let folder = tiny::folder();
        let (file, before) = pretrained(folder.path(), "cifar_resnet20b");
        let config = TrainConfig {
            weights: Some(file),
            freeze: vec!["backbone".into()],
            epochs: 8,
            batch_size: 50,
            lr: 0.0005,
            warmup_epochs: 0.0,
            augment: Augment::None,
            ema,
            ..tiny::config("cifar_resnet20b")
        };
        let dir = folder.path().join("probe");
        let started = run(start(&config, &other_data(3, 4), &dir).unwrap());
        let after = weights(&dir.join(RunDir::LAST));
        let head = |name: &str| name.starts_with("fc.");
        for (name, values) in &after {
            assert_eq!(before[name] == *values, !head(name), "{name}");
        }
        let backbone = before.iter().filter(|(name, _)| !head(name) && !name.contains("running"));
        assert_eq!(started.frozen, backbone.map(|(_, values)| values.len()).sum::<usize>());
        // The head learns on what the backbone gives.
        assert!(started.losses.is_sorted_by(|before, after| before > after), "{:?}", started.losses);
    }
}

#[test]
fn a_normalisation_is_frozen_with_all_its_parameters() {
    let folder = tiny::folder();
    let freeze = ["layer1.0.bn1", "layer2.*.bn?.bias", "layer3.2.conv2"].map(String::from).to_vec();
    let config = TrainConfig { epochs: 1, freeze, ..tiny::config("cifar_resnet20b") };
    tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).unwrap();
    let after = weights(&folder.path().join(RunDir::LAST));
    for (name, values) in &after {
        let fixed = name.starts_with("layer1.0.bn1.")
            || name == "layer3.2.conv2.weight"
            || (name.starts_with("layer2.") && name.contains(".bn") && name.ends_with("bias"));
        let initial = match name.rsplit('.').next().unwrap() {
            "running_mean" => Some(0.0),
            "running_var" => Some(1.0),
            "bias" if name.contains("bn") => Some(0.0),
            "weight" if name.contains("bn") || name.contains("downsample.1") => Some(1.0),
            _ => None,
        };
        if let Some(initial) = initial {
            assert_eq!(values.iter().all(|&value| value == initial), fixed, "{name}");
        }
    }
}

/// Of a single step of plain SGD, each parameter's change is in proportion to its rate.
#[test]
fn layers_have_rates_of_their_own() {
    let change = |backbone_lr_scale: f64, layer_decay: f64| -> Weights {
        let folder = tiny::folder();
        let config = TrainConfig {
            epochs: 1,
            batch_size: 50,
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            warmup_epochs: 0.0,
            augment: Augment::None,
            shuffle: false,
            backbone_lr_scale,
            layer_decay,
            ..tiny::config("cifar_resnet20b")
        };
        let start = TrainConfig { lr: 0.0, ..config.clone() };
        let after = |config: &TrainConfig, name: &str| {
            let dir = folder.path().join(name);
            tiny::finish(tiny::new_trainer(config, &dir).unwrap()).unwrap();
            weights(&dir.join(RunDir::LAST))
        };
        let (start, end) = (after(&start, "start"), after(&config, "end"));
        let difference = |(name, values): (&String, &Vec<f32>)| {
            (name.clone(), values.iter().zip(&start[name]).map(|(a, b)| a - b).collect())
        };
        end.iter().filter(|(name, _)| !name.contains("running")).map(difference).collect()
    };
    let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let full = change(1.0, 1.0);
    let scaled = change(0.1, 1.0);
    let decayed = change(0.5, 0.8);
    for (name, values) in &full {
        let ratio = |other: &Weights| norm(&other[name]) / norm(values);
        let (backbone, blocks) = match name.as_str() {
            "fc.weight" | "fc.bias" => (false, 0),
            "layer3.2.conv2.weight" => (true, 1),
            "layer1.0.conv1.weight" => (true, 9),
            "conv1.weight" => (true, 10),
            _ => continue,
        };
        let (tenth, half) = if backbone { (0.1, 0.5) } else { (1.0, 1.0) };
        assert!((ratio(&scaled) / tenth - 1.0).abs() < 0.01, "{name}: {}", ratio(&scaled));
        let expected = half * 0.8f64.powi(blocks);
        assert!((ratio(&decayed) / expected - 1.0).abs() < 0.01, "{name}: {}", ratio(&decayed));
    }
}

/// A run that starts from weights goes on without them; one that was killed before its first step needs them once
/// more and starts the same.
#[test]
fn a_resumed_run_does_not_need_the_weights() {
    let folder = tiny::folder();
    let (file, _) = pretrained(folder.path(), "cifar_resnet20b");
    let config = TrainConfig { weights: Some(file.clone()), ema: 0.9, ..tiny::fine_tuning() };
    let data = || other_data(3, 7);
    let resume = |dir: &Path| {
        let dir = RunDir::open(dir)?;
        let config = dir.config()?;
        Trainer::resume(config, &data(), dir, &Device::Cpu)
    };
    let whole = folder.path().join("whole");
    tiny::finish(start(&config, &data(), &whole).unwrap()).unwrap();

    let early = folder.path().join("early");
    drop(start(&config, &data(), &early).unwrap());
    tiny::finish(resume(&early).unwrap()).unwrap();
    assert!(tiny::bytes(&early, RunDir::LAST) == tiny::bytes(&whole, RunDir::LAST));

    let late = folder.path().join("late");
    let mut trainer = start(&config, &data(), &late).unwrap();
    let stop = false.into();
    let mut at = tiny::StopAt { stop: &stop, step: Some(4), evaluation: None, evaluations: 0 };
    trainer.run(&stop, &mut at).unwrap();
    drop(trainer);
    std::fs::remove_file(file).unwrap();
    tiny::finish(resume(&late).unwrap()).unwrap();
    assert!(tiny::bytes(&late, RunDir::LAST) == tiny::bytes(&whole, RunDir::LAST));
}

#[test]
fn mixed_images_train() {
    for (mixup, cutmix) in [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)] {
        let folder = tiny::folder();
        let config = TrainConfig {
            epochs: 15,
            mixup,
            cutmix,
            augment: Augment::None,
            label_smoothing: 0.1,
            ..tiny::config("cifar_resnet20")
        };
        tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).unwrap();
        let lines = tiny::metrics(folder.path());
        let [train, val] = ["train_top1", "val_top1"].map(|key| lines[14][key].as_f64().unwrap());
        assert!(train > 50.0 && val > 70.0, "mixup {mixup}, cutmix {cutmix}: {train} and {val}");
        // Mixed targets leave a loss that plain ones do not.
        assert!(lines[14]["train_loss"].as_f64().unwrap() > 0.6, "{}", lines[14]);
    }
}
