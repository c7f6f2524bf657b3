//! The training loop.

use crate::evaluate::{EvalReport, measure};
use crate::gradients::Gradients;
use crate::memory::explain;
use crate::metrics::{Metrics, percent};
use crate::observer::{EpochRecord, Observer, Outcome, StepInfo};
use crate::pass::pass_with;
use crate::ranks::Buckets;
use crate::scores::{Scores, Sums};
use crate::state::{Best, EpochSums};
use crate::{Error, Precision, Result, RunDir, TrainConfig, Trainer};
use candle_core::{Device, Tensor, Var};
use serde::Serialize;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zoo_data::{Batch, Loader, View};
use zoo_ops::ranks::with_synchronised_batch_norm;
use zoo_ops::{Targets, backward, backward_into, score};

/// Skipped images that are named one by one.
const WARNINGS: usize = 10;

/// Where scores are read late: steps between two readings at most, and how long a reading is put off.
const UNREAD: usize = 64;
const READING: Duration = Duration::from_millis(100);

/// A step's line in `metrics.jsonl`.
#[derive(Serialize)]
struct StepRecord {
    step: u64,
    lr: f64,
    loss: f64,
}

/// The passes of one optimizer step.
#[derive(Default)]
struct Group {
    /// Which step of the epoch it is, counting those without a readable image.
    index: usize,
    gradients: Gradients,
    /// Their sums over the ranks, which begin in the backward of the last pass.
    buckets: Option<Rc<Buckets>>,
    /// Images.
    n: usize,
    scores: Scores,
    /// The batch to go on with afterwards.
    next_batch: usize,
}

/// A step that was taken.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Counted from 1.
    step: u64,
    lr: f64,
    /// The batch to go on with afterwards.
    batch: usize,
    scores: Scores,
}

/// Whether a part of the run came to its end or was told to stop.
type Flow = ControlFlow<()>;

impl Trainer {
    /// Trains to the end of the last epoch, or until `stop` is set: then the exact position is saved first.
    ///
    /// # Errors
    /// If the loss is not finite, data cannot be read, or a file cannot be written; what was saved before is
    /// still there.
    pub fn run(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Outcome> {
        observer.started(&self.info());
        while self.progress.epoch < self.config.epochs as u64 {
            let mut flow = self.train_epoch(stop, observer)?;
            if flow.is_continue() {
                flow = self.end_epoch(stop, observer)?;
            }
            if flow.is_break() {
                self.save_weights(RunDir::LAST, observer)?;
                self.save_state(observer)?;
                return Ok(Outcome::Interrupted { summary: self.summary(), step: self.progress.step });
            }
        }
        Ok(Outcome::Finished(self.summary()))
    }

    /// Trains what is left of the epoch.
    fn train_epoch(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Flow> {
        let (accum, batches) = (self.config.grad_accum, self.train.batches());
        let mut clock = Instant::now();
        let mut group = Group::default();
        let mut expected = self.progress.batch;
        for batch in self.train.epoch(self.progress.epoch, self.progress.batch) {
            let batch = batch?;
            let number = batch.number;
            self.place.check_in_step(number, expected)?;
            expected = number + 1;
            // The last batch of the group before may have been left out because no image of it can be read.
            if group.n > 0 && number / accum != group.index {
                let last = std::mem::take(&mut group);
                if self.end_step(last, &mut clock, stop, observer)?.is_break() {
                    return Ok(Flow::Break(()));
                }
            }
            group.index = number / accum;
            let last = (number + 1).is_multiple_of(accum) || number + 1 == batches;
            self.pass(&batch, &mut group, last).map_err(|error| {
                let TrainConfig { batch_size, dtype, .. } = self.config;
                explain(error, &self.model, batch_size, dtype.dtype(), &self.place.device)
            })?;
            drop(batch);
            if last {
                let group = std::mem::take(&mut group);
                if self.end_step(group, &mut clock, stop, observer)?.is_break() {
                    return Ok(Flow::Break(()));
                }
            }
        }
        if group.n > 0 && self.end_step(group, &mut clock, stop, observer)?.is_break() {
            return Ok(Flow::Break(()));
        }
        self.tell(&mut clock, observer)?;
        self.place.check_in_step(batches, expected)?;
        self.progress.batch = batches;
        warn_of_skipped(&self.train, observer);
        Ok(Flow::Continue(()))
    }

    /// Adds a batch's gradients to those of its group, which may be its last.
    fn pass(&self, batch: &Batch, group: &mut Group, last: bool) -> Result<()> {
        let xs = self.input.normalise(
            batch,
            self.stored[0].as_ref(),
            self.config.dtype.dtype(),
            &self.place.device,
        )?;
        let planned = self.planned_images(group.index);
        let scale = batch.n as f64 / planned as f64 * self.loss_scale();
        let targets = self.targets(batch)?;
        self.noise.set_first_image(batch.first);
        let parameters = self.optimizer.parameters();
        if last && self.place.is_shared() {
            let before = std::mem::take(&mut group.gradients);
            group.buckets = Some(Buckets::new(&self.place.ranks, parameters, before));
        }
        let backward = |loss: &Tensor| match group.buckets.clone() {
            Some(buckets) => backward_into(loss, move |variable, gradient| buckets.take(variable, &gradient)),
            None => backward(loss),
        };
        let pass = || pass_with(&self.model, &xs, &targets, self.config.label_smoothing, scale, backward);
        let pass = match self.config.sync_batch_norm {
            true => with_synchronised_batch_norm(&self.place.ranks, pass)?,
            false => pass()?,
        };
        group.scores.add(batch.n, score(&pass.loss, &pass.logits, batch.main_labels())?);
        group.gradients.add(Gradients::take(parameters, pass.gradients))?;
        group.n += batch.n;
        group.next_batch = batch.number + 1;
        Ok(())
    }

    /// What losses are multiplied by, and gradients divided by afterwards.
    fn loss_scale(&self) -> f64 {
        if self.config.dtype == Precision::F16 { self.progress.loss_scale.scale } else { 1.0 }
    }

    /// What the network should answer for a batch, on the CPU: the loss makes of it what the device needs.
    fn targets(&self, batch: &Batch) -> Result<Targets> {
        let classes = self.model.config().num_classes;
        Ok(match batch.soft_targets(classes) {
            Some(soft) => Targets::Soft(Tensor::from_vec(soft, (batch.n, classes), &Device::Cpu)?),
            None => Targets::Classes(Tensor::new(batch.labels.as_slice(), &Device::Cpu)?),
        })
    }

    /// Images in a group of batches if all of them can be read.
    fn planned_images(&self, group: usize) -> usize {
        let size = self.config.grad_accum * self.config.batch_size * self.place.ranks.size();
        size.min(self.train.dataset().len() - group * size)
    }

    /// Adds up what the ranks have of a group with these sums, and averages the statistics that they keep apart. Says
    /// whether one of them is to stop.
    fn sum_over_ranks(&self, group: &mut Group, sums: &mut Sums, stop: bool) -> Result<bool> {
        let ranks = &self.place.ranks;
        let numbers = [sums.n as f64, sums.top1 as f64, sums.loss, f64::from(u8::from(stop))];
        let numbers = ranks.sum(&Tensor::new(&numbers, &Device::Cpu)?)?.to_vec1::<f64>()?;
        *sums = Sums { n: numbers[0] as usize, top1: numbers[1] as u64, loss: numbers[2] };
        group.n = sums.n;
        let statistics: Vec<Tensor> = self.averaged.iter().map(Var::as_detached_tensor).collect();
        let (parameters, own) = (self.optimizer.parameters(), std::mem::take(&mut group.gradients));
        let buckets = group.buckets.take();
        let buckets = buckets.unwrap_or_else(|| Buckets::new(ranks, parameters, Gradients::default()));
        let (gradients, sums) = buckets.finish(parameters, own, &statistics)?;
        group.gradients = gradients;
        for (var, sum) in self.averaged.iter().zip(&sums) {
            var.set(&sum.affine(1.0 / ranks.size() as f64, 0.0)?)?;
        }
        Ok(numbers[3] > 0.0)
    }

    /// Takes the optimizer step of a complete group. Breaks off if told to stop.
    fn end_step(
        &mut self,
        mut group: Group,
        clock: &mut Instant,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Flow> {
        let step = self.progress.step + 1;
        let lr = self.schedule.lr(step - 1);
        let mut agreed = None;
        if !self.reads_late {
            let read = Scores::read(std::iter::once(&group.scores))?;
            let mut sums = read.first().copied().unwrap_or_default();
            if self.place.is_shared() {
                agreed = Some(self.sum_over_ranks(&mut group, &mut sums, stop.load(Ordering::Relaxed))?);
            }
            self.check_finite(sums, step, lr)?;
            group.scores = Scores::known(sums);
        }
        let factor = self.planned_images(group.index) as f64 / group.n as f64 / self.loss_scale();
        if factor != 1.0 {
            group.gradients.scale(factor)?;
        }
        let scaled = self.config.dtype == Precision::F16;
        let finite = !scaled || group.gradients.are_finite()?;
        if finite {
            if self.config.clip_grad > 0.0 {
                group.gradients.clip(self.config.clip_grad)?;
            }
            self.optimizer.step(&group.gradients, lr)?;
        }
        drop(group.gradients);
        if scaled {
            self.progress.loss_scale.update(finite);
        }

        self.progress.step = step;
        self.progress.batch = group.next_batch;
        self.progress.lr = lr;
        if let Some(averaged) = &self.averaged_weights {
            averaged.update(step)?;
        }
        self.unread.push(Taken { step, lr, batch: group.next_batch, scores: group.scores });
        self.warn_of_idle_dropout(observer);
        let save = self.saves.due(step);
        let due = !self.reads_late || self.unread.len() >= UNREAD || clock.elapsed() >= READING;
        if due || save || stop.load(Ordering::Relaxed) {
            self.tell(clock, observer)?;
        }
        if save {
            self.save_state(observer)?;
            *clock = Instant::now();
        }
        // Of several ranks none may stop alone; a single one heeds what its observer has just decided.
        let stop = agreed.unwrap_or_else(|| stop.load(Ordering::Relaxed));
        if stop {
            self.tell(clock, observer)?;
        }
        Ok(if stop { Flow::Break(()) } else { Flow::Continue(()) })
    }

    /// Tells of the steps since the last time, which took the time since then.
    fn tell(&mut self, clock: &mut Instant, observer: &mut dyn Observer) -> Result<()> {
        let unread = std::mem::take(&mut self.unread);
        let all = Scores::read(unread.iter().map(|taken| &taken.scores))?;
        let seconds = clock.elapsed().as_secs_f64() / unread.len().max(1) as f64;
        for (Taken { step, lr, batch, .. }, sums) in unread.into_iter().zip(all) {
            self.check_finite(sums, step, lr)?;
            let loss = sums.loss / sums.n as f64;
            let progress = &mut self.progress;
            progress.sums.n += sums.n as u64;
            progress.sums.top1 += sums.top1;
            progress.sums.loss += sums.loss;
            progress.sums.seconds += seconds;
            progress.elapsed_s += seconds;
            if self.config.log_every > 0 && step.is_multiple_of(self.config.log_every as u64) {
                self.log.append(&StepRecord { step, lr, loss })?;
            }
            observer.step(&StepInfo { step, lr, batch, loss, ..self.step_info() });
        }
        *clock = Instant::now();
        Ok(())
    }

    fn check_finite(&self, sums: Sums, step: u64, lr: f64) -> Result<()> {
        let loss = sums.loss / sums.n as f64;
        if loss.is_finite() { Ok(()) } else { Err(self.diverged(loss, step, lr)) }
    }

    /// Where the run stands; the loss of its last step is left out.
    fn step_info(&self) -> StepInfo {
        let progress = &self.progress;
        let EpochSums { n, top1, loss: sum, seconds } = progress.sums;
        StepInfo {
            epoch: progress.epoch + 1,
            batch: progress.batch,
            batches: self.train.batches(),
            step: progress.step,
            total_steps: self.schedule.total_steps,
            lr: progress.lr,
            loss: 0.0,
            train_loss: sum / n.max(1) as f64,
            train_top1: percent(top1, n),
            images_per_second: n as f64 / seconds.max(1e-9),
        }
    }

    /// Evaluates, records and saves.
    fn end_epoch(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Flow> {
        let start = Instant::now();
        let Some(report) = self.evaluate_average(stop, observer)? else { return Ok(Flow::Break(())) };
        warn_of_skipped(&self.val, observer);
        if !report.loss.is_finite() {
            return Err(self.diverged(report.loss, self.progress.step, self.progress.lr));
        }
        let StepInfo { train_loss, train_top1, images_per_second, .. } = self.step_info();
        let progress = &mut self.progress;
        progress.elapsed_s += start.elapsed().as_secs_f64();
        progress.epoch += 1;
        progress.batch = 0;
        progress.sums = EpochSums::default();
        let record = EpochRecord {
            epoch: progress.epoch,
            step: progress.step,
            lr: progress.lr,
            train_loss,
            train_top1,
            val_loss: report.loss,
            val_top1: report.top1,
            val_top5: report.top5,
            images_per_second,
            elapsed_s: progress.elapsed_s,
        };
        progress.last = Some(record);
        let best = progress.best.is_none_or(|best| (report.top1, best.loss) > (best.top1, report.loss));
        if best {
            progress.best = Some(Best { epoch: progress.epoch, top1: report.top1, loss: report.loss });
        }
        self.log.append(&record)?;
        observer.epoch_ended(&record, best);
        if best {
            self.save_weights(RunDir::BEST, observer)?;
        }
        self.save_weights(RunDir::LAST, observer)?;
        self.save_state(observer)?;
        Ok(Flow::Continue(()))
    }

    /// Evaluates the averages, where there are averages; `None` if told to stop.
    fn evaluate_average(&self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Option<EvalReport>> {
        let total = self.val.dataset().len();
        observer.evaluating(0, total);
        let progress = |done| {
            observer.evaluating(done, total);
            if stop.load(Ordering::Relaxed) { Flow::Break(()) } else { Flow::Continue(()) }
        };
        if let Some(averaged) = &self.averaged_weights {
            averaged.swap()?;
        }
        let start = Instant::now();
        let place = (self.config.dtype.dtype(), &self.place.device);
        let metrics = measure(
            &self.model,
            (&self.val, self.stored[1].as_ref()),
            &self.input,
            &[View::PLAIN],
            place,
            self.reads_late,
            progress,
        );
        if let Some(averaged) = &self.averaged_weights {
            averaged.swap()?;
        }
        let mut metrics = metrics?;
        if self.place.is_shared() {
            let stopped = Metrics { n: u64::from(metrics.is_none()), ..Metrics::default() };
            let classes = self.model.config().num_classes;
            let ranks = &*self.place.ranks;
            let all_done = stopped.sum_over(ranks, 0)?.n == 0;
            metrics = match metrics {
                Some(metrics) if all_done => Some(metrics.sum_over(ranks, classes)?),
                _ => None,
            };
        }
        let classes = &self.val.dataset().meta().classes;
        Ok(metrics.map(|metrics| EvalReport::new(&metrics, start, classes)))
    }

    fn diverged(&self, loss: f64, step: u64, lr: f64) -> Error {
        let last_good = Some(self.dir.file(RunDir::LAST)).filter(|path| path.exists());
        Error::Diverged { step, lr, loss, last_good }
    }

    /// Says so after the first step if the model has no dropout although the settings ask for it.
    fn warn_of_idle_dropout(&self, observer: &mut dyn Observer) {
        let wanted = self.config.dropout.is_some_and(|p| p > 0.0);
        if wanted && self.place.is_first() && self.progress.step == 1 && self.noise.calls() == 0 {
            observer.warning(&format!("{} has no dropout; the setting has no effect", self.config.model));
        }
    }
}

fn warn_of_skipped(loader: &Loader, observer: &mut dyn Observer) {
    let warnings = loader.take_warnings();
    for warning in warnings.iter().take(WARNINGS) {
        observer.warning(warning);
    }
    if warnings.len() > WARNINGS {
        observer.warning(&format!("skipped {} more images", warnings.len() - WARNINGS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainData;

    /// Hears of steps, and may stop the run when it hears of the first one.
    #[derive(Default)]
    struct Heard<'s> {
        steps: Vec<StepInfo>,
        stop: Option<&'s AtomicBool>,
    }

    impl Observer for Heard<'_> {
        fn step(&mut self, step: &StepInfo) {
            self.steps.push(StepInfo { images_per_second: 0.0, ..step.clone() });
            if let Some(stop) = self.stop {
                stop.store(true, Ordering::Relaxed);
            }
        }
    }

    /// A new run, and the folder that it lies in.
    fn trainer(flags: &toml::Table) -> (tempfile::TempDir, Trainer) {
        let config = TrainConfig::resolve(None, flags).unwrap();
        let data = TrainData::open(&config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::create(&folder.path().join("run")).unwrap();
        let trainer = Trainer::new(config, &data, dir, &Device::Cpu).unwrap();
        (folder, trainer)
    }

    /// What became of a run of 2 epochs of 25 steps of two passes each: the steps that its observer heard of, its log
    /// without times, its weights, and where it stopped.
    fn run(as_on_a_gpu: bool, stops: bool) -> (Vec<StepInfo>, String, Vec<Vec<f32>>, Option<u64>) {
        let flags = toml::toml! {
            model = "softmax"
            dataset = "shapes"
            epochs = 2
            limit_train = 200
            limit_test = 70
            augment = "standard"
            batch_size = 4
            grad_accum = 2
            log_every = 5
            save_every = 17
        };
        let (folder, mut trainer) = trainer(&flags);
        if as_on_a_gpu {
            trainer.reads_late = true;
            trainer.store_images(usize::MAX).unwrap();
            assert!(trainer.stored.iter().all(Option::is_some));
        }
        let stop = AtomicBool::new(false);
        let mut heard = Heard { steps: Vec::new(), stop: stops.then_some(&stop) };
        let stopped = match trainer.run(&stop, &mut heard).unwrap() {
            Outcome::Interrupted { step, .. } => Some(step),
            Outcome::Finished(_) => None,
        };
        let log = std::fs::read_to_string(folder.path().join("run").join("metrics.jsonl")).unwrap();
        let timeless = |line: &str| -> String {
            let timed = |part: &&str| !part.contains("images_per_second") && !part.contains("elapsed_s");
            line.split(',').filter(timed).collect::<Vec<_>>().join(",")
        };
        let log = log.lines().map(timeless).collect::<Vec<_>>().join("\n");
        let weights = trainer.params.all();
        let weights = weights.iter().map(|(_, var)| var.flatten_all().unwrap().to_vec1().unwrap()).collect();
        (heard.steps, log, weights, stopped)
    }

    #[test]
    fn scores_read_late_and_images_on_the_device_change_nothing() {
        let now = run(false, false);
        assert_eq!(now.0.len(), 50);
        assert_eq!(run(true, false), now);
        // Who is told of steps later stops the run later, and has then been told of all.
        assert_eq!(run(false, true).3, Some(1));
        let (steps, _, _, stopped) = run(true, true);
        assert!(stopped.is_some_and(|step| step > 1 && step == steps.len() as u64), "{stopped:?}");
    }

    /// In f16 a scale at which everything overflows is halved until nothing does, and only then weights move; then the
    /// network learns as in f32.
    #[test]
    fn f16_learns_once_its_losses_are_scaled_well() {
        let losses = |dtype: &str, scale: f64| {
            let mut flags = toml::toml! {
                model = "lenet5"
                dataset = "shapes"
                epochs = 1
                limit_train = 320
                limit_test = 10
                batch_size = 8
                lr = 0.01
            };
            flags.insert("dtype".into(), dtype.into());
            let (_folder, mut trainer) = trainer(&flags);
            trainer.progress.loss_scale.scale = scale;
            let mut heard = Heard::default();
            trainer.run(&AtomicBool::new(false), &mut heard).unwrap();
            let losses: Vec<f64> = heard.steps.iter().map(|step| step.loss).collect();
            (losses, trainer.progress.loss_scale.scale)
        };
        let (of_f32, _) = losses("f32", 1.0);
        let (of_f16, kept) = losses("f16", 65_536.0);
        let furthest = of_f32.iter().zip(&of_f16).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(furthest < 0.05 && kept <= 65_536.0, "{furthest} {kept}");
        let (late, halved) = losses("f16", 2f64.powi(40));
        assert!(halved < 2f64.powi(30), "{halved}");
        let end = |losses: &[f64]| losses[35..].iter().sum::<f64>() / 5.0;
        assert!(end(&late) < late[0] && (end(&of_f16) - end(&of_f32)).abs() < 0.02);
    }
}
