//! What a training run shows while it goes on.

use crate::number::{count, duration, rate, thousands};
use crate::printer::Printer;
use crate::summary::{SMALL_FORM, dims};
use indicatif::ProgressBar;
use std::path::Path;
use std::time::{Duration, Instant};
use zoo_data::{CROP_SCALE, CatalogEntry};
use zoo_trainer::{EpochRecord, Observer, RunInfo, StepInfo, TrainConfig};

/// Where there is no terminal for a bar, a line about so often shows that training goes on.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

const HEADINGS: &str =
    "epoch         lr  train loss  train top-1  val loss  val top-1  val top-5  images/s      elapsed";

/// Prints the settings, a bar, and a table with a row per epoch.
pub(crate) struct Progress<'p> {
    printer: &'p Printer,
    /// What computes.
    compute: String,
    bar: ProgressBar,
    epochs: usize,
    /// When this process started to train, and how many steps had been taken before.
    start: Instant,
    first_step: Option<u64>,
    last_line: Instant,
    /// Why stdout could not be written. Training goes on, the command fails at its end.
    failure: Option<anyhow::Error>,
}

impl<'p> Progress<'p> {
    /// Nothing is shown before the run starts. `compute` says what computes.
    pub(crate) fn new(printer: &'p Printer, compute: String) -> Self {
        let now = Instant::now();
        Self {
            printer,
            compute,
            bar: printer.bar("{prefix} {wide_bar} {pos}/{len}  {msg}"),
            epochs: 0,
            start: now,
            first_step: None,
            last_line: now,
            failure: None,
        }
    }

    /// Removes the bar.
    ///
    /// # Errors
    /// If stdout could not be written on the way.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        self.failure.map_or(Ok(()), Err)
    }

    fn text(&mut self, text: &str) {
        let result = self.bar.suspend(|| self.printer.text(text));
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }

    /// Seconds to the end of the run at the speed so far, evaluations included.
    fn seconds_left(&self, step: &StepInfo) -> f64 {
        let taken = step.step - self.first_step.unwrap_or(0);
        self.start.elapsed().as_secs_f64() / taken.max(1) as f64 * (step.total_steps - step.step) as f64
    }
}

impl Observer for Progress<'_> {
    fn started(&mut self, run: &RunInfo<'_>) {
        self.start = Instant::now();
        self.epochs = run.config.epochs;
        self.first_step = Some(run.step);
        let settings = settings(run, &self.compute);
        self.text(&settings);
        if let Some(differs) = run.translated.and_then(|translated| translated.differs) {
            self.warning(&format!(
                "the network of these weights differs from {}: {differs}",
                run.config.model
            ));
        }
        if run.step > 0 {
            let epoch = run.epoch + 1;
            self.text(&format!("resumed at step {} in epoch {epoch}", thousands(run.step)));
        }
        self.text(&format!("\n{HEADINGS}\n{}", "─".repeat(HEADINGS.len())));
    }

    fn step(&mut self, step: &StepInfo) {
        let shown = format!(
            "loss {:.3}  top-1 {:.1} %  {} images/s  {} left",
            step.train_loss,
            step.train_top1,
            rate(step.images_per_second),
            duration(self.seconds_left(step)),
        );
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let StepInfo { epoch, batch, batches, .. } = step;
            self.printer.note(format!("epoch {epoch}/{}  {batch}/{batches}  {shown}", self.epochs));
        }
        self.bar.set_prefix(format!("epoch {}/{}", step.epoch, self.epochs));
        self.bar.set_length(step.batches as u64);
        self.bar.set_position(step.batch as u64);
        self.bar.set_message(shown);
    }

    fn evaluating(&mut self, done: usize, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        if done == 0 {
            self.bar.set_message("evaluating");
        }
    }

    fn epoch_ended(&mut self, record: &EpochRecord, best: bool) {
        let mark = if best { " *" } else { "" };
        self.text(&format!(
            "{:>5} {:>10.6} {:>11.4} {:>10.2} % {:>9.4} {:>8.2} % {:>8.2} % {:>9} {:>12}{mark}",
            record.epoch,
            record.lr,
            record.train_loss,
            record.train_top1,
            record.val_loss,
            record.val_top1,
            record.val_top5,
            rate(record.images_per_second),
            duration(record.elapsed_s),
        ));
    }

    fn saved(&mut self, path: &Path) {
        self.bar.suspend(|| self.printer.detail(format!("saved {}", path.display())));
    }

    fn warning(&mut self, message: &str) {
        self.bar.suspend(|| self.printer.warning(message));
    }
}

/// What the other processes of a run say: only what is wrong with their share of the data.
pub(crate) struct OtherRank<'p>(pub(crate) &'p Printer);

impl Observer for OtherRank<'_> {
    fn warning(&mut self, message: &str) {
        self.0.warning(message);
    }
}

/// What was resolved, a line for each side of the run.
fn settings(run: &RunInfo<'_>, compute: &str) -> String {
    let c = run.config;
    let (epochs, batches) = (count(c.epochs, "epoch"), count(run.batches, "batch"));
    let steps = count(usize::try_from(run.total_steps).unwrap_or(usize::MAX), "step");
    let images = [run.train_images, run.val_images].map(|n| thousands(n as u64));
    let entry = CatalogEntry::find(&c.dataset).ok();
    let record = entry.map_or("image", CatalogEntry::record);
    let [c_in, side] = [c.in_chans, c.image_size].map(Option::unwrap_or_default);
    let input = if entry.is_some_and(CatalogEntry::has_sentences) {
        // A place for each word.
        format!("sentences of up to {}", count(side * side, "word"))
    } else {
        let input = dims([c_in, side, side]);
        format!("{input}, mean {}, std {}, augment {}", list(&c.mean), list(&c.std), c.augment)
    };
    let batch = count(c.batch_size, record);
    let batch = if run.ranks > 1 { format!("{} × {batch}", run.ranks) } else { batch };
    let rows = [
        ("model", model(run)),
        ("weights", start(run)),
        ("data", format!("{}, {} training and {} validation {record}s", c.dataset, images[0], images[1])),
        ("input", input),
        ("training", format!("{epochs} of {batches} of {batch}, {steps}")),
        ("optimizer", optimizer(c)),
        ("schedule", schedule(c)),
        ("extras", extras(c)),
        ("compute", format!("{compute}, {}, seed {}", c.dtype.dtype().as_str(), c.seed)),
        ("folder", run.dir.display().to_string()),
    ];
    let shown = rows.iter().filter(|(_, text)| !text.is_empty());
    let mut lines: Vec<String> = shown.map(|(key, text)| format!("{key:<10} {text}")).collect();
    lines.extend(run.fine_tuning.map(|chosen| format!("fine-tuning defaults: {chosen}")));
    lines.join("\n")
}

fn model(run: &RunInfo<'_>) -> String {
    let mut text = format!("{}, {} parameters", run.config.model, thousands(run.params as u64));
    if run.frozen > 0 {
        text += &format!(", {} of them frozen", thousands(run.frozen as u64));
    }
    text += &format!(", {} classes", run.config.num_classes.unwrap_or_default());
    if run.small_form {
        text += SMALL_FORM;
    }
    text
}

/// The weights that the run starts from, and how they were made to fit.
fn start(run: &RunInfo<'_>) -> String {
    let file = run.config.weights.as_ref().map(|path| path.display().to_string());
    let Some(start) = file.or_else(|| run.config.pretrained.clone()) else { return String::new() };
    let names = run.translated.map(|translated| format!("names of {} translated, ", translated.source));
    match run.adapted {
        Some(adapted) => format!("{start}: {}{adapted}", names.unwrap_or_default()),
        None => start,
    }
}

fn optimizer(c: &TrainConfig) -> String {
    let nesterov = if c.nesterov { " (Nesterov)" } else { "" };
    let mut text = format!(
        "SGD, learning rate {}, momentum {}{nesterov}, weight decay {}",
        c.lr, c.momentum, c.weight_decay
    );
    if c.decay_biases {
        text += " (biases too)";
    }
    if c.norm_bias_lr_scale != 1.0 {
        text += &format!(", rate of normalisations' biases times {}", c.norm_bias_lr_scale);
    }
    if c.backbone_lr_scale != 1.0 {
        text += &format!(", the backbone's rate times {}", c.backbone_lr_scale);
    }
    if c.layer_decay != 1.0 {
        text += &format!(", times {} per block from the head", c.layer_decay);
    }
    text
}

fn schedule(c: &TrainConfig) -> String {
    let mut text = format!("{:?}", c.schedule).to_lowercase();
    if c.schedule == zoo_trainer::ScheduleKind::Step {
        text += &format!(", times {} at {} of the run", c.gamma, list(&Some(c.milestones.clone())));
    }
    if c.warmup_epochs > 0.0 {
        let epochs = if c.warmup_epochs == 1.0 { "epoch" } else { "epochs" };
        text += &format!(", warm-up over {} {epochs}", (c.warmup_epochs * 1000.0).round() / 1000.0);
    }
    text
}

/// The settings that are off by default, those that are on.
fn extras(c: &TrainConfig) -> String {
    let on = [
        ("crops of at least", if c.crop_scale == CROP_SCALE { 0.0 } else { c.crop_scale }),
        ("mixup", c.mixup),
        ("CutMix", c.cutmix),
        ("label smoothing", c.label_smoothing),
        ("dropout", c.dropout.unwrap_or(0.0)),
        ("stochastic depth", c.drop_path.unwrap_or(0.0)),
        ("EMA", c.ema),
        ("Lookahead", c.lookahead),
        ("gradients clipped at", c.clip_grad),
        ("held out", c.val_fraction),
    ];
    let mut texts: Vec<String> =
        on.iter().filter(|(_, value)| *value > 0.0).map(|(name, value)| format!("{name} {value}")).collect();
    if c.grad_accum > 1 {
        texts.push(format!("{} batches per step", c.grad_accum));
    }
    if c.scale_lr {
        texts.push("learning rate times the number of processes".into());
    }
    if c.sync_batch_norm {
        texts.push("batch norm over all processes".into());
    }
    if !c.shuffle {
        texts.push("no shuffling".into());
    }
    texts.join(", ")
}

fn list(values: &Option<Vec<f64>>) -> String {
    values.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
