//! Convolutions whose groups have as few channels as `spread.rs` has kernels for.

use super::super::super::Geometry;
use super::super::product::{Left, Out, Right, panel_width};
use super::super::spread;
use super::TASKS;
use super::correlation::block_pixels;
use super::reach::{Axis, Block, Patch, Reach, blocks};
use crate::element::{Element, load};
use crate::parallel::{buffer, map, with_scratch};
use crate::pool::{Lent, lend};

/// Whether neighbouring groups can share a register.
pub(in super::super) fn serves(g: &Geometry) -> bool {
    let (c_in, c_out) = g.group_channels();
    g.groups > 1 && c_in == c_out && spread::GROUPS.contains(&c_in)
}

/// Weights as [panel][tap × element of the group][panel width], rounded as `T` stores them. `at` says where the
/// taps for (group, source channel, target channel) start.
pub(super) fn pack<T: Element>(
    g: &Geometry,
    taps: &[usize],
    weight: &[f32],
    at: impl Fn(usize, usize, usize) -> usize,
) -> Lent<f32> {
    let (width, group) = (panel_width(), g.group_channels().0);
    let panel_len = taps.len() * group * width;
    let mut packed = lend::<f32>(g.c_out.div_ceil(width) * panel_len);
    for (panel, out) in packed.chunks_exact_mut(panel_len.max(1)).enumerate() {
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            for (channel, out) in (panel * width..).zip(out) {
                let weight =
                    |channel| weight[at(channel / group, row % group, channel % group) + taps[row / group]];
                *out = if channel < g.c_out { T::round(weight(channel)) } else { 0.0 };
            }
        }
    }
    packed
}

pub(super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    let (width, group, taps) = (panel_width(), g.group_channels().0, g.taps());
    let (panels, rows) = (g.c_out.div_ceil(width), taps * group);
    let blocks = blocks(g.n, g.out.0, g.out.1, block_pixels(g.c_in));
    let parts = TASKS.min(blocks.len());
    // partial[part] is [panel][tap × element of the group][panel width].
    let partial = map(parts, |part| {
        let mut sums = lend::<f32>(panels * rows * width);
        for (i, block) in
            blocks[blocks.len() * part / parts..blocks.len() * (part + 1) / parts].iter().enumerate()
        {
            add_block(g, xs, dys, block, &mut sums, i > 0);
        }
        sums
    });
    let mut dw = buffer::<f32>(g.c_out * rows);
    for (channel, dw) in dw.chunks_exact_mut(rows).enumerate() {
        for (i, dw) in dw.iter_mut().enumerate() {
            // From [element][tap] to [tap][element].
            let row = i % taps * group + i / taps;
            let at = (channel / width * rows + row) * width + channel % width;
            *dw = partial.iter().map(|sums| f64::from(sums[at])).sum::<f64>() as f32;
        }
    }
    dw
}

/// Writes a block's part of the gradient to `sums`, or adds it where `accumulate`.
fn add_block<T: Element>(
    g: &Geometry,
    xs: &[T],
    dys: &[T],
    block: &Block,
    sums: &mut [f32],
    accumulate: bool,
) {
    let (c, width, group, w) = (g.c_in, panel_width(), g.group_channels().0, &g.window);
    let (y, x) = Axis::of_outputs(g);
    let (reach_y, reach_x) = (Reach::new(std::slice::from_ref(&y)), Reach::new(std::slice::from_ref(&x)));
    let patch = Patch {
        corner: ((block.rows.start * w.stride.0) as isize + reach_y.first, reach_x.first),
        rows: reach_y.span(block.rows.len()),
        columns: reach_x.span(g.out.1),
        pixel: c,
    };
    let (image_len, row_step) = (g.size.0 * g.size.1 * c, patch.columns * c);
    // Blocks are parts of an image or whole images, so their pixels lie together.
    let pixels = block.images.len() * block.rows.len() * g.out.1;
    let first = (block.images.start * g.out.0 + block.rows.start) * g.out.1;
    let dys = &dys[first * c..][..pixels * c];
    // Both sides are read over whole panels' widths.
    let in_place = T::as_f32(dys).filter(|_| c.is_multiple_of(width));
    let copies_len = block.images.len() * patch.len() + width;
    with_scratch(copies_len + if in_place.is_some() { 0 } else { dys.len() + width }, |scratch| {
        let (copies, moved) = scratch.split_at_mut(copies_len);
        for (copy, image) in copies.chunks_exact_mut(patch.len()).zip(block.images.clone()) {
            patch.copy(&xs[image * image_len..][..image_len], g.size, c, copy);
        }
        let dys = in_place.unwrap_or_else(|| {
            load(&mut moved[..dys.len()], dys);
            moved
        });
        let mut starts = Vec::with_capacity(pixels);
        for image in 0..block.images.len() {
            for row in 0..block.rows.len() {
                let at = image * patch.len() + row * w.stride.0 * row_step;
                starts.extend((0..g.out.1).map(|column| at + column * w.stride.1 * c));
            }
        }
        let offset = |(tap_y, tap_x): (isize, isize)| {
            (tap_y - reach_y.first) as usize * row_step + (tap_x - reach_x.first) as usize * c
        };
        let taps: Vec<usize> =
            y.taps.iter().flat_map(|y| x.taps.iter().map(move |x| offset((y.0, x.0)))).collect();
        let panel_len = taps.len() * group * width;
        for (sums, channel) in sums.chunks_exact_mut(panel_len).zip((0..c).step_by(width)) {
            let left = Left { data: &copies[channel..], starts: &starts, runs: &taps, run: group, step: 1 };
            let right = Right { data: &dys[channel..], step: c, next: &[] };
            let columns = width.min(c - channel);
            spread::sum(left, right, Out { data: sums, stride: width, columns, accumulate });
        }
    });
}
