//! The transforms of F(4×4, 3×3), with interpolation points 0, ±1, ±2 and ∞, and of F(2×2, 3×3), with 0, ±1 and ∞,
//! on a register of channels at a time.

use super::Store;
use crate::element::Element;
use crate::simd::{Vector, vectorised};

/// The most inputs along a side of a tile.
const SIDE: usize = 6;

/// Values along a side of a tile: the first so many as there are.
type Line<V> = [V; SIDE];

/// `to + x · factor`.
#[inline(always)]
fn plus<V: Vector>(to: V, x: V, factor: f32) -> V {
    to.mul_add(x, V::splat(factor))
}

#[inline(always)]
fn times<V: Vector>(x: V, factor: f32) -> V {
    x.mul(V::splat(factor))
}

/// A line of the values of an expression for the first so many indices, and zeros. Neither a loop nor a closure: a line
/// that is written in a loop is cleared before, in memory, and a closure may not be compiled for the instruction set.
macro_rules! line {
    ($zero:expr; $i:ident < $len:expr => $value:expr) => {
        [
            line!($zero, $i, 0, $len, $value),
            line!($zero, $i, 1, $len, $value),
            line!($zero, $i, 2, $len, $value),
            line!($zero, $i, 3, $len, $value),
            line!($zero, $i, 4, $len, $value),
            line!($zero, $i, 5, $len, $value),
        ]
    };
    ($zero:expr, $i:ident, $index:literal, $len:expr, $value:expr) => {
        if $index < $len {
            let $i = $index;
            $value
        } else {
            $zero
        }
    };
}

#[inline(always)]
fn no_line<V: Vector>() -> Line<V> {
    [V::splat(0.0); SIDE]
}

/// Minimal filtering F(m, 3) along one axis.
pub(super) trait Filtering {
    /// m.
    const OUTPUTS: usize;
    /// Inputs of a tile, and multiplications.
    const INPUTS: usize = Self::OUTPUTS + 2;
    /// Bᵀ d: inputs to as many.
    fn input<V: Vector>(d: Line<V>) -> Line<V>;
    /// Aᵀ m: products to outputs.
    fn output<V: Vector>(m: Line<V>) -> Line<V>;
    /// A y: output gradients to as many values as there are products.
    fn output_gradient<V: Vector>(y: Line<V>) -> Line<V>;
    /// G g: three taps to values.
    fn filter<V: Vector>(g: [V; 3]) -> Line<V>;
    /// Gᵀ u: values to three taps.
    fn filter_gradient<V: Vector>(u: Line<V>) -> [V; 3];
}

/// F(4, 3).
pub(super) struct F4;

impl Filtering for F4 {
    const OUTPUTS: usize = 4;

    #[inline(always)]
    fn input<V: Vector>(d: Line<V>) -> Line<V> {
        let (even, odd) = (plus(d[4], d[2], -4.0), plus(d[3], d[1], -4.0));
        let (near, far) = (d[4].sub(d[2]), d[3].sub(d[1]));
        [
            plus(plus(d[4], d[2], -5.0), d[0], 4.0),
            even.add(odd),
            even.sub(odd),
            plus(near, far, 2.0),
            plus(near, far, -2.0),
            plus(plus(d[5], d[3], -5.0), d[1], 4.0),
        ]
    }

    #[inline(always)]
    fn output<V: Vector>(m: Line<V>) -> Line<V> {
        let (sum1, difference1) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (sum2, difference2) = (m[3].add(m[4]), m[3].sub(m[4]));
        let mut out = no_line();
        out[0] = m[0].add(sum1).add(sum2);
        out[1] = plus(difference1, difference2, 2.0);
        out[2] = plus(sum1, sum2, 4.0);
        out[3] = plus(difference1.add(m[5]), difference2, 8.0);
        out
    }

    #[inline(always)]
    fn output_gradient<V: Vector>(y: Line<V>) -> Line<V> {
        let (even1, odd1) = (y[0].add(y[2]), y[1].add(y[3]));
        let (even2, odd2) = (plus(y[0], y[2], 4.0), plus(y[1], y[3], 4.0));
        [y[0], even1.add(odd1), even1.sub(odd1), plus(even2, odd2, 2.0), plus(even2, odd2, -2.0), y[3]]
    }

    #[inline(always)]
    fn filter<V: Vector>(g: [V; 3]) -> Line<V> {
        let outer = times(g[0].add(g[2]), -1.0 / 6.0);
        let quarter = plus(times(g[0], 1.0 / 24.0), g[2], 1.0 / 6.0);
        [
            times(g[0], 0.25),
            plus(outer, g[1], -1.0 / 6.0),
            plus(outer, g[1], 1.0 / 6.0),
            plus(quarter, g[1], 1.0 / 12.0),
            plus(quarter, g[1], -1.0 / 12.0),
            g[2],
        ]
    }

    #[inline(always)]
    fn filter_gradient<V: Vector>(u: Line<V>) -> [V; 3] {
        let (sum1, difference1) = (u[1].add(u[2]), u[2].sub(u[1]));
        let (sum2, difference2) = (u[3].add(u[4]), u[3].sub(u[4]));
        let sum1 = times(sum1, -1.0 / 6.0);
        [
            plus(plus(sum1, u[0], 0.25), sum2, 1.0 / 24.0),
            plus(times(difference1, 1.0 / 6.0), difference2, 1.0 / 12.0),
            plus(sum1.add(u[5]), sum2, 1.0 / 6.0),
        ]
    }
}

/// F(2, 3).
pub(super) struct F2;

impl Filtering for F2 {
    const OUTPUTS: usize = 2;

    #[inline(always)]
    fn input<V: Vector>(d: Line<V>) -> Line<V> {
        let mut out = no_line();
        out[..4].copy_from_slice(&[d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[1].sub(d[3])]);
        out
    }

    #[inline(always)]
    fn output<V: Vector>(m: Line<V>) -> Line<V> {
        let mut out = no_line();
        out[..2].copy_from_slice(&[m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).sub(m[3])]);
        out
    }

    #[inline(always)]
    fn output_gradient<V: Vector>(y: Line<V>) -> Line<V> {
        let mut out = no_line();
        out[..4].copy_from_slice(&[y[0], y[0].add(y[1]), y[0].sub(y[1]), V::splat(0.0).sub(y[1])]);
        out
    }

    #[inline(always)]
    fn filter<V: Vector>(g: [V; 3]) -> Line<V> {
        let outer = times(g[0].add(g[2]), 0.5);
        let mut out = no_line();
        out[..4].copy_from_slice(&[g[0], plus(outer, g[1], 0.5), plus(outer, g[1], -0.5), g[2]]);
        out
    }

    #[inline(always)]
    fn filter_gradient<V: Vector>(u: Line<V>) -> [V; 3] {
        let sum = times(u[1].add(u[2]), 0.5);
        [u[0].add(sum), times(u[1].sub(u[2]), 0.5), sum.add(u[3])]
    }
}

vectorised! {
    /// G g Gᵀ of filters: `taps` is [tap][lane] with any multiple of sixteen lanes; `out[position]` has the lanes
    /// from `at` on.
    pub(super) fn to_filters<V; F: Filtering>(taps: &[f32], out: &mut [&mut [f32]], at: usize) {
        let width = taps.len() / 9;
        for lane in (0..width).step_by(V::LANES) {
            let tap = |y: usize, x: usize| V::first_of(&taps[(y * 3 + x) * width + lane..]);
            let mut columns = [no_line::<V>(); 3];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = F::filter([tap(0, x), tap(1, x), tap(2, x)]);
            }
            for y in 0..F::INPUTS {
                let row = F::filter([columns[0][y], columns[1][y], columns[2][y]]);
                for (x, value) in row.into_iter().take(F::INPUTS).enumerate() {
                    value.write_to(&mut out[y * F::INPUTS + x][at + lane..at + width]);
                }
            }
        }
    }
}

vectorised! {
    /// Gᵀ u G of the gradients of transformed filters, laid out as in [`to_filters`].
    pub(super) fn from_filter_gradients<V; F: Filtering>(positions: &[&[f32]], at: usize, taps: &mut [f32]) {
        let width = taps.len() / 9;
        for lane in (0..width).step_by(V::LANES) {
            let zero = V::splat(0.0);
            let columns = line!([zero; 3]; x < F::INPUTS => {
                let value = |y: usize| &positions[y * F::INPUTS + x][at + lane..at + width];
                F::filter_gradient(line!(zero; y < F::INPUTS => V::first_of(value(y))))
            });
            for y in 0..3 {
                let row = F::filter_gradient(line!(zero; x < F::INPUTS => columns[x][y]));
                for (x, value) in row.into_iter().enumerate() {
                    value.write_to(&mut taps[(y * 3 + x) * width..][lane..width]);
                }
            }
        }
    }
}

/// An image [height, width, channels] and the pixel at which a tile starts, which may lie outside.
#[derive(Clone, Copy)]
pub(super) struct Window<'a, T> {
    pub(super) image: &'a [T],
    pub(super) size: (usize, usize),
    pub(super) channels: usize,
    pub(super) corner: (isize, isize),
}

/// The offset of a pixel outside the image.
const OUTSIDE: usize = usize::MAX;

impl<T: Element> Window<'_, T> {
    /// Offsets in the image of the pixels of a tile of `side` × `side`.
    #[inline(always)]
    fn offsets(&self, side: usize) -> [[usize; SIDE]; SIDE] {
        let (h, w) = (self.size.0 as isize, self.size.1 as isize);
        let mut offsets = [[OUTSIDE; SIDE]; SIDE];
        for (y, row) in offsets.iter_mut().take(side).enumerate() {
            let at_y = self.corner.0 + y as isize;
            for (x, offset) in row.iter_mut().take(side).enumerate() {
                let at_x = self.corner.1 + x as isize;
                if 0 <= at_y && at_y < h && 0 <= at_x && at_x < w {
                    *offset = (at_y * w + at_x) as usize * self.channels;
                }
            }
        }
        offsets
    }

    /// A register of channels, from `ch` on, of the pixel at an offset.
    #[inline(always)]
    fn at<V: Vector>(&self, offset: usize, ch: usize) -> V {
        if offset == OUTSIDE {
            return V::splat(0.0);
        }
        V::first_of(&self.image[offset + ch..offset + self.channels])
    }
}

vectorised! {
    /// Bᵀ d B of a tile of inputs, the tile `tile` of the slices [position × block].
    pub(super) fn input_tile<V; T: Element, F: Filtering>(window: Window<'_, T>, out: &mut [&mut [f32]], store: Store, tile: usize) {
        let (offsets, blocks) = (window.offsets(F::INPUTS), store.blocks());
        for ch in (0..window.channels).step_by(V::LANES) {
            let zero = V::splat(0.0);
            let columns = line!([zero; SIDE]; x < F::INPUTS => {
                F::input(line!(zero; y < F::INPUTS => window.at(offsets[y][x], ch)))
            });
            let (block, at) = (ch / store.block, tile * store.block + ch % store.block);
            let end = at + V::LANES.min(window.channels - ch);
            for y in 0..F::INPUTS {
                let row = F::input(line!(zero; x < F::INPUTS => columns[x][y]));
                for (x, value) in row.into_iter().take(F::INPUTS).enumerate() {
                    value.write_to(&mut out[(y * F::INPUTS + x) * blocks + block][at..end]);
                }
            }
        }
    }
}

vectorised! {
    /// A dy Aᵀ of a tile of output gradients, placed as by [`input_tile`].
    pub(super) fn output_gradient_tile<V; T: Element, F: Filtering>(
        window: Window<'_, T>, out: &mut [&mut [f32]], store: Store, tile: usize
    ) {
        let (offsets, blocks) = (window.offsets(F::OUTPUTS), store.blocks());
        for ch in (0..window.channels).step_by(V::LANES) {
            let zero = V::splat(0.0);
            let columns = line!([zero; SIDE]; x < F::OUTPUTS => {
                F::output_gradient(line!(zero; y < F::OUTPUTS => window.at(offsets[y][x], ch)))
            });
            let (block, at) = (ch / store.block, tile * store.block + ch % store.block);
            let end = at + V::LANES.min(window.channels - ch);
            for y in 0..F::INPUTS {
                let row = F::output_gradient(line!(zero; x < F::OUTPUTS => columns[x][y]));
                for (x, value) in row.into_iter().take(F::INPUTS).enumerate() {
                    value.write_to(&mut out[(y * F::INPUTS + x) * blocks + block][at..end]);
                }
            }
        }
    }
}

/// Where a tile of outputs goes: rows of `width` pixels, as many rows and columns as lie inside.
pub(super) struct Target<'a, T> {
    pub(super) rows: &'a mut [T],
    pub(super) width: usize,
    pub(super) column: usize,
    pub(super) size: (usize, usize),
}

vectorised! {
    /// Aᵀ m A of the products of the tile `tile`.
    pub(super) fn output_tile<V; T: Element, F: Filtering>(products: &[f32], store: Store, tile: usize, target: Target<'_, T>) {
        let (channels, position_len) = (store.channels, store.position_len());
        for ch in (0..channels).step_by(V::LANES) {
            let at = store.at(tile, ch);
            let zero = V::splat(0.0);
            let columns = line!([zero; SIDE]; x < F::INPUTS => {
                let value = |y: usize| &products[(y * F::INPUTS + x) * position_len + at..];
                F::output(line!(zero; y < F::INPUTS => V::first_of(value(y))))
            });
            let end = (ch + V::LANES).min(channels);
            let rows = target.rows.chunks_exact_mut(target.width * channels).take(target.size.0);
            for (y, pixels) in rows.enumerate() {
                let row = F::output(line!(zero; x < F::INPUTS => columns[x][y]));
                for (x, value) in row.into_iter().take(target.size.1).enumerate() {
                    let pixel = &mut pixels[(target.column + x) * channels..][..channels];
                    value.write_to(&mut pixel[ch..end]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    /// The one-dimensional identity behind it all: Aᵀ[(G g) ⊙ (Bᵀ d)] is the correlation of d with g.
    fn check<F: Filtering>() {
        let (d, g) = ([1.0, -2.0, 3.0, 0.5, -1.5, 2.5], [0.3, -0.7, 1.1]);
        let (seen, taps) = (F::input(d.map(Portable::splat)), F::filter(g.map(Portable::splat)));
        let products: Line<Portable> = std::array::from_fn(|i| seen[i].mul(taps[i]));
        for (i, y) in F::output(products).into_iter().take(F::OUTPUTS).enumerate() {
            let direct = d[i] * g[0] + d[i + 1] * g[1] + d[i + 2] * g[2];
            let mut lane = [0f32];
            y.write_to(&mut lane);
            assert!((lane[0] - direct).abs() < 1e-5, "{i}: {} and {direct}", lane[0]);
        }
    }

    #[test]
    fn transforms_compose_to_a_correlation() {
        check::<F4>();
        check::<F2>();
    }
}
