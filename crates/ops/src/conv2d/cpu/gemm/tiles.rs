//! A block of a correlation in bf16 on AMX: the pixels that each output sees are gathered as a row, in cache, and
//! multiplied with weights packed in pairs.

use super::correlation::{Correlation, Pass};
use super::reach::Block;
use crate::amx::{SIDE, STEP, STEP_WORDS, Tiles, word};
use crate::element::{Element, store};
use crate::parallel::chunks;
use crate::pool::{Buffer, take};
use half::bf16;
use std::ops::Range;

/// Elements of the gathered rows of a block: half a megabyte, a quarter of the second cache.
const BLOCK_ELEMENTS: usize = 256 * 1024;

/// Output pixels of a block.
pub(super) fn block_pixels(depth: usize) -> usize {
    (BLOCK_ELEMENTS / depth.max(1)).clamp(SIDE, 8 * SIDE) / SIDE * SIDE
}

/// Steps of the inner dimension.
fn steps(depth: usize) -> usize {
    depth.div_ceil(STEP)
}

/// Words of a panel of weights.
pub(super) fn panel_len(depth: usize) -> usize {
    steps(depth) * STEP_WORDS
}

/// Weights as [panel][step][half][pair][column] in words, zeros beyond the last row and column. `row(k)` says what
/// row k of the right matrix is, `weight(row, column)` its elements.
pub(super) fn pack<R: Copy>(
    depth: usize,
    columns: usize,
    row: impl Fn(usize) -> R + Sync,
    weight: impl Fn(R, usize) -> f32 + Sync,
) -> Buffer<f32> {
    const HALF: usize = SIDE / 2;
    let mut packed = take::<f32>(columns.div_ceil(SIDE) * panel_len(depth));
    chunks(&mut packed, panel_len(depth), |panel, out| {
        for (step, out) in out.chunks_exact_mut(STEP_WORDS).enumerate() {
            for pair in 0..STEP / 2 {
                let k = step * STEP + 2 * pair;
                let rows = [k, k + 1].map(|k| (k < depth).then(|| row(k)));
                for (i, column) in (panel * SIDE..panel * SIDE + SIDE).enumerate() {
                    let element = |row: Option<R>| match row {
                        Some(row) if column < columns => bf16::from_f32(weight(row, column)),
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
        xs: &[bf16],
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
            let pitch = steps(depth) * STEP + STEP;
            let count = self.in_phase(pass, block);
            let positions = block.images.len() * count * pass.x.count;
            let mut rows = take::<bf16>(positions.div_ceil(SIDE) * SIDE * pitch);
            self.gather(xs, block, pass, pitch, &mut rows);
            for panel in panels.clone() {
                let weights = &pass.weights[panel * panel_len(depth)..][..panel_len(depth)];
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

    /// For each position of a pass the elements that its taps see, zeros outside the image and after the last.
    fn gather(&self, xs: &[bf16], block: &Block, pass: &Pass, pitch: usize, out: &mut [bf16]) {
        let ((h, w), c) = (self.source, self.source_channels);
        if pass.taps() == 0 {
            return;
        }
        let (first, count) = (block.rows.start, self.in_phase(pass, block));
        let (taps_x, neighbours) = (&pass.x.taps, pass.x.neighbours());
        let mut rows = out.chunks_exact_mut(pitch);
        for image in block.images.clone() {
            let image = &xs[image * h * w * c..][..h * w * c];
            for (row, column) in
                (first..first + count).flat_map(|row| (0..pass.x.count).map(move |x| (row, x)))
            {
                let Some(out) = rows.next() else { return };
                let (taps, rest) = out.split_at_mut(pass.taps() * c);
                rest.fill(bf16::ZERO);
                for (tap_y, out) in pass.y.taps.iter().zip(taps.chunks_exact_mut(taps_x.len() * c)) {
                    let y = (row * pass.y.stride) as isize + tap_y.0;
                    if y < 0 || y >= h as isize {
                        out.fill(bf16::ZERO);
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
                            _ => out.fill(bf16::ZERO),
                        }
                    }
                }
            }
        }
    }
}
