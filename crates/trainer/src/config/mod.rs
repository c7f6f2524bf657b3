//! The settings of a run.

mod reading;

pub(crate) use reading::parse_table;

use crate::averages::Averaging;
use crate::schedule::{Schedule, ScheduleKind};
use crate::{Error, Result};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use zoo::Stem;
use zoo_data::{Augment, CROP_SCALE, Interpolation};

/// In which precision activations are kept. Parameters, their gradients and the loss are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// Brain floats: 8 bits of precision in the range of f32, half the memory.
    Bf16,
    /// Half floats: 11 bits of precision, in a range that needs losses to be scaled. For GPUs; a CPU takes its
    /// reference, which is slow.
    F16,
}

impl Precision {
    /// candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// Everything that decides a run. The fields are the keys of a recipe and of a run's `config.toml`.
///
/// A field that is `None` is filled in from the data set or is the model's own default; `config.toml` holds
/// the values that were filled in. Where a recipe may have to be overruled by "not at all", 0 means that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// A name of the registry.
    pub model: String,
    /// A name of the data catalogue.
    pub dataset: String,
    /// The folder with the data set's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,

    /// How often every training image is used.
    pub epochs: usize,
    /// Images per forward and backward pass, of each process if several train.
    pub batch_size: usize,
    /// Passes per optimizer step: a step is taken along the mean gradient of `grad_accum · batch_size` images.
    pub grad_accum: usize,
    /// The highest learning rate.
    pub lr: f64,
    /// Share of the previous direction that SGD keeps.
    pub momentum: f64,
    /// Whether SGD looks one momentum step ahead.
    pub nesterov: bool,
    /// Multiple of each weight that is added to its gradient; biases and normalisation parameters are spared unless
    /// `decay_biases` says otherwise.
    pub weight_decay: f64,
    /// Whether biases and normalisation parameters decay, too, as PyTorch's SGD has it: each step by as much as the weights
    /// of their layer do, whatever `norm_bias_lr_scale` is.
    pub decay_biases: bool,
    /// The course of the learning rate.
    pub schedule: ScheduleKind,
    /// Where the step schedule reduces the rate, as shares of the run.
    pub milestones: Vec<f64>,
    /// What the step schedule multiplies the rate by at each milestone.
    pub gamma: f64,
    /// Epochs of warm-up; need not be whole.
    pub warmup_epochs: f64,
    /// Share of each target that is spread over all classes.
    pub label_smoothing: f64,
    /// Probability of dropout, in networks that have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Probability of stochastic depth at the end of the network, in networks that have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_path: Option<f64>,
    /// Random changes to training images.
    #[serde(with = "augment_name")]
    pub augment: Augment,
    /// The least share of a picture's area that a random crop takes, where images have more than 64 pixels a side.
    pub crop_scale: f64,
    /// Strength α of mixup, which blends images and their labels; 0 for none.
    pub mixup: f64,
    /// Strength α of CutMix, which pastes parts of images into others; 0 for none. With mixup, each batch gets one
    /// of the two.
    pub cutmix: f64,
    /// Decay of an exponential moving average of the weights, which is then what is evaluated and saved; 0 for
    /// none.
    pub ema: f64,
    /// Lookahead: every five steps the weights go back to a moving average of them, whose decay per step grows to this
    /// (see [`Averaging::Lookahead`]); 0 for none.
    pub lookahead: f64,
    /// Largest L2 norm of the gradient of all parameters together; 0 for no limit.
    pub clip_grad: f64,
    /// Whether the learning rate is multiplied by the number of processes that train, which make the batch so many
    /// times as large (the linear scaling rule of arXiv 1706.02677).
    pub scale_lr: bool,
    /// Whether batch normalisations take their statistics over the batches of all processes that train, not over each
    /// one's own.
    pub sync_batch_norm: bool,

    /// Share of the training images that is held out and evaluated on in place of the test images; 0 for none.
    pub val_fraction: f64,
    /// At most so many training images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_train: Option<usize>,
    /// At most so many images to evaluate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_test: Option<usize>,
    /// Whether each epoch has a new order.
    pub shuffle: bool,
    /// A weight file, or another run's folder, to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Tag of the published weights to start from, or [`zoo::weights::DEFAULT_TAG`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// Parameters that stay as they are: their names or a module's, with `*` for any characters and `?` for one,
    /// or [`TrainConfig::BACKBONE`]. Normalisations of which all parameters are frozen keep their statistics too.
    pub freeze: Vec<String>,
    /// What the learning rate of all layers but the head is multiplied by.
    pub backbone_lr_scale: f64,
    /// What the learning rate of the biases of normalisations is multiplied by.
    pub norm_bias_lr_scale: f64,
    /// What the learning rate is multiplied by from each block of layers to the one before it, from the head down.
    pub layer_decay: f64,

    /// Classes of the head; by default those of the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Channels of the input, 1 or 3; by default those of the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_chans: Option<usize>,
    /// Side of the input; by default that of the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Short side of a picture before the centre is cut out, where nothing is random; by default as the weights
    /// that the run starts from ask for it, else 8/7 of `image_size` for folders and `image_size` for sets of one
    /// size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<usize>,
    /// How pictures are resized that are evaluated; by default as the weights to start from ask for it, else
    /// bilinear.
    #[serde(with = "interpolation_name", skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// The first layers, in networks that have a form for small images; by default those of the weights that the
    /// run starts from, else by the size of the images.
    #[serde(with = "StemName", skip_serializing_if = "is_auto")]
    pub stem: Stem,
    /// Mean per channel, of pixels in [0, 1]; by default that of the weights that the run starts from, or of
    /// the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f64>>,
    /// Standard deviation per channel, of pixels in [0, 1]; by default that of the weights that the run starts
    /// from, or of the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f64>>,

    /// Decides initial weights, order, augmentation and dropout.
    pub seed: u64,
    /// Precision of activations.
    pub dtype: Precision,
    /// Whether convolutions keep to algorithms as exact as direct sums in f32. It is the program that applies
    /// this, with [`zoo_ops::set_strict_f32`].
    pub strict_f32: bool,
    /// Threads to compute with; by default one per core. Has no influence on the result. A process has one
    /// thread pool, so it is the program that applies this, with [`zoo_ops::set_threads`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Steps between the step lines in `metrics.jsonl`; 0 for none.
    pub log_every: usize,
    /// Steps between saves inside an epoch; 0 saves by time, about once a minute. Has no influence on the
    /// result.
    pub save_every: usize,

    /// Keys that nobody gave in a run that starts from weights: [`Trainer::from_start`](crate::Trainer::from_start)
    /// decides them when it knows the weights and the data. No key of a recipe itself.
    #[serde(skip)]
    pub undecided: Vec<&'static str>,
}

impl Default for TrainConfig {
    /// What applies where no recipe says otherwise; without a model.
    fn default() -> Self {
        Self {
            model: String::new(),
            dataset: "cifar10".into(),
            data_dir: None,
            epochs: 10,
            batch_size: 128,
            grad_accum: 1,
            lr: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 5e-4,
            decay_biases: false,
            schedule: ScheduleKind::Cosine,
            milestones: vec![0.5, 0.75],
            gamma: 0.1,
            warmup_epochs: 1.0,
            label_smoothing: 0.0,
            dropout: None,
            drop_path: None,
            augment: Augment::Standard,
            crop_scale: CROP_SCALE,
            mixup: 0.0,
            cutmix: 0.0,
            ema: 0.0,
            lookahead: 0.0,
            clip_grad: 0.0,
            scale_lr: false,
            sync_batch_norm: false,
            val_fraction: 0.0,
            limit_train: None,
            limit_test: None,
            shuffle: true,
            weights: None,
            pretrained: None,
            freeze: Vec::new(),
            backbone_lr_scale: 1.0,
            norm_bias_lr_scale: 1.0,
            layer_decay: 1.0,
            num_classes: None,
            in_chans: None,
            image_size: None,
            resize: None,
            interpolation: None,
            stem: Stem::Auto,
            mean: None,
            std: None,
            seed: 0,
            dtype: Precision::F32,
            strict_f32: false,
            threads: None,
            log_every: 0,
            save_every: 0,
            undecided: Vec::new(),
        }
    }
}

/// Settings that a resumed run may change: they do not touch the weights.
const CHANGEABLE: [&str; 4] = ["data_dir", "threads", "log_every", "save_every"];

/// The largest seed: TOML has signed integers.
const MAX_SEED: u64 = i64::MAX as u64;

impl TrainConfig {
    /// What `freeze` calls all layers but the head.
    pub const BACKBONE: &str = "backbone";

    /// Checks what can be checked without the data set.
    ///
    /// # Errors
    /// Names the first setting that makes no sense.
    pub fn validate(&self) -> Result<()> {
        if self.model.is_empty() {
            return Err(Error::config("model", "not given; `zoo list` shows all models"));
        }
        let positive = [
            ("epochs", Some(self.epochs)),
            ("batch_size", Some(self.batch_size)),
            ("grad_accum", Some(self.grad_accum)),
            ("limit_train", self.limit_train),
            ("limit_test", self.limit_test),
            ("num_classes", self.num_classes),
            ("in_chans", self.in_chans),
            ("image_size", self.image_size),
            ("resize", self.resize),
            ("threads", self.threads),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::config(key, "must be at least 1, found 0"));
        }
        self.validate_rates()?;
        if self.weights.is_some() && self.pretrained.is_some() {
            return Err(Error::config("pretrained", "cannot be combined with weights from a file"));
        }
        if self.ema > 0.0 && self.lookahead > 0.0 {
            return Err(Error::config("lookahead", "cannot be combined with ema; both average the weights"));
        }
        if self.nesterov && self.momentum == 0.0 {
            return Err(Error::config("nesterov", "needs a momentum above 0"));
        }
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            let fits = |v: &f64| v.is_finite() && (key == "mean" || *v > 0.0);
            if let Some(value) = values.iter().flatten().find(|v| !fits(v)) {
                let range = if key == "mean" { "finite" } else { "finite and above 0" };
                return Err(Error::config(key, format!("each value must be {range}, found {value}")));
            }
        }
        if self.seed > MAX_SEED {
            return Err(Error::config("seed", format!("must be at most {MAX_SEED}, found {}", self.seed)));
        }
        Ok(())
    }

    fn validate_rates(&self) -> Result<()> {
        let non_negative = [
            ("lr", self.lr),
            ("weight_decay", self.weight_decay),
            ("warmup_epochs", self.warmup_epochs),
            ("clip_grad", self.clip_grad),
            ("gamma", self.gamma),
            ("mixup", self.mixup),
            ("cutmix", self.cutmix),
            ("backbone_lr_scale", self.backbone_lr_scale),
            ("norm_bias_lr_scale", self.norm_bias_lr_scale),
        ];
        // Written so that NaN is refused.
        if let Some((key, value)) = non_negative.iter().find(|(_, v)| !(*v >= 0.0 && v.is_finite())) {
            return Err(Error::config(key, format!("must be a finite number of at least 0, found {value}")));
        }
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            let problem = format!("must be above 0 and at most 1, found {}", self.layer_decay);
            return Err(Error::config("layer_decay", problem));
        }
        if !(self.crop_scale > 0.0 && self.crop_scale < 1.0) {
            let problem = format!("must be above 0 and below 1, found {}", self.crop_scale);
            return Err(Error::config("crop_scale", problem));
        }
        let mut shares = vec![
            ("momentum", self.momentum),
            ("ema", self.ema),
            ("lookahead", self.lookahead),
            ("val_fraction", self.val_fraction),
            ("label_smoothing", self.label_smoothing),
            ("dropout", self.dropout.unwrap_or(0.0)),
            ("drop_path", self.drop_path.unwrap_or(0.0)),
        ];
        shares.extend(self.milestones.iter().map(|&milestone| ("milestones", milestone)));
        if let Some((key, value)) = shares.iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return Err(Error::config(key, format!("must be at least 0 and below 1, found {value}")));
        }
        Ok(())
    }

    /// The course of the learning rate over the run.
    pub fn schedule(&self, steps_per_epoch: u64) -> Schedule {
        Schedule {
            kind: self.schedule,
            lr: self.lr,
            total_steps: steps_per_epoch * self.epochs as u64,
            warmup_steps: (self.warmup_epochs * steps_per_epoch as f64).round() as u64,
            milestones: self.milestones.clone(),
            gamma: self.gamma,
        }
    }

    /// How the weights of a run of so many steps are averaged, if they are.
    pub fn averaging(&self, total_steps: u64) -> Option<Averaging> {
        let lookahead = Averaging::Lookahead { decay: self.lookahead, total_steps };
        let ema = Averaging::Ema { decay: self.ema };
        if self.lookahead > 0.0 { Some(lookahead) } else { (self.ema > 0.0).then_some(ema) }
    }

    /// The settings that all processes of a run must have, and their values as TOML has them: not where files lie, nor
    /// those that do not touch the weights. The weights to start from are known by their content, and what is decided by
    /// them and the data is no setting yet.
    pub(crate) fn shared(&self) -> Vec<(String, String)> {
        let table = toml::Table::try_from(self).unwrap_or_default();
        let apart =
            |key: &str| CHANGEABLE.contains(&key) || key == "weights" || self.undecided.contains(&key);
        let shared = table.into_iter().filter(|(key, _)| !apart(key));
        shared.map(|(key, value)| (key, value.to_string())).collect()
    }

    /// The first setting that differs from `other` although a resumed run must keep it: (key, this, other).
    pub(crate) fn conflict(&self, other: &Self) -> Option<(String, String, String)> {
        let table = |config: &Self| toml::Table::try_from(config).unwrap_or_default();
        let (ours, theirs) = (table(self), table(other));
        let shown = |table: &toml::Table, key| table.get(key).map_or("not set".into(), ToString::to_string);
        ours.keys()
            .chain(theirs.keys())
            .find(|key| !CHANGEABLE.contains(&key.as_str()) && ours.get(*key) != theirs.get(*key))
            .map(|key| (key.clone(), shown(&ours, key), shown(&theirs, key)))
    }
}

/// `Stem` by name.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Stem", rename_all = "lowercase")]
enum StemName {
    Auto,
    Cifar,
    ImageNet,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_auto(stem: &Stem) -> bool {
    *stem == Stem::Auto
}

/// `Interpolation` by name.
mod interpolation_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use zoo_data::Interpolation;

    pub(super) fn serialize<S: Serializer>(
        interpolation: &Option<Interpolation>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(interpolation.unwrap_or_default().name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Interpolation>, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Interpolation::from_name(&name);
        found.map(Some).ok_or_else(|| D::Error::custom(format!("expected bilinear or bicubic, found {name}")))
    }
}

/// `Augment` by name, as on the command line.
mod augment_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use zoo_data::Augment;

    pub(super) fn serialize<S: Serializer>(augment: &Augment, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(augment)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Augment, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
