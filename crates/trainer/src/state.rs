//! The state of a run, in one file that is enough to go on from.
//!
//! The weights are in it too, although `last.safetensors` may have them: a process killed between writing two
//! files must not leave a pair that does not belong together.

use crate::averages::AveragedWeights;
use crate::checkpoint::Checkpoint;
use crate::loss_scale::LossScale;
use crate::observer::EpochRecord;
use crate::optimizer::Optimizer;
use crate::{Error, Result, RunDir, TrainConfig};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zoo::Params;
use zoo::weights::{self, StateDict};
use zoo_data::{Dataset, list_names};

/// The version of the file's layout.
const FORMAT: &str = "1";

/// Prefixes of tensor names.
const WEIGHTS: &str = "weights/";
const VELOCITY: &str = "velocity/";
const AVERAGE: &str = "average/";

/// Where a run stands, apart from its tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Epochs completed, evaluation included.
    pub(crate) epoch: u64,
    /// Batches of the next epoch that are used up.
    pub(crate) batch: usize,
    /// Optimizer steps taken.
    pub(crate) step: u64,
    /// Dropout masks drawn.
    pub(crate) noise_calls: u64,
    /// What losses are multiplied by in f16.
    #[serde(default)]
    pub(crate) loss_scale: LossScale,
    /// Training images there are: a resumed run must have as many.
    pub(crate) train_images: usize,
    /// Names of the classes, whose outputs go by their order; empty in states of versions that did not say.
    #[serde(default)]
    pub(crate) classes: Vec<String>,
    /// A digest of the words that have numbers, of sentences.
    #[serde(default)]
    pub(crate) words: Option<String>,
    /// Processes that train: a resumed run must have as many.
    #[serde(default = "alone")]
    pub(crate) ranks: usize,
    /// Length of `metrics.jsonl` in bytes.
    pub(crate) metrics_len: u64,
    /// Seconds of training and evaluating so far.
    pub(crate) elapsed_s: f64,
    /// Learning rate of the last step.
    pub(crate) lr: f64,
    /// Sums over the part of the epoch that is done.
    pub(crate) sums: EpochSums,
    /// The best epoch so far.
    pub(crate) best: Option<Best>,
    /// The last completed epoch.
    pub(crate) last: Option<EpochRecord>,
}

impl Progress {
    pub(crate) fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers always have a TOML form")
    }
}

fn alone() -> usize {
    1
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochSums {
    /// Images.
    pub(crate) n: u64,
    /// Top-1 hits.
    pub(crate) top1: u64,
    /// Sum of the images' losses.
    pub(crate) loss: f64,
    /// Seconds of training.
    pub(crate) seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// Counted from 1.
    pub(crate) epoch: u64,
    /// In percent.
    pub(crate) top1: f64,
    /// Which decides between epochs of the same accuracy.
    pub(crate) loss: f64,
}

/// Writes the state, atomically.
pub(crate) fn save(
    dir: &RunDir,
    config: &TrainConfig,
    progress: &Progress,
    params: &Params,
    optimizer: &Optimizer,
    averaged: Option<&AveragedWeights>,
) -> Result<()> {
    let variables = params.all();
    let weights = variables.iter().map(|(name, var)| (format!("{WEIGHTS}{name}"), var.as_tensor()));
    let velocities = optimizer.state().map(|(name, tensor)| (format!("{VELOCITY}{name}"), tensor));
    let averages = averaged.into_iter().flat_map(AveragedWeights::state);
    let averages = averages.map(|(name, tensor)| (format!("{AVERAGE}{name}"), tensor));
    let tensors: Vec<(String, &Tensor)> = weights.chain(velocities).chain(averages).collect();
    let metadata = BTreeMap::from([
        ("format_version".to_string(), FORMAT.to_string()),
        ("config".to_string(), config.to_toml()),
        // TOML, because its floats survive the way to text and back bit for bit.
        ("progress".to_string(), progress.to_toml()),
    ]);
    Ok(weights::write_safetensors(&dir.file(RunDir::STATE), tensors, &metadata)?)
}

/// A state as it was read.
pub(crate) struct Saved {
    pub(crate) progress: Progress,
    config: TrainConfig,
    tensors: StateDict,
}

/// Reads the state of a run, if it got as far as having one.
pub(crate) fn read(dir: &RunDir) -> Result<Option<Saved>> {
    let path = dir.file(RunDir::STATE);
    if !path.exists() {
        return Ok(None);
    }
    let refuse = |problem: String| Error::Resume { dir: dir.path().to_path_buf(), problem };
    let tensors = weights::read(&path)?;
    let entry = |key: &str| {
        let entry = tensors.metadata.get(key);
        entry.ok_or_else(|| refuse(format!("{} is not the state of a run: it has no '{key}'", RunDir::STATE)))
    };
    let version = entry("format_version")?;
    if version != FORMAT {
        return Err(refuse(format!("its state has format {version}, this program reads {FORMAT}")));
    }
    let config = TrainConfig::from_toml(entry("config")?, RunDir::STATE)?;
    let mut progress: Progress = toml::from_str(entry("progress")?)
        .map_err(|error| refuse(format!("its progress cannot be read: {}", error.message())))?;
    if progress.classes.is_empty()
        && let Ok(last) = Checkpoint::open(&dir.file(RunDir::LAST))
    {
        // A state of an earlier version, whose checkpoints had them already.
        progress.classes = last.meta.classes;
    }
    Ok(Some(Saved { progress, config, tensors }))
}

impl Progress {
    /// Nothing of a run on these data yet, by so many processes.
    pub(crate) fn start(data: &Dataset, ranks: usize) -> Self {
        Self {
            train_images: data.len(),
            classes: data.meta().classes.clone(),
            words: data.vocabulary().map(|vocabulary| vocabulary.digest()),
            ranks,
            ..Self::default()
        }
    }

    /// Why a run that stands here cannot go on where another `now` would begin: with as many images and processes.
    pub(crate) fn other_counts(&self, now: &Self) -> Option<String> {
        if now.ranks != self.ranks {
            return Some(format!("it was trained by {} processes, now there are {}", self.ranks, now.ranks));
        }
        (now.train_images != self.train_images).then(|| {
            format!("it had {} training images, now there are {}", self.train_images, now.train_images)
        })
    }

    /// Why a run that stands here cannot go on with these data: the outputs of its network are those of the classes
    /// that it began with, and its words have the numbers that they had.
    pub(crate) fn other_classes(&self, data: &Dataset) -> Option<String> {
        let (was, is) = (&self.classes, &data.meta().classes);
        let without = |names: &[String], others: &[String]| -> Vec<String> {
            names.iter().filter(|name| !others.contains(name)).cloned().collect()
        };
        let words = data.vocabulary().map(|vocabulary| vocabulary.digest());
        let changes: Vec<String> = [(without(is, was), "new"), (without(was, is), "gone")]
            .into_iter()
            .filter(|(names, _)| !names.is_empty())
            .map(|(names, how)| {
                let verb = if names.len() == 1 { "is" } else { "are" };
                format!("{} {verb} {how}", list_names(&names))
            })
            .collect();
        let problem = match changes.as_slice() {
            _ if was.is_empty() => return None,
            [] if was != is => format!("their order was {} and is {}", list_names(was), list_names(is)),
            [] if self.words != words => {
                return Some(
                    "the sentences to train on have other words than when it began; a run keeps its data"
                        .into(),
                );
            }
            [] => return None,
            changes => changes.join(", "),
        };
        let out = "bring back the classes that it began with, or start a run with --weights and the folder of this one";
        Some(format!("the classes of its data have changed: {problem}; {out}"))
    }
}

impl Saved {
    /// The first setting that decides the weights and was another one when the state was saved: (key, was, is).
    pub(crate) fn conflict(&self, config: &TrainConfig) -> Option<(String, String, String)> {
        self.config.conflict(config)
    }

    /// SHA-256 of all tensors.
    pub(crate) fn digest(&self) -> candle_core::Result<String> {
        self.tensors.sha256()
    }

    /// Gives variables, velocities and averages their saved values.
    pub(crate) fn restore(
        &self,
        params: &Params,
        optimizer: &mut Optimizer,
        averaged: Option<&mut AveragedWeights>,
    ) -> candle_core::Result<()> {
        let tensor = |prefix: &str, name: &str| self.tensors.tensors.get(&format!("{prefix}{name}"));
        for (name, var) in params.all() {
            let Some(saved) = tensor(WEIGHTS, &name) else {
                candle_core::bail!("the saved state has no weights for {name}")
            };
            var.set(&saved.to_device(var.device())?)?;
        }
        optimizer.restore(|name| tensor(VELOCITY, name))?;
        if let Some(averaged) = averaged {
            averaged.restore(|name| tensor(AVERAGE, name))?;
        }
        Ok(())
    }
}
