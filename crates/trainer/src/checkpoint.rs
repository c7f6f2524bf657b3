//! Checkpoints: weights with all that evaluation and prediction need.

use crate::input::Input;
use crate::{Error, Result, RunDir};
use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zoo::weights::{self, StateDict};
use zoo::{Model, Params, Stem, infer_config};
use zoo_data::{Interpolation, Reading, Vocabulary};

/// The version of the metadata that this program writes and reads.
const FORMAT: &str = "1";

/// What is known of the weights in a checkpoint. In the file each field is a metadata entry: text as it is,
/// everything else in JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointMeta {
    /// The network's name in the registry.
    pub model: String,
    /// Classes of the head.
    pub num_classes: usize,
    /// Names of the classes that the first outputs stand for; as many as the data set has.
    pub classes: Vec<String>,
    /// What the network takes.
    pub input: Input,
    /// Its first layers; [`Stem::Auto`] in checkpoints of versions that did not say.
    pub stem: Stem,
    /// The data set the network was trained on.
    pub dataset: String,
    /// The words that have numbers, of a network that reads sentences.
    pub vocabulary: Option<Arc<Vocabulary>>,
    /// Epochs completed.
    pub epoch: u64,
    /// Optimizer steps taken.
    pub step: u64,
    /// Results at the end of the last completed epoch; `None` in a run interrupted before that.
    pub metrics: Option<CheckpointMetrics>,
    /// The version of the program.
    pub zoo_version: String,
}

/// Results of the epoch a checkpoint is from. Accuracies in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CheckpointMetrics {
    /// Mean training loss, label smoothing included.
    pub train_loss: f64,
    /// Top-1 accuracy on the training batches.
    pub train_top1: f64,
    /// Mean cross-entropy on the held-out images.
    pub val_loss: f64,
    /// Top-1 accuracy on the held-out images.
    pub val_top1: f64,
    /// Top-5 accuracy on the held-out images.
    pub val_top5: f64,
}

impl CheckpointMeta {
    /// How sentences are read for the network, if it reads sentences.
    pub fn reading(&self) -> Option<Reading> {
        let vocabulary = self.vocabulary.clone()?;
        Some(Reading { vocabulary, side: self.input.image_size })
    }

    fn to_map(&self) -> BTreeMap<String, String> {
        let json = |value: serde_json::Value| value.to_string();
        let mut map = BTreeMap::from([
            ("format_version", FORMAT.to_string()),
            ("zoo_version", self.zoo_version.clone()),
            ("model", self.model.clone()),
            ("dataset", self.dataset.clone()),
            ("num_classes", self.num_classes.to_string()),
            ("classes", json(self.classes.clone().into())),
            ("in_chans", self.input.in_chans.to_string()),
            ("image_size", self.input.image_size.to_string()),
            ("resize", self.input.resize.to_string()),
            ("interpolation", self.input.interpolation.name().to_string()),
            ("mean", json(serde_json::json!(self.input.mean))),
            ("std", json(serde_json::json!(self.input.std))),
            (Stem::METADATA, self.stem.name().to_string()),
            ("epoch", self.epoch.to_string()),
            ("step", self.step.to_string()),
        ]);
        if let Some(vocabulary) = &self.vocabulary {
            map.insert("vocabulary", json(vocabulary.words().into()));
        }
        if let Some(metrics) = &self.metrics {
            map.insert("metrics", json(serde_json::json!(metrics)));
        }
        map.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }

    /// What the metadata of a file of weights say of them.
    ///
    /// # Errors
    /// Why they are not those of a checkpoint.
    pub fn from_metadata(map: &BTreeMap<String, String>) -> std::result::Result<Self, String> {
        let text = |key: &str| map.get(key).cloned().ok_or(format!("its metadata has no '{key}'"));
        match map.get("format_version").map(String::as_str) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(format!("its format has version {other}, this program reads {FORMAT}"));
            }
            None => {
                return Err(
                    "it has weights but not the metadata of a zoo checkpoint; say which model they are for"
                        .into(),
                );
            }
        }
        Ok(Self {
            model: text("model")?,
            dataset: text("dataset")?,
            zoo_version: text("zoo_version")?,
            vocabulary: match map.get("vocabulary") {
                Some(_) => Some(Arc::new(Vocabulary::new(parsed(map, "vocabulary")?))),
                None => None,
            },
            num_classes: parsed(map, "num_classes")?,
            classes: parsed(map, "classes")?,
            input: Input {
                in_chans: parsed(map, "in_chans")?,
                image_size: parsed(map, "image_size")?,
                resize: parsed(map, "resize")?,
                interpolation: interpolation(map)?,
                mean: parsed(map, "mean")?,
                std: parsed(map, "std")?,
            },
            stem: stem(map)?,
            epoch: parsed(map, "epoch")?,
            step: parsed(map, "step")?,
            metrics: map.get("metrics").map(|_| parsed(map, "metrics")).transpose()?,
        })
    }
}

/// Checkpoints of earlier versions do not say; all of them were bilinear.
fn interpolation(map: &BTreeMap<String, String>) -> std::result::Result<Interpolation, String> {
    let Some(name) = map.get("interpolation") else { return Ok(Interpolation::default()) };
    Interpolation::from_name(name).ok_or(format!("its metadata has an unknown interpolation '{name}'"))
}

fn stem(map: &BTreeMap<String, String>) -> std::result::Result<Stem, String> {
    let Some(name) = map.get(Stem::METADATA) else { return Ok(Stem::Auto) };
    Stem::from_name(name).ok_or(format!("its metadata has an unknown stem '{name}'"))
}

fn parsed<T: DeserializeOwned>(map: &BTreeMap<String, String>, key: &str) -> std::result::Result<T, String> {
    let text = map.get(key).ok_or(format!("its metadata has no '{key}'"))?;
    serde_json::from_str(text).map_err(|error| format!("its metadata has an unusable '{key}': {error}"))
}

/// Weights with their description.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// The description.
    pub meta: CheckpointMeta,
    /// The weights.
    pub weights: StateDict,
}

impl Checkpoint {
    /// Reads a checkpoint, or of a run's folder its best one.
    ///
    /// # Errors
    /// If there is none, the file is damaged, or it has weights without a description.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { checkpoint_of(path)? } else { path.to_path_buf() };
        let weights = weights::read(&path)?;
        let meta = CheckpointMeta::from_metadata(&weights.metadata)
            .map_err(|problem| Error::Checkpoint { path: path.clone(), problem })?;
        Ok(Self { path, meta, weights })
    }

    /// Builds the network with the weights, on the given device.
    ///
    /// # Errors
    /// If the registry has no such network, or the weights do not fit it.
    pub fn model(&self, device: &Device) -> Result<Model> {
        let CheckpointMeta { model, input, .. } = &self.meta;
        let config = infer_config(zoo::find(model)?, &self.weights, (input.image_size, input.image_size))?;
        let params = Params::zeros();
        let model = Model::new(model, config, params.var_builder(device))?;
        load(&params, &self.weights, &self.path)?;
        Ok(model)
    }

    /// Writes a checkpoint, atomically: after a failure the old file is still there. `load_state_dict` of the same
    /// model in PyTorch takes it as it is: scripts/load_in_torch.py.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save<'t>(
        path: &Path,
        meta: &CheckpointMeta,
        tensors: impl IntoIterator<Item = (&'t str, &'t Tensor)>,
    ) -> Result<()> {
        let tensors: Vec<(&str, &Tensor)> = tensors.into_iter().collect();
        let batches = i64::try_from(meta.step).unwrap_or(i64::MAX);
        let counters = weights::batch_counters(tensors.iter().map(|(name, _)| *name), batches)?;
        let counters = counters.iter().map(|(name, tensor)| (name.as_str(), tensor));
        Ok(weights::write_safetensors(path, tensors.into_iter().chain(counters), &meta.to_map())?)
    }
}

/// The file of a run that is evaluated if none is named.
pub(crate) fn checkpoint_of(dir: &Path) -> Result<PathBuf> {
    [RunDir::BEST, RunDir::LAST].iter().map(|name| dir.join(name)).find(|path| path.is_file()).ok_or_else(
        || {
            let problem = format!("no checkpoint; expected {} or {}", RunDir::BEST, RunDir::LAST);
            Error::Checkpoint { path: dir.to_path_buf(), problem }
        },
    )
}

/// Gives a model's variables the values of a file, if names and shapes agree exactly.
fn load(params: &Params, found: &StateDict, path: &Path) -> Result<()> {
    let report = weights::check(&params.shapes(), found);
    if !report.is_match() {
        let problem = format!("the weights do not fit the model: {report}");
        return Err(Error::Checkpoint { path: path.to_path_buf(), problem });
    }
    Ok(params.load(found)?)
}
