//! Training and evaluating image classifiers.
//!
//! A [`Trainer`] is made from a [`TrainConfig`] and [`TrainData`] and keeps everything in a [`RunDir`]. It can
//! be stopped or killed at any moment: resumed, it ends with the weights of a run that never was, bit for bit.
//! What it does on the way it tells an [`Observer`].

mod averages;
mod checkpoint;
mod config;
mod data;
mod depth;
mod error;
mod evaluate;
mod fine_tuning;
mod freeze;
mod gradients;
mod input;
mod loss_scale;
mod memory;
mod metrics;
mod observer;
mod optimizer;
mod pass;
mod ranks;
mod recipes;
mod run_dir;
mod schedule;
mod scores;
mod start;
mod state;
mod train;
mod trainer;

pub use averages::{AveragedWeights, Averaging};
pub use checkpoint::{Checkpoint, CheckpointMeta, CheckpointMetrics};
pub use config::{Precision, TrainConfig};
pub use data::{DATA_SEED, TrainData};
pub use error::Error;
pub use evaluate::{EvalReport, evaluate};
pub use fine_tuning::FineTuning;
pub use gradients::Gradients;
pub use input::Input;
pub use metrics::{ClassAccuracy, Metrics};
pub use observer::{EpochRecord, Observer, Outcome, RunInfo, RunSummary, StepInfo};
pub use optimizer::{Optimizer, Scale, SgdConfig};
pub use pass::{Pass, train_pass};
pub use ranks::{Membership, Place};
pub use run_dir::RunDir;
pub use schedule::{Schedule, ScheduleKind};
pub use start::Start;
pub use trainer::Trainer;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;
