//! The weight gradient: Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G, summed over tiles.

use super::super::super::Geometry;
use super::super::finish::End;
use super::super::from_columns;
use super::super::product::{Left, Out, Right, Word, multiply, width_of};
use super::layout::{GAP, Source, Store, Tiles};
use super::transform::Places;
use super::{Scheme, Transform, transform};
use crate::element::Element;
use crate::parallel::{buffer, chunks, map, with_scratch};
use crate::pool::take;
use std::ops::Range;

pub(in super::super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    /// Tiles whose products are summed before they are added to the others: as many as a panel of both sides
    /// takes of the innermost cache.
    const SUMMED_TILES: usize = 256;
    let scheme = Scheme::<T>::choose();
    let (tiles, positions, width) = (Tiles::new(g, scheme.side), scheme.positions(), width_of(g.c_out));
    let outside = vec![T::default(); g.c_in.max(g.c_out)];
    let seen = Source { maps: xs, size: g.size, offset: g.window.padding, outside: &outside[..g.c_in] };
    let moved = Source { maps: dys, size: g.out, offset: (0, 0), outside: &outside[..g.c_out] };
    let (panels, panel_len) = (g.c_out.div_ceil(width), g.c_in * width);
    let sums_len = positions * (panels * panel_len + GAP);
    if sums_len * size_of::<f32>() <= OWN_BYTES {
        let gradient = Gradient { g, scheme, tiles, seen, moved };
        return gradient.by_task();
    }
    let tasks = tiles.tasks(tiles.count() / SUMMED_TILES);
    let most = tasks.iter().map(ExactSizeIterator::len).max().unwrap_or(0) * tiles.columns;
    let (inputs, gradients) = (Store::by_panel(most, g.c_in), Store::by_panel(most, g.c_out));
    let mut dw = buffer::<f32>(g.c_out * g.c_in * 9);
    with_scratch(inputs.len(positions) + gradients.len(positions), |scratch| {
        let (input, gradient) = scratch.split_at_mut(inputs.len(positions));
        let transformed = |strips: &Range<usize>, input: &mut [f32], gradient: &mut [f32]| {
            let count = strips.len() * tiles.columns;
            transform(&tiles, strips.clone(), seen, inputs.of(count), input, scheme.input);
            let of_gradients = gradients.of(count);
            transform(&tiles, strips.clone(), moved, of_gradients, gradient, scheme.output_gradient);
            count
        };
        if let [strips] = &tasks[..] {
            // Each task sums a panel of all positions and uses it up.
            let count = transformed(strips, input, gradient);
            let sums = Sums::new((input, inputs.of(count)), (gradient, gradients.of(count)));
            chunks(&mut dw, panel_len * 9, |panel, out| {
                with_scratch(positions * (panel_len + GAP), |scratch| {
                    for (position, sum) in scratch.chunks_exact_mut(panel_len + GAP).enumerate() {
                        sums.product(position, panel, &mut sum[..panel_len], false);
                    }
                    let positions: Vec<&[f32]> = scratch.chunks_exact(panel_len + GAP).collect();
                    store_gradients(&scheme, &positions, (g.c_in, width), out);
                });
            });
            return;
        }
        // [position][panel][c_in][panel width], positions a gap apart.
        let position_len = panels * panel_len + GAP;
        let mut total = take::<f32>(positions * position_len);
        for (i, strips) in tasks.iter().enumerate() {
            let count = transformed(strips, input, gradient);
            let sums = Sums::new((input, inputs.of(count)), (gradient, gradients.of(count)));
            chunks(&mut total, position_len, |position, total| {
                for (panel, total) in total.chunks_exact_mut(panel_len).enumerate() {
                    sums.product(position, panel, total, i > 0);
                }
            });
        }
        chunks(&mut dw, panel_len * 9, |panel, out| {
            let of_panel = |position| &total[position * position_len + panel * panel_len..][..panel_len];
            store_gradients(&scheme, &(0..positions).map(of_panel).collect::<Vec<_>>(), (g.c_in, width), out);
        });
    });
    dw
}

/// Bytes of the sums of all positions that a task may have for itself.
const OWN_BYTES: usize = 700 << 10;

/// A weight gradient whose tasks have sums of their own: they are few.
struct Gradient<'a, T> {
    g: &'a Geometry,
    scheme: Scheme<T>,
    tiles: Tiles,
    seen: Source<'a, T>,
    moved: Source<'a, T>,
}

impl<T: Element> Gradient<'_, T> {
    /// Tasks that keep several threads busy, and tiles that are worth one.
    const TASKS: usize = 16;
    const TASK_TILES: usize = 64;

    /// Bytes of the sums of all tasks together.
    const BYTES: usize = 5 << 20;

    /// Bytes of the transformed tiles of both sides that stay in a thread's own cache.
    const BLOCK_BYTES: usize = 256 << 10;

    fn by_task(&self) -> Vec<f32> {
        let (c_in, c_out, positions) = (self.g.c_in, self.g.c_out, self.scheme.positions());
        let width = width_of(c_out);
        let (panels, panel_len) = (c_out.div_ceil(width), c_in * width);
        let sums_len = positions * panels * panel_len;
        let most = (Self::BYTES / (sums_len * size_of::<f32>())).clamp(1, Self::TASKS);
        let tasks = self.tiles.tasks((self.tiles.count() / Self::TASK_TILES).min(most));
        // [position][panel][c_in][panel width]
        let partial = map(tasks.len(), |i| {
            let mut sums = take::<f32>(sums_len);
            self.sum(tasks[i].clone(), &mut sums);
            sums
        });
        let mut dw = buffer::<f32>(c_out * c_in * 9);
        chunks(&mut dw, panel_len * 9, |panel, out| {
            let at = |position| (position * panels + panel) * panel_len;
            with_scratch(positions * panel_len, |total| {
                for (position, total) in total.chunks_exact_mut(panel_len).enumerate() {
                    for (i, sums) in partial.iter().enumerate() {
                        let sums = &sums[at(position)..][..panel_len];
                        match i {
                            0 => total.copy_from_slice(sums),
                            _ => total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum),
                        }
                    }
                }
                let positions: Vec<&[f32]> = total.chunks_exact(panel_len).collect();
                store_gradients(&self.scheme, &positions, (c_in, width), out);
            });
        });
        dw
    }

    /// The sums of a task, over some strips.
    fn sum(&self, strips: Range<usize>, sums: &mut [f32]) {
        let (g, positions) = (self.g, self.scheme.positions());
        let panel_len = g.c_in * width_of(g.c_out);
        let tile_bytes = positions * (g.c_in + g.c_out) * size_of::<f32>();
        let step = (Self::BLOCK_BYTES / tile_bytes / self.tiles.columns.max(1)).max(1);
        let most = step.min(strips.len()) * self.tiles.columns;
        let stores = (Store::by_panel(most, g.c_in), Store::by_panel(most, g.c_out));
        with_scratch(stores.0.len(positions) + stores.1.len(positions), |scratch| {
            for first in strips.clone().step_by(step) {
                let block = first..(first + step).min(strips.end);
                let count = block.len() * self.tiles.columns;
                let (inputs, gradients) = (stores.0.of(count), stores.1.of(count));
                let (input, gradient) = scratch.split_at_mut(inputs.len(positions));
                let gradient = &mut gradient[..gradients.len(positions)];
                self.place(block.clone(), self.seen, inputs, input, self.scheme.input);
                self.place(block, self.moved, gradients, gradient, self.scheme.output_gradient);
                let both = Sums::new((input, inputs), (gradient, gradients));
                for (i, sums) in sums.chunks_exact_mut(panel_len).enumerate() {
                    let panels = gradients.blocks();
                    both.product(i / panels, i % panels, sums, first > strips.start);
                }
            }
        });
    }

    /// The transformed tiles of some strips.
    fn place(
        &self,
        strips: Range<usize>,
        source: Source<'_, T>,
        store: Store,
        out: &mut [f32],
        transform: Transform<T>,
    ) {
        let mut places = Places::of(store, out);
        self.tiles.for_each(strips, |tile, image, corner| {
            transform(source.window(image, corner), &mut places, store, tile);
        });
    }
}

/// The transformed tiles of both sides of a weight gradient.
struct Sums<'a> {
    input: &'a [f32],
    inputs: Store,
    gradient: &'a [f32],
    gradients: Store,
    /// Where each input channel starts in a position's data.
    starts: Vec<usize>,
}

impl<'a> Sums<'a> {
    fn new((input, inputs): (&'a [f32], Store), (gradient, gradients): (&'a [f32], Store)) -> Self {
        let starts = (0..inputs.channels).map(|ci| inputs.at(0, ci)).collect();
        Self { input, inputs, gradient, gradients, starts }
    }

    /// The products of one position, summed over tiles, for a panel of output channels: [c_in][panel width].
    fn product(&self, position: usize, panel: usize, out: &mut [f32], accumulate: bool) {
        let (inputs, gradients) = (self.inputs, self.gradients);
        let width = gradients.block;
        let data = &self.input[position * inputs.position_len()..][..inputs.position_len()];
        let left = Left {
            word: Word::Single,
            data,
            starts: &self.starts,
            runs: &[0],
            run: inputs.tiles,
            step: inputs.block,
        };
        let right = position * gradients.position_len() + panel * gradients.block_len();
        let right = &self.gradient[right..][..gradients.block_len()];
        let right = Right { data: right, step: width, next: &[] };
        multiply(left, right, Out { data: out, stride: width, columns: width, end: End::add_if(accumulate) });
    }
}

/// Gᵀ u G of a panel of output channels, `positions` [c_in][panel width] each, into weights [c_out][c_in][3][3].
fn store_gradients<T>(
    scheme: &Scheme<T>,
    positions: &[&[f32]],
    (c_in, width): (usize, usize),
    out: &mut [f32],
) {
    // The nine taps of the input channel that is being stored.
    let (mut channel, mut taps) = (usize::MAX, vec![0f32; 9 * width]);
    from_columns(out, c_in, 9, |ci, tap, lanes| {
        if channel != ci {
            (scheme.filter_gradients)(positions, ci * width, &mut taps);
            channel = ci;
        }
        lanes.copy_from_slice(&taps[tap * width..][..lanes.len()]);
    });
}
