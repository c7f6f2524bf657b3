//! A correlation of maps with packed weights, block by block of the result.

use super::super::Geometry;
use super::super::finish::{End, Finish, Rows};
use super::super::product::{Left, Out, Right, Word, first_column, multiply, panel_width};
use super::reach::{Axis, Block, Patch, Reach, blocks};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{TASKS, narrow, on_tiles, word_of};
use crate::element::{Element, load, store};
use crate::pairs::{elements_mut, words};
use crate::parallel::{each, map, parts, with_scratch};
use crate::pool::{Buffer, take};
use candle_core::DType;
use std::ops::Range;
use std::sync::Arc;

/// Output pixels of a block: at least as many as see 64 KiB, in these bounds. What they see and what they give stay
/// in the second cache while one panel of weights after the other goes by.
const BLOCK_PIXELS: (usize, usize) = (24, 256);
const BLOCK_ELEMENTS: usize = 16 * 1024;

/// Output pixels of a block of maps with so many words to a pixel.
pub(super) fn block_pixels(words: usize) -> usize {
    (BLOCK_ELEMENTS / words).clamp(BLOCK_PIXELS.0, BLOCK_PIXELS.1)
}

/// Multiply-adds of a task, at least: handing one to another thread takes some microseconds.
pub(in super::super) const TASK_MACS: usize = 250_000;

/// Elements of the result that a task puts together from pieces.
const COPY_ELEMENTS: usize = 8 * 1024;

/// The phases of a correlation along both axes, with the weights packed for each.
pub(super) struct Pass {
    pub(super) y: Axis,
    pub(super) x: Axis,
    /// [group][panel][tap × word of source channels][panel width], panels as [`first_column`] has them, where what lies
    /// beyond the last channel is arbitrary; or as `narrow.rs` or `tiles.rs` packs them.
    pub(super) weights: Arc<Buffer<f32>>,
}

impl Pass {
    /// Taps that a position sees.
    pub(super) fn taps(&self) -> usize {
        self.y.taps.len() * self.x.taps.len()
    }
}

/// How the products of a correlation are computed, which decides how weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Products {
    /// Group by group (`product.rs`).
    Groups(Word),
    /// Several narrow groups at a time (`spread.rs`).
    Narrow,
    /// On AMX, which takes one group (`tiles.rs`).
    Tiles,
}

impl Products {
    pub(super) fn of<T: Element>(g: &Geometry) -> Self {
        if narrow::serves(g) {
            Self::Narrow
        } else if on_tiles(g, T::DTYPE) {
            Self::Tiles
        } else {
            Self::Groups(word_of(g, T::DTYPE))
        }
    }

    /// What a pixel of a map is cut into.
    fn word(self) -> Word {
        match self {
            Self::Groups(word) => word,
            _ => Word::Single,
        }
    }
}

/// A correlation of maps [n, height, width, channels].
pub(super) struct Correlation {
    pub(super) n: usize,
    pub(super) source: (usize, usize),
    pub(super) source_channels: usize,
    pub(super) target: (usize, usize),
    pub(super) target_channels: usize,
    pub(super) groups: usize,
    pub(super) reach: (Reach, Reach),
    pub(super) passes: Vec<Pass>,
    pub(super) products: Products,
}

impl Correlation {
    /// Target channels of a group, and their panels.
    pub(super) fn of_group(&self) -> (usize, usize) {
        let target = self.target_channels / self.groups;
        (target, target.div_ceil(panel_width()))
    }

    /// Whether products are written to the target as they come.
    fn in_place<T: Element>(&self) -> bool {
        let as_they_are = match self.products {
            Products::Groups(Word::Pair) => T::DTYPE == DType::BF16,
            Products::Groups(Word::Single) | Products::Narrow => T::DTYPE == DType::F32,
            Products::Tiles => false,
        };
        as_they_are && self.passes.len() == 1
    }

    /// Words of a source pixel.
    fn source_words(&self) -> usize {
        self.source_channels.div_ceil(self.products.word().numbers())
    }

    pub(super) fn run<T: Element>(&self, xs: &[T], finish: &Finish<'_, T>) -> Buffer<T> {
        let ((h, w), c) = (self.target, self.target_channels);
        let mut ys = take::<T>(self.n * h * w * c);
        let step = self.passes.first().map_or(1, |pass| pass.y.step);
        let columns = self.passes.first().map_or(0, |pass| pass.x.count);
        let macs_per_position: usize =
            self.passes.iter().map(Pass::taps).sum::<usize>() * (self.source_channels / self.groups) * c;
        let pixels = match self.products {
            #[cfg(target_arch = "x86_64")]
            Products::Tiles => {
                let taps = self.passes.iter().map(Pass::taps).max().unwrap_or(0);
                tiles::block_pixels::<T>(taps * self.source_channels)
            }
            // Without a copy, what neighbouring blocks both see is best seen by few.
            Products::Narrow => {
                block_pixels(self.source_channels).max(self.n * h.div_ceil(step) * columns / (2 * TASKS))
            }
            _ => block_pixels(self.source_words()),
        };
        // Few blocks are cut by channels too, and lower where that is not enough.
        let (all, panels) = (self.n * h.div_ceil(step) * columns, self.of_group().1);
        let tasks = (macs_per_position * all / TASK_MACS).clamp(1, TASKS);
        let most = all.div_ceil(tasks.div_ceil(panels)).max(BLOCK_PIXELS.0);
        let positions = pixels.min(most).max(TASK_MACS / macs_per_position.max(1));
        let blocks = blocks(self.n, h.div_ceil(step), columns, positions);
        // The target rows of a block lie together; with each part goes its place.
        let len = |block: &Block| {
            let rows = (block.rows.end * step).min(h) - block.rows.start * step;
            block.images.len() * rows * w * c
        };
        let parts: Vec<_> = blocks.iter().zip(parts(&mut ys, blocks.iter().map(len))).collect();
        let splits = if self.groups == 1 { tasks.div_ceil(blocks.len().max(1)).clamp(1, panels) } else { 1 };
        let of_rows = self.of_rows(finish);
        if splits == 1 {
            each(parts, |_, (block, (at, out))| {
                self.block(xs, block, 0..panels, out, c, of_rows.as_ref());
                if of_rows.is_none() {
                    finish.apply(at, out);
                }
            });
            return ys;
        }
        let split = |i: usize| panels * i / splits..panels * (i + 1) / splits;
        // Those of neighbouring parts may overlap.
        let first = |i: usize| match self.products {
            Products::Tiles => split(i).start * panel_width(),
            _ => first_column(split(i).start, c, panel_width()),
        };
        let channels = |i: usize| (split(i).end * panel_width()).min(c) - first(i);
        let pieces = map(parts.len() * splits, |i| {
            let ((block, (_, part)), i) = (&parts[i / splits], i % splits);
            let mut out = take::<T>(part.len() / c * channels(i));
            self.block(xs, block, split(i), &mut out, channels(i), of_rows.as_ref());
            out
        });
        // A pixel's channels lie in several pieces.
        let pixels = COPY_ELEMENTS.div_ceil(c);
        let copies =
            parts.into_iter().zip(pieces.chunks_exact(splits)).flat_map(|((_, (at, part)), pieces)| {
                let copy = move |(i, out)| (pieces, i * pixels, at + i * pixels * c, out);
                part.chunks_mut(pixels * c).enumerate().map(copy)
            });
        each(copies, |_, (pieces, pixel, at, out)| {
            for (i, piece) in pieces.iter().enumerate() {
                let (first, len) = (first(i), channels(i));
                for (out, piece) in out.chunks_exact_mut(c).zip(piece[pixel * len..].chunks_exact(len)) {
                    out[first..][..len].copy_from_slice(piece);
                }
            }
            if of_rows.is_none() {
                finish.apply(at, out);
            }
        });
        ys
    }

    /// A finish for products in registers, where they are written once.
    pub(super) fn of_rows<T: Element>(&self, finish: &Finish<'_, T>) -> Option<Rows> {
        finish.of_rows(self.target_channels, panel_width()).filter(|_| self.in_place::<T>())
    }

    /// Positions along y that a pass has: the first so many.
    pub(super) fn in_phase(&self, pass: &Pass, positions: &Range<usize>) -> usize {
        let in_phase = |row: &usize| row * pass.y.step + pass.y.origin < self.target.0;
        positions.clone().filter(in_phase).count()
    }

    /// The rows of the source that positions along y see.
    pub(super) fn seen(&self, positions: &Range<usize>) -> Range<usize> {
        let (reach, h) = (self.reach.0, self.source.0 as isize);
        let first = (positions.start * reach.stride) as isize + reach.first;
        let last = first + reach.span(positions.len()) as isize;
        first.clamp(0, h) as usize..last.clamp(0, h) as usize
    }

    /// The target pixels of a block, in the channels of the given panels; `out` has rows of `channels`.
    pub(super) fn block<T: Element>(
        &self,
        xs: &[T],
        block: &Block,
        panels: Range<usize>,
        out: &mut [T],
        channels: usize,
        finish: Option<&Rows>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.products == Products::Tiles {
            return self.block_on_tiles(xs, block, panels, out, channels);
        }
        if self.products == Products::Narrow {
            return self.block_narrow(xs, block, out, finish);
        }
        let ((h, w), (reach_y, reach_x), word) = (self.source, self.reach, self.products.word());
        let columns = self.passes.iter().map(|pass| pass.x.count).max().unwrap_or(0);
        let rows = self.passes.iter().map(|pass| pass.y.count).max().unwrap_or(0);
        // What lies inside is read where it is.
        let inside = reach_y.inside(rows, h) && reach_x.inside(columns, w);
        let whole = match word {
            Word::Single => T::as_f32(xs),
            Word::Pair if self.source_channels.is_multiple_of(2) => T::as_bf16(xs).and_then(words),
            Word::Pair => None,
        };
        let direct = whole.filter(|_| inside);
        let (c, words) = (self.source_channels, self.source_words());
        let patch = Patch {
            corner: ((block.rows.start * reach_y.stride) as isize + reach_y.first, reach_x.first),
            rows: reach_y.span(block.rows.len()),
            columns: if direct.is_some() { w } else { reach_x.span(columns) },
            pixel: words * word.numbers(),
        };
        let copy_len = if direct.is_some() { 0 } else { patch.len() / word.numbers() };
        let positions = block.images.len() * block.rows.len() * columns;
        let result_len = if self.in_place::<T>() { 0 } else { positions * self.of_group().0 };
        let copies_len = block.images.len() * copy_len;
        with_scratch(copies_len + result_len, |scratch| {
            let (copies, result) = scratch.split_at_mut(copies_len);
            let (source, image_step, base) = if let Some(xs) = direct {
                let corner = patch.corner.0 as usize * w + patch.corner.1 as usize;
                (xs, h * w * words, (block.images.start * h * w + corner) * words)
            } else {
                let image_len = h * w * c;
                for (copy, image) in copies.chunks_exact_mut(copy_len).zip(block.images.clone()) {
                    let image = &xs[image * image_len..][..image_len];
                    match (word, T::as_bf16(image)) {
                        (Word::Pair, Some(image)) => {
                            let copy_elements = |out: &mut [_], xs: &[_]| out.copy_from_slice(xs);
                            patch.copy(image, self.source, c, elements_mut(copy), copy_elements);
                        }
                        _ => patch.copy(image, self.source, c, copy, load),
                    }
                }
                (&*copies, copy_len, 0)
            };
            for pass in &self.passes {
                let row_step = patch.columns * words;
                let rows = self.in_phase(pass, &block.rows);
                let mut starts = Vec::with_capacity(positions);
                for image in 0..block.images.len() {
                    for row in 0..rows {
                        let at = base + image * image_step + row * reach_y.stride * row_step;
                        starts.extend((0..pass.x.count).map(|column| at + column * reach_x.stride * words));
                    }
                }
                let (runs, run) = self.runs(pass, row_step);
                let place = Place { pass, rows, images: block.images.len(), channels, finish };
                let left = Left { word, data: source, starts: &starts, runs: &runs, run, step: 1 };
                self.multiply(left, panels.clone(), &place, result, out);
            }
        });
    }

    /// Offsets of the runs of source words that a window sees, from its first tap, and their length.
    fn runs(&self, pass: &Pass, row_step: usize) -> (Vec<usize>, usize) {
        let (c, (reach_y, reach_x)) = (self.source_words(), self.reach);
        let row = |tap: &(isize, usize)| (tap.0 - reach_y.first) as usize * row_step;
        let column = |tap: &(isize, usize)| (tap.0 - reach_x.first) as usize * c;
        match pass.x.taps.first() {
            Some(first) if pass.x.neighbours() && self.groups == 1 => {
                (pass.y.taps.iter().map(|y| row(y) + column(first)).collect(), pass.x.taps.len() * c)
            }
            _ => {
                let of_row = |y| pass.x.taps.iter().map(move |x| row(y) + column(x));
                (pass.y.taps.iter().flat_map(of_row).collect(), c / self.groups)
            }
        }
    }

    fn multiply<T: Element>(
        &self,
        mut left: Left<'_>,
        panels: Range<usize>,
        place: &Place<'_>,
        result: &mut [f32],
        out: &mut [T],
    ) {
        let (width, pass) = (panel_width(), place.pass);
        let ((c_target, of_group), channels) = (self.of_group(), place.channels);
        let c_source = self.source_words() / self.groups;
        let panel_len = pass.taps() * c_source * width;
        let data = left.data;
        for group in 0..self.groups {
            left.data = &data[group * c_source..];
            let columns = first_column(panels.start, c_target, width)..(panels.end * width).min(c_target);
            for panel in panels.clone() {
                let weights = &pass.weights[(group * of_group + panel) * panel_len..];
                let (weights, rest) = weights.split_at(panel_len);
                let next = if panel + 1 < panels.end { &rest[..panel_len] } else { &[] };
                let weights = Right { data: weights, step: width, next };
                let first = first_column(panel, c_target, width) - columns.start;
                let len = width.min(c_target);
                if self.in_place::<T>() {
                    let channel = group * c_target + first;
                    let (data, end) = (&mut out[channel..], place.end(channel + columns.start));
                    multiply(left, weights, Out { data, stride: channels, columns: len, end });
                } else {
                    let (data, stride) = (&mut result[first..], columns.len());
                    multiply(left, weights, Out { data, stride, columns: len, end: End::Set });
                }
            }
            if !self.in_place::<T>() {
                let result = &result[..left.starts.len() * columns.len()];
                place.copy(self, result, columns.len(), group * c_target, out);
            }
        }
    }
}

/// Where the rows of a product go in a block of target pixels.
struct Place<'a> {
    pass: &'a Pass,
    images: usize,
    /// Positions of the block along y.
    rows: usize,
    /// Channels of a pixel in the block's output.
    channels: usize,
    /// What is done to products.
    finish: Option<&'a Rows>,
}

impl Place<'_> {
    /// What becomes of the products of the channels from one on.
    fn end(&self, channel: usize) -> End<'_> {
        self.finish.map_or(End::Set, |rows| rows.end(channel))
    }

    /// Copies rows of `columns` elements to their pixels, from `channel` on.
    fn copy<T: Element>(
        &self,
        whole: &Correlation,
        result: &[f32],
        columns: usize,
        channel: usize,
        out: &mut [T],
    ) {
        let (y, x, (_, w)) = (&self.pass.y, &self.pass.x, whole.target);
        let image_len = out.len() / self.images.max(1);
        let mut results = result.chunks_exact(columns.max(1));
        for image in 0..self.images {
            for row in 0..self.rows {
                let at_y = row * y.step + y.origin;
                for (column, values) in results.by_ref().take(x.count).enumerate() {
                    let pixel = at_y * w + column * x.step + x.origin;
                    store(&mut out[image * image_len + pixel * self.channels + channel..][..columns], values);
                }
            }
        }
    }
}
