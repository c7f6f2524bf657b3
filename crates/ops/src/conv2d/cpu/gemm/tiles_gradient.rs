//! The weight gradient on AMX: for each output channel its gradient over the pixels of a block, times what the taps see
//! at these pixels, summed over blocks in f32. Elements in f32 have the parts of `tiles.rs`.
//!
//! Both matrices have pixels as their inner dimension, while maps keep channels together: neighbouring pixels are
//! paired, as the instruction takes them, and the pairs of the output gradient turned round.

use super::super::super::Geometry;
use super::TASKS;
use super::reach::{Axis, Block, Patch, Reach, blocks};
use super::tiles::{LOW_ON_THE_LEFT, LOW_ON_THE_RIGHT, part, parts};
use crate::amx::{SIDE, STEP, STEP_WORDS, Tiles};
use crate::element::Element;
use crate::pairs::{elements, pair, pair_with_zeros};
use crate::parallel::{buffer, chunks, map};
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use crate::transpose::transpose;
use half::bf16;
use std::ops::Range;

/// Output pixels of a block, at least. Sums are read and written once for each; a panel of 32 columns of what the
/// taps see takes 32 KiB.
const BLOCK_PIXELS: usize = 512;

/// Pairs of pixels of a part: so many steps that rows do not share a few sets of the cache.
fn pairs(pixels: usize) -> usize {
    (pixels.div_ceil(STEP) | 1) * STEP / 2
}

pub(super) fn run<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    /// Elements of all partial sums together: 16 MB.
    const ELEMENTS: usize = 4 << 20;
    let (taps, depth) = (g.taps(), g.taps() * g.c_in);
    let blocks = blocks(g.n, g.out.0, g.out.1, BLOCK_PIXELS);
    let panels = depth.div_ceil(SIDE);
    // Sums are cut into parts by pixels, and where they are large or pixels few, by what the taps see.
    let parts = TASKS.min(blocks.len()).min(ELEMENTS / (g.c_out * depth).max(1)).max(1);
    let splits = TASKS.div_ceil(parts).min(panels).max(1);
    let split = |i: usize| panels * i / splits..panels * (i + 1) / splits;
    let columns = |i: usize| split(i).start * SIDE..(split(i).end * SIDE).min(depth);
    // Turned once for all splits.
    let turned = if splits > 1 { map(blocks.len(), |i| turn(g, dys, &blocks[i])) } else { Vec::new() };
    let partial = map(parts * splits, |i| {
        let (part, i) = (i / splits, i % splits);
        let mut sums = take::<f32>(g.c_out * columns(i).len());
        sums.fill(0.0);
        for block in blocks.len() * part / parts..blocks.len() * (part + 1) / parts {
            let own = turned.is_empty().then(|| turn(g, dys, &blocks[block]));
            let left = own.as_ref().unwrap_or_else(|| &turned[block]);
            add_block(g, xs, &blocks[block], left, columns(i), &mut sums);
        }
        sums
    });
    // partial[part][split] is [c_out][tap × c_in of the split]; the result is [c_out][c_in][tap].
    let mut dw = buffer::<f32>(g.c_out * depth);
    chunks(&mut dw, depth, |channel, dw| {
        for (i, sums) in partial.iter().enumerate() {
            let columns = columns(i % splits);
            for (k, sum) in columns.clone().zip(&sums[channel * columns.len()..]) {
                dw[k % g.c_in * taps + k / g.c_in] += sum;
            }
        }
    });
    dw
}

/// The output gradient of a block as rows of pixels, one for each channel, zeros after the last of either:
/// [32 channels][channel][part][pair of pixels].
fn turn<T: Element>(g: &Geometry, dys: &[T], block: &Block) -> Buffer<f32> {
    let (image_len, per_image) = (g.out.0 * g.out.1 * g.c_out, block.rows.len() * g.out.1 * g.c_out);
    // One after the other, as images of a block or rows of an image are.
    let first = block.images.start * image_len + block.rows.start * g.out.1 * g.c_out;
    let dys = &dys[first..][..(block.images.len() - 1) * image_len + per_image];
    let (pixels, of_parts) = (dys.len() / g.c_out, |low| {
        let mut out = take::<bf16>(dys.len());
        part(dys, low, &mut out);
        out
    });
    let copies: [Buffer<bf16>; 2];
    let sources = match T::as_bf16(dys) {
        Some(dys) => vec![dys],
        None => {
            copies = [false, true].map(of_parts);
            copies.iter().map(|copy| &**copy).collect()
        }
    };
    let starts: Vec<usize> = (0..pixels).map(|i| i * g.c_out).collect();
    let pairs = parts::<T>() * pairs(pixels);
    let mut turned = take::<f32>(g.c_out.div_ceil(SIDE) * SIDE * pairs);
    let mut paired = take::<f32>(pairs * SIDE);
    for (tile, turned) in turned.chunks_exact_mut(SIDE * pairs).enumerate() {
        let channels = SIDE.min(g.c_out - tile * SIDE);
        paired.fill(0.0);
        let run = Run { at: tile * SIDE, column: 0, len: channels };
        interleave_parts(&sources, LOW_ON_THE_LEFT, &starts, &[run], SIDE, &mut paired);
        transpose(&paired, SIDE, (pairs, SIDE), turned, pairs);
    }
    turned
}

/// Adds to `sums` [c_out][columns] what a block gives for these columns of [tap × c_in].
fn add_block<T: Element>(
    g: &Geometry,
    xs: &[T],
    block: &Block,
    left: &[f32],
    columns: Range<usize>,
    sums: &mut [f32],
) {
    let ((h, w), c, window) = (g.size, g.c_in, &g.window);
    let (y, x) = Axis::of_outputs(g);
    let (reach_y, reach_x) = (Reach::new(std::slice::from_ref(&y)), Reach::new(std::slice::from_ref(&x)));
    // What lies inside is read where it is.
    let direct = T::as_bf16(xs).filter(|_| reach_y.inside(g.out.0, h) && reach_x.inside(g.out.1, w));
    let patch = Patch {
        corner: ((block.rows.start * window.stride.0) as isize + reach_y.first, reach_x.first),
        rows: reach_y.span(block.rows.len()),
        columns: if direct.is_some() { w } else { reach_x.span(g.out.1) },
        pixel: c,
    };
    let image_len = h * w * c;
    let copies: Vec<Buffer<bf16>>;
    let (sources, image_step, base) = if let Some(xs) = direct {
        let corner = patch.corner.0 as usize * w + patch.corner.1 as usize;
        (vec![xs], image_len, block.images.start * image_len + corner * c)
    } else {
        let copy = |low| {
            let mut copies = take::<bf16>(block.images.len() * patch.len());
            for (copy, image) in copies.chunks_exact_mut(patch.len()).zip(block.images.clone()) {
                let image = &xs[image * image_len..][..image_len];
                patch.copy(image, g.size, c, copy, |out, xs| part(xs, low, out));
            }
            copies
        };
        copies = [false, true].into_iter().take(parts::<T>()).map(copy).collect();
        (copies.iter().map(|copy| &**copy).collect(), patch.len(), 0)
    };
    let row_step = patch.columns * c;
    let mut starts = Vec::with_capacity(block.images.len() * block.rows.len() * g.out.1);
    for image in 0..block.images.len() {
        for row in 0..block.rows.len() {
            let at = base + image * image_step + row * window.stride.0 * row_step;
            starts.extend((0..g.out.1).map(|column| at + column * window.stride.1 * c));
        }
    }
    let row = |tap: usize| {
        let (tap_y, tap_x) = (y.taps[tap / x.taps.len()].0, x.taps[tap % x.taps.len()].0);
        (tap_y - reach_y.first) as usize * row_step + (tap_x - reach_x.first) as usize * c
    };
    // Taps that are neighbours in memory too are one run.
    let run = if x.neighbours() { x.taps.len() * c } else { c };
    let (tiles, pairs, width) = (Tiles::configure(), parts::<T>() * pairs(starts.len()), columns.len());
    let mut right = take::<f32>(pairs * SIDE);
    let mut result = [0f32; SIDE * SIDE];
    for first in columns.clone().step_by(SIDE) {
        let end = columns.end.min(first + SIDE);
        let (mut runs, mut k) = (Vec::new(), first);
        while k < end {
            // A run ends with a half of the panel, too.
            let next = end.min((k / run + 1) * run).min(first + ((k - first) / HALF + 1) * HALF);
            runs.push(Run { at: row(k / run * run / c) + k % run, column: k - first, len: next - k });
            k = next;
        }
        right.fill(0.0);
        interleave_parts(&sources, LOW_ON_THE_RIGHT, &starts, &runs, HALF, &mut right);
        for (tile, left) in left.chunks_exact(SIDE * pairs).enumerate() {
            tiles.product(elements(left), 2 * pairs, &right, &mut result);
            let sums = sums[tile * SIDE * width..].chunks_mut(width);
            for (sums, result) in sums.zip(result.chunks_exact(SIDE)) {
                for (sum, x) in sums[first - columns.start..].iter_mut().zip(&result[..end - first]) {
                    *sum += x;
                }
            }
        }
    }
}

/// Columns of a packed half of a panel.
const HALF: usize = SIDE / 2;

/// Neighbouring elements of a pixel, from `at` on, and the columns that they fill.
struct Run {
    at: usize,
    column: usize,
    len: usize,
}

/// [`interleave`] of the high parts of elements, or of the high and the low ones as `low` has them.
fn interleave_parts(
    sources: &[&[bf16]],
    low: [bool; 3],
    starts: &[usize],
    runs: &[Run],
    width: usize,
    out: &mut [f32],
) {
    let parts = if sources.len() == 1 { 1 } else { low.len() };
    let len = out.len() / parts;
    for (low, out) in low.into_iter().zip(out.chunks_exact_mut(len)) {
        interleave(sources[usize::from(low)], starts, runs, width, out);
    }
}

multiversion! {
    /// Pairs of pixels, of which the n-th starts at `starts[n]`, as [16 pairs][columns / width][pair][width].
    fn interleave(xs: &[bf16], starts: &[usize], runs: &[Run], width: usize, out: &mut [f32]) {
        for (i, pixels) in starts.chunks(2).enumerate() {
            let (step, pair_of_step) = (i / (STEP / 2), i % (STEP / 2));
            for run in runs {
                let at = step * STEP_WORDS + run.column / width * (STEP / 2 * width) + pair_of_step * width;
                let out = &mut out[at + run.column % width..][..run.len];
                let upper = &xs[pixels[0] + run.at..][..run.len];
                match pixels.get(1) {
                    Some(lower) => pair(out, upper, &xs[lower + run.at..][..run.len]),
                    None => pair_with_zeros(out, upper),
                }
            }
        }
    }
}
