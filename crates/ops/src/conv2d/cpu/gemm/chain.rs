//! A convolution of narrow groups and its neighbours, a few rows at a time: what one writes the next reads while it is in
//! cache. A block of MobileNetV2 (arXiv 1801.04381) widens its map six times, and writing the widest map to memory and
//! reading it again takes longer than the sums. Every value is computed as without a chain, bit for bit, however images
//! are cut.

use super::super::super::Geometry;
use super::super::Weight;
use super::super::finish::{Finish, Rows};
use super::super::product::panel_width;
use super::correlation;
use super::correlation::Correlation;
use super::narrow::{Run, Source};
use super::reach::Block;
use crate::Window2d;
use crate::element::{Element, Elements, load};
use crate::parallel::{each, parts, with_scratch, with_scratch_of};
use crate::pool::{Buffer, take};
use crate::team::threads;
use crate::timing::is_timed;
use candle_core::TensorId;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A convolution of a chain.
pub(in super::super) struct Link<'a, T> {
    pub(in super::super) g: Geometry,
    pub(in super::super) values: Elements<'a, f32>,
    /// Of the weight, where it may be kept as kernels arrange it.
    pub(in super::super) id: Option<TensorId>,
    pub(in super::super) finish: Finish<'a, T>,
}

impl<T> Link<'_, T> {
    pub(in super::super) fn weight(&self) -> Weight<'_> {
        Weight { values: &self.values, id: self.id }
    }
}

/// Whether a convolution sees no other pixel than its own.
pub(in super::super) fn is_by_pixel(g: &Geometry) -> bool {
    g.taps() == 1 && g.window.stride == (1, 1) && g.window.padding == (0, 0)
}

/// Pixels that a convolution computes at a time, at least, for its weights to be used that often each time they are read.
const PIXELS: usize = 48;

/// How many bands `n` images are cut into, of which each is a task: enough for all threads, if they need not be too low for
/// it. An image gives `out` = (rows, columns) by a window over a map of `rows` rows. Where that map is `made` for each
/// band, those that two bands see are made twice, at most an eighth of all.
pub(in super::super) fn bands(
    n: usize,
    out: (usize, usize),
    window: &Window2d,
    rows: usize,
    made: bool,
) -> Option<usize> {
    let seen = (window.kernel.0 - 1) * window.dilation.0 + 1;
    let shared = if made { seen.saturating_sub(window.stride.0) } else { 0 };
    let fits =
        |&bands: &usize| bands == 1 || out.0 / bands * out.1 >= PIXELS && 8 * (bands - 1) * shared <= rows;
    [4, 2, 1].map(|tasks| (tasks * threads()).div_ceil(n.max(1))).into_iter().find(fits)
}

/// Bands of the rows of `n` images, and which image each is of.
pub(in super::super) fn cut(n: usize, rows: usize, bands: usize) -> Vec<(usize, Range<usize>)> {
    let of_band = move |band: usize| rows * band / bands..rows * (band + 1) / bands;
    (0..n).flat_map(|image| (0..bands).map(move |band| (image, of_band(band)))).collect()
}

/// What the narrow convolution and its neighbours give, `widen` before it and `follow` after it, if there are any, and
/// which share of the time each of the three took, if anybody asks.
pub(in super::super) fn run<T: Element>(
    widen: Option<&Link<'_, T>>,
    narrow: &Link<'_, T>,
    follow: Option<&Link<'_, T>>,
    bands: usize,
    xs: &[T],
) -> (Buffer<T>, [f64; 3]) {
    let Geometry { n, size, out: (h, w), .. } = narrow.g;
    let at_once = |columns: usize, rows: usize| PIXELS.div_ceil(columns).min(rows);
    let rows = at_once(w, h);
    // What comes after sees these rows alone.
    let of_rows = follow.map(|link| Geometry { n: 1, size: (rows, w), out: (rows, w), ..link.g });
    let narrow_step = Step::new(narrow, &narrow.g);
    let chain = Chain {
        widen: widen.map(|link| (Step::new(link, &link.g), at_once(size.1, size.0))),
        runs: narrow_step.correlation.runs_narrow(),
        narrow: narrow_step,
        rows,
        follow: follow.zip(of_rows.as_ref()).map(|(link, g)| Step::new(link, g)),
    };
    let row_len = w * follow.unwrap_or(narrow).g.c_out;
    let mut ys = take::<T>(n * h * row_len);
    let tasks = cut(n, h, bands);
    let parts = parts(&mut ys, tasks.iter().map(|(_, rows)| rows.len() * row_len));
    each(tasks.iter().zip(parts), |_, ((image, rows), (at, out))| chain.band(xs, *image, rows, at, out));
    let spent = [chain.widen.as_ref().map(|(step, _)| step), Some(&chain.narrow), chain.follow.as_ref()]
        .map(|step| step.and_then(Step::nanoseconds).unwrap_or(0) as f64);
    let all = spent.iter().sum::<f64>().max(1.0);
    (ys, spent.map(|nanoseconds| nanoseconds / all))
}

/// A convolution, ready to compute any rows.
pub(super) struct Step<'a, T> {
    pub(super) correlation: Correlation,
    finish: &'a Finish<'a, T>,
    /// The finish, where it is applied in registers.
    of_rows: Option<Rows>,
    /// Time spent, of all threads, if anybody asks: threads that add to the same number wait for each other's caches.
    nanoseconds: Option<AtomicU64>,
}

impl<'a, T: Element> Step<'a, T> {
    pub(super) fn new(link: &'a Link<'a, T>, g: &Geometry) -> Self {
        let correlation = correlation::<T>(g, link.weight());
        let of_rows = correlation.of_rows::<T>(&link.finish);
        let nanoseconds = is_timed().then(|| AtomicU64::new(0));
        Self { correlation, finish: &link.finish, of_rows, nanoseconds }
    }

    /// Computes rows of an image of `xs` that lie at `at` in the whole result.
    pub(super) fn compute(&self, xs: &[T], block: &Block, at: usize, out: &mut [T]) {
        self.finished(at, out, |out, of_rows| {
            let (correlation, channels) = (&self.correlation, self.correlation.target_channels);
            correlation.block(xs, block, 0..correlation.of_group().1, out, channels, of_rows);
        });
    }

    /// What `products` writes, finished.
    fn finished(&self, at: usize, out: &mut [T], products: impl FnOnce(&mut [T], Option<&Rows>)) {
        let start = self.nanoseconds.as_ref().map(|_| Instant::now());
        products(out, self.of_rows.as_ref());
        if self.of_rows.is_none() {
            self.finish.apply(at, out);
        }
        if let (Some(nanoseconds), Some(start)) = (&self.nanoseconds, start) {
            let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            nanoseconds.fetch_add(spent, Ordering::Relaxed);
        }
    }

    fn nanoseconds(&self) -> Option<u64> {
        self.nanoseconds.as_ref().map(|nanoseconds| nanoseconds.load(Ordering::Relaxed))
    }
}

struct Chain<'a, T> {
    /// And how many rows it computes at a time.
    widen: Option<(Step<'a, T>, usize)>,
    narrow: Step<'a, T>,
    runs: Vec<Vec<Run>>,
    /// Those that the narrow convolution computes at a time.
    rows: usize,
    follow: Option<Step<'a, T>>,
}

impl<T: Element> Chain<'_, T> {
    /// Rows of an image, which lie at `at` in the whole result.
    fn band(&self, xs: &[T], image: usize, rows: &Range<usize>, at: usize, out: &mut [T]) {
        let narrow = &self.narrow.correlation;
        let (h, row_len) = (narrow.source.0, narrow.source.1 * narrow.source_channels);
        let in_place = match self.widen {
            None => T::as_f32(xs).filter(|_| narrow.source_channels >= panel_width()),
            Some(_) => None,
        };
        // The rows that the narrow convolution sees: in the map, or some of them, in turn, in a ring.
        let at_once = self.widen.as_ref().map_or(1, |(_, rows)| *rows);
        let ring_rows = (narrow.reach.0.span(self.rows) + at_once - 1).next_multiple_of(at_once);
        // Fewer channels than a panel's width are read beyond the last pixel.
        let ring_len = if in_place.is_some() { 0 } else { ring_rows * row_len + panel_width() };
        let first = narrow.seen(rows).start;
        let mut made = first;
        // What the last convolution sees of the narrow one.
        let between_len =
            self.follow.as_ref().map_or(0, |_| self.rows * narrow.target.1 * narrow.target_channels);
        let out_len = out.len() / rows.len().max(1);
        let mut compute = |ring: &mut [f32], between: &mut [T]| {
            for start in rows.clone().step_by(self.rows) {
                let some = start..rows.end.min(start + self.rows);
                while in_place.is_none() && made < narrow.seen(&some).end {
                    let new = made..h.min(made + at_once);
                    let ring = &mut ring[(made - first) % ring_rows * row_len..][..new.len() * row_len];
                    self.make(xs, image, &new, ring);
                    made = new.end;
                }
                let source = match in_place {
                    Some(xs) => Source { data: &xs[image * h * row_len..][..h * row_len], first: 0, rows: h },
                    None => Source { data: ring, first, rows: ring_rows },
                };
                let at = at + (start - rows.start) * out_len;
                let out = &mut out[(start - rows.start) * out_len..][..some.len() * out_len];
                let sums = |out: &mut [T], finish: Option<&Rows>| {
                    narrow.image_narrow(&source, &self.runs, &some, out, finish);
                };
                match &self.follow {
                    None => self.narrow.finished(at, out, sums),
                    Some(follow) => {
                        let len = some.len() * narrow.target.1 * narrow.target_channels;
                        self.narrow.finished(0, &mut between[..len], sums);
                        follow.compute(between, &Block { images: 0..1, rows: 0..some.len() }, at, out);
                    }
                }
            }
        };
        with_scratch(ring_len, |ring| with_scratch_of(between_len, |between| compute(ring, between)));
    }

    /// Rows of an image as the narrow convolution sees them.
    fn make(&self, xs: &[T], image: usize, rows: &Range<usize>, out: &mut [f32]) {
        let Some((widen, _)) = &self.widen else {
            let ((h, w), c) = (self.narrow.correlation.source, self.narrow.correlation.source_channels);
            return load(out, &xs[(image * h + rows.start) * w * c..][..out.len()]);
        };
        let block = Block { images: image..image + 1, rows: rows.clone() };
        if let Some(out) = T::of_f32_mut(out) {
            return widen.compute(xs, &block, 0, out);
        }
        with_scratch_of(out.len(), |made| {
            widen.compute(xs, &block, 0, made);
            load(out, made);
        });
    }
}
