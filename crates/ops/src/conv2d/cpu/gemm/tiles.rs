//! A block of a correlation on AMX: the pixels that each output sees are gathered as a row, in cache, and multiplied
//! with weights packed in pairs.
//!
//! A number in f32 is the sum of two in bf16, but for a relative 2⁻¹⁷: a high one and a low one. Of the four products
//! of two numbers the one of both low parts is left out; the three others stand side by side in the inner dimension,
//! high, low, high on the left beside high, high, low on the right.

use super::correlation::{Correlation, Pass};
use super::reach::Block;
use crate::amx::{SIDE, STEP, STEP_WORDS, Tiles};
use crate::element::{Element, store};
use crate::pairs::word;
use crate::parallel::chunks;
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use candle_core::DType;
use half::bf16;
use std::ops::Range;

/// Elements of the gathered rows of a block: half a megabyte, a quarter of the second cache.
const BLOCK_ELEMENTS: usize = 256 * 1024;

/// Products of bf16 for each of two elements, and which of them have the low part on the left and on the right.
pub(super) fn parts<T: Element>() -> usize {
    if T::DTYPE == DType::BF16 { 1 } else { LOW_ON_THE_LEFT.len() }
}
pub(super) const LOW_ON_THE_LEFT: [bool; 3] = [false, true, false];
pub(super) const LOW_ON_THE_RIGHT: [bool; 3] = [false, false, true];

/// The high or the low parts of elements; those in bf16 are their own high parts.
pub(super) fn part<T: Element>(xs: &[T], low: bool, out: &mut [bf16]) {
    match (T::as_bf16(xs), T::as_f32(xs)) {
        (Some(xs), _) => out.copy_from_slice(xs),
        (_, Some(xs)) if low => low_parts(xs, out),
        (_, Some(xs)) => store(out, xs),
        _ => {}
    }
}

multiversion! {
    fn low_parts(xs: &[f32], out: &mut [bf16]) {
        for (out, &x) in out.iter_mut().zip(xs) {
            *out = bf16::from_f32(x - <bf16 as Element>::round(x));
        }
    }
}

/// Output pixels of a block that sees maps of `T`.
pub(super) fn block_pixels<T: Element>(depth: usize) -> usize {
    (BLOCK_ELEMENTS / (depth * parts::<T>()).max(1)).clamp(SIDE, 8 * SIDE) / SIDE * SIDE
}

/// Steps of the inner dimension, for each part.
fn steps(depth: usize) -> usize {
    depth.div_ceil(STEP)
}

/// Words of a panel of weights.
fn panel_len<T: Element>(depth: usize) -> usize {
    parts::<T>() * steps(depth) * STEP_WORDS
}

/// Weights as [panel][part][step][half][pair][column] in words, zeros beyond the last row and column. `row(k)` says
/// what row k of the right matrix is, `weight(row, column)` its elements.
pub(super) fn pack<T: Element, R: Copy>(
    depth: usize,
    columns: usize,
    row: impl Fn(usize) -> R + Sync,
    weight: impl Fn(R, usize) -> f32 + Sync,
) -> Buffer<f32> {
    const HALF: usize = SIDE / 2;
    let (panel_len, steps) = (panel_len::<T>(depth), steps(depth));
    let mut packed = take::<f32>(columns.div_ceil(SIDE) * panel_len);
    chunks(&mut packed, panel_len, |panel, out| {
        for (step, out) in out.chunks_exact_mut(STEP_WORDS).enumerate() {
            let low = LOW_ON_THE_RIGHT[step / steps];
            for pair in 0..STEP / 2 {
                let k = step % steps * STEP + 2 * pair;
                let rows = [k, k + 1].map(|k| (k < depth).then(|| row(k)));
                for (i, column) in (panel * SIDE..panel * SIDE + SIDE).enumerate() {
                    let element = |row: Option<R>| match row {
                        Some(row) if column < columns => {
                            let weight = weight(row, column);
                            let high = <bf16 as Element>::round(weight);
                            bf16::from_f32(if low { weight - high } else { high })
                        }
                        _ => bf16::ZERO,
                    };
                    let at = (i / HALF * (STEP / 2) + pair) * HALF + i % HALF;
                    out[at] = word(element(rows[0]), element(rows[1]));
                }
            }
        }
    });
    packed
}

impl Correlation {
    /// The target pixels of a block, in the channels of the given panels; `out` has rows of `channels`.
    pub(super) fn block_on_tiles<T: Element>(
        &self,
        xs: &[T],
        block: &Block,
        panels: Range<usize>,
        out: &mut [T],
        channels: usize,
    ) {
        let tiles = Tiles::configure();
        let image_len = out.len() / block.images.len().max(1);
        let mut result = [0f32; SIDE * SIDE];
        for pass in &self.passes {
            let depth = pass.taps() * self.source_channels;
            // Rows a multiple of 4 KiB apart would share a few sets of the cache.
            let pitch = parts::<T>() * steps(depth) * STEP + STEP;
            let count = self.in_phase(pass, &block.rows);
            let positions = block.images.len() * count * pass.x.count;
            let mut rows = take::<bf16>(positions.div_ceil(SIDE) * SIDE * pitch);
            self.gather(xs, block, pass, pitch, &mut rows);
            for panel in panels.clone() {
                let weights = &pass.weights[panel * panel_len::<T>(depth)..][..panel_len::<T>(depth)];
                let first = (panel - panels.start) * SIDE;
                let columns = SIDE.min(channels - first);
                for (i, rows) in rows.chunks_exact(SIDE * pitch).enumerate() {
                    tiles.product(rows, pitch, weights, &mut result);
                    let positions = i * SIDE..positions.min((i + 1) * SIDE);
                    for (position, values) in positions.zip(result.chunks_exact(SIDE)) {
                        let (rest, column) = (position / pass.x.count, position % pass.x.count);
                        let (image, row) = (rest / count, rest % count);
                        let y = row * pass.y.step + pass.y.origin;
                        let pixel = y * self.target.1 + column * pass.x.step + pass.x.origin;
                        let at = image * image_len + pixel * channels + first;
                        store(&mut out[at..][..columns], &values[..columns]);
                    }
                }
            }
        }
    }

    /// For each position of a pass the elements that its taps see, zeros after the last.
    fn gather<T: Element>(&self, xs: &[T], block: &Block, pass: &Pass, pitch: usize, out: &mut [bf16]) {
        let image_len = self.source.0 * self.source.1 * self.source_channels;
        let depth = pass.taps() * self.source_channels;
        if depth == 0 {
            return;
        }
        let (first, count) = (block.rows.start, self.in_phase(pass, &block.rows));
        let mut seen = take::<T>(if T::DTYPE == DType::BF16 { 0 } else { depth });
        let mut rows = out.chunks_exact_mut(pitch);
        for image in block.images.clone() {
            let image = &xs[image * image_len..][..image_len];
            for (row, column) in
                (first..first + count).flat_map(|row| (0..pass.x.count).map(move |x| (row, x)))
            {
                let Some(out) = rows.next() else { return };
                if let Some(out) = T::of_bf16_mut(out) {
                    let (out, rest) = out.split_at_mut(depth);
                    self.gather_row(image, pass, (row, column), out);
                    rest.fill(T::default());
                    continue;
                }
                self.gather_row(image, pass, (row, column), &mut seen);
                for (out, low) in out.chunks_mut(steps(depth) * STEP).zip(LOW_ON_THE_LEFT) {
                    let (out, rest) = out.split_at_mut(depth);
                    part(&seen, low, out);
                    rest.fill(bf16::ZERO);
                }
            }
        }
    }

    /// What a position's taps see of an image, zeros outside it.
    fn gather_row<T: Element>(&self, image: &[T], pass: &Pass, (row, column): (usize, usize), out: &mut [T]) {
        let ((h, w), c) = (self.source, self.source_channels);
        let (taps_x, neighbours) = (&pass.x.taps, pass.x.neighbours());
        for (tap_y, out) in pass.y.taps.iter().zip(out.chunks_exact_mut(taps_x.len() * c)) {
            let y = (row * pass.y.stride) as isize + tap_y.0;
            if y < 0 || y >= h as isize {
                out.fill(T::default());
                continue;
            }
            let line = &image[y as usize * w * c..][..w * c];
            let x = |tap: &(isize, usize)| (column * pass.x.stride) as isize + tap.0;
            let inside = |x: isize| x >= 0 && x < w as isize;
            let (left, right) = (x(&taps_x[0]), x(&taps_x[taps_x.len() - 1]));
            if neighbours && inside(left) && inside(right) {
                out.copy_from_slice(&line[left as usize * c..][..out.len()]);
                continue;
            }
            for (tap, out) in taps_x.iter().zip(out.chunks_exact_mut(c)) {
                match x(tap) {
                    x if inside(x) => out.copy_from_slice(&line[x as usize * c..][..c]),
                    _ => out.fill(T::default()),
                }
            }
        }
    }
}
