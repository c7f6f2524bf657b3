//! What a step is made of: gradient accumulation, averages, frozen parameters.

use crate::tiny;
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeMap;
use std::path::Path;
use zoo_data::Augment;
use zoo_trainer::{AveragedWeights, Averaging, Checkpoint, RunDir, TrainConfig};

fn weights_after(config: &TrainConfig) -> BTreeMap<String, Vec<f32>> {
    let folder = tiny::folder();
    tiny::finish(tiny::new_trainer(config, folder.path()).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&folder.path().join(RunDir::LAST)).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    checkpoint.weights.tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

#[test]
fn accumulated_gradients_are_those_of_the_large_batch() {
    // 50 images: three steps of 16 and one of 2. The small batches are 5, 5, 5, 1 with a remainder of 2.
    let large =
        TrainConfig { batch_size: 16, augment: Augment::None, clip_grad: 1.0, ..tiny::config("lenet5") };
    let small = TrainConfig { batch_size: 4, grad_accum: 4, ..large.clone() };
    let other = TrainConfig { batch_size: 4, grad_accum: 3, ..large.clone() };
    let (large, small, other) = (weights_after(&large), weights_after(&small), weights_after(&other));
    let distance = |a: &BTreeMap<String, Vec<f32>>| {
        let pairs = a.iter().flat_map(|(name, values)| values.iter().zip(&large[name]));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(distance(&small) < 2e-6, "{}", distance(&small));
    assert!(distance(&other) > 1e-4, "{}", distance(&other));
}

#[test]
fn averages_follow_their_formula() -> candle_core::Result<()> {
    let var = Var::new(&[1f32, -2.0], &Device::Cpu)?;
    let how = Averaging::Ema { decay: 0.4 };
    let ema = AveragedWeights::new(vec![("w".into(), var.clone())], how)?;
    let mut expected = [1f64, -2.0];
    for step in 1..=12u64 {
        let values = [step as f32, 0.5];
        var.set(&Tensor::new(&values, &Device::Cpu)?)?;
        ema.update(step)?;
        let decay = ((1 + step) as f64 / (10 + step) as f64).min(0.4);
        for (average, value) in expected.iter_mut().zip(values) {
            *average = decay * *average + (1.0 - decay) * f64::from(value);
        }
    }
    let average = |ema: &AveragedWeights| ema.state().next().unwrap().1.to_vec1::<f32>();
    for (found, expected) in average(&ema)?.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
    }
    let (before, weights) = (average(&ema)?, var.to_vec1::<f32>()?);
    ema.swap()?;
    assert_eq!((var.to_vec1::<f32>()?, average(&ema)?), (before.clone(), weights.clone()));
    ema.swap()?;
    assert_eq!((var.to_vec1::<f32>()?, average(&ema)?), (weights, before));
    Ok(())
}

/// The tensors of a file whose names start with `prefix`, without it.
fn tensors(file: &Path, prefix: &str) -> BTreeMap<String, Vec<f32>> {
    let tensors = zoo::weights::read(file).unwrap().tensors;
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let named = |(name, tensor): (&String, _)| Some((name.strip_prefix(prefix)?.to_string(), values(tensor)));
    tensors.iter().filter_map(named).collect()
}

#[test]
fn averages_are_saved_and_leave_training_alone() {
    let folder = tiny::folder();
    let plain = tiny::config("cifar_resnet20");
    let averaged = TrainConfig { ema: 0.5, ..plain.clone() };
    let run = |config, name: &str| {
        let dir = folder.path().join(name);
        tiny::finish(tiny::new_trainer(config, &dir).unwrap()).unwrap();
        dir
    };
    let (plain, averaged) = (run(&plain, "plain"), run(&averaged, "averaged"));
    let weights = tensors(&averaged.join(RunDir::STATE), "weights/");
    let averages = tensors(&averaged.join(RunDir::STATE), "average/");
    // As many as the model has, running statistics included.
    assert_eq!(averages.len(), weights.len());
    assert_ne!(averages, weights);
    assert_eq!(weights, tensors(&plain.join(RunDir::LAST), ""));
    assert_eq!(averages, tensors(&averaged.join(RunDir::LAST), ""));
    let val_loss = |dir: &Path| tiny::metrics(dir)[2]["val_loss"].clone();
    assert_ne!(val_loss(&plain), val_loss(&averaged));
}

#[test]
fn frozen_parameters_stay() {
    let config =
        TrainConfig { epochs: 1, freeze: vec!["conv1".into(), "fc?.bias".into()], ..tiny::config("lenet5") };
    let folder = tiny::folder();
    let trainer = tiny::new_trainer(&config, folder.path()).unwrap();
    tiny::finish(trainer).unwrap();
    let trained = Checkpoint::open(folder.path()).unwrap().weights.tensors;
    let start = zoo::Params::new(config.seed);
    let model_config = zoo::Config {
        num_classes: tiny::CLASSES,
        in_chans: 1,
        image_size: (16, 16),
        dropout: None,
        drop_path: None,
        stem: zoo::Stem::Auto,
        noise: Default::default(),
    };
    zoo::Model::new("lenet5", model_config, start.var_builder(&Device::Cpu)).unwrap();
    for (name, var) in start.all() {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let frozen = name.starts_with("conv1.") || (name.starts_with("fc") && name.ends_with(".bias"));
        assert_eq!(values(&var) == values(&trained[&name]), frozen, "{name}");
    }
}
