//! What a run leaves behind.

use crate::tiny;
use candle_core::{DType, Device};
use std::ops::ControlFlow;
use zoo_data::{Loader, LoaderConfig, View};
use zoo_trainer::{Checkpoint, Error, EvalReport, RunDir, TrainConfig, evaluate};

fn report(checkpoint: &Checkpoint, batch_size: usize) -> EvalReport {
    report_of_views(checkpoint, batch_size, &[View::PLAIN])
}

fn report_of_views(checkpoint: &Checkpoint, batch_size: usize, views: &[View]) -> EvalReport {
    let model = checkpoint.model(&Device::Cpu).unwrap();
    let val = tiny::data(&checkpoint.meta.model).val;
    let loader = Loader::new(val, LoaderConfig::new(batch_size, 0)).unwrap();
    let place = (DType::F32, &Device::Cpu);
    let report =
        evaluate(&model, &loader, &checkpoint.meta.input, views, place, |_| ControlFlow::Continue(()));
    report.unwrap().unwrap()
}

#[test]
fn a_checkpoint_is_enough_to_repeat_its_evaluation() {
    for ema in [0.0, 0.9] {
        let folder = tiny::folder();
        let config = TrainConfig { ema, ..tiny::config("cifar_resnet20") };
        tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).unwrap();

        let last = Checkpoint::open(&folder.path().join(RunDir::LAST)).unwrap();
        assert_eq!((last.meta.epoch, last.meta.step), (3, 21));
        assert_eq!(last.meta.classes[6], "stripe 6");
        assert_eq!((last.meta.input.in_chans, last.meta.input.image_size), (3, 8));
        let metrics = last.meta.metrics.unwrap();
        // Evaluated in the same batches, so equal to the last bit.
        let repeated = report(&last, config.batch_size);
        assert_eq!((repeated.n, repeated.top1, repeated.loss), (20, metrics.val_top1, metrics.val_loss));
        assert_eq!(repeated.per_class.iter().map(|class| class.n).sum::<u64>(), 20);
        // The mean of two looks at the same is what one gives; another look gives something else.
        let half = View { weight: 0.5, ..View::PLAIN };
        let twice = report_of_views(&last, config.batch_size, &[half; 2]);
        assert_eq!((twice.n, twice.top1, twice.loss), (20, repeated.top1, repeated.loss));
        let moved = report_of_views(&last, config.batch_size, &[half, View { shift: 1, ..half }]);
        assert_ne!(moved.loss, repeated.loss);
        for batch_size in [1, 7, 20] {
            let other = report(&last, batch_size);
            assert_eq!((other.n, other.top1, other.top5), (20, repeated.top1, repeated.top5));
            // A few images may be convolved by another algorithm than many.
            let difference = (other.loss - repeated.loss).abs();
            assert!(difference < 1e-6 * repeated.loss.max(10.0), "{} {}", other.loss, repeated.loss);
        }

        // A folder stands for its best checkpoint.
        let best = Checkpoint::open(folder.path()).unwrap();
        let lines = tiny::metrics(folder.path());
        let best_top1 = lines.iter().map(|line| line["val_top1"].as_f64().unwrap()).fold(0.0, f64::max);
        let metrics = best.meta.metrics.unwrap();
        assert_eq!(metrics.val_top1, best_top1);
        let as_good = lines.iter().filter(|line| line["val_top1"] == best_top1);
        let best_loss = as_good.map(|line| line["val_loss"].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
        assert_eq!(metrics.val_loss, best_loss);
        assert_eq!(report(&best, 8).top1, best_top1);
    }
}

#[test]
fn training_learns_and_logs() {
    let folder = tiny::folder();
    let augment = zoo_data::Augment::None;
    let config = TrainConfig { epochs: 12, log_every: 10, augment, ..tiny::config("cifar_resnet20") };
    tiny::finish(tiny::new_trainer(&config, folder.path()).unwrap()).unwrap();
    let lines = tiny::metrics(folder.path());
    let (epochs, steps): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.get("epoch").is_some());
    assert_eq!((epochs.len(), steps.len()), (12, 8));
    assert_eq!(steps[7]["step"], 80);
    for key in ["epoch", "step", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5"] {
        assert!(epochs[11][key].is_number(), "{key}");
    }
    assert!(epochs[11]["val_top1"].as_f64() > Some(80.0), "{}", epochs[11]);

    let saved = RunDir::open(folder.path()).unwrap().config().unwrap();
    assert_eq!((saved.num_classes, saved.in_chans, saved.image_size), (Some(7), Some(3), Some(8)));
    assert_eq!(saved.mean, Some(vec![0.5; 3]));
}

#[test]
fn a_run_starts_from_a_weight_file() {
    let folder = tiny::folder();
    let first = TrainConfig { epochs: 1, ..tiny::config("lenet5") };
    tiny::finish(tiny::new_trainer(&first, &folder.path().join("first")).unwrap()).unwrap();
    let file = folder.path().join("first").join(RunDir::LAST);
    // At a learning rate of 0 the weights stay, and with them the evaluation.
    let second = TrainConfig { lr: 0.0, ema: 0.9, weights: Some(file.clone()), ..first.clone() };
    tiny::finish(tiny::new_trainer(&second, &folder.path().join("second")).unwrap()).unwrap();
    let metrics = |name: &str| Checkpoint::open(&folder.path().join(name)).unwrap().meta.metrics.unwrap();
    // The average of equal weights is rounded.
    let (first, second) = (metrics("first").val_loss, metrics("second").val_loss);
    assert!((first - second).abs() < 1e-6, "{first} {second}");

    let other = TrainConfig { weights: Some(file), ..tiny::config("cifar_resnet20") };
    let error = tiny::new_trainer(&other, &folder.path().join("third")).unwrap_err().to_string();
    assert!(error.contains("these are not weights of cifar_resnet20") && !error.contains('\n'), "{error}");
}

#[test]
fn files_that_are_no_checkpoints_are_named() {
    let folder = tiny::folder();
    let message = |error: Error| error.to_string();
    let none = message(Checkpoint::open(folder.path()).unwrap_err());
    assert!(none.contains("no checkpoint; expected best.safetensors or last.safetensors"), "{none}");

    let file = folder.path().join("w.safetensors");
    let tensor = candle_core::Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    zoo::weights::write_safetensors(&file, [("w", &tensor)], &Default::default()).unwrap();
    let bare = message(Checkpoint::open(&file).unwrap_err());
    assert!(bare.contains("w.safetensors: it has weights but not the metadata"), "{bare}");
    std::fs::write(&file, "hello").unwrap();
    assert!(matches!(Checkpoint::open(&file), Err(Error::Weights(_))));
}
