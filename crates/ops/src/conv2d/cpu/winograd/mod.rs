//! Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray, arXiv 1509.09308) for 3×3 convolutions of stride
//! 1: a tile of 4×4 outputs takes 36 multiplications per pair of channels instead of 144.
//!
//! With the transforms B, G and A of the paper's section 4.3, a tile of outputs is
//! Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A. The elementwise products of all tiles and channels are one matrix product for
//! each of the 36 positions. The weight gradient is the exact adjoint, Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G, summed
//! over tiles.

mod transform;

use super::super::Geometry;
use super::gemm::{Matrix, multiply};
use crate::element::Element;
use crate::parallel::{buffer, chunks, with_scratch};
use rayon::prelude::*;
use std::ops::Range;
use transform::{
    Target, Window, from_filter_gradient, input_tile, output_gradient_tile, output_tile, to_filter,
};

/// Positions of a transformed tile: 6×6.
const POSITIONS: usize = 36;

/// Whether this kernel is the quickest for a geometry. Below some sixty channels the transforms cost what the
/// products save, and with few tiles a transformed filter is used too rarely to be worth reading.
pub(super) fn serves(g: &Geometry) -> bool {
    let w = &g.window;
    let shape = w.kernel == (3, 3) && w.stride == (1, 1) && w.dilation == (1, 1) && g.groups == 1;
    let padding = w.padding.0 <= 2 && w.padding.1 <= 2;
    let tiles = g.n * g.out.0.div_ceil(4) * g.out.1.div_ceil(4);
    shape && padding && g.c_in >= 48 && g.c_out >= 48 && tiles >= 96
}

/// The tiles of a batch. A *strip* is a row of tiles of one image: up to four whole rows of pixels.
#[derive(Clone, Copy)]
struct Tiles {
    /// Strips of an image, and tiles of a strip.
    strips: usize,
    columns: usize,
    images: usize,
}

impl Tiles {
    fn new(g: &Geometry) -> Self {
        Self { strips: g.out.0.div_ceil(4), columns: g.out.1.div_ceil(4), images: g.n }
    }

    fn count(&self) -> usize {
        self.images * self.strips * self.columns
    }

    /// Strips for one task of a transform: some 32 tiles.
    fn strips_per_task(&self) -> usize {
        32usize.div_ceil(self.columns)
    }

    /// The strips of each task.
    fn tasks(&self) -> impl Iterator<Item = Range<usize>> {
        let (total, step) = (self.images * self.strips, self.strips_per_task());
        (0..total).step_by(step).map(move |first| first..(first + step).min(total))
    }

    /// Calls `f(tile of the task, image, row and column of the first output pixel)` for each tile of strips.
    fn for_each(&self, strips: Range<usize>, mut f: impl FnMut(usize, usize, (usize, usize))) {
        for (i, strip) in strips.enumerate() {
            for column in 0..self.columns {
                let corner = (strip % self.strips * 4, column * 4);
                f(i * self.columns + column, strip / self.strips, corner);
            }
        }
    }
}

/// Applies a transform to every tile; `out` is [position][tile][channel].
fn transform_tiles(
    tiles: &Tiles,
    channels: usize,
    out: &mut [f32],
    transform: impl Fn(usize, (usize, usize), &mut [&mut [f32]], usize) + Sync,
) {
    // Each task gets its own tiles' part of every position.
    let step = tiles.strips_per_task() * tiles.columns * channels;
    let mut parts: Vec<(Range<usize>, Vec<&mut [f32]>)> =
        tiles.tasks().map(|strips| (strips, Vec::with_capacity(POSITIONS))).collect();
    for position in out.chunks_exact_mut(tiles.count() * channels) {
        for ((_, slices), slice) in parts.iter_mut().zip(position.chunks_mut(step)) {
            slices.push(slice);
        }
    }
    parts.into_par_iter().for_each(|(strips, mut slices)| {
        tiles.for_each(strips, |tile, image, corner| transform(image, corner, &mut slices, tile * channels));
    });
}

/// Bᵀ d B of every tile, as [position][tile]\[c_in\].
fn transform_inputs<T: Element>(g: &Geometry, tiles: &Tiles, xs: &[T], out: &mut [f32]) {
    let len = g.size.0 * g.size.1 * g.c_in;
    let (py, px) = (g.window.padding.0 as isize, g.window.padding.1 as isize);
    transform_tiles(tiles, g.c_in, out, |image, (y, x), out, at| {
        let corner = (y as isize - py, x as isize - px);
        let window = Window { image: &xs[image * len..][..len], size: g.size, corner };
        input_tile(window, out, at, g.c_in);
    });
}

/// A dy Aᵀ of every tile, as [position][tile]\[c_out\].
fn transform_output_gradients<T: Element>(g: &Geometry, tiles: &Tiles, dys: &[T], out: &mut [f32]) {
    let len = g.out.0 * g.out.1 * g.c_out;
    transform_tiles(tiles, g.c_out, out, |image, (y, x), out, at| {
        let window =
            Window { image: &dys[image * len..][..len], size: g.out, corner: (y as isize, x as isize) };
        output_gradient_tile(window, out, at, g.c_out);
    });
}

/// Transformed filters as [c_out][position]\[c_in\], rounded as `T` stores them; `tap` gives a filter's value for
/// (c_out, c_in, tap).
fn filters<T: Element>(
    c_in: usize,
    c_out: usize,
    tap: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Vec<f32> {
    let mut filters = buffer::<f32>(POSITIONS * c_in * c_out);
    chunks(&mut filters, POSITIONS * c_in, |o, out| {
        for ci in 0..c_in {
            let filter = std::array::from_fn(|t| T::round(tap(o, ci, t)));
            for (position, value) in to_filter(&filter).into_iter().enumerate() {
                out[position * c_in + ci] = value;
            }
        }
    });
    filters
}

pub(super) fn forward<T: Element>(g: &Geometry, xs: &[T], weight: &[f32]) -> Vec<T> {
    let filters = filters::<T>(g.c_in, g.c_out, |o, ci, tap| weight[(o * g.c_in + ci) * 9 + tap]);
    convolve(g, xs, &filters)
}

/// A convolution of the output gradient with the filters turned round.
pub(super) fn input_gradient<T: Element>(g: &Geometry, dys: &[T], weight: &[f32]) -> Vec<T> {
    let mut window = g.window;
    window.padding = (2 - g.window.padding.0, 2 - g.window.padding.1);
    let transposed = Geometry { size: g.out, c_in: g.c_out, out: g.size, c_out: g.c_in, window, ..*g };
    let filters = filters::<T>(g.c_out, g.c_in, |ci, o, tap| weight[(o * g.c_in + ci) * 9 + 8 - tap]);
    convolve(&transposed, dys, &filters)
}

fn convolve<T: Element>(g: &Geometry, xs: &[T], filters: &[f32]) -> Vec<T> {
    let tiles = Tiles::new(g);
    let (count, c_in, c_out) = (tiles.count(), g.c_in, g.c_out);
    with_scratch(POSITIONS * count * (c_in + c_out), |scratch| {
        let (inputs, products) = scratch.split_at_mut(POSITIONS * count * c_in);
        transform_inputs(g, &tiles, xs, inputs);
        chunks(products, count * c_out, |position, product| {
            let seen = Matrix::new(&inputs[position * count * c_in..], c_in, 1);
            let weights = Matrix::new(&filters[position * c_in..], 1, POSITIONS * c_in);
            multiply((count, c_out, c_in), product, c_out, seen, weights, false);
        });
        transform_outputs(g, &tiles, products)
    })
}

/// Aᵀ m A of every tile of products [position][tile]\[c_out\], put together to maps.
fn transform_outputs<T: Element>(g: &Geometry, tiles: &Tiles, products: &[f32]) -> Vec<T> {
    let (count, c_out, (ho, wo)) = (tiles.count(), g.c_out, g.out);
    let mut ys = buffer::<T>(g.pixels() * c_out);
    // The output rows of each task's strips lie together.
    let (mut rest, mut parts) = (&mut ys[..], Vec::new());
    for strips in tiles.tasks() {
        let rows: usize = strips.clone().map(|strip| (ho - strip % tiles.strips * 4).min(4)).sum();
        let (part, others) = std::mem::take(&mut rest).split_at_mut(rows * wo * c_out);
        rest = others;
        parts.push((strips, part));
    }
    parts.into_par_iter().for_each(|(strips, mut part)| {
        for strip in strips {
            let size = (ho - strip % tiles.strips * 4).min(4);
            let (rows, others) = std::mem::take(&mut part).split_at_mut(size * wo * c_out);
            part = others;
            for column in 0..tiles.columns {
                let tile = strip * tiles.columns + column;
                let size = (size, (wo - column * 4).min(4));
                let target = Target { rows, width: wo, column: column * 4, size };
                output_tile(&products[tile * c_out..], count * c_out, c_out, target);
            }
        }
    });
    ys
}

pub(super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    let tiles = Tiles::new(g);
    let (count, c_in, c_out) = (tiles.count(), g.c_in, g.c_out);
    with_scratch(POSITIONS * (count * (c_in + c_out) + c_in * c_out), |scratch| {
        let (inputs, rest) = scratch.split_at_mut(POSITIONS * count * c_in);
        let (gradients, products) = rest.split_at_mut(POSITIONS * count * c_out);
        transform_inputs(g, &tiles, xs, inputs);
        transform_output_gradients(g, &tiles, dys, gradients);
        chunks(products, c_out * c_in, |position, product| {
            let seen = Matrix::new(&inputs[position * count * c_in..], c_in, 1);
            let moved = Matrix::new(&gradients[position * count * c_out..], 1, c_out);
            multiply((c_out, c_in, count), product, c_in, moved, seen, false);
        });
        let mut dw = buffer::<f32>(c_out * c_in * 9);
        chunks(&mut dw, c_in * 9, |o, out| {
            for (ci, out) in out.chunks_exact_mut(9).enumerate() {
                let values = std::array::from_fn(|position| products[(position * c_out + o) * c_in + ci]);
                out.copy_from_slice(&from_filter_gradient(&values));
            }
        });
        dw
    })
}
