//! The weight gradient: for each tap, the input pixels that it meets times the output gradient, summed over pixels.
//! Where the processor multiplies pairs of bf16, neighbours in a row of outputs are one.

use super::super::super::Geometry;
use super::super::finish::End;
use super::super::from_columns;
use super::super::product::{Left, Out, Right, Word, multiply, panel_width};
use super::reach::{Axis, Block, Patch, Reach, blocks};
use super::{TASKS, word_of};
use crate::element::{Element, load};
use crate::pairs::{pair, pair_with_zeros};
use crate::parallel::{buffer, chunks, map, with_scratch};
use crate::pool::take;
use crate::simd::multiversion;
use half::bf16;
use std::ops::Range;

/// Output pixels of a block, at least: many, because sums are read and written once for each block.
const BLOCK_PIXELS: usize = 512;

/// Input elements that stay in cache while one panel of the output gradient after the other goes by.
const CHUNK_ELEMENTS: usize = 48 * 1024;

pub(super) fn run<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    /// Elements of all partial sums together: 16 MB.
    const ELEMENTS: usize = 4 << 20;
    let blocks = blocks(g.n, g.out.0, g.out.1, BLOCK_PIXELS);
    let ((c_in, c_out), width) = (g.group_channels(), panel_width());
    let (depth, panels) = (g.taps() * c_in, c_out.div_ceil(width));
    // Sums are cut into parts by pixels, and where they are large or pixels few, by channels.
    let of_all = (g.groups * depth * c_out).max(1);
    let parts = TASKS.min(blocks.len()).min(ELEMENTS / of_all).max(1);
    let splits = if g.groups == 1 { TASKS.div_ceil(parts).min(panels) } else { 1 };
    let split = |i: usize| panels * i / splits..panels * (i + 1) / splits;
    let columns = |i: usize| split(i).start * width..(split(i).end * width).min(c_out);
    let partial = map(parts * splits, |i| {
        let (part, i) = (i / splits, i % splits);
        let blocks = &blocks[blocks.len() * part / parts..blocks.len() * (part + 1) / parts];
        let mut sums = take::<f32>(g.groups * depth * columns(i).len());
        if blocks.is_empty() {
            sums.fill(0.0);
        }
        for (i_block, block) in blocks.iter().enumerate() {
            add_block(g, xs, dys, block, columns(i), &mut sums, i_block > 0);
        }
        sums
    });
    // partial[part][split] is [group][tap × c_in][column of the split]; the result is [c_out][c_in][tap].
    let taps = g.taps();
    let together = if g.groups == 1 { width.min(c_out) } else { c_out };
    let mut dw = buffer::<f32>(g.c_out * c_in * taps);
    chunks(&mut dw, together * c_in * taps, |i, out| {
        let (group, first) = if g.groups == 1 { (0, i * together) } else { (i, 0) };
        let at = (0..splits).find(|&i| columns(i).contains(&first)).unwrap_or(0);
        let (len, first) = (columns(at).len(), first - columns(at).start);
        let partial = |part: usize| &partial[part * splits + at][group * depth * len..][..depth * len];
        from_columns(out, c_in, taps, |ci, tap, lanes| {
            for part in 0..parts {
                let sums = &partial(part)[(tap * c_in + ci) * len + first..];
                for (lane, sum) in lanes.iter_mut().zip(sums) {
                    *lane += sum;
                }
            }
        });
    });
    dw
}

/// Writes a block's part of the gradient to `sums` [group][tap × c_in][columns], or adds it where `accumulate`.
fn add_block<T: Element>(
    g: &Geometry,
    xs: &[T],
    dys: &[T],
    block: &Block,
    columns: Range<usize>,
    sums: &mut [f32],
    accumulate: bool,
) {
    let ((c_in, c_out), width, w) = (g.group_channels(), panel_width(), &g.window);
    let (y, x) = Axis::of_outputs(g);
    let (reach_y, reach_x) = (Reach::new(std::slice::from_ref(&y)), Reach::new(std::slice::from_ref(&x)));
    let word = word_of(g, T::DTYPE);
    // Pixels a power of two apart would share a few sets of the cache.
    let pixel = if g.c_in.is_multiple_of(64) { g.c_in + 16 } else { g.c_in };
    let patch = Patch {
        corner: ((block.rows.start * w.stride.0) as isize + reach_y.first, reach_x.first),
        rows: reach_y.span(block.rows.len()),
        columns: reach_x.span(g.out.1),
        pixel,
    };
    // Words of a row of outputs, and of the block.
    let per_row = g.out.1.div_ceil(word.numbers());
    let pixels = block.images.len() * block.rows.len() * per_row;
    let panels = columns.len().div_ceil(width);
    let (image_len, row_step) = (g.size.0 * g.size.1 * g.c_in, patch.columns * pixel);
    let first = (block.images.start * g.out.0 + block.rows.start) * g.out.1;
    // One whole panel is read where it is.
    let in_place = T::as_f32(dys).filter(|_| g.groups == 1 && g.c_out == width);
    let moved_len = if in_place.is_some() { 0 } else { g.groups * panels * pixels * width };
    with_scratch(block.images.len() * patch.len() + moved_len, |scratch| {
        let (copies, moved) = scratch.split_at_mut(block.images.len() * patch.len());
        for (copy, image) in copies.chunks_exact_mut(patch.len()).zip(block.images.clone()) {
            let image = &xs[image * image_len..][..image_len];
            match (word, T::as_bf16(image)) {
                (Word::Pair, Some(image)) => {
                    let mut plain = take::<bf16>(patch.len());
                    patch.copy(image, g.size, g.c_in, &mut plain, |out, xs| out.copy_from_slice(xs));
                    for (copy, plain) in copy.chunks_exact_mut(row_step).zip(plain.chunks_exact(row_step)) {
                        pair_pixels(plain, w.stride.1 * pixel, copy);
                    }
                }
                _ => patch.copy(image, g.size, g.c_in, copy, load),
            }
        }
        // The output gradient as [group][panel][word of pixels][panel width].
        let rows = if in_place.is_some() { 0 } else { block.images.len() * block.rows.len() };
        for row in 0..rows {
            let at = first + row / block.rows.len() * (g.out.0 * g.out.1) + row % block.rows.len() * g.out.1;
            let dys = &dys[at * g.c_out..][..g.out.1 * g.c_out];
            for (i, moved) in moved.chunks_exact_mut(pixels * width).enumerate() {
                let (group, panel) = (i / panels, i % panels);
                let (start, len) = (panel * width, width.min(columns.len() - panel * width));
                let moved = &mut moved[row * per_row * width..][..per_row * width];
                let channel = group * c_out + columns.start + start;
                match (word, T::as_bf16(dys)) {
                    (Word::Pair, Some(dys)) => pair_rows(&dys[channel..], g.c_out, len, moved, width),
                    _ => {
                        for (moved, dys) in moved.chunks_exact_mut(width).zip(dys.chunks_exact(g.c_out)) {
                            load(&mut moved[..len], &dys[channel..][..len]);
                        }
                    }
                }
            }
        }
        let mut starts = Vec::with_capacity(g.taps() * c_in);
        for tap_y in &y.taps {
            for tap_x in &x.taps {
                let at = (tap_y.0 - reach_y.first) as usize * row_step
                    + (tap_x.0 - reach_x.first) as usize * pixel;
                starts.extend(at..at + c_in);
            }
        }
        let mut pixels_seen = Vec::with_capacity(pixels);
        for image in 0..block.images.len() {
            for row in 0..block.rows.len() {
                let at = image * patch.len() + row * w.stride.0 * row_step;
                let columns = (0..g.out.1).step_by(word.numbers());
                pixels_seen.extend(columns.map(|column| at + column * w.stride.1 * pixel));
            }
        }
        let depth = starts.len();
        let chunk = (CHUNK_ELEMENTS / pixels.max(1)).max(24);
        for group in 0..g.groups {
            for (i, panel) in
                (0..depth.div_ceil(chunk)).flat_map(|i| (0..panels).map(move |panel| (i, panel)))
            {
                let rows = i * chunk..depth.min((i + 1) * chunk);
                let starts = &starts[rows.clone()];
                let left = Left { word, data: copies, starts, runs: &pixels_seen, run: 1, step: 1 };
                let right = match in_place {
                    Some(dys) => &dys[first * width..][..pixels * width],
                    None => &moved[(group * panels + panel) * pixels * width..][..pixels * width],
                };
                let first = panel * width;
                let out = Out {
                    data: &mut sums[(group * depth + rows.start) * columns.len() + first..],
                    stride: columns.len(),
                    columns: width.min(columns.len() - first),
                    end: End::add_if(accumulate),
                };
                multiply(left, Right { data: right, step: width, next: &[] }, out);
            }
            for start in &mut starts {
                *start += c_in;
            }
        }
    });
}

multiversion! {
    /// Words of each element of a row and the one `distance` further on, zero beyond the end.
    fn pair_pixels(row: &[bf16], distance: usize, out: &mut [f32]) {
        let distance = distance.min(row.len());
        let (with_next, last) = out.split_at_mut(row.len() - distance);
        pair(with_next, row, &row[distance..]);
        pair_with_zeros(last, &row[row.len() - distance..]);
    }
}

multiversion! {
    /// Words of the first `len` elements of two rows after each other, rows being `step` apart, to rows of `out` of
    /// `width`; where their number is odd, the last with zeros.
    pub(super) fn pair_rows(xs: &[bf16], step: usize, len: usize, out: &mut [f32], width: usize) {
        for (rows, out) in xs.chunks(2 * step).zip(out.chunks_exact_mut(width)) {
            match rows.get(step..) {
                Some(second) if second.len() >= len => pair(&mut out[..len], &rows[..len], &second[..len]),
                _ => pair_with_zeros(&mut out[..len], &rows[..len]),
            }
        }
    }
}
