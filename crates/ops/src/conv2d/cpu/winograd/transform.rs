//! The transforms of F(4×4, 3×3), with interpolation points 0, ±1, ±2 and ∞, and of F(2×2, 3×3), with 0, ±1 and ∞,
//! on eight channels at a time.

use super::Store;
use crate::element::Element;
use crate::simd::multiversion;
use std::ops::{Add, Mul, Sub};

/// Channels that go through a transform together.
const LANES: usize = 8;

/// One value for each of eight channels.
#[derive(Clone, Copy)]
pub(super) struct Lanes([f32; LANES]);

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);

    /// The first eight values, zeros where there are fewer.
    #[inline(always)]
    fn load<T: Element>(xs: &[T]) -> Self {
        if let Some(xs) = xs.first_chunk::<LANES>() {
            return Self(std::array::from_fn(|i| xs[i].to_f32()));
        }
        let mut out = [0.0; LANES];
        for (o, &x) in out.iter_mut().zip(xs) {
            *o = x.to_f32();
        }
        Self(out)
    }

    /// Writes as many values as there is room for, at most eight.
    #[inline(always)]
    fn store<T: Element>(self, out: &mut [T]) {
        if let Some(out) = out.first_chunk_mut::<LANES>() {
            for (o, x) in out.iter_mut().zip(self.0) {
                *o = T::from_f32(x);
            }
            return;
        }
        for (o, x) in out.iter_mut().zip(self.0) {
            *o = T::from_f32(x);
        }
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Add for Lanes {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Lanes {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul<f32> for Lanes {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: f32) -> Self {
        self.zip(self, |a, _| a * factor)
    }
}

/// The most inputs along a side of a tile.
const SIDE: usize = 6;

/// Values along a side of a tile: the first so many as there are.
pub(super) type Line = [Lanes; SIDE];

/// Minimal filtering F(m, 3) along one axis.
pub(super) trait Filtering {
    /// m.
    const OUTPUTS: usize;
    /// Inputs of a tile, and multiplications.
    const INPUTS: usize = Self::OUTPUTS + 2;
    /// Bᵀ d: inputs to as many.
    fn input(d: Line) -> Line;
    /// Aᵀ m: products to outputs.
    fn output(m: Line) -> Line;
    /// A y: output gradients to as many values as there are products.
    fn output_gradient(y: Line) -> Line;
    /// G g: three taps to values.
    fn filter(g: [Lanes; 3]) -> Line;
    /// Gᵀ u: values to three taps.
    fn filter_gradient(u: Line) -> [Lanes; 3];
}

/// F(4, 3).
pub(super) struct F4;

impl Filtering for F4 {
    const OUTPUTS: usize = 4;

    #[inline(always)]
    fn input(d: Line) -> Line {
        let (even, odd) = (d[4] - d[2] * 4.0, d[3] - d[1] * 4.0);
        let (near, far) = (d[4] - d[2], (d[3] - d[1]) * 2.0);
        [
            d[0] * 4.0 - d[2] * 5.0 + d[4],
            even + odd,
            even - odd,
            near + far,
            near - far,
            d[1] * 4.0 - d[3] * 5.0 + d[5],
        ]
    }

    #[inline(always)]
    fn output(m: Line) -> Line {
        let (sum1, difference1) = (m[1] + m[2], m[1] - m[2]);
        let (sum2, difference2) = (m[3] + m[4], m[3] - m[4]);
        [
            m[0] + sum1 + sum2,
            difference1 + difference2 * 2.0,
            sum1 + sum2 * 4.0,
            difference1 + difference2 * 8.0 + m[5],
            Lanes::ZERO,
            Lanes::ZERO,
        ]
    }

    #[inline(always)]
    fn output_gradient(y: Line) -> Line {
        let (even1, odd1) = (y[0] + y[2], y[1] + y[3]);
        let (even2, odd2) = (y[0] + y[2] * 4.0, y[1] * 2.0 + y[3] * 8.0);
        [y[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, y[3]]
    }

    #[inline(always)]
    fn filter(g: [Lanes; 3]) -> Line {
        let (outer, middle) = ((g[0] + g[2]) * (-1.0 / 6.0), g[1] * (1.0 / 6.0));
        let (quarter, twelfth) = (g[0] * (1.0 / 24.0) + g[2] * (1.0 / 6.0), g[1] * (1.0 / 12.0));
        [g[0] * 0.25, outer - middle, outer + middle, quarter + twelfth, quarter - twelfth, g[2]]
    }

    #[inline(always)]
    fn filter_gradient(u: Line) -> [Lanes; 3] {
        let (sum1, difference1) = ((u[1] + u[2]) * (1.0 / 6.0), (u[2] - u[1]) * (1.0 / 6.0));
        let (sum2, difference2) = (u[3] + u[4], u[3] - u[4]);
        [
            u[0] * 0.25 - sum1 + sum2 * (1.0 / 24.0),
            difference1 + difference2 * (1.0 / 12.0),
            sum2 * (1.0 / 6.0) - sum1 + u[5],
        ]
    }
}

/// F(2, 3).
pub(super) struct F2;

impl Filtering for F2 {
    const OUTPUTS: usize = 2;

    #[inline(always)]
    fn input(d: Line) -> Line {
        [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3], Lanes::ZERO, Lanes::ZERO]
    }

    #[inline(always)]
    fn output(m: Line) -> Line {
        let zero = Lanes::ZERO;
        [m[0] + m[1] + m[2], m[1] - m[2] - m[3], zero, zero, zero, zero]
    }

    #[inline(always)]
    fn output_gradient(y: Line) -> Line {
        [y[0], y[0] + y[1], y[0] - y[1], Lanes::ZERO - y[1], Lanes::ZERO, Lanes::ZERO]
    }

    #[inline(always)]
    fn filter(g: [Lanes; 3]) -> Line {
        let (outer, middle) = ((g[0] + g[2]) * 0.5, g[1] * 0.5);
        [g[0], outer + middle, outer - middle, g[2], Lanes::ZERO, Lanes::ZERO]
    }

    #[inline(always)]
    fn filter_gradient(u: Line) -> [Lanes; 3] {
        let sum = (u[1] + u[2]) * 0.5;
        [u[0] + sum, (u[1] - u[2]) * 0.5, sum + u[3]]
    }
}

multiversion! {
    /// G g Gᵀ of filters: `taps` is [tap][lane] with any multiple of eight lanes; `out[position]` has the lanes
    /// from `at` on.
    pub(super) fn to_filters<F: Filtering>(taps: &[f32], out: &mut [&mut [f32]], at: usize) {
        let width = taps.len() / 9;
        for lane in (0..width).step_by(LANES) {
            let tap = |y: usize, x: usize| Lanes::load(&taps[(y * 3 + x) * width + lane..]);
            let mut columns = [[Lanes::ZERO; SIDE]; 3];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = F::filter([tap(0, x), tap(1, x), tap(2, x)]);
            }
            for y in 0..F::INPUTS {
                let row = F::filter([columns[0][y], columns[1][y], columns[2][y]]);
                for (x, value) in row.into_iter().take(F::INPUTS).enumerate() {
                    value.store(&mut out[y * F::INPUTS + x][at + lane..]);
                }
            }
        }
    }
}

multiversion! {
    /// Gᵀ u G of the gradients of transformed filters, laid out as in [`to_filters`].
    pub(super) fn from_filter_gradients<F: Filtering>(positions: &[&[f32]], at: usize, taps: &mut [f32]) {
        let width = taps.len() / 9;
        for lane in (0..width).step_by(LANES) {
            let mut columns = [[Lanes::ZERO; 3]; SIDE];
            for (x, column) in columns.iter_mut().take(F::INPUTS).enumerate() {
                let mut values = [Lanes::ZERO; SIDE];
                for (y, value) in values.iter_mut().take(F::INPUTS).enumerate() {
                    *value = Lanes::load(&positions[y * F::INPUTS + x][at + lane..]);
                }
                *column = F::filter_gradient(values);
            }
            for y in 0..3 {
                let mut values = [Lanes::ZERO; SIDE];
                for (value, column) in values.iter_mut().zip(&columns) {
                    *value = column[y];
                }
                for (x, value) in F::filter_gradient(values).into_iter().enumerate() {
                    value.store(&mut taps[(y * 3 + x) * width + lane..]);
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

    /// Eight channels, from `ch` on, of the pixel at an offset.
    #[inline(always)]
    fn at(&self, offset: usize, ch: usize) -> Lanes {
        if offset == OUTSIDE {
            return Lanes::ZERO;
        }
        Lanes::load(&self.image[offset + ch..offset + self.channels])
    }
}

multiversion! {
    /// Bᵀ d B of a tile of inputs, the tile `tile` of the slices [position × block].
    pub(super) fn input_tile<T: Element, F: Filtering>(window: Window<'_, T>, out: &mut [&mut [f32]], store: Store, tile: usize) {
        let (offsets, blocks) = (window.offsets(F::INPUTS), store.blocks());
        for ch in (0..window.channels).step_by(LANES) {
            let mut columns = [[Lanes::ZERO; SIDE]; SIDE];
            for (x, column) in columns.iter_mut().take(F::INPUTS).enumerate() {
                let mut values = [Lanes::ZERO; SIDE];
                for (value, row) in values.iter_mut().zip(&offsets[..F::INPUTS]) {
                    *value = window.at(row[x], ch);
                }
                *column = F::input(values);
            }
            let (block, at) = (ch / store.block, tile * store.block + ch % store.block);
            let end = at + LANES.min(window.channels - ch);
            for y in 0..F::INPUTS {
                let mut values = [Lanes::ZERO; SIDE];
                for (value, column) in values.iter_mut().zip(&columns) {
                    *value = column[y];
                }
                for (x, value) in F::input(values).into_iter().take(F::INPUTS).enumerate() {
                    value.store(&mut out[(y * F::INPUTS + x) * blocks + block][at..end]);
                }
            }
        }
    }
}

multiversion! {
    /// A dy Aᵀ of a tile of output gradients, placed as by [`input_tile`].
    pub(super) fn output_gradient_tile<T: Element, F: Filtering>(
        window: Window<'_, T>, out: &mut [&mut [f32]], store: Store, tile: usize
    ) {
        let (offsets, blocks) = (window.offsets(F::OUTPUTS), store.blocks());
        for ch in (0..window.channels).step_by(LANES) {
            let mut columns = [[Lanes::ZERO; SIDE]; SIDE];
            for (x, column) in columns.iter_mut().take(F::OUTPUTS).enumerate() {
                let mut values = [Lanes::ZERO; SIDE];
                for (value, row) in values.iter_mut().zip(&offsets[..F::OUTPUTS]) {
                    *value = window.at(row[x], ch);
                }
                *column = F::output_gradient(values);
            }
            let (block, at) = (ch / store.block, tile * store.block + ch % store.block);
            let end = at + LANES.min(window.channels - ch);
            for y in 0..F::INPUTS {
                let mut values = [Lanes::ZERO; SIDE];
                for (value, column) in values.iter_mut().zip(&columns) {
                    *value = column[y];
                }
                for (x, value) in F::output_gradient(values).into_iter().take(F::INPUTS).enumerate() {
                    value.store(&mut out[(y * F::INPUTS + x) * blocks + block][at..end]);
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

multiversion! {
    /// Aᵀ m A of the products of the tile `tile`.
    pub(super) fn output_tile<T: Element, F: Filtering>(products: &[f32], store: Store, tile: usize, target: Target<'_, T>) {
        let (channels, position_len) = (store.channels, store.position_len());
        for ch in (0..channels).step_by(LANES) {
            let at = store.at(tile, ch);
            let mut columns = [[Lanes::ZERO; SIDE]; SIDE];
            for (x, column) in columns.iter_mut().take(F::INPUTS).enumerate() {
                let mut values = [Lanes::ZERO; SIDE];
                for (y, value) in values.iter_mut().take(F::INPUTS).enumerate() {
                    *value = Lanes::load(&products[(y * F::INPUTS + x) * position_len + at..]);
                }
                *column = F::output(values);
            }
            let end = (ch + LANES).min(channels);
            let rows = target.rows.chunks_exact_mut(target.width * channels).take(target.size.0);
            for (y, pixels) in rows.enumerate() {
                let mut values = [Lanes::ZERO; SIDE];
                for (value, column) in values.iter_mut().zip(&columns) {
                    *value = column[y];
                }
                for (x, value) in F::output(values).into_iter().take(target.size.1).enumerate() {
                    let pixel = &mut pixels[(target.column + x) * channels..][..channels];
                    value.store(&mut pixel[ch..end]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one-dimensional identity behind it all: Aᵀ[(G g) ⊙ (Bᵀ d)] is the correlation of d with g.
    fn check<F: Filtering>() {
        let (d, g) = ([1.0, -2.0, 3.0, 0.5, -1.5, 2.5], [0.3, -0.7, 1.1]);
        let (seen, taps) = (F::input(d.map(|v| Lanes([v; LANES]))), F::filter(g.map(|v| Lanes([v; LANES]))));
        let products: Line = std::array::from_fn(|i| seen[i] * taps[i].0[0]);
        for (i, y) in F::output(products).into_iter().take(F::OUTPUTS).enumerate() {
            let direct = d[i] * g[0] + d[i + 1] * g[1] + d[i + 2] * g[2];
            assert!((y.0[0] - direct).abs() < 1e-5, "{i}: {} and {direct}", y.0[0]);
        }
    }

    #[test]
    fn transforms_compose_to_a_correlation() {
        check::<F4>();
        check::<F2>();
    }
}
