//! Batches, made ahead of training on worker threads.
//!
//! Batch k of an epoch is a pure function of (data set, configuration, epoch, k). Worker j of W makes the
//! batches j, j + W, … and hands them over through a bounded channel of its own; the consumer asks the workers
//! in turn. So the order is fixed by construction, no batch waits for sorting, and any number of workers
//! delivers the same bytes.

use crate::augment::{Augment, CROP_SCALE, Dice, Shift, augment};
use crate::dataset::{Dataset, Meta, permutation};
use crate::mix::{Mix, Mixed};
use crate::preprocess::{Preprocess, SMALL};
use crate::resize::Interpolation;
use crate::{Error, Result};
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use zoo_ops::Pick;
use zoo_ops::rng::stream;

/// Batches that a worker makes ahead.
const AHEAD: usize = 2;

/// Which part of each batch a [`Loader`] makes, where several processes train one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// From 0.
    pub rank: usize,
    /// How many share a batch, at least 1.
    pub ranks: usize,
}

impl Share {
    /// The whole of each batch.
    pub const ALL: Self = Self { rank: 0, ranks: 1 };

    /// Which of `n` images are this one's: neighbours, and at most one more than those of another.
    fn of(self, n: usize) -> Range<usize> {
        n * self.rank / self.ranks..n * (self.rank + 1) / self.ranks
    }
}

/// How a [`Loader`] makes batches.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Images per batch and process, at least 1.
    pub batch_size: usize,
    /// The part of a batch of `ranks · batch_size` images to make. A last batch of fewer images than there are ranks is
    /// left out.
    pub share: Share,
    /// A new order each epoch, drawn from `seed`; otherwise that of the data set.
    pub shuffle: bool,
    /// Decides order and augmentation.
    pub seed: u64,
    /// Random changes. The same image gets others in every epoch.
    pub augment: Augment,
    /// The least share of a large picture's area that a random crop takes; above 0 and below 1.
    pub crop_scale: f64,
    /// Whether images are mixed with others of their batch.
    pub mix: Mix,
    /// Side of the (square) images in a batch; by default that of the data set, for folders 224.
    pub image_size: Option<usize>,
    /// Short side before the centre crop where nothing is random; by default as [`Preprocess::for_dataset`].
    pub resize: Option<usize>,
    /// How it is resized where nothing is random; random crops are always bilinear, as torchvision's are.
    pub interpolation: Interpolation,
    /// Channels of the images in a batch, 1 or 3; by default those of the data set.
    pub in_chans: Option<usize>,
    /// Leave out the last batch of an epoch if it is not full.
    pub drop_last: bool,
    /// Threads that make batches; 0 makes each one when it is asked for. By default one for sets in memory, and
    /// as many as the machine has, up to 8, for files that must be decoded.
    pub workers: Option<usize>,
}

impl LoaderConfig {
    /// Every image once in the order of the data set, unchanged.
    pub fn new(batch_size: usize, seed: u64) -> Self {
        Self {
            batch_size,
            share: Share::ALL,
            shuffle: false,
            seed,
            augment: Augment::None,
            crop_scale: CROP_SCALE,
            mix: Mix::default(),
            image_size: None,
            resize: None,
            interpolation: Interpolation::default(),
            in_chans: None,
            drop_last: false,
            workers: None,
        }
    }

    /// Images of a batch over all who share it.
    fn whole_batch(&self) -> usize {
        self.batch_size * self.share.ranks
    }
}

/// Images and labels of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The images, [n, h, w, c]; none where the loader leaves them where they are.
    pub pixels: Vec<u8>,
    /// What there is in their place: which images of the set, and how they are seen.
    pub picks: Vec<Pick>,
    /// Number of images. Less than the batch size in the last batch, and where files could not be read.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// The class of each image.
    pub labels: Vec<u32>,
    /// What the images were mixed with, where they were.
    pub mixed: Option<Mixed>,
    /// The position of each image in the data set.
    pub indices: Vec<u32>,
    /// Where in the batch that is shared the first of the images lies; 0 where nothing is shared.
    pub first: usize,
    /// The place of this batch in its epoch. An epoch resumed at `number + 1` goes on after this batch.
    pub number: usize,
}

impl Batch {
    /// What a network of so many classes should answer for mixed images: [n, classes], each row of sum 1.
    /// `None` where nothing was mixed and the labels say it all.
    ///
    /// # Panics
    /// If a label is not below `classes`.
    pub fn soft_targets(&self, classes: usize) -> Option<Vec<f32>> {
        let mixed = self.mixed.as_ref()?;
        let mut targets = vec![0f32; self.n * classes];
        let rows = targets.chunks_exact_mut(classes.max(1));
        for (row, (&own, &partner)) in rows.zip(self.labels.iter().zip(&mixed.partners)) {
            row[own as usize] += mixed.share as f32;
            row[partner as usize] += (1.0 - mixed.share) as f32;
        }
        Some(targets)
    }

    /// The class with the largest share in each image: its label, or that of what it was mixed with.
    pub fn main_labels(&self) -> &[u32] {
        match &self.mixed {
            Some(mixed) if mixed.share < 0.5 => &mixed.partners,
            _ => &self.labels,
        }
    }
}

/// Makes the batches of a data set, epoch by epoch.
///
/// A file that cannot be decoded is left out of its batch, which is then smaller; which files those are depends
/// on the files alone, so batches stay the same from run to run. See [`Loader::skipped`].
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dataset: Dataset,
    config: LoaderConfig,
    input: Preprocess,
    workers: usize,
    /// Whether batches have picks in place of pixels.
    picks: bool,
    skipped: Mutex<Skipped>,
}

#[derive(Debug, Default)]
struct Skipped {
    /// What is wrong with the image at each position.
    reasons: BTreeMap<u32, String>,
    /// Those that [`Loader::take_warnings`] has not handed out.
    untold: Vec<u32>,
}

impl Loader {
    /// # Errors
    /// If the set is empty, or the batch size, image size or number of channels is impossible.
    pub fn new(dataset: Dataset, config: LoaderConfig) -> Result<Self> {
        let meta = dataset.meta();
        let [c, side, _] = meta.shape;
        let mut input =
            Preprocess::for_dataset(meta, config.image_size.unwrap_or(side), config.in_chans.unwrap_or(c));
        input.resize = config.resize.unwrap_or(input.resize);
        input.interpolation = config.interpolation;
        input.check()?;
        config.mix.check()?;
        if !(config.crop_scale > 0.0 && config.crop_scale < 1.0) {
            let found = config.crop_scale;
            return Err(Error::Config(format!("crop scale must be above 0 and below 1, found {found}")));
        }
        if dataset.is_empty() {
            return Err(Error::Config(format!(
                "data set {} has no {} images",
                meta.name,
                dataset.split().name()
            )));
        }
        if dataset.vocabulary().is_some() {
            check_sentences(meta, &config, input)?;
        }
        if config.batch_size == 0 {
            return Err(Error::Config("batch size must be at least 1, found 0".into()));
        }
        if config.drop_last && dataset.len() < config.whole_batch() {
            let message =
                format!("{} images do not fill one batch of {}", dataset.len(), config.whole_batch());
            return Err(Error::Config(message));
        }
        let ranks = config.share.ranks;
        if dataset.len() < ranks {
            let message = format!("{} images cannot be shared by {ranks} processes", dataset.len());
            return Err(Error::Config(message));
        }
        let usual = if meta.fixed_size {
            1
        } else {
            std::thread::available_parallelism().map_or(1, |n| n.get().min(8))
        };
        let workers = config.workers.unwrap_or(usual);
        let skipped = Mutex::default();
        Ok(Self { shared: Arc::new(Shared { dataset, config, input, workers, picks: false, skipped }) })
    }

    /// Whether batches can be made by whoever holds all images of the set ([`Dataset::all_pixels`]): these are in memory
    /// at the size of the batches, and are shifted and mirrored at most.
    pub fn can_leave_pixels(&self) -> bool {
        let Shared { dataset, config, input, .. } = &*self.shared;
        let shifted = match config.augment {
            Augment::None => true,
            Augment::Standard | Augment::Alternating => input.crop <= SMALL,
            Augment::Trivial => false,
        };
        let as_stored = |(_, shape): (&[u8], [usize; 3])| shape == [input.crop, input.crop, input.channels];
        let plain = input.resize == input.crop && config.mix == Mix::default();
        shifted && plain && dataset.packed(0).is_some_and(as_stored)
    }

    /// From now on batches have [`Batch::picks`] and no pixels, if [`Loader::can_leave_pixels`]; says whether they do.
    pub fn leave_pixels(&mut self) -> bool {
        if self.can_leave_pixels()
            && let Some(shared) = Arc::get_mut(&mut self.shared)
        {
            shared.picks = true;
        }
        self.shared.picks
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.shared.dataset
    }

    /// What is done to every image where nothing is random.
    pub fn preprocess(&self) -> Preprocess {
        self.shared.input
    }

    /// Number of batches in an epoch.
    pub fn batches(&self) -> usize {
        let (n, size) = (self.shared.dataset.len(), self.shared.config.whole_batch());
        let least = if self.shared.config.drop_last { size } else { self.shared.config.share.ranks };
        n / size + usize::from(n % size >= least)
    }

    /// The batches of an epoch from `first_batch` on, and workers that make them ahead. Dropping the iterator
    /// ends the workers.
    pub fn epoch(&self, epoch: u64, first_batch: usize) -> Epoch {
        let shared = &self.shared;
        let order = if shared.config.shuffle {
            permutation(shared.dataset.len(), shared.config.seed, "order", epoch)
        } else {
            (0..shared.dataset.len() as u32).collect()
        };
        let plan = Arc::new(Plan { shared: Arc::clone(shared), epoch, order, end: self.batches() });
        let stop = Arc::new(AtomicBool::new(false));
        let n_workers = shared.workers.min(plan.end.saturating_sub(first_batch));
        let workers = (0..n_workers)
            .map(|j| Worker::start(Arc::clone(&plan), Arc::clone(&stop), first_batch + j, n_workers))
            .collect();
        Epoch { plan, stop, workers, first: first_batch, next: first_batch, delivered: 0 }
    }

    /// The position and what is wrong, for every image that could not be read so far.
    pub fn skipped(&self) -> Vec<(usize, String)> {
        let skipped = self.shared.skipped();
        skipped.reasons.iter().map(|(&index, reason)| (index as usize, reason.clone())).collect()
    }

    /// A warning per skipped image, each once in the life of the loader.
    pub fn take_warnings(&self) -> Vec<String> {
        let mut skipped = self.shared.skipped();
        let untold = std::mem::take(&mut skipped.untold);
        untold.iter().map(|index| format!("skipped {}", skipped.reasons[index])).collect()
    }
}

/// That sentences go to the network as they are.
fn check_sentences(meta: &Meta, config: &LoaderConfig, input: Preprocess) -> Result<()> {
    let [c, side, _] = meta.shape;
    let Preprocess { resize, crop, channels, .. } = input;
    let problem = if config.augment != Augment::None {
        "sentences cannot be augmented; use --augment none".into()
    } else if config.mix != Mix::default() {
        "sentences cannot be mixed; use neither mixup nor cutmix".into()
    } else if (crop, resize) != (side, side) {
        format!("sentences of {side}x{side} words cannot be resized to {crop}x{crop}")
    } else if channels != c {
        format!("a word has {c} bytes, found {channels} channels")
    } else {
        return Ok(());
    };
    Err(Error::Config(format!("data set {}: {problem}", meta.name)))
}

/// Everything that decides the batches of one epoch.
#[derive(Debug)]
struct Plan {
    shared: Arc<Shared>,
    epoch: u64,
    order: Vec<u32>,
    /// Number of batches.
    end: usize,
}

/// A batch and the images it should have had.
#[derive(Debug)]
struct Made {
    batch: Batch,
    failed: Vec<(u32, String)>,
}

impl Plan {
    /// Batch `number`, or nothing if told to stop meanwhile.
    fn make(&self, number: usize, stop: &AtomicBool) -> Option<Made> {
        let Shared { config, input, dataset, .. } = &*self.shared;
        let from = number * config.whole_batch();
        let all = &self.order[from..(from + config.whole_batch()).min(self.order.len())];
        let share = config.share.of(all.len());
        let (first, members) = (share.start, &all[share]);
        let (side, c) = (input.crop, input.channels);
        let size = side * side * c;
        let mut batch = Batch {
            pixels: vec![0; if self.shared.picks { 0 } else { members.len() * size }],
            picks: Vec::new(),
            n: 0,
            h: side,
            w: side,
            c,
            labels: Vec::with_capacity(members.len()),
            mixed: None,
            indices: Vec::with_capacity(members.len()),
            first,
            number,
        };
        let mut failed = Vec::new();
        for &index in members {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let rendered = if self.shared.picks {
                batch.picks.push(self.shared.shift(self.epoch, index).pick());
                Ok(())
            } else {
                self.shared.render(self.epoch, index, &mut batch.pixels[batch.n * size..][..size])
            };
            match rendered {
                Ok(()) => {
                    batch.labels.push(dataset.label(index as usize));
                    batch.indices.push(index);
                    batch.n += 1;
                }
                Err(error) => failed.push((index, error.to_string())),
            }
        }
        batch.pixels.truncate(batch.n * size);
        if batch.n > 0 {
            config.mix.apply(&mut batch, &mut stream(config.seed, "mix", self.epoch << 32 | number as u64));
        }
        Some(Made { batch, failed })
    }
}

impl Shared {
    fn skipped(&self) -> MutexGuard<'_, Skipped> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How image `index` is seen in that epoch where it is shifted at most.
    fn shift(&self, epoch: u64, index: u32) -> Shift {
        match self.config.augment {
            Augment::None => Shift::none(index),
            how => Shift::draw(how, index, &mut self.dice(epoch, index)),
        }
    }

    fn dice(&self, epoch: u64, index: u32) -> Dice {
        let Self { dataset, config, .. } = self;
        Dice::new(config.augment, config.seed, epoch, index, dataset.meta().mirror)
    }

    /// Writes image `index` as the model sees it in that epoch to `out`.
    fn render(&self, epoch: u64, index: u32, out: &mut [u8]) -> Result<()> {
        let Self { dataset, config, input, .. } = self;
        if let Some((pixels, shape)) = dataset.packed(index as usize)
            && shape == [input.crop, input.crop, input.channels]
            && input.resize == input.crop
        {
            // Nothing to decode or resize: from the data set to the batch in one pass.
            match config.augment {
                Augment::None => {
                    out.copy_from_slice(pixels);
                    return Ok(());
                }
                Augment::Standard | Augment::Alternating if input.crop <= SMALL => {
                    self.shift(epoch, index).apply(pixels, shape, out);
                    return Ok(());
                }
                _ => {}
            }
        }
        let image = dataset.get(index as usize)?.with_channels(input.channels);
        let image = augment(image, (config.augment, config.crop_scale), input, &mut self.dice(epoch, index))
            .map_err(|error| {
                let path = dataset.path(index as usize);
                let origin = path.map_or(format!("image {index}"), |path| path.display().to_string());
                Error::Image { origin, reason: error.to_string() }
            })?;
        out.copy_from_slice(&image.pixels);
        Ok(())
    }
}

#[derive(Debug)]
struct Worker {
    /// Taken when the worker is to end: without a receiver it cannot send, and leaves.
    batches: Option<Receiver<Made>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(plan: Arc<Plan>, stop: Arc<AtomicBool>, first: usize, step: usize) -> Self {
        let (sender, receiver): (SyncSender<Made>, _) = sync_channel(AHEAD);
        let work = move || {
            for number in (first..plan.end).step_by(step) {
                let Some(made) = plan.make(number, &stop) else { return };
                if sender.send(made).is_err() {
                    return;
                }
            }
        };
        // Without a thread there is nobody to send, and the consumer reports that.
        let thread = std::thread::Builder::new().name("zoo-data".into()).spawn(work).ok();
        Self { batches: Some(receiver), thread }
    }

    /// Why there is no batch where one is due.
    fn failure(&mut self) -> Error {
        self.batches = None;
        Error::Worker(match self.thread.take().map(JoinHandle::join) {
            None => "the system gave it no thread".into(),
            Some(Ok(())) => "it ended early".into(),
            Some(Err(panic)) => panic_message(&*panic),
        })
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".into())
}

/// The batches of one epoch, in order.
#[derive(Debug)]
pub struct Epoch {
    plan: Arc<Plan>,
    stop: Arc<AtomicBool>,
    workers: Vec<Worker>,
    first: usize,
    next: usize,
    delivered: usize,
}

impl Epoch {
    /// The next batch, without regard to whether anything is in it.
    fn receive(&mut self) -> Result<Made> {
        let number = self.next;
        self.next += 1;
        if self.workers.is_empty() {
            return Ok(self.plan.make(number, &self.stop).expect("nobody stops an epoch without workers"));
        }
        let turn = (number - self.first) % self.workers.len();
        let worker = &mut self.workers[turn];
        let received = worker.batches.as_ref().and_then(|batches| batches.recv().ok());
        received.ok_or_else(|| {
            self.next = self.plan.end;
            worker.failure()
        })
    }

    fn note(&self, failed: Vec<(u32, String)>) {
        let mut skipped = self.plan.shared.skipped();
        for (index, reason) in failed {
            if skipped.reasons.insert(index, reason).is_none() {
                skipped.untold.push(index);
            }
        }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.plan.end {
            let Made { batch, failed } = match self.receive() {
                Ok(made) => made,
                Err(error) => return Some(Err(error)),
            };
            self.note(failed);
            if batch.n > 0 {
                self.delivered += 1;
                return Some(Ok(batch));
            }
            if self.next == self.plan.end && self.delivered == 0 && self.first == 0 {
                let skipped = self.plan.shared.skipped();
                let first = skipped.reasons.values().next().cloned().unwrap_or_default();
                let n = self.plan.order.len();
                return Some(Err(Error::Config(format!(
                    "none of the {n} images can be read; the first: {first}"
                ))));
            }
        }
        None
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in &mut self.workers {
            worker.batches = None;
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A panic whose batch nobody asked for concerns nobody.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogEntry;
    use crate::dataset::{Source, Split};

    #[test]
    fn a_panic_in_a_worker_becomes_an_error() {
        // Four labels, but pixels for three images: making the fourth panics.
        let meta = CatalogEntry::find("shapes").unwrap().meta();
        let source = Source::Packed { pixels: vec![0; 3 * 3072], h: 32, w: 32, c: 3 };
        let set = Dataset::new(meta, Split::Train, source, vec![0; 4]);
        for workers in [1, 2] {
            let config = LoaderConfig { workers: Some(workers), ..LoaderConfig::new(1, 0) };
            let results: Vec<_> = Loader::new(set.clone(), config).unwrap().epoch(0, 0).collect();
            assert_eq!(results.len(), 4);
            assert!(results[..3].iter().all(Result::is_ok));
            let text = results[3].as_ref().unwrap_err().to_string();
            assert!(text.starts_with("a data worker stopped: ") && text.contains("out of range"), "{text}");
        }
    }
}
