//! Which trained network `eval` and `predict` use: a run, a checkpoint, or weights from elsewhere.

use crate::options::{non_zero, number};
use crate::printer::Printer;
use anyhow::{Context, Result, bail};
use candle_core::Device;
use std::path::{Path, PathBuf};
use zoo::weights::{self, StateDict};
use zoo::{Model, Params, Preprocessing, Spec, WeightFile, infer_config};
use zoo_data::{CatalogEntry, Meta, Preprocess};
use zoo_trainer::{Checkpoint, CheckpointMeta, Input, RunDir, TrainConfig};

/// ImageNet's mean and standard deviation, which most published weights for colour images were trained with.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Weights that do not say what they are for, and how pictures are prepared.
#[derive(Debug, clap::Args)]
pub(crate) struct Foreign {
    /// The model that the weights are for, one of `zoo list`
    #[arg(long, value_name = "NAME", requires = "weights")]
    pub(crate) model: Option<String>,
    /// Weights from elsewhere: safetensors, or .pth/.pt of PyTorch
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) weights: Option<PathBuf>,
    /// Mean of each channel that the network was trained with, of pixels from 0 to 1
    #[arg(long, value_name = "R,G,B", value_parser = number, value_delimiter = ',')]
    mean: Option<Vec<f64>>,
    /// Standard deviation of each channel that the network was trained with
    #[arg(long, value_name = "R,G,B", value_parser = number, value_delimiter = ',')]
    std: Option<Vec<f64>>,
    /// Side of the square input, in pixels
    #[arg(long, value_name = "PIXELS", value_parser = non_zero, visible_alias = "crop")]
    image_size: Option<usize>,
    /// Resize the short side of a picture to this before the centre is cut out
    #[arg(long, value_name = "PIXELS", value_parser = non_zero)]
    resize: Option<usize>,
}

/// A network with its weights.
pub(crate) struct Trained {
    /// The network.
    pub(crate) model: Model,
    /// What is known of the weights.
    pub(crate) meta: CheckpointMeta,
}

impl Foreign {
    /// The network: that of `--model` and `--weights`, or of the run or checkpoint at `path`. `dataset` is the
    /// one in question, if there is one.
    ///
    /// # Errors
    /// If neither is given, or the file cannot be read or does not fit.
    pub(crate) fn open(
        &self,
        path: Option<&Path>,
        dataset: Option<&Meta>,
        device: &Device,
        printer: &Printer,
    ) -> Result<Trained> {
        let Checkpoint { path, mut meta, weights } = match (path, &self.model, &self.weights) {
            (_, Some(model), Some(weights)) => self.describe(model, weights, dataset, printer)?,
            (Some(path), ..) => Checkpoint::open(path)?,
            _ => bail!("name a run or a checkpoint, or give --model and --weights"),
        };
        printer.detail(format!("weights from {}", path.display()));
        self.change(&mut meta.input, dataset)?;
        let size = (meta.input.image_size, meta.input.image_size);
        let model = build(zoo::find(&meta.model)?, &weights, size, device)
            .with_context(|| format!("cannot use {}", path.display()))?;
        if meta.input.in_chans != model.config().in_chans {
            let (says, has) = (meta.input.in_chans, model.config().in_chans);
            bail!("{}: its metadata has {says} channels, its weights have {has}", path.display());
        }
        Ok(Trained { model, meta })
    }

    /// The data set that the weights were trained on, where that is published.
    ///
    /// # Errors
    /// If there is no such model.
    pub(crate) fn dataset(&self) -> Result<Option<&'static CatalogEntry>> {
        let (Some(model), Some(path)) = (&self.model, &self.weights) else { return Ok(None) };
        let known = published(zoo::find(model)?, path)?;
        Ok(known.and_then(|file| CatalogEntry::find(&file.dataset).ok()))
    }

    /// What a checkpoint would say of weights that say nothing: what is published about the file, else what
    /// suits the data set, else ImageNet.
    fn describe(
        &self,
        model: &str,
        path: &Path,
        dataset: Option<&Meta>,
        printer: &Printer,
    ) -> Result<Checkpoint> {
        let spec = zoo::find(model)?;
        let weights = weights::read(path)?;
        let known = published(spec, path)?;
        let side = match (self.image_size, &known, dataset.filter(|meta| meta.fixed_size)) {
            (Some(size), ..) => size,
            (None, _, Some(meta)) => meta.shape[1],
            (None, Some(file), None) => file.preprocessing.image_size,
            (None, None, None) => spec.input[1],
        };
        let config = infer_config(spec, &weights, (side, side))
            .with_context(|| format!("cannot use {}", path.display()))?;
        let channels = config.in_chans;
        let (mean, std) = match (&known, dataset) {
            (Some(WeightFile { preprocessing: Preprocessing { mean, std, .. }, tag, .. }), _) => {
                printer
                    .note(format!("these seem to be the weights '{tag}': normalising as their authors do"));
                (mean.clone(), std.clone())
            }
            (None, Some(meta)) if meta.mean.len() == channels => (meta.mean.clone(), meta.std.clone()),
            // Both are about to be replaced.
            _ if self.mean.is_some() && self.std.is_some() => Default::default(),
            _ if channels == 3 => {
                printer.note("normalising with ImageNet's statistics; --mean and --std change that");
                (IMAGENET.0.to_vec(), IMAGENET.1.to_vec())
            }
            _ => bail!("say with --mean and --std how the images for these weights were normalised"),
        };
        let resize = known
            .and_then(|file| file.preprocessing.resize.filter(|_| file.preprocessing.image_size == side));
        let usual = preprocess(dataset, side, channels).resize;
        let meta = CheckpointMeta {
            model: spec.name.into(),
            num_classes: config.num_classes,
            classes: dataset.map(|meta| meta.classes.clone()).unwrap_or_default(),
            input: Input { in_chans: channels, image_size: side, resize: resize.unwrap_or(usual), mean, std },
            dataset: dataset.map(|meta| meta.name.clone()).unwrap_or_default(),
            epoch: 0,
            step: 0,
            metrics: None,
            zoo_version: env!("CARGO_PKG_VERSION").into(),
        };
        Ok(Checkpoint { path: path.to_path_buf(), meta, weights })
    }

    /// Applies what the options say of the input.
    fn change(&self, input: &mut Input, dataset: Option<&Meta>) -> Result<()> {
        if let Some(size) = self.image_size.filter(|&size| size != input.image_size) {
            (input.image_size, input.resize) = (size, preprocess(dataset, size, input.in_chans).resize);
        }
        input.resize = self.resize.unwrap_or(input.resize);
        for (given, used) in [(&self.mean, &mut input.mean), (&self.std, &mut input.std)] {
            if let Some(values) = given {
                *used = values.iter().map(|&value| value as f32).collect();
            }
        }
        input.preprocess().check()?;
        check_statistics(input)
    }
}

/// The usual way from a picture to an input.
fn preprocess(dataset: Option<&Meta>, size: usize, channels: usize) -> Preprocess {
    match dataset {
        Some(meta) => Preprocess::for_dataset(meta, size, channels),
        None => Preprocess::new(size, channels),
    }
}

/// What is published about the weights in a file, going by its name.
fn published(spec: &Spec, path: &Path) -> Result<Option<WeightFile>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_it = |file: &WeightFile| {
        let official = file.url.rsplit('/').next().unwrap_or_default();
        // Collections put their own names before the official one, whose end is a checksum.
        !official.is_empty() && name.ends_with(official)
    };
    Ok(zoo::facts(spec.name)?.weights.into_iter().find(is_it))
}

/// A network for the weights of a file, which must be exactly its own.
fn build(spec: &Spec, weights: &StateDict, size: (usize, usize), device: &Device) -> Result<Model> {
    let config = infer_config(spec, weights, size)?;
    let params = Params::zeros();
    let model = Model::new(spec.name, config, params.var_builder(device))?;
    params.load(weights)?;
    Ok(model)
}

fn check_statistics(input: &Input) -> Result<()> {
    for (option, values) in [("--mean", &input.mean), ("--std", &input.std)] {
        if values.len() != input.in_chans {
            let (expected, found) = (input.in_chans, values.len());
            bail!(
                "{option} needs a value for each of the {expected} channels of the model's input, found {found}"
            );
        }
    }
    match input.std.iter().find(|&&value| !(value > 0.0 && value.is_finite())) {
        Some(value) => bail!("--std must be above 0, found {value}"),
        None => Ok(()),
    }
}

/// The settings of the run that a checkpoint is from, if its folder still has them.
pub(crate) fn run_config(path: &Path) -> Option<TrainConfig> {
    let dir = if path.is_dir() { path } else { path.parent()? };
    RunDir::open(dir).ok()?.config().ok()
}

/// Names of the classes of the network; a class without one goes by its number.
pub(crate) fn class_name(meta: &CheckpointMeta, class: usize) -> String {
    meta.classes.get(class).cloned().unwrap_or_else(|| class.to_string())
}

/// Names and shapes that a model has, with as many classes and input channels as the weights have.
///
/// # Errors
/// If the weights are not at all those of the model.
pub(crate) fn expected_shapes(spec: &Spec, weights: &StateDict) -> Result<Vec<(String, Vec<usize>)>> {
    let config = infer_config(spec, weights, (spec.input[1], spec.input[2]))?;
    let params = Params::zeros();
    Model::new(spec.name, config, params.var_builder(&Device::Cpu))?;
    Ok(params.shapes())
}
