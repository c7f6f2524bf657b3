//! Which trained network `eval` and `predict` use: a run, a checkpoint, or weights from elsewhere.

use crate::options::{non_zero, number};
use crate::printer::Printer;
use anyhow::{Context, Result, bail};
use candle_core::Device;
use std::path::{Path, PathBuf};
use zoo::weights::{self, Cache, DEFAULT_TAG, KnownBy, StateDict};
use zoo::{Config, Model, Params, Preprocessing, Spec, Stem, WeightFile, infer_config};
use zoo_data::{CatalogEntry, Meta, Preprocess, Reading, classes_of, imagenet_classes};
use zoo_trainer::{Checkpoint, CheckpointMeta, Input, RunDir, TrainConfig};

/// ImageNet's mean and standard deviation, which most published weights for colour images were trained with.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Weights that do not say what they are for, and how pictures are prepared.
#[derive(Debug, clap::Args)]
pub(crate) struct Foreign {
    /// The model that the weights are for, one of `zoo list`
    #[arg(long, value_name = "NAME", requires = "source")]
    model: Option<String>,
    /// Weights from elsewhere: safetensors, or .pth/.pt of PyTorch
    #[arg(long, value_name = "FILE", requires = "model", group = "source")]
    weights: Option<PathBuf>,
    /// Published weights, by a tag that `zoo list MODEL` shows [default: the first]; downloaded once
    #[arg(long, value_name = "TAG", num_args = 0..=1, default_missing_value = DEFAULT_TAG)]
    #[arg(requires = "model", group = "source")]
    pretrained: Option<String>,
    /// First layers for small images (cifar) or as published for large ones [default: as the shapes of the weights have
    /// them, else by the size of the images]
    #[arg(long, value_name = "KIND", value_parser = ["cifar", "imagenet"], requires = "source")]
    stem: Option<String>,
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

/// Weights as they were found, before it is said what they are used on.
pub(crate) struct Found {
    path: PathBuf,
    spec: &'static Spec,
    weights: StateDict,
    /// What a checkpoint says of itself.
    meta: Option<CheckpointMeta>,
    /// What is published about weights that say nothing.
    published: Option<(WeightFile, KnownBy)>,
}

/// A network with its weights.
pub(crate) struct Trained {
    /// The network.
    pub(crate) model: Model,
    /// What is known of the weights.
    pub(crate) meta: CheckpointMeta,
}

impl Foreign {
    /// Whether the options name weights, so that there is no run or checkpoint to name.
    pub(crate) fn is_given(&self) -> bool {
        self.weights.is_some() || self.pretrained.is_some()
    }

    /// Reads the weights: those that the options name, or of the run or checkpoint at `path`.
    ///
    /// # Errors
    /// If neither is given, there is no such model, or the file cannot be had or read.
    pub(crate) fn read(&self, path: Option<&Path>, printer: &Printer) -> Result<Found> {
        match (path, &self.model) {
            (_, Some(model)) if self.is_given() => {
                let spec = zoo::find(model)?;
                let (path, published) = match &self.weights {
                    Some(path) => (path.clone(), identify(spec, path)?),
                    None => {
                        let tag = self.pretrained.as_deref().unwrap_or(DEFAULT_TAG);
                        let (path, file) = fetch(spec, tag, printer)?;
                        (path, Some((file, KnownBy::Content)))
                    }
                };
                let mut weights = read_translated(spec, &path, printer)?;
                let of_imagenet = published
                    .as_ref()
                    .is_some_and(|(file, _)| file.dataset == "imagenet")
                    .then_some("imagenet");
                if let Some(stem) = self.stem.as_deref().or(of_imagenet) {
                    weights.metadata.insert(Stem::METADATA.into(), stem.into());
                }
                Ok(Found { path, spec, weights, meta: None, published })
            }
            (Some(path), _) => {
                let Checkpoint { path, meta, weights } = Checkpoint::open(path)?;
                let spec =
                    zoo::find(&meta.model).with_context(|| format!("cannot use {}", path.display()))?;
                Ok(Found { path, spec, weights, meta: Some(meta), published: None })
            }
            _ => bail!("name a run or a checkpoint, or give --model and --weights or --pretrained"),
        }
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

impl Found {
    /// The data set that the network was trained on, as far as one of the catalogue is known.
    pub(crate) fn dataset(&self) -> Option<&'static CatalogEntry> {
        let of_checkpoint = self.meta.as_ref().map(|meta| &meta.dataset);
        let name = of_checkpoint.or_else(|| self.published.as_ref().map(|(file, _)| &file.dataset));
        name.and_then(|name| CatalogEntry::find(name).ok())
    }

    /// How sentences are read for the network, if it reads sentences.
    ///
    /// # Errors
    /// If weights that say nothing are of a network that reads sentences.
    pub(crate) fn reading(&self) -> Result<Option<Reading>> {
        let reading = self.meta.as_ref().and_then(CheckpointMeta::reading);
        if reading.is_none() && self.spec.reads_text() {
            bail!("{}: it is not known which numbers words have for these weights", self.path.display());
        }
        Ok(reading)
    }

    /// Builds the network, for pictures of `dataset` where it is known whose they are.
    ///
    /// # Errors
    /// If the weights are not exactly those of the model, or it is not known how its input is normalised.
    pub(crate) fn open(
        mut self,
        options: &Foreign,
        dataset: Option<&Meta>,
        device: &Device,
        printer: &Printer,
    ) -> Result<Trained> {
        let mut meta = match self.meta.take() {
            Some(meta) => meta,
            None => self.describe(options, dataset, printer)?,
        };
        let of_weights = meta.input.clone();
        options.change(&mut meta.input, dataset)?;
        if meta.vocabulary.is_some() && meta.input != of_weights {
            bail!("how these weights read sentences cannot be changed");
        }
        let Self { path, spec, weights, .. } = self;
        printer.detail(format!("weights from {}", path.display()));
        let size = (meta.input.image_size, meta.input.image_size);
        let model =
            build(spec, &weights, size, device).with_context(|| format!("cannot use {}", path.display()))?;
        if meta.input.in_chans != model.config().in_chans {
            let (says, has) = (meta.input.in_chans, model.config().in_chans);
            bail!("{}: its metadata has {says} channels, its weights have {has}", path.display());
        }
        Ok(Trained { model, meta })
    }

    /// Whether the weights fit both forms of a network that has one for small images.
    fn fits_both_forms(&self, config: &Config) -> bool {
        let form = |stem| {
            let params = Params::zeros();
            let config = Config { stem, ..config.clone() };
            let model = Model::new(self.spec.name, config, params.var_builder(&Device::Cpu)).ok()?;
            let rows = model.trace(1, candle_core::DType::F32).ok()?;
            weights::check(&params.shapes(), &self.weights).is_match().then_some(rows)
        };
        let forms = (form(Stem::Cifar), form(Stem::ImageNet));
        forms.0.is_some() && forms.1.is_some() && forms.0 != forms.1
    }

    /// Names of the network's classes, as far as the weights say or are known to be published for some.
    fn class_names(&self, num_classes: usize) -> Vec<String> {
        let own = || {
            let meta = CheckpointMeta::from_metadata(&self.weights.metadata).ok()?;
            (meta.model == self.spec.name).then_some(meta.classes)
        };
        // A file that is known by its name may be another with that name.
        let published = || {
            let (file, _) = self.published.as_ref()?;
            classes_of(&file.dataset).filter(|names| names.len() == num_classes)
        };
        own().or_else(published).unwrap_or_default()
    }

    /// What a checkpoint would say of weights that say nothing: what is published about them, else what suits
    /// the data set, else ImageNet.
    fn describe(
        &self,
        options: &Foreign,
        dataset: Option<&Meta>,
        printer: &Printer,
    ) -> Result<CheckpointMeta> {
        let published = self.published.as_ref().map(|(file, _)| &file.preprocessing);
        let side = match (options.image_size, dataset.filter(|meta| meta.fixed_size), published) {
            (Some(size), ..) => size,
            (None, Some(meta), _) => meta.shape[1],
            (None, None, Some(published)) => published.image_size,
            (None, None, None) => self.spec.input[1],
        };
        let config = infer_config(self.spec, &self.weights, (side, side))
            .with_context(|| format!("cannot use {}", self.path.display()))?;
        if config.stem == Stem::Auto && config.small_stem() && self.fits_both_forms(&config) {
            printer.note(format!(
                "{} in its form for small images, as these have {side} pixels; --stem imagenet for the other",
                self.spec.name
            ));
        }
        let in_chans = config.in_chans;
        let (mean, std) = self.statistics(options, dataset, in_chans, printer)?;
        let interpolation =
            published.map(|published| Input::published(published).interpolation).unwrap_or_default();
        let resize = published.filter(|published| published.image_size == side).and_then(|p| p.resize);
        let resize = resize.unwrap_or_else(|| preprocess(dataset, side, in_chans).resize);
        Ok(CheckpointMeta {
            model: self.spec.name.into(),
            num_classes: config.num_classes,
            classes: self.class_names(config.num_classes),
            input: Input { in_chans, image_size: side, resize, interpolation, mean, std },
            stem: config.chosen_stem(),
            dataset: dataset.map(|meta| meta.name.clone()).unwrap_or_default(),
            vocabulary: None,
            epoch: 0,
            step: 0,
            metrics: None,
            zoo_version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// Mean and standard deviation of each channel.
    fn statistics(
        &self,
        options: &Foreign,
        dataset: Option<&Meta>,
        in_chans: usize,
        printer: &Printer,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        match (&self.published, dataset) {
            // Both are about to be replaced by those given.
            _ if options.mean.is_some() && options.std.is_some() => Ok((Vec::new(), Vec::new())),
            (Some((file, known_by)), _) => {
                let Preprocessing { mean, std, .. } = &file.preprocessing;
                let how = if *known_by == KnownBy::Name { "by their name these" } else { "these" };
                printer.note(format!("{how} are the weights '{}': preparing images as published", file.tag));
                Ok((mean.clone(), std.clone()))
            }
            (None, Some(meta)) if meta.mean.len() == in_chans => Ok((meta.mean.clone(), meta.std.clone())),
            _ if in_chans == IMAGENET.0.len() => {
                printer.note("normalising with ImageNet's statistics; --mean and --std change that");
                Ok((IMAGENET.0.to_vec(), IMAGENET.1.to_vec()))
            }
            _ => bail!("say with --mean and --std how the images for these weights were normalised"),
        }
    }
}

impl Trained {
    /// Names the classes of weights that do not: as those of a data set of as many classes, else as ImageNet's where
    /// there are as many.
    ///
    /// # Errors
    /// If the data set has another number of classes.
    pub(crate) fn name_classes(&mut self, dataset: Option<&Meta>) -> Result<()> {
        let outputs = self.model.config().num_classes;
        if !self.meta.classes.is_empty() {
            return Ok(());
        }
        self.meta.classes = match dataset.filter(|meta| !meta.classes.is_empty()) {
            Some(Meta { name, classes, .. }) if classes.len() != outputs => {
                bail!("{name} has {} classes, and these weights have outputs for {outputs}", classes.len())
            }
            Some(meta) => meta.classes.clone(),
            None => Some(imagenet_classes()).filter(|names| names.len() == outputs).unwrap_or_default(),
        };
        Ok(())
    }
}

/// The usual way from a picture to an input.
fn preprocess(dataset: Option<&Meta>, size: usize, channels: usize) -> Preprocess {
    match dataset {
        Some(meta) => Preprocess::for_dataset(meta, size, channels),
        None => Preprocess::new(size, channels),
    }
}

/// What is published about the weights in a file, if they are known.
fn identify(spec: &Spec, path: &Path) -> Result<Option<(WeightFile, KnownBy)>> {
    let known = zoo::facts(spec.name)?.weights;
    Ok(weights::identify(&known, path)?.map(|(file, known_by)| (file.clone(), known_by)))
}

/// The published weights with this tag, downloaded if they are not on this machine.
///
/// # Errors
/// If there are none with this tag, or they cannot be downloaded.
fn fetch(spec: &Spec, tag: &str, printer: &Printer) -> Result<(PathBuf, WeightFile)> {
    let file = weights::published(spec, tag).map_err(|error| {
        // The value of an option that need not have one is easily one too many.
        if tag != DEFAULT_TAG && Path::new(tag).exists() {
            anyhow::anyhow!(
                "--pretrained took '{tag}' for a tag; name files before it, or write --pretrained=TAG"
            )
        } else {
            anyhow::Error::new(error)
        }
    })?;
    let cache = Cache::from_env()?;
    Ok((downloading(printer, |progress| cache.fetch(&file, progress))?, file))
}

/// Runs `f`, which may download, with a bar for it.
pub(crate) fn downloading<R>(printer: &Printer, f: impl FnOnce(&mut dyn FnMut(u64, Option<u64>)) -> R) -> R {
    let bar = printer.bar("downloading {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
    let result = f(&mut |done, total| {
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result
}

/// Reads weights, with the zoo's names for the model.
///
/// # Errors
/// If the file cannot be read, or its names could be of more than one kind.
pub(crate) fn read_translated(spec: &Spec, path: &Path, printer: &Printer) -> Result<StateDict> {
    let mut weights = weights::read(path)?;
    let translated =
        weights::translate(spec, &mut weights).with_context(|| format!("cannot use {}", path.display()))?;
    if let Some(translated) = translated {
        printer.note(format!("the names of these weights are those of {}", translated.source));
        if let Some(differs) = translated.differs {
            printer.warning(differs);
        }
    }
    Ok(weights)
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
    meta.classes.get(class).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| class.to_string())
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
