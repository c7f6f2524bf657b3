//! The images of a run.

use crate::input::Input;
use crate::start::Start;
use crate::{Error, Result, TrainConfig};
use candle_core::{DType, Device};
use zoo::Spec;
use zoo_data::{Augment, Dataset, Interpolation, Loader, LoaderConfig, Meta, Mix, Preprocess, Share, Split};
use zoo_ops::FeatureMap;

/// The seed that draws the set `shapes` and decides which images a limit or a held-out share takes. It is the
/// same in every run, so that runs with different seeds are measured on the same images.
pub const DATA_SEED: u64 = 0;

/// The images to train and to evaluate on.
#[derive(Debug, Clone)]
pub struct TrainData {
    /// To train on.
    pub train: Dataset,
    /// To evaluate on.
    pub val: Dataset,
}

impl TrainData {
    /// Opens what the settings name: the training split, and the test split or a share of the training split.
    ///
    /// # Errors
    /// If the data set cannot be opened or is too small for the settings.
    pub fn open(config: &TrainConfig) -> Result<Self> {
        let open = |split| zoo_data::open(&config.dataset, split, config.data_dir.as_deref(), DATA_SEED);
        let all = open(Split::Train)?;
        let (train, val) = if config.val_fraction > 0.0 {
            all.hold_out(config.val_fraction, DATA_SEED)?
        } else {
            (all, open(Split::Test)?)
        };
        let limit = |set: Dataset, n: Option<usize>| n.map_or(set.clone(), |n| set.limit(n, DATA_SEED));
        Ok(Self { train: limit(train, config.limit_train), val: limit(val, config.limit_test) })
    }

    /// What makes the batches of one rank: its share of each to train on, and its share of the set to evaluate on.
    pub(crate) fn loaders(&self, config: &TrainConfig, share: Share) -> Result<(Loader, Loader)> {
        let base = plain(config);
        let mix = Mix { mixup: config.mixup, cutmix: config.cutmix };
        let train = LoaderConfig {
            shuffle: config.shuffle,
            augment: config.augment,
            crop_scale: config.crop_scale,
            mix,
            share,
            ..base.clone()
        };
        let val = LoaderConfig { augment: Augment::None, ..base };
        let own = self.val.subset((share.rank..self.val.len()).step_by(share.ranks));
        if own.is_empty() && !self.val.is_empty() {
            let (images, ranks) = (self.val.len(), share.ranks);
            return Err(Error::Ranks(format!(
                "{images} images to evaluate on cannot be shared by {ranks} processes"
            )));
        }
        Ok((Loader::new(self.train.clone(), train)?, Loader::new(own, val)?))
    }

    /// The first training images as they are evaluated, for the initial values that depend on images: as many as have
    /// the pixels of 5,000 images of 32×32.
    pub(crate) fn first_images(
        &self,
        config: &TrainConfig,
        input: &Input,
        device: &Device,
    ) -> candle_core::Result<FeatureMap> {
        const PIXELS: usize = 5_000 * 32 * 32;
        let n = (PIXELS / (input.image_size * input.image_size)).clamp(1, self.train.len());
        let config = LoaderConfig { batch_size: n, ..plain(config) };
        let loader = Loader::new(self.train.subset(0..n), config).map_err(candle_core::Error::wrap)?;
        let batch = loader.epoch(0, 0).next().transpose().map_err(candle_core::Error::wrap)?;
        match batch {
            Some(batch) => input.normalise(&batch, None, DType::F32, device),
            None => candle_core::bail!("there are no images to start from"),
        }
    }
}

/// Every image once, as it is evaluated.
pub(crate) fn plain(config: &TrainConfig) -> LoaderConfig {
    LoaderConfig {
        image_size: config.image_size,
        resize: config.resize,
        interpolation: config.interpolation.unwrap_or_default(),
        in_chans: config.in_chans,
        ..LoaderConfig::new(config.batch_size, config.seed)
    }
}

/// Fills in what depends on the model, the data set and the weights that the run starts from, and says what the
/// network takes.
pub(crate) fn complete(
    config: &mut TrainConfig,
    spec: &Spec,
    meta: &Meta,
    start: Option<&Start>,
) -> Result<Input> {
    let classes = meta.classes.len();
    let num_classes = *config.num_classes.get_or_insert(classes);
    if num_classes < classes {
        let problem = format!("must be at least the {classes} classes of {}, found {num_classes}", meta.name);
        return Err(Error::config("num_classes", problem));
    }
    let trained_on = start.and_then(|start| start.input.as_ref());
    let in_chans = *config.in_chans.get_or_insert(meta.shape[0]);
    let side = match trained_on {
        _ if meta.fixed_size => meta.shape[1],
        Some(input) => input.image_size,
        None => spec.input[1],
    };
    let image_size = *config.image_size.get_or_insert(side);
    let resize = match trained_on {
        Some(input) if !meta.fixed_size && input.image_size == image_size => input.resize,
        _ => Preprocess::for_dataset(meta, image_size, in_chans).resize,
    };
    if let (None, Some(Interpolation::Bicubic)) =
        (config.interpolation, trained_on.map(|input| input.interpolation))
    {
        config.interpolation = Some(Interpolation::Bicubic);
    }
    let interpolation = config.interpolation.unwrap_or_default();
    let resize = *config.resize.get_or_insert(resize);
    let usual = trained_on.map_or((&meta.mean, &meta.std), |input| (&input.mean, &input.std));
    let mean = config.mean.get_or_insert_with(|| decimal(&with_channels(usual.0, in_chans)));
    let std = config.std.get_or_insert_with(|| decimal(&with_channels(usual.1, in_chans)));
    for (key, values) in [("mean", &*mean), ("std", &*std)] {
        if values.len() != in_chans {
            let problem = format!("needs a value for each of {in_chans} channels, found {}", values.len());
            return Err(Error::config(key, problem));
        }
    }
    let single = |values: &[f64]| values.iter().map(|&v| v as f32).collect();
    let input = Input { in_chans, image_size, resize, interpolation, mean: single(mean), std: single(std) };
    input.preprocess().check()?;
    Ok(input)
}

/// That a network which reads sentences gets sentences, and one which sees images images.
pub(crate) fn check_kind(
    config: &TrainConfig,
    spec: &Spec,
    dataset: &Dataset,
    start: Option<&Start>,
) -> Result<()> {
    if spec.reads_text() && start.is_some() {
        let problem = "a word has another number in other sentences, so these weights cannot be started from";
        return Err(Error::config("weights", problem));
    }
    let normalised = [("mean", &config.mean), ("std", &config.std)];
    if let Some((key, _)) = normalised.iter().find(|(_, given)| {
        spec.reads_text() && given.as_ref().is_some_and(|values| values.iter().any(|value| *value != 0.5))
    }) {
        return Err(Error::config(key, "words are numbers that are not normalised; leave it out"));
    }
    let name = &dataset.meta().name;
    let problem = match (spec.reads_text(), dataset.vocabulary().is_some()) {
        (true, false) => format!("{} reads sentences, and {name} has images; use --dataset text", spec.name),
        (false, true) => format!("{} sees images, and {name} has sentences; use --model textcnn", spec.name),
        _ => return Ok(()),
    };
    Err(Error::config("dataset", problem))
}

/// Statistics for another number of channels: repeated, or averaged, which is close enough to normalise by.
fn with_channels(values: &[f32], channels: usize) -> Vec<f32> {
    match (values.len(), channels) {
        (1, c) => vec![values[0]; c],
        (n, 1) => vec![values.iter().sum::<f32>() / n as f32],
        _ => values.to_vec(),
    }
}

/// The shortest decimals that are these floats, so that `config.toml` has 0.4914 and not 0.49140000343322754.
fn decimal(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| v.to_string().parse().unwrap_or(f64::from(*v))).collect()
}
