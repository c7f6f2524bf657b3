//! Max pooling; forward remembers which tap won.
//!
//! Rows of a window are merged first, over whole rows of the image, then columns: over the channels of a pixel
//! where these fill registers, over whole rows where they do not.

use crate::Window2d;
use crate::element::{Element, store};
use crate::parallel::{buffer, chunks, with_scratch};
use crate::pool::take;
use crate::simd::multiversion;
use crate::slot::{Backward, Dims, Gradients, Kernel, Slot};
use candle_core::{Result, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Channels from which on a pixel is worth a loop of its own.
const MANY_CHANNELS: usize = 16;

/// The winner of a place that lies outside the image: later than any tap.
const OUTSIDE: i32 = i32::MAX / 2;

pub(super) fn max_pool2d(xs: &Slot, window: &Window2d, out: (usize, usize)) -> Result<Slot> {
    if window.kernel.0 * window.kernel.1 > usize::from(u16::MAX) {
        bail!("max_pool2d: a kernel of {:?} has too many taps", window.kernel);
    }
    let (n, _, _, c) = xs.dims();
    let pool = MaxPool { window: *window, dims: xs.dims(), out, winners: Vec::new() };
    pool.apply(&[xs], &[], (n, out.0, out.1, c))
}

struct MaxPool {
    window: Window2d,
    /// Of the input.
    dims: Dims,
    out: (usize, usize),
    /// For each output element the tap that won, in row-major order of the window.
    winners: Vec<u16>,
}

impl MaxPool {
    /// The rows of the window at output row `y` that lie inside the image: (row of the window, of the image).
    fn rows(&self, y: usize) -> impl Iterator<Item = (usize, usize)> {
        let (w, height) = (self.window, self.dims.1);
        let at = move |ky: usize| (y * w.stride.0 + ky * w.dilation.0).checked_sub(w.padding.0);
        (0..w.kernel.0).filter_map(move |ky| at(ky).filter(|&at| at < height).map(|at| (ky, at)))
    }

    /// Columns that a row of outputs sees, those outside the image included.
    fn seen(&self) -> usize {
        let w = &self.window;
        ((self.out.1 - 1) * w.stride.1 + (w.kernel.1 - 1) * w.dilation.1 + 1).max(w.padding.1 + self.dims.2)
    }
}

impl Kernel for MaxPool {
    const NAME: &'static str = "max_pool2d";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Vec<T> {
        let (xs, (n, h, w, c), (ho, wo)) = (maps[0], self.dims, self.out);
        let row = wo * c;
        let mut ys = take::<T>(n * ho * row);
        let mut winners = buffer::<u16>(ys.len());
        if row > 0 {
            // Some rows of an image are a task.
            let rows = (8 * 1024 / (w * c)).clamp(1, ho);
            let tasks = ys.par_chunks_mut(rows * row).zip(winners.par_chunks_mut(rows * row));
            tasks.enumerate().for_each(|(i, (ys, winners))| {
                let mut merged = Row::new(self.seen() * c);
                for (j, (ys, winners)) in
                    ys.chunks_exact_mut(row).zip(winners.chunks_exact_mut(row)).enumerate()
                {
                    let row = i * rows + j;
                    let image = &xs[row / ho * h * w * c..][..h * w * c];
                    merge(self, image, row % ho, &mut merged, ys, winners);
                }
            });
        }
        self.winners = winners;
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Gradients<T> {
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
        (vec![Some(dxs)], Vec::new())
    }
}

/// The largest elements so far and which tap each comes from, for a row of the image with its padding, and for
/// the row of outputs that comes of it.
struct Row {
    values: Vec<f32>,
    taps: Vec<i32>,
    out_values: Vec<f32>,
    out_taps: Vec<i32>,
}

impl Row {
    fn new(len: usize) -> Self {
        let (values, taps) = (vec![f32::NEG_INFINITY; len], vec![OUTSIDE; len]);
        Self { out_values: values.clone(), out_taps: taps.clone(), values, taps }
    }
}

multiversion! {
    /// A row of outputs.
    fn merge<T: Element>(
        pool: &MaxPool,
        image: &[T],
        y: usize,
        row: &mut Row,
        ys: &mut [T],
        winners: &mut [u16],
    ) {
        let ((_, _, w, c), window, len) = (pool.dims, &pool.window, row.values.len());
        let Row { values, taps, out_values, out_taps } = row;
        let inside = window.padding.1 * c..(window.padding.1 + w) * c;
        let (row_values, row_taps) = (&mut values[inside.clone()], &mut taps[inside]);
        // The first tap wins even over a true -inf.
        row_values.fill(f32::NEG_INFINITY);
        row_taps.fill(OUTSIDE);
        for (ky, at) in pool.rows(y) {
            let tap = (ky * window.kernel.1) as i32;
            merge_rows(&image[at * w * c..][..w * c], tap, row_values, row_taps);
        }
        let shift = |kx: usize| kx * window.dilation.1 * c;
        if c < MANY_CHANNELS {
            let len = len - shift(window.kernel.1 - 1);
            let (out_values, out_taps) = (&mut out_values[..len], &mut out_taps[..len]);
            out_values.copy_from_slice(&values[..len]);
            out_taps.copy_from_slice(&taps[..len]);
            for kx in 1..window.kernel.1 {
                merge_columns(&values[shift(kx)..][..len], &taps[shift(kx)..][..len], kx, out_values, out_taps);
            }
            for (x, (y, winner)) in ys.chunks_exact_mut(c).zip(winners.chunks_exact_mut(c)).enumerate() {
                let at = x * window.stride.1 * c;
                finish(&out_values[at..][..c], &out_taps[at..][..c], y, winner);
            }
            return;
        }
        let (out_values, out_taps) = (&mut out_values[..c], &mut out_taps[..c]);
        for (x, (y, winner)) in ys.chunks_exact_mut(c).zip(winners.chunks_exact_mut(c)).enumerate() {
            let at = x * window.stride.1 * c;
            out_values.copy_from_slice(&values[at..][..c]);
            out_taps.copy_from_slice(&taps[at..][..c]);
            for kx in 1..window.kernel.1 {
                let at = at + shift(kx);
                merge_columns(&values[at..][..c], &taps[at..][..c], kx, out_values, out_taps);
            }
            finish(out_values, out_taps, y, winner);
        }
    }
}

/// Merges a row of the image.
#[inline(always)]
fn merge_rows<T: Element>(seen: &[T], tap: i32, values: &mut [f32], taps: &mut [i32]) {
    for ((&seen, value), of) in seen.iter().zip(values).zip(taps) {
        keep_larger((seen.to_f32(), tap), value, of);
    }
}

/// Merges columns of merged rows.
#[inline(always)]
fn merge_columns(seen: &[f32], seen_taps: &[i32], kx: usize, values: &mut [f32], taps: &mut [i32]) {
    for (((&seen, &tap), value), of) in seen.iter().zip(seen_taps).zip(values).zip(taps) {
        keep_larger((seen, tap + kx as i32), value, of);
    }
}

/// Replaces what is smaller, or equal and of a later tap; a NaN beats everything, as in PyTorch.
#[inline(always)]
fn keep_larger((seen, tap): (f32, i32), value: &mut f32, of: &mut i32) {
    let larger = (seen > *value) | seen.is_nan() | ((seen == *value) & (tap < *of));
    *value = if larger { seen } else { *value };
    *of = if larger { tap } else { *of };
}

#[inline(always)]
fn finish<T: Element>(values: &[f32], taps: &[i32], ys: &mut [T], winners: &mut [u16]) {
    for (((y, winner), &value), &tap) in ys.iter_mut().zip(winners).zip(values).zip(taps) {
        (*y, *winner) = (T::from_f32(value), tap as u16);
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
