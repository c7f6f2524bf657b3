//! What a run reports while it goes on, and at its end.

use crate::{FineTuning, TrainConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use zoo::weights::{Adapted, Translated};

/// Hears of a run's progress. Every method does nothing unless it is written.
pub trait Observer {
    /// Training begins or goes on.
    fn started(&mut self, _run: &RunInfo<'_>) {}
    /// An optimizer step was taken.
    fn step(&mut self, _step: &StepInfo) {}
    /// `done` of `total` images were evaluated.
    fn evaluating(&mut self, _done: usize, _total: usize) {}
    /// An epoch was trained and evaluated; `best` if no earlier one was as good.
    fn epoch_ended(&mut self, _record: &EpochRecord, _best: bool) {}
    /// A file was written.
    fn saved(&mut self, _path: &Path) {}
    /// Something that does not stop the run, in one line.
    fn warning(&mut self, _message: &str) {}
}

/// An observer that does not look.
impl Observer for () {}

/// A run as it starts.
#[derive(Debug, Clone)]
pub struct RunInfo<'a> {
    /// The resolved settings.
    pub config: &'a TrainConfig,
    /// The run's folder.
    pub dir: &'a Path,
    /// Whether the model is the form for small images of a network that has one.
    pub small_form: bool,
    /// Trainable parameters of the model, frozen ones included.
    pub params: usize,
    /// Of these, how many are frozen.
    pub frozen: usize,
    /// How the weights that the run starts from were made to fit; `None` without such weights, and in a run that
    /// is past its start.
    pub adapted: Option<&'a Adapted>,
    /// Whose names the weights had, where these were not the zoo's.
    pub translated: Option<Translated>,
    /// Defaults that were decided because the run starts from weights; `None` in a run that goes on.
    pub fine_tuning: Option<&'a FineTuning>,
    /// Processes that train.
    pub ranks: usize,
    /// Training images.
    pub train_images: usize,
    /// Images evaluated on.
    pub val_images: usize,
    /// Batches in an epoch.
    pub batches: usize,
    /// Optimizer steps in the whole run.
    pub total_steps: u64,
    /// The epoch that is trained next, counted from 0; above 0 in a resumed run.
    pub epoch: u64,
    /// Steps taken before.
    pub step: u64,
}

/// An optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepInfo {
    /// The epoch, counted from 1.
    pub epoch: u64,
    /// Batches of this epoch used so far.
    pub batch: usize,
    /// Batches in an epoch.
    pub batches: usize,
    /// Steps taken so far in the run.
    pub step: u64,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// The step's learning rate.
    pub lr: f64,
    /// Mean loss of the step's images.
    pub loss: f64,
    /// Mean loss of the epoch so far.
    pub train_loss: f64,
    /// Top-1 accuracy of the epoch so far, in percent.
    pub train_top1: f64,
    /// Training images per second of the epoch so far.
    pub images_per_second: f64,
}

/// An epoch's line in `metrics.jsonl`. Accuracies in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch, counted from 1.
    pub epoch: u64,
    /// Optimizer steps taken so far.
    pub step: u64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean loss of the training images as they were used, label smoothing included.
    pub train_loss: f64,
    /// Top-1 accuracy on the training images as they were used; on mixed images, of the class with the larger
    /// share.
    pub train_top1: f64,
    /// Mean cross-entropy of the held-out images.
    pub val_loss: f64,
    /// Top-1 accuracy on the held-out images.
    pub val_top1: f64,
    /// Top-5 accuracy on the held-out images.
    pub val_top5: f64,
    /// Training images per second; saving and evaluating do not count.
    pub images_per_second: f64,
    /// Seconds of training and evaluating so far, those before an interruption included.
    pub elapsed_s: f64,
}

/// A run's final record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// The model.
    pub model: String,
    /// The data set.
    pub dataset: String,
    /// The run's folder.
    pub dir: PathBuf,
    /// Whether all epochs are done.
    pub finished: bool,
    /// The epoch with the best top-1 accuracy, counted from 1.
    pub best_epoch: Option<u64>,
    /// Its top-1 accuracy on the held-out images, in percent.
    pub best_val_top1: Option<f64>,
    /// The last completed epoch.
    #[serde(flatten)]
    pub last: Option<EpochRecord>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All epochs are done.
    Finished(RunSummary),
    /// It was told to stop; resumed, it will end as if it had not been.
    Interrupted {
        /// The run so far.
        summary: RunSummary,
        /// Optimizer steps taken.
        step: u64,
    },
}
