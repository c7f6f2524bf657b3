//! The weight gradient: Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G, summed over tiles.

use super::super::super::Geometry;
use super::super::finish::End;
use super::super::from_columns;
use super::super::product::{Left, Out, Right, Word, multiply, width_of};
use super::layout::{GAP, Source, Store, Tiles};
use super::{Scheme, transform};
use crate::element::Element;
use crate::parallel::{buffer, chunks, with_scratch};
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
