//! Which trained network `eval` and `predict` use: a run, a checkpoint, or weights from elsewhere.

use crate::options::non_zero;
use anyhow::{Result, bail};
use candle_core::Device;
use std::path::{Path, PathBuf};
use zoo::weights::{self, StateDict};
use zoo::{Config, Model, Params, Spec, Stem};
use zoo_data::{Meta, Preprocess};
use zoo_ops::rng::Noise;
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
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    mean: Option<Vec<f32>>,
    /// Standard deviation of each channel that the network was trained with
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    std: Option<Vec<f32>>,
    /// Side of the square input, in pixels
    #[arg(long, value_name = "PIXELS", value_parser = non_zero, alias = "crop")]
    image_size: Option<usize>,
    /// Resize the short side of a picture to this before the centre is cut out
    #[arg(long, value_name = "PIXELS", value_parser = non_zero)]
    resize: Option<usize>,
}

impl Foreign {
    /// The network: that of `--model` and `--weights`, or of the run or checkpoint at `path`. `meta` is the
    /// data set in question, if there is one.
    ///
    /// # Errors
    /// If neither is given, or the file cannot be read or does not fit.
    pub(crate) fn open(&self, path: Option<&Path>, meta: Option<&Meta>) -> Result<Checkpoint> {
        let mut checkpoint = match (path, &self.model, &self.weights) {
            (_, Some(model), Some(weights)) => self.describe(model, weights, meta)?,
            (Some(path), ..) => Checkpoint::open(path)?,
            _ => bail!("name a run or a checkpoint, or give --model and --weights"),
        };
        let input = &mut checkpoint.meta.input;
        if let Some(size) = self.image_size {
            let usual = meta.map_or_else(
                || Preprocess::new(size, input.in_chans),
                |meta| Preprocess::for_dataset(meta, size, input.in_chans),
            );
            (input.image_size, input.resize) = (size, usual.resize);
        }
        input.resize = self.resize.unwrap_or(input.resize);
        for (given, used) in [(&self.mean, &mut input.mean), (&self.std, &mut input.std)] {
            if let Some(values) = given {
                used.clone_from(values);
            }
        }
        input.preprocess().check()?;
        check_statistics(input)?;
        Ok(checkpoint)
    }

    /// What a checkpoint would say of weights that say nothing.
    fn describe(&self, model: &str, path: &Path, meta: Option<&Meta>) -> Result<Checkpoint> {
        let spec = zoo::find(model)?;
        let weights = weights::read(path)?;
        let (num_classes, in_chans) = ends(spec, &weights);
        let num_classes = num_classes.unwrap_or(spec.num_classes);
        let in_chans = in_chans.unwrap_or(spec.input[0]);
        let side = meta.filter(|meta| meta.fixed_size).map_or(spec.input[1], |meta| meta.shape[1]);
        let image_size = self.image_size.unwrap_or(side);
        let preprocess = meta.map_or_else(
            || Preprocess::new(image_size, in_chans),
            |meta| Preprocess::for_dataset(meta, image_size, in_chans),
        );
        let (mean, std) = match meta {
            Some(meta) if meta.mean.len() == in_chans => (meta.mean.clone(), meta.std.clone()),
            _ if in_chans == 3 => (IMAGENET.0.to_vec(), IMAGENET.1.to_vec()),
            _ => (vec![0.5; in_chans], vec![0.5; in_chans]),
        };
        let meta = CheckpointMeta {
            model: spec.name.into(),
            num_classes,
            classes: meta.map(|meta| meta.classes.clone()).unwrap_or_default(),
            input: Input { in_chans, image_size, resize: preprocess.resize, mean, std },
            dataset: meta.map(|meta| meta.name.clone()).unwrap_or_default(),
            epoch: 0,
            step: 0,
            metrics: None,
            zoo_version: env!("CARGO_PKG_VERSION").into(),
        };
        Ok(Checkpoint { path: path.to_path_buf(), meta, weights })
    }
}

/// Classes and input channels, as the shapes of the last and the first layer tell.
fn ends(spec: &Spec, weights: &StateDict) -> (Option<usize>, Option<usize>) {
    let shape =
        |layer: &str| weights.tensors.get(&format!("{layer}.weight")).map(|weight| weight.dims().to_vec());
    let in_chans = match shape(spec.stem).as_deref() {
        Some(&[_, c_in, _, _]) => Some(c_in),
        _ => None,
    };
    (shape(spec.head).and_then(|shape| shape.first().copied()), in_chans)
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
/// If the model cannot be built.
pub(crate) fn expected_shapes(spec: &Spec, weights: &StateDict) -> Result<Vec<(String, Vec<usize>)>> {
    let (num_classes, in_chans) = ends(spec, weights);
    let [c, h, w] = spec.input;
    let config = Config {
        num_classes: num_classes.unwrap_or(spec.num_classes),
        in_chans: in_chans.unwrap_or(c),
        image_size: (h, w),
        dropout: None,
        stem: Stem::Auto,
        noise: Noise::default(),
    };
    let params = Params::zeros();
    Model::new(spec.name, config, params.var_builder(&Device::Cpu))?;
    Ok(params.shapes())
}
