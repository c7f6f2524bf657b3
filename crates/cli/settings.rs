//! The settings of a training run as options: one field for each, under the name that a recipe has for it.

use crate::options::{Common, non_zero, number};
use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use std::path::PathBuf;
use zoo::weights::DEFAULT_TAG;
use zoo_data::Augment;

/// Settings that a recipe can hold too, under the same names.
#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Settings {
    /// Name of the model, one of `zoo list`
    #[arg(long, value_name = "NAME", help_heading = "Model and data")]
    #[arg(required_unless_present_any = ["resume", "recipe"])]
    model: Option<String>,
    /// cifar10, cifar100, mnist, fashion-mnist, folder, text, or shapes, which needs no files [default: cifar10]
    #[arg(long, value_name = "NAME", help_heading = "Model and data")]
    dataset: Option<String>,
    /// Folder with the files of the data set (of text also a file of lines `class<tab>sentence`); without it they
    /// are downloaded
    #[arg(long, value_name = "DIR", help_heading = "Model and data")]
    data_dir: Option<PathBuf>,
    /// Start from the weights in this file (safetensors, or .pth/.pt of PyTorch) or of this run, with a new head
    /// for other classes
    #[arg(long, value_name = "FILE", conflicts_with = "pretrained", help_heading = "Fine-tuning")]
    weights: Option<PathBuf>,
    /// Start from published weights, by a tag that `zoo list MODEL` shows [default: the first]
    #[arg(long, value_name = "TAG", num_args = 0..=1, default_missing_value = DEFAULT_TAG)]
    #[arg(help_heading = "Fine-tuning")]
    pretrained: Option<String>,
    /// Keep these parameters as they are, e.g. 'layer1.*', or 'backbone' for all but the head; may be given several
    /// times
    #[arg(long, value_name = "PATTERN", help_heading = "Fine-tuning")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    freeze: Vec<String>,
    /// Multiply the learning rate of all layers but the head [default: 1, below a new head 0.1 or less]
    #[arg(long, value_name = "FACTOR", value_parser = number, allow_negative_numbers = true, help_heading = "Fine-tuning")]
    backbone_lr_scale: Option<f64>,
    /// Multiply the learning rate once more for each block of layers further from the head, e.g. by 0.75
    #[arg(long, value_name = "FACTOR", value_parser = number, allow_negative_numbers = true, help_heading = "Fine-tuning")]
    layer_decay: Option<f64>,
    /// First layers for small images (cifar) or as published for large ones [default: as the weights to start from
    /// have them, else by the size of the images]
    #[arg(long, value_name = "KIND", value_parser = ["auto", "cifar", "imagenet"], help_heading = "Fine-tuning")]
    stem: Option<String>,

    /// Number of classes of the model [default: those of the data set]
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "Model and data")]
    num_classes: Option<usize>,
    /// Channels of the input: 1 for grey, 3 for colour [default: those of the data set]
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "Model and data")]
    in_chans: Option<usize>,
    /// Side of the square input, in pixels [default: that of the data set]
    #[arg(long, value_name = "PIXELS", value_parser = non_zero, help_heading = "Model and data")]
    image_size: Option<usize>,
    /// Short side of a picture that is evaluated, before its centre is cut out [default: 8/7 of the image size, or as
    /// the weights to start from ask for it]
    #[arg(long, value_name = "PIXELS", value_parser = non_zero, help_heading = "Model and data")]
    resize: Option<usize>,
    /// Mean of each channel, of pixels from 0 to 1 [default: that of the weights or the data set]
    #[arg(long, value_name = "R,G,B", value_parser = number, value_delimiter = ',', help_heading = "Model and data")]
    mean: Option<Vec<f64>>,
    /// Standard deviation of each channel [default: that of the weights or the data set]
    #[arg(long, value_name = "R,G,B", value_parser = number, value_delimiter = ',', help_heading = "Model and data")]
    std: Option<Vec<f64>>,
    /// Random changes to the training images
    #[arg(long, value_name = "KIND", help_heading = "Model and data")]
    #[arg(value_parser = PossibleValuesParser::new(Augment::ALL.map(Augment::name)))]
    augment: Option<String>,
    /// The least share of a picture's area that a random crop takes, where the input is larger than 64 pixels
    /// [default: 0.08, from weights 0.5]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_negative_numbers = true, help_heading = "Model and data")]
    crop_scale: Option<f64>,
    /// Blend each training image and its label with another one; the strength α, e.g. 0.2
    #[arg(long, value_name = "ALPHA", value_parser = number, allow_negative_numbers = true, help_heading = "Model and data")]
    mixup: Option<f64>,
    /// Paste a part of another image into each training image; the strength α, e.g. 1. With --mixup each batch gets
    /// one of the two
    #[arg(long, value_name = "ALPHA", value_parser = number, allow_negative_numbers = true, help_heading = "Model and data")]
    cutmix: Option<f64>,
    /// Hold out this share of the training images and validate on it instead of the test images
    #[arg(long, value_name = "SHARE", value_parser = number, allow_negative_numbers = true, help_heading = "Model and data")]
    val_fraction: Option<f64>,
    /// Train on at most N images
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "Model and data")]
    limit_train: Option<usize>,
    /// Validate on at most N images
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "Model and data")]
    limit_test: Option<usize>,
    /// Use the images in the order of the data set
    #[arg(long, help_heading = "Model and data")]
    #[serde(rename = "shuffle", serialize_with = "negated", skip_serializing_if = "std::ops::Not::not")]
    no_shuffle: bool,

    /// How often each training image is used
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "Optimisation")]
    epochs: Option<usize>,
    /// Images per batch, of each process if several train
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "Optimisation")]
    batch_size: Option<usize>,
    /// Batches per step; their gradients are averaged, as if the batch were so much larger
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "Optimisation")]
    grad_accum: Option<usize>,
    /// The highest learning rate
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    lr: Option<f64>,
    /// How the learning rate changes over the run
    #[arg(long, value_name = "KIND", help_heading = "Optimisation")]
    #[arg(value_parser = ["cosine", "step", "linear", "onecycle", "constant"])]
    schedule: Option<String>,
    /// Epochs in which the learning rate rises; need not be whole [default: the recipe's share of the run]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    warmup_epochs: Option<f64>,
    /// Where the step schedule lowers the rate, as shares of the run, e.g. 0.5,0.75
    #[arg(long, value_name = "SHARES", value_parser = number, value_delimiter = ',', help_heading = "Optimisation")]
    milestones: Option<Vec<f64>>,
    /// What the step schedule multiplies the rate by
    #[arg(long, value_name = "FACTOR", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    gamma: Option<f64>,
    /// Share of the last step's direction that SGD keeps
    #[arg(long, value_name = "SHARE", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    momentum: Option<f64>,
    /// Nesterov's momentum, which looks one step ahead
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    #[arg(hide_possible_values = true, help_heading = "Optimisation")]
    nesterov: Option<bool>,
    /// Multiple of each weight that is taken off it; biases and normalisations are spared without --decay-biases
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    weight_decay: Option<f64>,
    /// Let biases and normalisations decay, too
    #[arg(long, help_heading = "Optimisation")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    decay_biases: bool,
    /// Share of each target that is spread over all classes
    #[arg(long, value_name = "SHARE", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    label_smoothing: Option<f64>,
    /// Probability of dropout, in models that have it
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    dropout: Option<f64>,
    /// Probability of stochastic depth at the end of the network, in models that have it
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    drop_path: Option<f64>,
    /// Evaluate and save a moving average of the weights with this decay, e.g. 0.999
    #[arg(long, value_name = "DECAY", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    ema: Option<f64>,
    /// Every five steps go back to a moving average of the weights, whose decay per step grows to this, e.g. 0.95
    #[arg(long, value_name = "DECAY", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    lookahead: Option<f64>,
    /// Multiply the learning rate of the biases of normalisations, e.g. by 64 in short runs
    #[arg(long, value_name = "FACTOR", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    norm_bias_lr_scale: Option<f64>,
    /// Limit the norm of the gradient
    #[arg(long, value_name = "NORM", value_parser = number, allow_negative_numbers = true, help_heading = "Optimisation")]
    clip_grad: Option<f64>,
    /// Multiply the learning rate by the number of processes that train
    #[arg(long, help_heading = "Several devices")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    scale_lr: bool,
    /// Normalise batches over all processes that train, not each on its own
    #[arg(long, help_heading = "Several devices")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    sync_batch_norm: bool,

    /// Write the loss to metrics.jsonl every N steps
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "The run")]
    log_every: Option<usize>,
    /// Save the state for --resume every N steps, besides the end of each epoch [default: once a minute]
    #[arg(long, value_name = "N", value_parser = non_zero, help_heading = "The run")]
    save_every: Option<usize>,
}

impl Settings {
    /// The options that were given, as a recipe would have them.
    ///
    /// # Errors
    /// If a value has no form in a recipe.
    pub(crate) fn flags(&self, common: &Common) -> Result<toml::Table> {
        let mut flags = toml::Table::try_from(self).context("cannot use the options given")?;
        if let Some(seed) = common.seed {
            flags.insert("seed".into(), i64::try_from(seed).context("the seed is too large")?.into());
        }
        if let Some(dtype) = common.dtype_given() {
            flags.insert("dtype".into(), dtype.as_str().into());
        }
        if common.strict_f32() {
            flags.insert("strict_f32".into(), true.into());
        }
        if let Some(threads) = common.threads_given() {
            flags.insert("threads".into(), toml::Value::Integer(threads as i64));
        }
        Ok(flags)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn negated<S: serde::Serializer>(no: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(!no)
}
