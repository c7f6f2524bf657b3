//! A run: its parts, and how they are saved.

use crate::averages::AveragedWeights;
use crate::checkpoint::{Checkpoint, CheckpointMeta, CheckpointMetrics};
use crate::data::{TrainData, check_kind, complete};
use crate::depth::LayerRates;
use crate::fine_tuning::{self, FineTuning, Weights};
use crate::freeze::{frozen, is_constant};
use crate::input::{Input, store};
use crate::memory::total;
use crate::observer::{EpochRecord, Observer, RunInfo, RunSummary};
use crate::optimizer::{Optimizer, Scale, SgdConfig};
use crate::ranks::{self, Place};
use crate::run_dir::MetricsLog;
use crate::schedule::Schedule;
use crate::start::Start;
use crate::state::{self, Progress, Saved};
use crate::train::Taken;
use crate::{Error, Result, RunDir, TrainConfig};
use candle_core::{Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use zoo::weights::{Adapted, Translated};
use zoo::{Config, Model, Params, Stem};
use zoo_data::{Loader, Share};
use zoo_ops::StoredImages;
use zoo_ops::rng::Noise;

/// A training run, new or resumed. [`Trainer::run`] trains.
///
/// ```no_run
/// use std::path::Path;
/// use std::sync::atomic::AtomicBool;
/// use zoo_trainer::{RunDir, TrainConfig, TrainData, Trainer};
///
/// # fn main() -> zoo_trainer::Result<()> {
/// let flags = toml::toml! { model = "lenet5" dataset = "shapes" epochs = 3 };
/// let config = TrainConfig::resolve(None, &flags)?;
/// let data = TrainData::open(&config)?;
/// let dir = RunDir::create(Path::new("runs/lenet5"))?;
/// let mut trainer = Trainer::new(config, &data, dir, &candle_core::Device::Cpu)?;
/// trainer.run(&AtomicBool::new(false), &mut ())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Trainer {
    pub(crate) config: TrainConfig,
    pub(crate) dir: RunDir,
    pub(crate) place: Place,
    pub(crate) model: Model,
    pub(crate) params: Params,
    pub(crate) noise: Noise,
    pub(crate) optimizer: Optimizer,
    pub(crate) averaged_weights: Option<AveragedWeights>,
    pub(crate) schedule: Schedule,
    pub(crate) train: Loader,
    pub(crate) val: Loader,
    /// The images of both, where the device holds them.
    pub(crate) stored: [Option<StoredImages>; 2],
    pub(crate) input: Input,
    pub(crate) progress: Progress,
    pub(crate) log: MetricsLog,
    pub(crate) saves: SaveClock,
    /// Steps whose scores have not been read yet.
    pub(crate) unread: Vec<Taken>,
    /// Whether scores are read now and then only, and not before the step that they are of.
    pub(crate) reads_late: bool,
    /// Images to evaluate on, over all ranks.
    pub(crate) val_images: usize,
    /// Running statistics that the ranks average after each step.
    pub(crate) averaged: Vec<Var>,
    /// Names of the parameters that stay as they are.
    frozen: BTreeSet<String>,
    adapted: Option<Adapted>,
    translated: Option<Translated>,
    /// What was decided because the run starts from weights.
    fine_tuning: Option<FineTuning>,
}

impl Trainer {
    /// A new run in an empty folder, on a device, or at a [`Place`] with other processes; of these all but the first
    /// are given a folder [`RunDir::of_first_rank`]. Settings that the data set decides are filled in, and saved in the
    /// folder's `config.toml`.
    ///
    /// # Errors
    /// If settings, model, data and weights do not fit together, or the folder cannot be written.
    pub fn new(
        mut config: TrainConfig,
        data: &TrainData,
        dir: RunDir,
        place: impl Into<Place>,
    ) -> Result<Self> {
        config.validate()?;
        let start = Start::read(&mut config, &mut |_, _| {})?;
        Self::from_start(config, start, data, dir, place)
    }

    /// The same from weights that [`Start::read`] has read with these settings.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn from_start(
        config: TrainConfig,
        start: Option<Start>,
        data: &TrainData,
        dir: RunDir,
        place: impl Into<Place>,
    ) -> Result<Self> {
        config.validate()?;
        let place = place.into();
        let log = open_log(&dir, &place)?;
        let mut trainer = Self::build(config, data, dir, log, place, start, false)?;
        trainer.place.take_from_first(&trainer.params.all())?;
        trainer.log.cut(0)?;
        if trainer.place.is_first() {
            trainer.dir.save_config(&trainer.config)?;
        }
        Ok(trainer)
    }

    /// Goes on with a run where its state was saved last, or from the start if it never was. `config` is that
    /// of the folder; folder of the data, threads, logging and saving may be changed in it.
    ///
    /// # Errors
    /// If another process trains in the folder, a setting was changed that decides the weights, or the state
    /// does not fit; and as [`Trainer::new`].
    pub fn resume(
        mut config: TrainConfig,
        data: &TrainData,
        dir: RunDir,
        place: impl Into<Place>,
    ) -> Result<Self> {
        config.validate()?;
        let started_with = dir.config()?;
        // Later on the weights that it started from need not be there any more.
        let start = match dir.file(RunDir::STATE).exists() {
            true => None,
            false => Start::read(&mut config, &mut |_, _| {})?,
        };
        let place = place.into();
        let log = open_log(&dir, &place)?;
        let saved = state::read(&dir)?;
        if let Some(problem) = saved.as_ref().and_then(|saved| saved.progress.other_classes(&data.train)) {
            return Err(Error::Resume { dir: dir.path().to_path_buf(), problem });
        }
        let mut trainer = Self::build(config, data, dir, log, place, start, true)?;
        trainer.compare_states(saved.as_ref())?;
        let refuse = |problem| Err(Error::Resume { dir: trainer.dir.path().to_path_buf(), problem });
        let conflict = started_with.conflict(&trainer.config);
        if let Some((key, was, is)) =
            conflict.or_else(|| saved.as_ref().and_then(|saved| saved.conflict(&trainer.config)))
        {
            return refuse(format!("{key} was {was} and is now {is}; a run keeps its settings"));
        }
        if let Some(problem) = saved.as_ref().and_then(|saved| saved.progress.other_counts(&trainer.progress))
        {
            return refuse(problem);
        }
        if let Some(saved) = saved {
            saved.restore(&trainer.params, &mut trainer.optimizer, trainer.averaged_weights.as_mut())?;
            trainer.noise.set_calls(saved.progress.noise_calls);
            // States of earlier versions do not have all of it.
            let Progress { classes, words, .. } = std::mem::take(&mut trainer.progress);
            trainer.progress = Progress { classes, words, ..saved.progress };
        }
        trainer.log.cut(trainer.progress.metrics_len)?;
        Ok(trainer)
    }

    fn build(
        mut config: TrainConfig,
        data: &TrainData,
        dir: RunDir,
        log: MetricsLog,
        place: Place,
        start: Option<Start>,
        goes_on: bool,
    ) -> Result<Self> {
        let spec = zoo::find(&config.model)?;
        check_kind(&config, spec, &data.train, start.as_ref())?;
        let input = complete(&mut config, spec, data.train.meta(), start.as_ref())?;
        if let (Stem::Auto, Some(start)) = (config.stem, &start) {
            config.stem = start.stem(spec, input.image_size)?;
        }
        if place.is_shared() {
            let mut same = ranks::Facts::of_settings(&config, goes_on);
            same.add_data(data);
            same.add_weights(start.as_ref().map(Start::digest).transpose()?.as_deref());
            place.agree(&same)?;
        }
        let (rank, ranks) = (place.ranks.rank(), place.ranks.size());
        let noise = Noise::new(config.seed);
        let params = Params::new(config.seed);
        let model_config = Config {
            num_classes: config.num_classes.unwrap_or_default(),
            in_chans: input.in_chans,
            image_size: (input.image_size, input.image_size),
            dropout: config.dropout,
            drop_path: config.drop_path,
            stem: config.stem,
            noise: noise.clone(),
        };
        let model = Model::new(&config.model, model_config.clone(), params.var_builder(&place.device))?;
        let translated = start.as_ref().and_then(|start| start.translated);
        let adapted = match start {
            Some(start) => Some(start.load(spec, &params, data.train.meta(), &model_config)?),
            None => {
                model.initialise(&params, &|| data.first_images(&config, &input, &place.device))?;
                None
            }
        };
        let (mut trained, mut changing) = (params.trainable(), params.all());
        let names: Vec<String> = trained.iter().map(|(name, _)| name.clone()).collect();
        let frozen = frozen(&names, &config.freeze, spec.head)?;
        let norms: BTreeSet<String> = changing
            .iter()
            .filter_map(|(name, _)| name.strip_suffix(".running_mean").map(String::from))
            .collect();
        let new_head = adapted.as_ref().is_some_and(|adapted| adapted.num_classes.is_some());
        let weights = Weights { model: &model, params: &params, data, input: &input, device: &place.device };
        let facts = weights.facts(&config, new_head, &frozen, &place)?;
        let fine_tuning = fine_tuning::decide(&mut config, facts);
        let (train, val) = data.loaders(&config, Share { rank, ranks })?;
        let rates = LayerRates::new(&model.trace(1, config.dtype.dtype())?, spec.head, &config);
        trained.retain(|(name, _)| !frozen.contains(name));
        changing.retain(|(name, _)| !is_constant(name, &frozen));
        // Built again from the same parameters, of which those are constants now.
        params.freeze(frozen.iter().cloned());
        let model = Model::new(&config.model, model_config, params.var_builder(&place.device))?;
        let TrainConfig { momentum, nesterov, weight_decay, decay_biases, .. } = config;
        let optimizer =
            Optimizer::new(trained, SgdConfig { momentum, nesterov, weight_decay, decay_biases })?;
        let optimizer = optimizer.scale_lr(|name| {
            let shift = name.strip_suffix(".bias").is_some_and(|layer| norms.contains(layer));
            Scale { layer: rates.of(name), own: if shift { config.norm_bias_lr_scale } else { 1.0 } }
        });
        let averaged = match place.is_shared() && !config.sync_batch_norm {
            true => {
                changing.iter().filter(|(name, _)| !names.contains(name)).map(|(_, v)| v.clone()).collect()
            }
            false => Vec::new(),
        };
        let mut schedule = config.schedule(train.batches().div_ceil(config.grad_accum) as u64);
        if config.scale_lr {
            schedule.lr *= ranks as f64;
        }
        let how = config.averaging(schedule.total_steps);
        let averaged_weights = how.map(|how| AveragedWeights::new(changing, how)).transpose()?;
        let progress = Progress::start(&data.train, ranks);
        let saves = SaveClock::new(config.save_every as u64);
        // Ranks tell one another of each step.
        let reads_late = !place.device.is_cpu() && !place.is_shared();
        let memory = total(&place.device);
        let mut trainer = Self {
            config,
            dir,
            place,
            model,
            params,
            noise,
            optimizer,
            averaged_weights,
            schedule,
            train,
            val,
            stored: [None, None],
            input,
            progress,
            log,
            saves,
            unread: Vec::new(),
            reads_late,
            val_images: data.val.len(),
            averaged,
            frozen,
            adapted,
            translated,
            fine_tuning,
        };
        if let Some(memory) = memory {
            trainer.store_images(memory)?;
        }
        Ok(trainer)
    }

    /// That all ranks go on from the same state.
    fn compare_states(&self, saved: Option<&Saved>) -> Result<()> {
        if !self.place.is_shared() {
            return Ok(());
        }
        let digest = saved.map(Saved::digest).transpose()?;
        let state = saved.map(|saved| &saved.progress).zip(digest.as_deref());
        self.place.agree(&ranks::Facts::of_state(state))
    }

    /// Leaves the images with the device, of which they may take a share of so many bytes.
    pub(crate) fn store_images(&mut self, memory: usize) -> Result<()> {
        let device = &self.place.device;
        self.stored = [store(&mut self.train, device, memory)?, store(&mut self.val, device, memory)?];
        Ok(())
    }

    /// The resolved settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The network.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The run's folder.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    pub(crate) fn info(&self) -> RunInfo<'_> {
        let parameters = self.params.trainable();
        let frozen = parameters.iter().filter(|(name, _)| self.frozen.contains(name));
        RunInfo {
            config: &self.config,
            dir: self.dir.path(),
            small_form: self.model.is_small_form(),
            params: parameters.iter().map(|(_, var)| var.elem_count()).sum(),
            frozen: frozen.map(|(_, var)| var.elem_count()).sum(),
            adapted: self.adapted.as_ref(),
            translated: self.translated,
            fine_tuning: self.fine_tuning.as_ref(),
            ranks: self.place.ranks.size(),
            train_images: self.train.dataset().len(),
            val_images: self.val_images,
            batches: self.train.batches(),
            total_steps: self.schedule.total_steps,
            epoch: self.progress.epoch,
            step: self.progress.step,
        }
    }

    pub(crate) fn summary(&self) -> RunSummary {
        RunSummary {
            model: self.config.model.clone(),
            dataset: self.config.dataset.clone(),
            dir: self.dir.path().to_path_buf(),
            finished: self.progress.epoch >= self.config.epochs as u64,
            best_epoch: self.progress.best.map(|best| best.epoch),
            best_val_top1: self.progress.best.map(|best| best.top1),
            last: self.progress.last,
        }
    }

    /// Writes a checkpoint of the weights that are evaluated: the averages, where there are averages. What is
    /// frozen has none.
    pub(crate) fn save_weights(&self, name: &str, observer: &mut dyn Observer) -> Result<()> {
        if !self.place.is_first() {
            return Ok(());
        }
        let meta = CheckpointMeta {
            model: self.config.model.clone(),
            num_classes: self.model.config().num_classes,
            classes: self.train.dataset().meta().classes.clone(),
            input: self.input.clone(),
            stem: self.model.config().chosen_stem(),
            dataset: self.config.dataset.clone(),
            vocabulary: self.train.dataset().vocabulary().cloned(),
            epoch: self.progress.epoch,
            step: self.progress.step,
            metrics: self.progress.last.as_ref().map(metrics_of),
            zoo_version: env!("CARGO_PKG_VERSION").into(),
        };
        let path = self.dir.file(name);
        let variables = self.params.all();
        let averages: BTreeMap<&str, &Tensor> =
            self.averaged_weights.iter().flat_map(AveragedWeights::evaluated).collect();
        let weights = variables.iter().map(|(name, var)| {
            (name.as_str(), averages.get(name.as_str()).copied().unwrap_or(var.as_tensor()))
        });
        Checkpoint::save(&path, &meta, weights)?;
        observer.saved(&path);
        Ok(())
    }

    /// Writes the state. The lines of `metrics.jsonl` that it counts reach the disk before.
    pub(crate) fn save_state(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if !self.place.is_first() {
            return Ok(());
        }
        let start = Instant::now();
        self.log.sync()?;
        self.progress.metrics_len = self.log.len();
        self.progress.noise_calls = self.noise.calls();
        let Self { dir, config, progress, params, optimizer, averaged_weights, .. } = &*self;
        state::save(dir, config, progress, params, optimizer, averaged_weights.as_ref())?;
        self.saves.saved(start);
        observer.saved(&self.dir.file(RunDir::STATE));
        Ok(())
    }
}

/// The log of a run, which its first process writes.
fn open_log(dir: &RunDir, place: &Place) -> Result<MetricsLog> {
    if place.is_first() { MetricsLog::open(dir) } else { Ok(MetricsLog::default()) }
}

fn metrics_of(record: &EpochRecord) -> CheckpointMetrics {
    let EpochRecord { train_loss, train_top1, val_loss, val_top1, val_top5, .. } = *record;
    CheckpointMetrics { train_loss, train_top1, val_loss, val_top1, val_top5 }
}

/// Decides when to save inside an epoch.
#[derive(Debug)]
pub(crate) struct SaveClock {
    /// Steps between saves; 0 goes by time.
    every: u64,
    last: Instant,
    /// How long the last save took.
    cost: Duration,
}

impl SaveClock {
    const INTERVAL: Duration = Duration::from_secs(60);
    /// Saving may take at most one part in so many of the time.
    const SHARE: u32 = 20;

    fn new(every: u64) -> Self {
        Self { every, last: Instant::now(), cost: Duration::ZERO }
    }

    /// Whether to save after step `step`.
    pub(crate) fn due(&self, step: u64) -> bool {
        match self.every {
            0 => self.last.elapsed() >= Self::INTERVAL.max(self.cost * Self::SHARE),
            every => step.is_multiple_of(every),
        }
    }

    fn saved(&mut self, start: Instant) {
        self.cost = start.elapsed();
        self.last = Instant::now();
    }
}
