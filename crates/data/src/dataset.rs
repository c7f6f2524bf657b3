use crate::pixels::Image;
use crate::text::Vocabulary;
use crate::{Result, decode};
use rand::Rng;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zoo_ops::rng::stream;

/// What a data set is, apart from its images.
#[derive(Debug, Clone, PartialEq)]
pub struct Meta {
    /// The name given to [`crate::open`].
    pub name: String,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// [c, h, w] of every image; for a folder, whose images differ, [3, 224, 224] as the usual input.
    pub shape: [usize; 3],
    /// Whether every image has `shape`. False for folders.
    pub fixed_size: bool,
    /// Whether a mirrored image keeps its class, so that augmentation may flip it. False for digits.
    pub mirror: bool,
    /// Mean of each channel over the training split, pixels in [0, 1]; for a folder ImageNet's.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, like `mean`.
    pub std: Vec<f32>,
}

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// For training.
    Train,
    /// Held out. In a folder, `val` or else `test`.
    Test,
}

impl Split {
    /// `"train"` or `"test"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// Where the images are: all in memory as [n, h, w, c] bytes, or in files that are decoded when asked for.
#[derive(Debug)]
pub(crate) enum Source {
    Packed { pixels: Vec<u8>, h: usize, w: usize, c: usize },
    Files { paths: Vec<PathBuf> },
}

/// Labelled images. Cloning and taking subsets is cheap: the images are shared.
#[derive(Debug, Clone)]
pub struct Dataset {
    meta: Arc<Meta>,
    split: Split,
    source: Arc<Source>,
    source_labels: Arc<Vec<u32>>,
    /// The records of the source that belong to this set, in its order.
    records: Arc<Vec<u32>>,
    /// Of sentences.
    vocabulary: Option<Arc<Vocabulary>>,
}

impl Dataset {
    pub(crate) fn new(meta: Meta, split: Split, source: Source, labels: Vec<u32>) -> Self {
        let records = (0..labels.len() as u32).collect();
        Self {
            meta: Arc::new(meta),
            split,
            source: Arc::new(source),
            source_labels: Arc::new(labels),
            records: Arc::new(records),
            vocabulary: None,
        }
    }

    /// The same set as sentences of these words.
    pub(crate) fn with_vocabulary(self, vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary: Some(vocabulary), ..self }
    }

    /// The words that have numbers, if these are sentences: then a pixel is a word.
    pub fn vocabulary(&self) -> Option<&Arc<Vocabulary>> {
        self.vocabulary.as_ref()
    }

    /// A set from images in memory: `pixels` is [n, h, w, c] with [c, h, w] = `meta.shape`, one label each.
    ///
    /// # Errors
    /// If sizes disagree, c is neither 1 nor 3, or a label is not below the number of classes.
    pub fn from_pixels(meta: Meta, split: Split, pixels: Vec<u8>, labels: Vec<u32>) -> Result<Self> {
        let [c, h, w] = meta.shape;
        let config =
            |message: String| Err(crate::Error::Config(format!("data set {}: {message}", meta.name)));
        if c != 1 && c != 3 {
            return config(format!("expected 1 or 3 channels, found {c}"));
        }
        if pixels.len() != labels.len() * c * h * w {
            let expected = labels.len() * c * h * w;
            return config(format!(
                "expected {expected} bytes for {} labels, found {}",
                labels.len(),
                pixels.len()
            ));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= meta.classes.len()) {
            return config(format!("label {label} in a set of {} classes", meta.classes.len()));
        }
        Ok(Self::new(meta, split, Source::Packed { pixels, h, w, c }, labels))
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Name, classes, shape, statistics.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Which part of the data set this is (or was taken from).
    pub fn split(&self) -> Split {
        self.split
    }

    /// The label of image `i`.
    ///
    /// # Panics
    /// If `i` is not below [`Dataset::len`].
    pub fn label(&self, i: usize) -> u32 {
        self.source_labels[self.records[i] as usize]
    }

    /// The labels in order.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.records.iter().map(|&r| self.source_labels[r as usize])
    }

    /// The file of image `i`, where it has one of its own.
    pub fn path(&self, i: usize) -> Option<&Path> {
        match &*self.source {
            Source::Packed { .. } => None,
            Source::Files { paths } => Some(&paths[self.records[i] as usize]),
        }
    }

    /// Image `i`, decoded, with the channels it is stored with (a folder's colour files always give 3).
    ///
    /// # Errors
    /// If its file cannot be read or decoded.
    pub fn get(&self, i: usize) -> Result<Image> {
        match self.packed(i) {
            Some((pixels, [h, w, c])) => Ok(Image { pixels: pixels.to_vec(), h, w, c }),
            None => decode::load_image(self.path(i).expect("an image is packed or has a path")),
        }
    }

    /// The bytes of image `i` with their [h, w, c], if the set is held in memory.
    pub fn packed(&self, i: usize) -> Option<(&[u8], [usize; 3])> {
        match &*self.source {
            Source::Packed { pixels, h, w, c } => {
                let size = h * w * c;
                let record = self.records[i] as usize;
                Some((&pixels[record * size..][..size], [*h, *w, *c]))
            }
            Source::Files { .. } => None,
        }
    }

    /// All images as one block [n, h, w, c], for sets held in memory.
    pub fn all_pixels(&self) -> Option<Cow<'_, [u8]>> {
        let Source::Packed { pixels, .. } = &*self.source else { return None };
        let whole = self.len() == self.source_labels.len() && self.records.is_sorted();
        if whole {
            return Some(Cow::Borrowed(pixels));
        }
        Some((0..self.len()).flat_map(|i| self.packed(i).expect("packed").0).copied().collect())
    }

    /// The images with the given positions, in the given order.
    ///
    /// # Panics
    /// If a position is not below [`Dataset::len`].
    pub fn subset(&self, positions: impl IntoIterator<Item = usize>) -> Self {
        let records = positions.into_iter().map(|i| self.records[i]).collect();
        Self { records: Arc::new(records), ..self.clone() }
    }

    /// The images whose class has a number in `outputs`, under that number, which counts in `classes`.
    pub(crate) fn relabelled(&self, outputs: &[Option<usize>], classes: Vec<String>) -> Self {
        let output = |label: u32| outputs[label as usize];
        let known =
            self.records.iter().copied().filter(|&r| output(self.source_labels[r as usize]).is_some());
        // The labels of records that are not in the set do not matter.
        let labels = self.source_labels.iter().map(|&label| output(label).unwrap_or_default() as u32);
        Self {
            meta: Arc::new(Meta { classes, ..(*self.meta).clone() }),
            records: Arc::new(known.collect()),
            source_labels: Arc::new(labels.collect()),
            ..self.clone()
        }
    }

    /// At most `n` images, drawn by `seed`, in their original order.
    pub fn limit(&self, n: usize, seed: u64) -> Self {
        if n >= self.len() {
            return self.clone();
        }
        let mut chosen = permutation(self.len(), seed, "limit", 0);
        chosen.truncate(n);
        chosen.sort_unstable();
        self.subset(chosen.into_iter().map(|i| i as usize))
    }

    /// Sets aside a share of the images, drawn by `seed`: (the rest, the share), each in its original order.
    ///
    /// # Errors
    /// If `fraction` is not between 0 and 1, or one of the two parts would be empty.
    pub fn hold_out(&self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        let held = (self.len() as f64 * fraction).round();
        if !(fraction > 0.0 && held >= 1.0 && held < self.len() as f64) {
            let message =
                format!("cannot hold out {fraction} of {} images: one part would be empty", self.len());
            return Err(crate::Error::Config(message));
        }
        let mut order = permutation(self.len(), seed, "hold out", 0);
        let mut rest = order.split_off(held as usize);
        order.sort_unstable();
        rest.sort_unstable();
        let part = |positions: Vec<u32>| self.subset(positions.into_iter().map(|i| i as usize));
        Ok((part(rest), part(order)))
    }

    /// Mean and standard deviation of each channel over all images, pixels in [0, 1], for sets held in memory.
    pub fn statistics(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let pixels = self.all_pixels()?;
        (!pixels.is_empty()).then(|| channel_statistics(&pixels, self.meta.shape[0]))
    }
}

fn channel_statistics(pixels: &[u8], c: usize) -> (Vec<f32>, Vec<f32>) {
    let mut histogram = vec![[0u64; 256]; c];
    for pixel in pixels.chunks_exact(c) {
        for (counts, &v) in histogram.iter_mut().zip(pixel) {
            counts[usize::from(v)] += 1;
        }
    }
    let n = (pixels.len() / c) as f64;
    let moment = |counts: &[u64; 256], power: i32| {
        counts.iter().enumerate().map(|(v, &k)| k as f64 * (v as f64 / 255.0).powi(power)).sum::<f64>() / n
    };
    histogram
        .iter()
        .map(|counts| {
            let mean = moment(counts, 1);
            (mean as f32, (moment(counts, 2) - mean * mean).sqrt() as f32)
        })
        .unzip()
}

/// The numbers below `n` in the order drawn by (seed, purpose, index): Fisher–Yates.
pub(crate) fn permutation(n: usize, seed: u64, purpose: &str, index: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut rng = stream(seed, purpose, index);
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i as u32) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: usize) -> Dataset {
        let meta = Meta {
            name: "numbered".into(),
            classes: vec!["even".into(), "odd".into()],
            shape: [1, 1, 2],
            fixed_size: true,
            mirror: true,
            mean: vec![0.5],
            std: vec![0.5],
        };
        let pixels = (0..n).flat_map(|i| [i as u8, 255 - i as u8]).collect();
        let labels = (0..n as u32).map(|i| i % 2).collect();
        Dataset::from_pixels(meta, Split::Train, pixels, labels).unwrap()
    }

    #[test]
    fn subsets_keep_image_and_label_together() {
        let all = numbered(50);
        let some = all.subset([7, 3, 40]).subset([2, 0]);
        assert_eq!(some.get(0).unwrap().pixels, [40, 215]);
        assert_eq!(some.labels().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(&*some.all_pixels().unwrap(), [40, 215, 7, 248]);
        assert_eq!(all.all_pixels().unwrap().len(), 100);
    }

    #[test]
    fn held_out_images_are_disjoint_and_repeatable() {
        let all = numbered(50);
        let (rest, held) = all.hold_out(0.3, 5).unwrap();
        assert_eq!((rest.len(), held.len()), (35, 15));
        let first = |set: &Dataset| (0..set.len()).map(|i| set.get(i).unwrap().pixels[0]).collect::<Vec<_>>();
        let mut union = [first(&rest), first(&held)].concat();
        assert!(first(&held).is_sorted() && first(&rest).is_sorted());
        union.sort_unstable();
        assert_eq!(union, (0..50).collect::<Vec<u8>>());
        assert_eq!(first(&held), first(&all.hold_out(0.3, 5).unwrap().1));
        assert_ne!(first(&held), first(&all.hold_out(0.3, 6).unwrap().1));
        assert!(
            all.hold_out(0.001, 0).is_err()
                && all.hold_out(1.0, 0).is_err()
                && all.hold_out(-1.0, 0).is_err()
        );
    }

    #[test]
    fn limit_draws_by_seed() {
        let all = numbered(50);
        assert_eq!(all.limit(80, 0).len(), 50);
        let (a, b) = (all.limit(10, 1), all.limit(10, 2));
        assert_eq!(a.len(), 10);
        assert_ne!(a.all_pixels(), b.all_pixels());
        assert_eq!(a.all_pixels(), all.limit(10, 1).all_pixels());
    }

    #[test]
    fn bad_blocks_are_refused() {
        let meta = numbered(1).meta().clone();
        let message = |pixels, labels| {
            Dataset::from_pixels(meta.clone(), Split::Train, pixels, labels).unwrap_err().to_string()
        };
        assert_eq!(
            message(vec![0; 5], vec![0, 1]),
            "data set numbered: expected 4 bytes for 2 labels, found 5"
        );
        assert_eq!(message(vec![0; 4], vec![0, 2]), "data set numbered: label 2 in a set of 2 classes");
    }

    #[test]
    fn statistics_of_a_known_block() {
        let (mean, std) = channel_statistics(&[0, 255, 255, 255, 0, 0], 3);
        assert_eq!(mean, [0.5, 0.5, 0.5]);
        assert_eq!(std, [0.5, 0.5, 0.5]);
        let (mean, std) = channel_statistics(&[51, 51], 1);
        assert!((mean[0] - 0.2).abs() < 1e-7 && std[0] < 1e-3);
    }

    #[test]
    fn permutations_are_complete_and_fair() {
        let mut first = [0u32; 5];
        for epoch in 0..5000 {
            let mut order = permutation(5, 9, "order", epoch);
            first[order[0] as usize] += 1;
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        }
        assert!(first.iter().all(|&k| (880..1120).contains(&k)), "{first:?}");
    }
}
