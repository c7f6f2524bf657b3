//! Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308) for 3×3 convolutions of stride 1. With
//! F(4×4, 3×3) a tile of 4×4 outputs takes 36 multiplications per pair of channels instead of 144; with
//! F(2×2, 3×3), as exact as direct sums, a tile of 2×2 takes 16 instead of 36.
//!
//! With the transforms B, G and A of the paper's sections 4.1 and 4.3, a tile of outputs is
//! Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A. The elementwise products of all tiles and channels are one matrix product for
//! each position of a transformed tile. The weight gradient is the exact adjoint, Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G, summed
//! over tiles.
//!
//! While the transformed filters are small, a task takes a few tiles through all three steps, which stay in its
//! cache; beyond that, the steps follow each other over all tiles, and tasks share the positions out.

mod filtering;
mod layout;
mod transform;
mod weight_gradient;

use super::super::Geometry;
use super::Weight;
use super::finish::{End, Finish};
use super::product::{Left, Out, Right, Word, multiply, width_of};
use crate::dispatch::strict_f32;
use crate::element::{Element, round};
use crate::inference::{Form, is_running, prepared};
use crate::parallel::{each, parts, with_scratch};
use crate::pool::{Buffer, take};
use crate::simd::prefetch;
use crate::transpose::transpose;
use candle_core::{DType, TensorId};
use filtering::{F2, F4, Filtering};
use layout::{GAP, Source, Store, Tiles};
use std::iter::repeat;
use std::ops::Range;
use std::sync::Arc;
use transform::{
    Places, Target, Window, from_filter_gradients, input_tile, output_gradient_tile, output_tile, to_filters,
};
pub(super) use weight_gradient::weight_gradient;

/// Bytes of transformed filters that stay in a core's second cache.
const NEAR_BYTES: usize = 1 << 20;

/// Whether this kernel is the quickest for a geometry. With channels that do not fill a register, and below sixty with
/// F(2×2, 3×3), the transforms cost what the products save, and with few tiles a transformed filter is used too rarely to
/// be worth transforming, or reading where an inference has kept it.
pub(super) fn serves(g: &Geometry) -> bool {
    let w = &g.window;
    let shape = w.kernel == (3, 3) && w.stride == (1, 1) && w.dilation == (1, 1) && g.groups == 1;
    let padding = w.padding.0 <= 2 && w.padding.1 <= 2;
    let (tiles, channels) = (Tiles::new(g, outputs()).count(), g.c_in.min(g.c_out));
    let least = if strict_f32() { 64 } else { 16 };
    let near = (outputs() + 2).pow(2) * g.c_in * g.c_out * size_of::<f32>() <= NEAR_BYTES;
    let (tiles_least, work_least) = match is_running() {
        true if near => (4, 128),
        true => (16, 128),
        false => (16, 1024),
    };
    shape && padding && channels >= least && tiles >= tiles_least && tiles * channels >= work_least
}

/// Outputs along a side of a tile.
pub(super) fn outputs() -> usize {
    if strict_f32() { F2::OUTPUTS } else { F4::OUTPUTS }
}

/// A transform of one tile into its place in every block of every position.
type Transform<T> = fn(Window<'_, T>, &mut Places<'_>, Store, usize);

/// The transforms of one of the two forms of filtering.
#[derive(Clone, Copy)]
struct Scheme<T> {
    /// Outputs along a side of a tile.
    side: usize,
    input: Transform<T>,
    output_gradient: Transform<T>,
    output: fn(&[f32], Store, usize, Target<'_, T>),
    filters: fn(&[f32], &mut [&mut [f32]], usize),
    filter_gradients: fn(&[&[f32]], usize, &mut [f32]),
}

impl<T: Element> Scheme<T> {
    fn of<F: Filtering>() -> Self {
        Self {
            side: F::OUTPUTS,
            input: input_tile::<T, F>,
            output_gradient: output_gradient_tile::<T, F>,
            output: output_tile::<T, F>,
            filters: to_filters::<F>,
            filter_gradients: from_filter_gradients::<F>,
        }
    }

    fn choose() -> Self {
        if strict_f32() { Self::of::<F2>() } else { Self::of::<F4>() }
    }

    /// Positions of a transformed tile.
    fn positions(&self) -> usize {
        (self.side + 2) * (self.side + 2)
    }
}

/// The filters of a convolution. The taps for (c_in, c_out) start at `c_in · steps.0 + c_out · steps.1`, and are
/// read backwards where the filters are `turned`.
#[derive(Clone, Copy)]
struct Filters<'a, T> {
    scheme: Scheme<T>,
    weight: &'a [f32],
    c_in: usize,
    c_out: usize,
    steps: (usize, usize),
    turned: bool,
}

impl<T: Element> Filters<'_, T> {
    /// Columns of a panel.
    fn width(&self) -> usize {
        width_of(self.c_out)
    }

    fn panels(&self) -> usize {
        self.c_out.div_ceil(self.width())
    }

    /// Elements of a panel of one position.
    fn panel_len(&self) -> usize {
        self.c_in * self.width()
    }

    /// G g Gᵀ for a panel's channels, rounded as `T` stores weights: `out[position]` is [c_in][panel width].
    fn transform(&self, panel: usize, out: &mut [&mut [f32]]) {
        const STEP: usize = 16;
        let width = self.width();
        let channels = panel * width..(panel * width + width).min(self.c_out);
        // [c_in][tap][panel width] for a few channels at a time, so that both sides stay in cache.
        let mut taps = vec![0f32; STEP * 9 * width];
        for first in (0..self.c_in).step_by(STEP) {
            let inputs = first..(first + STEP).min(self.c_in);
            let weight = |ci: usize| &self.weight[ci * self.steps.0 + channels.start * self.steps.1..];
            if self.steps.0 == 9 {
                let size = (channels.len(), inputs.len() * 9);
                transpose(weight(first), self.steps.1, size, &mut taps, width);
            } else {
                for (ci, taps) in inputs.clone().zip(taps.chunks_exact_mut(9 * width)) {
                    transpose(weight(ci), self.steps.1, (channels.len(), 9), taps, width);
                }
            }
            round::<T>(&mut taps);
            for (ci, taps) in inputs.zip(taps.chunks_exact_mut(9 * width)) {
                if self.turned {
                    for tap in 0..4 {
                        let (before, after) = taps.split_at_mut((8 - tap) * width);
                        before[tap * width..][..width].swap_with_slice(&mut after[..width]);
                    }
                }
                (self.scheme.filters)(taps, out, ci * width);
            }
        }
    }

    /// All panels: [position][panel][c_in][panel width], positions [`GAP`] further apart.
    fn transform_all(&self) -> Buffer<f32> {
        let (panels, panel_len) = (self.panels(), self.panel_len());
        let mut out = take::<f32>(self.scheme.positions() * (panels * panel_len + GAP));
        let parts = panels_of(&mut out, panels, panel_len);
        each(parts, |panel, mut out| self.transform(panel, &mut out));
        out
    }
}

pub(super) fn forward<T: Element>(
    g: &Geometry,
    xs: &[T],
    weight: Weight<'_>,
    finish: &Finish<'_, T>,
) -> Buffer<T> {
    let (c_in, c_out) = (g.c_in, g.c_out);
    let (scheme, weight, id) = (Scheme::choose(), weight.values, weight.id);
    let filters = Filters { scheme, weight, c_in, c_out, steps: (9, c_in * 9), turned: false };
    Convolution { g, tiles: Tiles::new(g, scheme.side), filters, id }.run(xs, finish)
}

/// A convolution of the output gradient with the filters turned round.
pub(super) fn input_gradient<T: Element>(
    g: &Geometry,
    dys: &[T],
    weight: &[f32],
    finish: &Finish<'_, T>,
) -> Buffer<T> {
    let mut window = g.window;
    window.padding = (2 - g.window.padding.0, 2 - g.window.padding.1);
    let (c_in, c_out) = (g.c_out, g.c_in);
    let transposed = Geometry { size: g.out, c_in, out: g.size, c_out, window, ..*g };
    let scheme = Scheme::choose();
    let filters = Filters { scheme, weight, c_in, c_out, steps: (c_out * 9, 9), turned: true };
    let tiles = Tiles::new(&transposed, scheme.side);
    Convolution { g: &transposed, tiles, filters, id: None }.run(dys, finish)
}

/// A convolution of stride 1.
struct Convolution<'a, T> {
    g: &'a Geometry,
    tiles: Tiles,
    filters: Filters<'a, T>,
    /// Of the weight, where its transformed filters may be kept.
    id: Option<TensorId>,
}

impl<T: Element> Convolution<'_, T> {
    /// Tiles of a task: a multiple of what a block of registers holds on every instruction set.
    const TASK_TILES: usize = 48;

    /// Tiles that are worth a task, and tasks that keep several threads busy.
    const LEAST_TILES: usize = 8;
    const LEAST_TASKS: usize = 8;

    /// Bytes of transformed tiles and products that stay in a thread's own cache, and tiles that fill its registers.
    const BLOCK_BYTES: usize = 512 << 10;
    const LEAST_BLOCK: usize = 12;

    /// Bytes of transformed filters that a task may read over again for its tiles.
    const FILTER_BYTES: usize = 3 << 20;

    /// Tiles up to which transformed filters weigh more than they.
    const FEW_TILES: usize = 64;

    fn run(&self, xs: &[T], finish: &Finish<'_, T>) -> Buffer<T> {
        let mut ys = take::<T>(self.g.pixels() * self.g.c_out);
        let outside = vec![T::default(); self.g.c_in];
        let source = Source { maps: xs, size: self.g.size, offset: self.g.window.padding, outside: &outside };
        let count = self.tiles.count();
        // Few tiles are shared out all the same, evenly for any even number of threads.
        let least = (count / Self::LEAST_TILES).min(Self::LEAST_TASKS);
        let least = if least > 0 { 1 << least.ilog2() } else { 1 };
        let tasks = self.tiles.tasks(least.max(count / Self::TASK_TILES));
        let (panels, panel_len) = (self.filters.panels(), self.filters.panel_len());
        if self.positions() * panels * panel_len * size_of::<f32>() <= Self::FILTER_BYTES {
            let filters = self.all_filters();
            each(self.split(&mut ys, &tasks), |_, (strips, at, out)| {
                for (strips, start, out) in self.split(out, &self.blocks(strips)) {
                    let residual = finish.residual(at + start, out.len());
                    self.together(source, &filters, strips, out, residual);
                    finish.apply(at + start, out);
                }
            });
            return ys;
        }
        let ((inputs, products), positions) = (self.stores(self.tiles.count()), self.positions());
        with_scratch(inputs.len(positions) + products.len(positions), |scratch| {
            let (seen, result) = scratch.split_at_mut(inputs.len(positions));
            let all = 0..self.tiles.images * self.tiles.strips;
            transform(&self.tiles, all, source, inputs, seen, self.filters.scheme.input);
            if self.tiles.count() <= Self::FEW_TILES && self.id.is_none() {
                self.by_panel(seen, inputs, result, products);
            } else {
                self.by_position(seen, inputs, result, products);
            }
            each(self.split(&mut ys, &tasks), |_, (strips, at, out)| {
                self.outputs(strips.clone(), result, products, strips.start * self.tiles.columns, out);
                finish.apply(at, out);
            });
        });
        ys
    }

    fn positions(&self) -> usize {
        self.filters.scheme.positions()
    }

    fn all_filters(&self) -> Arc<Buffer<f32>> {
        let form = Form::Winograd { bf16: T::DTYPE == DType::BF16, side: self.tiles.side };
        prepared(self.id, form, || self.filters.transform_all())
    }

    /// Each task transforms a panel of filters and uses it up: the filters are the larger side.
    fn by_panel(&self, seen: &[f32], inputs: Store, result: &mut [f32], products: Store) {
        let (starts, panel_len) = (starts(inputs), self.filters.panel_len());
        let parts = panels_of(result, products.blocks(), products.block_len());
        each(parts, |panel, results| {
            with_scratch(self.positions() * (panel_len + GAP), |filters| {
                let mut filters: Vec<&mut [f32]> = filters.chunks_exact_mut(panel_len + GAP).collect();
                self.filters.transform(panel, &mut filters);
                let seen = seen.chunks_exact(inputs.position_len());
                for ((result, filters), seen) in results.into_iter().zip(filters).zip(seen) {
                    self.product(seen, &starts, &filters[..panel_len], result);
                }
            });
        });
    }

    /// Each task reads a position's tiles over and over, one panel of filters after the other.
    fn by_position(&self, seen: &[f32], inputs: Store, result: &mut [f32], products: Store) {
        let (starts, panel_len) = (starts(inputs), self.filters.panel_len());
        let filters = self.all_filters();
        let (panels, filters_len) = (products.blocks(), products.blocks() * panel_len + GAP);
        let positions = result.chunks_exact_mut(products.position_len());
        let results =
            positions.flat_map(|position| position.chunks_exact_mut(products.block_len()).take(panels));
        each(results, |i, result| {
            let (position, panel) = (i / panels, i % panels);
            let seen = &seen[position * inputs.position_len()..][..inputs.position_len()];
            let filters = &filters[position * filters_len + panel * panel_len..][..panel_len];
            self.product(seen, &starts, filters, result);
        });
    }

    fn stores(&self, tiles: usize) -> (Store, Store) {
        (Store::by_tile(tiles, self.g.c_in), Store::by_panel(tiles, self.g.c_out))
    }

    /// The output rows of each task's strips, which lie together, and where they start.
    fn split<'a>(&self, ys: &'a mut [T], tasks: &[Range<usize>]) -> Vec<(Range<usize>, usize, &'a mut [T])> {
        let ((ho, wo), side) = (self.g.out, self.tiles.side);
        let len = |strips: &Range<usize>| {
            let rows = |strip: usize| (ho - strip % self.tiles.strips * side).min(side);
            strips.clone().map(rows).sum::<usize>() * wo * self.g.c_out
        };
        let parts = parts(ys, tasks.iter().map(len));
        tasks.iter().zip(parts).map(|(strips, (at, part))| (strips.clone(), at, part)).collect()
    }

    /// Strips that a task takes through all steps together.
    fn blocks(&self, strips: Range<usize>) -> Vec<Range<usize>> {
        let tile_bytes = self.positions() * (self.g.c_in + self.g.c_out) * size_of::<f32>();
        let tiles = (Self::BLOCK_BYTES / tile_bytes).clamp(Self::LEAST_BLOCK, Self::TASK_TILES);
        let step = (tiles / Self::LEAST_BLOCK * Self::LEAST_BLOCK / self.tiles.columns).max(1);
        strips.clone().step_by(step).map(|first| first..(first + step).min(strips.end)).collect()
    }

    /// All steps for some strips. `residual` is what will be added to `out`, or empty.
    fn together(
        &self,
        source: Source<'_, T>,
        filters: &[f32],
        strips: Range<usize>,
        out: &mut [T],
        residual: &[T],
    ) {
        let panel_len = self.filters.panel_len();
        let ((inputs, products), positions) =
            (self.stores(strips.len() * self.tiles.columns), self.positions());
        with_scratch(inputs.len(positions) + products.len(positions), |scratch| {
            let (seen, result) = scratch.split_at_mut(inputs.len(positions));
            let mut places = Places::of(inputs, seen);
            // What is written at the end comes nearer meanwhile, a tile's share with each tile.
            let share = out.len().div_ceil(inputs.tiles.max(1)).max(1);
            let mut later = out.chunks(share).zip(residual.chunks(share).chain(repeat(&[][..])));
            self.tiles.for_each(strips.clone(), |tile, image, corner| {
                if let Some((out, residual)) = later.next() {
                    prefetch(out.as_ptr(), out.len());
                    prefetch(residual.as_ptr(), residual.len());
                }
                (self.filters.scheme.input)(source.window(image, corner), &mut places, inputs, tile);
            });
            let starts = starts(inputs);
            let filters = filters.chunks_exact(self.filters.panels() * panel_len + GAP);
            let results = result.chunks_exact_mut(products.position_len());
            for ((seen, filters), result) in
                seen.chunks_exact(inputs.position_len()).zip(filters).zip(results)
            {
                let panels = filters.chunks_exact(panel_len);
                for (filters, result) in panels.zip(result.chunks_exact_mut(products.block_len())) {
                    self.product(seen, &starts, filters, result);
                }
            }
            self.outputs(strips, result, products, 0, out);
        });
    }

    /// The product of one position for a panel of channels: [tile][panel width].
    fn product(&self, seen: &[f32], starts: &[usize], filters: &[f32], result: &mut [f32]) {
        let width = self.filters.width();
        let left = Left { word: Word::Single, data: seen, starts, runs: &[0], run: self.g.c_in, step: 1 };
        let out = Out { data: result, stride: width, columns: width, end: End::Set };
        multiply(left, Right { data: filters, step: width, next: &[] }, out);
    }

    /// Aᵀ m A of the tiles of some strips, the first of which is tile `first` of `products`.
    fn outputs(&self, strips: Range<usize>, products: &[f32], store: Store, first: usize, mut out: &mut [T]) {
        let ((ho, wo), side) = (self.g.out, self.tiles.side);
        for (i, strip) in strips.enumerate() {
            let height = (ho - strip % self.tiles.strips * side).min(side);
            let (rows, others) = std::mem::take(&mut out).split_at_mut(height * wo * self.g.c_out);
            out = others;
            for column in 0..self.tiles.columns {
                let size = (height, (wo - column * side).min(side));
                let target = Target { rows, width: wo, column: column * side, size };
                let tile = first + i * self.tiles.columns + column;
                (self.filters.scheme.output)(products, store, tile, target);
            }
        }
    }
}

/// Each panel's part of every position, of data [position][panel][`panel_len`] with positions a gap apart.
fn panels_of(data: &mut [f32], panels: usize, panel_len: usize) -> Vec<Vec<&mut [f32]>> {
    let mut parts: Vec<_> = (0..panels).map(|_| Vec::new()).collect();
    for position in data.chunks_exact_mut(panels * panel_len + GAP) {
        for (part, slice) in parts.iter_mut().zip(position.chunks_exact_mut(panel_len)) {
            part.push(slice);
        }
    }
    parts
}

/// Where each tile starts in a position's data.
fn starts(store: Store) -> Vec<usize> {
    (0..store.tiles).map(|tile| store.at(tile, 0)).collect()
}

/// Applies a transform to every tile of some strips, in parallel.
fn transform<T: Element>(
    tiles: &Tiles,
    strips: Range<usize>,
    source: Source<'_, T>,
    store: Store,
    out: &mut [f32],
    transform: Transform<T>,
) {
    const TASK_TILES: usize = 16;
    // Each task gets its own tiles' part of every block of every position.
    let step = TASK_TILES.min(strips.len() * tiles.columns / 2).div_ceil(tiles.columns).max(1);
    let tasks: Vec<_> =
        strips.clone().step_by(step).map(|first| first..(first + step).min(strips.end)).collect();
    let mut parts: Vec<Vec<&mut [f32]>> = tasks.iter().map(|_| Vec::new()).collect();
    for position in out.chunks_exact_mut(store.position_len()) {
        for mut block in position.chunks_exact_mut(store.block_len()).take(store.blocks()) {
            for (part, strips) in parts.iter_mut().zip(&tasks) {
                let (slice, rest) = block.split_at_mut(strips.len() * tiles.columns * store.block);
                part.push(slice);
                block = rest;
            }
        }
    }
    let places = parts.into_iter().map(Places::new);
    each(tasks.into_iter().zip(places), |_, (strips, mut places)| {
        tiles.for_each(strips, |tile, image, corner| {
            transform(source.window(image, corner), &mut places, store, tile);
        });
    });
}
