//! Max pooling; forward remembers which tap won, where a backward may ask.
//!
//! Rows of a window are merged first, over whole rows of the image, then columns: over the channels of a pixel
//! where these fill registers, over whole rows where they do not.

use crate::Window2d;
use crate::element::{Element, by_element, load, store};
use crate::parallel::{buffer, chunks, each, with_scratch};
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use crate::slot::{Backward, Dims, Gradients, Kernel, Slot, is_constant};
use candle_core::{Result, bail};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Channels from which on a pixel is worth a loop of its own.
const MANY_CHANNELS: usize = 16;

pub(super) fn max_pool2d(xs: &Slot, window: &Window2d, out: (usize, usize)) -> Result<Slot> {
    if window.kernel.0 * window.kernel.1 > usize::from(u16::MAX) {
        bail!("max_pool2d: a kernel of {:?} has too many taps", window.kernel);
    }
    /// Without winners, which nobody asks for.
    fn largest<T: Element>(pool: &MaxPool, xs: &Slot, dims: Dims) -> Result<Slot> {
        Slot::constant(dims, pool.run::<T, ()>(xs.values()?.slice::<T>()?).0)
    }
    let (n, _, _, c) = xs.dims();
    let (dims, winners) = ((n, out.0, out.1, c), Vec::new());
    let pool = MaxPool { window: *window, dims: xs.dims(), out, winners };
    if is_constant(&[xs], &[]) {
        return match xs.pooled(&pool, dims)? {
            Some(ys) => Ok(ys),
            None => by_element!(xs.dtype(), largest(&pool, xs, dims)),
        };
    }
    pool.apply(&[xs], &[], dims)
}

pub(crate) struct MaxPool {
    pub(crate) window: Window2d,
    /// Of the input.
    pub(crate) dims: Dims,
    pub(crate) out: (usize, usize),
    /// For each output element the tap that won, in row-major order of the window.
    winners: Vec<u16>,
}

impl MaxPool {
    /// The rows of the window at output row `y` that lie inside the image: (row of the window, of the image).
    pub(crate) fn rows(&self, y: usize) -> impl Iterator<Item = (usize, usize)> {
        let (w, height) = (self.window, self.dims.1);
        let at = move |ky: usize| (y * w.stride.0 + ky * w.dilation.0).checked_sub(w.padding.0);
        (0..w.kernel.0).filter_map(move |ky| at(ky).filter(|&at| at < height).map(|at| (ky, at)))
    }

    /// The rows of the image from the first to the last that rows of outputs see.
    pub(crate) fn reach(&self, ys: &Range<usize>) -> Range<usize> {
        let w = &self.window;
        let row = |y: usize, ky: usize| (y * w.stride.0 + ky * w.dilation.0).saturating_sub(w.padding.0);
        let end = row(ys.end.saturating_sub(1), w.kernel.0 - 1) + 1;
        row(ys.start, 0).min(self.dims.1)..end.min(self.dims.1)
    }

    /// What rows of outputs are computed in.
    pub(crate) fn row<P: Tap>(&self) -> Row<P> {
        Row::new(self.seen() * self.dims.3)
    }

    /// The largest elements of an image for rows of outputs, from those rows of the image that they reach.
    pub(crate) fn rows_of<T: Element>(
        &self,
        seen: &[T],
        ys: Range<usize>,
        merged: &mut Row<()>,
        out: &mut [T],
    ) {
        let first = self.reach(&ys).start;
        let nobody = &mut vec![(); self.out.1 * self.dims.3];
        for (y, out) in ys.zip(out.chunks_exact_mut(self.out.1 * self.dims.3)) {
            merge::<T, ()>(self, (seen, first), y, merged, out, nobody);
        }
    }

    /// Columns that a row of outputs sees, those outside the image included.
    fn seen(&self) -> usize {
        let w = &self.window;
        ((self.out.1 - 1) * w.stride.1 + (w.kernel.1 - 1) * w.dilation.1 + 1).max(w.padding.1 + self.dims.2)
    }
}

/// The tap that an element comes from, or nothing where nobody asks, as a type, so that loops compile without it.
pub(crate) trait Tap: Copy + Send + Sync {
    /// What is kept of the winner.
    type Kept: Copy + Default + Send;
    /// That of a place outside the image: later than any.
    const OUTSIDE: Self;

    fn new(tap: usize) -> Self;

    /// The tap so many columns on.
    fn right(self, columns: usize) -> Self;

    fn is_before(self, other: Self) -> bool;

    fn kept(self) -> Self::Kept;
}

impl Tap for i32 {
    type Kept = u16;
    const OUTSIDE: Self = i32::MAX / 2;

    #[inline(always)]
    fn new(tap: usize) -> Self {
        tap as i32
    }

    #[inline(always)]
    fn right(self, columns: usize) -> Self {
        self + columns as i32
    }

    #[inline(always)]
    fn is_before(self, other: Self) -> bool {
        self < other
    }

    #[inline(always)]
    fn kept(self) -> u16 {
        self as u16
    }
}

impl Tap for () {
    type Kept = ();
    const OUTSIDE: Self = ();

    fn new(_: usize) {}

    fn right(self, _: usize) {}

    fn is_before(self, _: Self) -> bool {
        false
    }

    fn kept(self) {}
}

impl MaxPool {
    /// The largest elements, and the taps that won.
    fn run<T: Element, P: Tap>(&self, xs: &[T]) -> (Buffer<T>, Vec<P::Kept>) {
        let ((n, h, w, c), (ho, wo)) = (self.dims, self.out);
        let row = wo * c;
        let mut ys = take::<T>(n * ho * row);
        let mut winners = buffer::<P::Kept>(ys.len());
        if row > 0 {
            // Some rows of an image are a task.
            let rows = (8 * 1024 / (w * c)).clamp(1, ho);
            let tasks = ys.chunks_mut(rows * row).zip(winners.chunks_mut(rows * row));
            // A task leaves its rows to a later one: filling new ones takes as long as pooling.
            let spare = Mutex::new(Vec::new());
            let lock = || spare.lock().unwrap_or_else(PoisonError::into_inner);
            each(tasks, |i, (ys, winners)| {
                let merged = lock().pop();
                let mut merged = merged.unwrap_or_else(|| self.row::<P>());
                for (j, (ys, winners)) in
                    ys.chunks_exact_mut(row).zip(winners.chunks_exact_mut(row)).enumerate()
                {
                    let row = i * rows + j;
                    let image = &xs[row / ho * h * w * c..][..h * w * c];
                    merge::<T, P>(self, (image, 0), row % ho, &mut merged, ys, winners);
                }
                lock().push(merged);
            });
        }
        (ys, winners)
    }
}

impl Kernel for MaxPool {
    const NAME: &'static str = "max_pool2d";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let (ys, winners) = self.run::<T, i32>(maps[0]);
        self.winners = winners;
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let (dys, (n, h, w, c), (ho, wo)): (&[T], _, _) = (call.gradient, self.dims, self.out);
        let mut dxs = take::<T>(n * h * w * c);
        let of_image = ho * wo * c;
        chunks(&mut dxs, h * w * c, |image, out| {
            let (dys, winners) =
                (&dys[image * of_image..][..of_image], &self.winners[image * of_image..][..of_image]);
            if let Some(dxs) = T::as_f32_mut(out) {
                scatter(self, dys, winners, dxs);
                return;
            }
            with_scratch(h * w * c, |dxs| {
                scatter(self, dys, winners, dxs);
                store(out, dxs);
            });
        });
        Ok((vec![Some(dxs)], Vec::new()))
    }
}

/// Largest elements, and which tap each comes from.
#[derive(Clone)]
struct Best<P> {
    values: Vec<f32>,
    taps: Vec<P>,
}

/// What a row of outputs is computed in: rows of the window merged over a row of the image with its padding, and
/// columns merged after that. Each goes from one to the other: a loop that may leave elements as they are would
/// become one of masked stores, which are slow.
pub(crate) struct Row<P> {
    rows: [Best<P>; 2],
    columns: [Best<P>; 2],
}

impl<P: Tap> Row<P> {
    fn new(len: usize) -> Self {
        let outside = Best { values: vec![f32::NEG_INFINITY; len], taps: vec![P::OUTSIDE; len] };
        Self { rows: [outside.clone(), outside.clone()], columns: [outside.clone(), outside] }
    }
}

multiversion! {
    /// A row of outputs, from an image without its first rows.
    fn merge<T: Element, P: Tap>(
        pool: &MaxPool,
        seen: (&[T], usize),
        y: usize,
        row: &mut Row<P>,
        ys: &mut [T],
        winners: &mut [P::Kept],
    ) {
        let ((_, _, w, c), window, (image, first)) = (pool.dims, &pool.window, seen);
        let Row { rows: [rows, rows_after], columns: [columns, columns_after] } = row;
        let inside = window.padding.1 * c..(window.padding.1 + w) * c;
        let tap = |ky: usize| P::new(ky * window.kernel.1);
        let mut within = pool.rows(y);
        if let Some((ky, at)) = within.next() {
            load(&mut rows.values[inside.clone()], &image[(at - first) * w * c..][..w * c]);
            rows.taps[inside.clone()].fill(tap(ky));
        } else {
            rows.values[inside.clone()].fill(f32::NEG_INFINITY);
            rows.taps[inside.clone()].fill(P::OUTSIDE);
        }
        for (ky, at) in within {
            merge_rows(&image[(at - first) * w * c..][..w * c], tap(ky), rows, rows_after, inside.clone());
            std::mem::swap(rows, rows_after);
        }
        // Few channels: all places of the row, of which each stride-th is an output.
        let (at_once, step) = if c < MANY_CHANNELS { (pool.out.1, 1) } else { (1, pool.out.1) };
        let stride = window.stride.1 * c;
        let len = (at_once - 1) * stride + c;
        for first in 0..step {
            let column = |kx: usize| first * stride + kx * window.dilation.1 * c;
            if window.kernel.1 == 1 {
                columns.values[..len].copy_from_slice(&rows.values[column(0)..][..len]);
                columns.taps[..len].copy_from_slice(&rows.taps[column(0)..][..len]);
            } else {
                merge_columns(rows, (column(1), 1), (rows, column(0)), columns, len);
            }
            for kx in 2..window.kernel.1 {
                merge_columns(rows, (column(kx), kx), (columns, 0), columns_after, len);
                std::mem::swap(columns, columns_after);
            }
            for x in 0..at_once {
                let (from, out) = (x * stride, (first + x) * c);
                // What is copied beyond a pixel of few channels the next one overwrites: copies of a register's size take less
                // time than those of a pixel's.
                let fits = from + MANY_CHANNELS <= columns.values.len() && out + MANY_CHANNELS <= ys.len();
                let n = if at_once > 1 && fits { MANY_CHANNELS } else { c };
                let (values, taps) = (&columns.values[from..][..n], &columns.taps[from..][..n]);
                let (ys, winners) = (&mut ys[out..][..n], &mut winners[out..][..n]);
                if n == MANY_CHANNELS {
                    finish(&values[..MANY_CHANNELS], &taps[..MANY_CHANNELS], &mut ys[..MANY_CHANNELS], &mut winners[..MANY_CHANNELS]);
                } else {
                    finish(values, taps, ys, winners);
                }
            }
        }
    }
}

/// Merges a row of the image.
#[inline(always)]
fn merge_rows<T: Element, P: Tap>(
    seen: &[T],
    tap: P,
    best: &Best<P>,
    after: &mut Best<P>,
    inside: Range<usize>,
) {
    let (values, taps) = (&best.values[inside.clone()], &best.taps[inside.clone()]);
    let (out, out_taps) = (&mut after.values[inside.clone()], &mut after.taps[inside]);
    for ((((&seen, &value), &of), out), out_tap) in seen.iter().zip(values).zip(taps).zip(out).zip(out_taps) {
        (*out, *out_tap) = larger((seen.to_f32(), tap), (value, of));
    }
}

/// Merges the columns `kx` of windows, `len` elements from `from` on, with the largest of those before.
#[inline(always)]
fn merge_columns<P: Tap>(
    rows: &Best<P>,
    (from, kx): (usize, usize),
    (best, best_from): (&Best<P>, usize),
    after: &mut Best<P>,
    len: usize,
) {
    let (seen, seen_taps) = (&rows.values[from..][..len], &rows.taps[from..][..len]);
    let (out, out_taps) = (&mut after.values[..len], &mut after.taps[..len]);
    let (values, taps) = (&best.values[best_from..][..len], &best.taps[best_from..][..len]);
    let seen = seen.iter().zip(seen_taps);
    for ((((&seen, &tap), (&value, &of)), out), out_tap) in
        seen.zip(values.iter().zip(taps)).zip(out).zip(out_taps)
    {
        (*out, *out_tap) = larger((seen, tap.right(kx)), (value, of));
    }
}

/// The larger of two elements, of equal ones that of the earlier tap; a NaN beats everything, as in PyTorch.
#[inline(always)]
pub(crate) fn larger<P: Tap>((seen, tap): (f32, P), (value, of): (f32, P)) -> (f32, P) {
    let larger = (seen > value) | seen.is_nan();
    let earlier = larger | ((seen == value) & tap.is_before(of));
    (if larger { seen } else { value }, if earlier { tap } else { of })
}

#[inline(always)]
fn finish<T: Element, P: Tap>(values: &[f32], taps: &[P], ys: &mut [T], winners: &mut [P::Kept]) {
    for (y, &value) in ys.iter_mut().zip(values) {
        *y = T::from_f32(value);
    }
    for (winner, &tap) in winners.iter_mut().zip(taps) {
        *winner = tap.kept();
    }
}

multiversion! {
    /// Gives each element of an image's output gradient to the input that won.
    fn scatter<T: Element>(pool: &MaxPool, dys: &[T], winners: &[u16], dxs: &mut [f32]) {
        dxs.fill(0.0);
        let ((_, _, w, c), (_, wo), window) = (pool.dims, pool.out, &pool.window);
        let stride = window.stride.1;
        // Few channels: the row of gradients spread over the columns of the image, nobody's in between.
        let spread = if c < MANY_CHANNELS { ((wo - 1) * stride + 1) * c } else { 0 };
        let (mut values, mut taps) = (vec![0f32; spread], vec![u16::MAX; spread]);
        for (y, (dys, winners)) in dys.chunks_exact(wo * c).zip(winners.chunks_exact(wo * c)).enumerate() {
            if spread > 0 {
                for x in 0..wo {
                    let at = x * stride * c;
                    for i in 0..c {
                        (values[at + i], taps[at + i]) = (dys[x * c + i].to_f32(), winners[x * c + i]);
                    }
                }
            }
            for (ky, at_y) in pool.rows(y) {
                let dxs = &mut dxs[at_y * w * c..][..w * c];
                for kx in 0..window.kernel.1 {
                    let tap = (ky * window.kernel.1 + kx) as u16;
                    let offset = (kx * window.dilation.1) as isize - window.padding.1 as isize;
                    if spread > 0 {
                        let inside = inside(spread / c, 1, offset, w);
                        let at = (inside.start as isize + offset) as usize * c;
                        let inside = inside.start * c..inside.end * c;
                        let len = inside.len();
                        add_where(&values[inside.clone()], &taps[inside], tap, &mut dxs[at..][..len]);
                        continue;
                    }
                    for x in inside(wo, stride, offset, w) {
                        let at = ((x * stride) as isize + offset) as usize * c;
                        add_where(&dys[x * c..][..c], &winners[x * c..][..c], tap, &mut dxs[at..][..c]);
                    }
                }
            }
        }
    }
}

/// The `x` below `count` for which `x · stride + offset` is a column.
fn inside(count: usize, stride: usize, offset: isize, columns: usize) -> Range<usize> {
    let reach = |limit: isize| (limit - offset).max(0).cast_unsigned().div_ceil(stride).min(count);
    let end = reach(columns as isize);
    reach(0).min(end)..end
}

#[inline(always)]
fn add_where<T: Element>(dys: &[T], winners: &[u16], tap: u16, dxs: &mut [f32]) {
    for ((dx, &dy), &winner) in dxs.iter_mut().zip(dys).zip(winners) {
        *dx += if winner == tap { dy.to_f32() } else { 0.0 };
    }
}
