//! Small runs: a few images whose brightness pattern tells their class, and how to train on them.

use candle_core::Device;
use rand::Rng;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use zoo_data::{Augment, Dataset, Meta, Split};
use zoo_ops::rng::stream;
use zoo_trainer::{Observer, Outcome, Result, RunDir, StepInfo, TrainConfig, TrainData, Trainer};

pub(crate) const CLASSES: usize = 7;

/// Images [c, side, side] of `CLASSES` classes: noise over stripes whose direction and width are the class's.
pub(crate) fn images(split: Split, n: usize, [c, side]: [usize; 2]) -> Dataset {
    let meta = Meta {
        name: "stripes".into(),
        classes: (0..CLASSES).map(|class| format!("stripe {class}")).collect(),
        shape: [c, side, side],
        fixed_size: true,
        mirror: false,
        mean: vec![0.5; c],
        std: vec![0.25; c],
    };
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for i in 0..n {
        let mut rng = stream(7, split.name(), i as u64);
        let class = rng.random_range(0..CLASSES as u32);
        labels.push(class);
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            let along = if class.is_multiple_of(2) { y } else { x };
            let bright = (along / (class as usize / 2 + 1)).is_multiple_of(2);
            pixels.extend((0..c).map(|_| rng.random_range(0..120u8) + if bright { 130 } else { 0 }));
        }
    }
    Dataset::from_pixels(meta, split, pixels, labels).unwrap()
}

/// 50 images to train and 20 to evaluate on, in the size that suits the model.
pub(crate) fn data(model: &str) -> TrainData {
    let size = if model == "lenet5" { [1, 16] } else { [3, 8] };
    TrainData { train: images(Split::Train, 50, size), val: images(Split::Test, 20, size) }
}

/// Three epochs of seven batches, the last of two images.
pub(crate) fn config(model: &str) -> TrainConfig {
    TrainConfig {
        model: model.into(),
        dataset: "stripes".into(),
        epochs: 3,
        batch_size: 8,
        lr: 0.05,
        augment: Augment::Standard,
        ..TrainConfig::default()
    }
}

/// All that fine-tuning adds, at once: frozen layers and normalisations, rates of their own, mixed images.
pub(crate) fn fine_tuning() -> TrainConfig {
    TrainConfig {
        freeze: vec!["conv1".into(), "bn1".into(), "layer1".into(), "layer2.0.bn1".into()],
        backbone_lr_scale: 0.3,
        layer_decay: 0.9,
        mixup: 0.4,
        cutmix: 1.0,
        ..config("cifar_resnet20b")
    }
}

pub(crate) fn new_trainer(config: &TrainConfig, dir: &Path) -> Result<Trainer> {
    Trainer::new(config.clone(), &data(&config.model), RunDir::create(dir)?, &Device::Cpu)
}

pub(crate) fn resumed_trainer(dir: &Path) -> Result<Trainer> {
    let dir = RunDir::open(dir)?;
    let config = dir.config()?;
    Trainer::resume(config.clone(), &data(&config.model), dir, &Device::Cpu)
}

/// Trains to the end.
pub(crate) fn finish(mut trainer: Trainer) -> Result<Losses> {
    let mut losses = Losses::default();
    let outcome = trainer.run(&AtomicBool::new(false), &mut losses)?;
    assert!(matches!(outcome, Outcome::Finished(_)), "{outcome:?}");
    Ok(losses)
}

/// Keeps the losses of all steps.
#[derive(Default)]
pub(crate) struct Losses(pub(crate) Vec<f64>);

impl Observer for Losses {
    fn step(&mut self, step: &StepInfo) {
        self.0.push(step.loss);
    }
}

/// Asks the run to stop after a step, or in the middle of an epoch's evaluation.
pub(crate) struct StopAt<'a> {
    pub(crate) stop: &'a AtomicBool,
    pub(crate) step: Option<u64>,
    pub(crate) evaluation: Option<u64>,
    pub(crate) evaluations: u64,
}

impl Observer for StopAt<'_> {
    fn step(&mut self, step: &StepInfo) {
        if self.step == Some(step.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn evaluating(&mut self, done: usize, _total: usize) {
        self.evaluations += u64::from(done == 0);
        if self.evaluation == Some(self.evaluations) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// A folder of its own for a test's runs.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn bytes(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

/// The lines of `metrics.jsonl` without what a clock measured.
pub(crate) fn metrics(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join(RunDir::METRICS)).unwrap();
    let timeless = |line| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let object = value.as_object_mut().unwrap();
        object.remove("images_per_second");
        object.remove("elapsed_s");
        value
    };
    text.lines().map(timeless).collect()
}

/// The folder in which a test that was started by [`child`] is to work.
pub(crate) fn child_folder() -> Option<PathBuf> {
    std::env::var_os("ZOO_TEST_FOLDER").map(PathBuf::from)
}

/// This test program once more, to run only `test` (an ignored one) on `folder`. `wrapper` is a program that is
/// given the command, or nothing.
pub(crate) fn child(wrapper: &[&str], test: &str, folder: &Path) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("ZOO_TEST_FOLDER", folder).stdout(Stdio::null());
    command
}
