//! Convolutions whose groups have as few channels as `spread.rs` has kernels for.

use super::super::super::Geometry;
use super::super::finish::{End, Rows};
use super::super::product::{Left, Out, Right, Word, first_column, panel_width};
use super::super::spread::{self, Weights};
use super::TASKS;
use super::correlation::{Correlation, Pass};
use super::reach::{Axis, Block, Patch, Reach, blocks};
use crate::element::{Element, load, store};
use crate::parallel::{buffer, chunks, map, with_scratch};
use crate::pool::{Buffer, take};
use std::ops::Range;

/// Whether neighbouring groups can share a register.
pub(in super::super) fn serves(g: &Geometry) -> bool {
    let (c_in, c_out) = g.group_channels();
    g.groups > 1 && c_in == c_out && spread::GROUPS.contains(&c_in)
}

/// Weights as [panel][tap × element of the group][panel width], rounded as `T` stores them; of fewer channels than
/// a panel's width, zeros follow. `at` says where the taps for (group, source channel, target channel) start.
pub(super) fn pack<T: Element>(
    g: &Geometry,
    taps: &[usize],
    weight: &[f32],
    at: impl Fn(usize, usize, usize) -> usize,
) -> Buffer<f32> {
    let (width, group) = (panel_width(), g.group_channels().0);
    let panel_len = taps.len() * group * width;
    let mut packed = take::<f32>(g.c_out.div_ceil(width) * panel_len);
    for (panel, out) in packed.chunks_exact_mut(panel_len.max(1)).enumerate() {
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            for (channel, out) in (first_column(panel, g.c_out, width)..).zip(out) {
                let weight =
                    |channel| weight[at(channel / group, row % group, channel % group) + taps[row / group]];
                *out = if channel < g.c_out { T::round(weight(channel)) } else { 0.0 };
            }
        }
    }
    packed
}

/// Elements of an image up to which it is found in cache: half a megabyte.
const NEAR: usize = 128 * 1024;

/// Elements of weights that go over an image's pixels together: a little more than the first cache of 32 KiB holds.
const WEIGHTS: usize = 10 * 1024;

/// Neighbouring columns that see the same taps of a pass.
pub(super) struct Run {
    columns: Range<usize>,
    taps: Range<usize>,
}

impl Run {
    /// How many taps are taken together: all, where what a column sees at one of them is what its neighbour sees at
    /// the next.
    fn along(&self, x: &Axis) -> usize {
        let taps = &x.taps[self.taps.clone()];
        let neighbours = taps.windows(2).all(|pair| pair[1].0 == pair[0].0 + x.stride as isize);
        match taps.len() {
            n if self.columns.len() > 1 && neighbours && spread::ALONG.contains(&n) => n,
            _ => 1,
        }
    }
}

/// The columns of a pass over a source of so many, by the taps that lie inside.
fn runs(x: &Axis, columns: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for column in 0..x.count {
        let taps = inside(x, column, columns);
        match runs.last_mut() {
            Some(run) if run.taps == taps => run.columns.end = column + 1,
            _ => runs.push(Run { columns: column..column + 1, taps }),
        }
    }
    runs
}

/// The taps that a position of an axis sees of a source of `size`.
fn inside(axis: &Axis, position: usize, size: usize) -> Range<usize> {
    let at = |tap: &(isize, usize)| (position * axis.stride) as isize + tap.0;
    let start = axis.taps.partition_point(|tap| at(tap) < 0);
    start..axis.taps.partition_point(|tap| at(tap) < size as isize).max(start)
}

impl Correlation {
    /// The target pixels of a block. Pixels at the border leave out the taps that lie outside, so that the source is
    /// read where it is; in bf16 its rows are widened first.
    pub(super) fn block_narrow<T: Element>(
        &self,
        xs: &[T],
        block: &Block,
        out: &mut [T],
        finish: Option<&Rows>,
    ) {
        let (c, (h, w), width) = (self.source_channels, self.source, panel_width());
        let seen = self.seen(&block.rows);
        // Fewer channels than a panel's width are read beyond the last pixel.
        let in_place = T::as_f32(xs).filter(|_| c >= width);
        let seen_len = if in_place.is_some() { 0 } else { seen.len() * w * c + width };
        let image_len = out.len() / block.images.len().max(1);
        let runs = self.runs_narrow();
        with_scratch(seen_len, |widened| {
            for (i, image) in block.images.clone().enumerate() {
                let image = image * h * w * c;
                let source = match in_place {
                    Some(xs) => Source { data: &xs[image..][..h * w * c], first: 0, rows: h },
                    None => {
                        let xs = &xs[image + seen.start * w * c..image + seen.end * w * c];
                        load(&mut widened[..xs.len()], xs);
                        Source { data: widened, first: seen.start, rows: h }
                    }
                };
                self.image_narrow(
                    &source,
                    &runs,
                    &block.rows,
                    &mut out[i * image_len..][..image_len],
                    finish,
                );
            }
        });
    }

    /// The columns of each pass, by the taps that lie inside.
    pub(super) fn runs_narrow(&self) -> Vec<Vec<Run>> {
        self.passes.iter().map(|pass| runs(&pass.x, self.source.1)).collect()
    }

    /// The target pixels of some positions along y of an image.
    pub(super) fn image_narrow<T: Element>(
        &self,
        source: &Source<'_>,
        runs: &[Vec<Run>],
        positions: &Range<usize>,
        out: &mut [T],
        finish: Option<&Rows>,
    ) {
        let (c, width) = (self.source_channels, panel_width());
        let (group, panels) = (c / self.groups, c.div_ceil(width));
        let result_len = if T::as_f32(out).is_some() { 0 } else { self.target.1 * c };
        with_scratch(result_len, |result| {
            for (pass, runs) in self.passes.iter().zip(runs) {
                let rows = pass.taps() * group;
                // As many panels as stay in the first cache go over the pixels together.
                let together = (WEIGHTS / (rows * width).max(1)).clamp(1, panels);
                for first in (0..panels).step_by(together) {
                    let panels = first..panels.min(first + together);
                    let weights = Weights { data: &pass.weights, rows, group, panels };
                    self.rows_narrow(source, (pass, runs, weights), positions, (out, result), finish);
                }
            }
        });
    }

    /// Those that a pass has.
    fn rows_narrow<T: Element>(
        &self,
        source: &Source<'_>,
        (pass, runs, weights): (&Pass, &[Run], Weights<'_>),
        positions: &Range<usize>,
        (out, result): (&mut [T], &mut [f32]),
        finish: Option<&Rows>,
    ) {
        let (channels, width, (y, x)) = (self.target_channels, panel_width(), (&pass.y, &pass.x));
        let (h, w, pixel) = (self.source.0, self.source.1, self.source_channels);
        // The end of the source's rows that a position and those before it see.
        let last = y.taps.last().map_or(0, |tap| tap.0) - source.first as isize;
        let seen = |position: usize| {
            let row = ((position * y.stride) as isize + last + 1).max(0);
            (row as usize * w * pixel).min(source.data.len())
        };
        let ahead = source.rows * w * pixel > NEAR && weights.panels.start == 0;
        let (mut starts, mut taps) = (Vec::with_capacity(x.count), Vec::with_capacity(pass.taps()));
        for row in 0..self.in_phase(pass, positions) {
            let position = positions.start + row;
            let of_y = inside(y, position, h);
            // What the next position sees and this one does not.
            let mut next = if ahead { &source.data[seen(position)..seen(position + 1)] } else { &[] };
            for run in runs {
                let corner = x.taps.get(run.taps.start).map_or(0, |tap| tap.0);
                let along = run.along(x);
                taps.clear();
                for tap_y in of_y.clone() {
                    let row = source.row((position * y.stride) as isize + y.taps[tap_y].0) * w;
                    taps.extend(run.taps.clone().step_by(along).map(|tap_x| spread::Tap {
                        offset: (row + (x.taps[tap_x].0 - corner) as usize) * pixel,
                        row: tap_y * x.taps.len() + tap_x,
                    }));
                }
                starts.clear();
                starts.extend(run.columns.clone().map(|column| {
                    // Where no tap lies inside, nothing is read.
                    let at = if taps.is_empty() { 0 } else { (column * x.stride) as isize + corner };
                    at as usize * pixel
                }));
                // Most columns are in one run.
                let next = if starts.len() > 1 { std::mem::take(&mut next) } else { &[] };
                let pixels = spread::Pixels { data: source.data, starts: &starts, taps: &taps, along, next };
                let out_at = |column: usize| {
                    ((row * y.step + y.origin) * self.target.1 + column * x.step + x.origin) * channels
                };
                if let Some(out) = T::as_f32_mut(out) {
                    let (data, stride) = (&mut out[out_at(run.columns.start)..], channels * x.step);
                    let end = finish.map_or(End::Set, |rows| rows.end(0));
                    spread::multiply(pixels, weights.clone(), Out { data, stride, columns: channels, end });
                    continue;
                }
                let data = &mut result[..starts.len() * channels];
                let product = Out { data, stride: channels, columns: channels, end: End::Set };
                spread::multiply(pixels, weights.clone(), product);
                // Nothing but what this call has computed.
                let first = first_column(weights.panels.start, channels, width);
                let last = (weights.panels.end * width).min(channels);
                for (values, column) in result.chunks_exact(channels).zip(run.columns.clone()) {
                    let out = &mut out[out_at(column)..][..channels];
                    store(&mut out[first..last], &values[first..last]);
                }
            }
        }
    }
}

/// Rows of an image.
pub(super) struct Source<'a> {
    pub(super) data: &'a [f32],
    /// Which row is the first.
    pub(super) first: usize,
    /// After so many rows the next lie over the first ones.
    pub(super) rows: usize,
}

impl Source<'_> {
    /// Where a row of the image lies.
    fn row(&self, y: isize) -> usize {
        (y as usize - self.first) % self.rows
    }
}

/// Pixels of a block of the weight gradient, and elements that they see: more than of other blocks, since what they
/// see is copied, with what neighbouring blocks see too.
const GRADIENT_PIXELS: (usize, usize) = (48, 256);
const GRADIENT_ELEMENTS: usize = 64 * 1024;

pub(super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    let (width, group, taps) = (panel_width(), g.group_channels().0, g.taps());
    let (panels, rows) = (g.c_out.div_ceil(width), taps * group);
    let of_block = (GRADIENT_ELEMENTS / g.c_in).clamp(GRADIENT_PIXELS.0, GRADIENT_PIXELS.1);
    let blocks = blocks(g.n, g.out.0, g.out.1, of_block);
    let parts = TASKS.min(blocks.len());
    // partial[part] is [panel][tap × element of the group][panel width].
    let partial = map(parts, |part| {
        let mut sums = take::<f32>(panels * rows * width);
        for (i, block) in
            blocks[blocks.len() * part / parts..blocks.len() * (part + 1) / parts].iter().enumerate()
        {
            add_block(g, xs, dys, block, &mut sums, i > 0);
        }
        sums
    });
    let mut dw = buffer::<f32>(g.c_out * rows);
    chunks(&mut dw, rows * width, |panel, dw| {
        for (channel, dw) in dw.chunks_exact_mut(rows).enumerate() {
            for (i, dw) in dw.iter_mut().enumerate() {
                // From [element][tap] to [tap][element].
                let row = i % taps * group + i / taps;
                let at = (panel * rows + row) * width + channel;
                *dw = partial.iter().map(|sums| f64::from(sums[at])).sum::<f64>() as f32;
            }
        }
    });
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
            patch.copy(&xs[image * image_len..][..image_len], g.size, c, copy, load);
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
            let left = Left {
                word: Word::Single,
                data: &copies[channel..],
                starts: &starts,
                runs: &taps,
                run: group,
                step: 1,
            };
            let right = Right { data: &dys[channel..], step: c, next: &[] };
            let columns = width.min(c - channel);
            spread::sum(
                left,
                right,
                g.out.1,
                Out { data: sums, stride: width, columns, end: End::add_if(accumulate) },
            );
        }
    });
}
