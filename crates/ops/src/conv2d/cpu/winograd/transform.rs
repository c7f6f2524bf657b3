//! The transforms of F(4×4, 3×3) with interpolation points 0, ±1, ±2 and ∞, on eight channels at a time.

use crate::element::Element;
use crate::simd::multiversion;
use std::ops::{Add, Mul, Sub};

/// Channels that go through a transform together.
const LANES: usize = 8;

/// One value for each of eight channels.
#[derive(Clone, Copy)]
struct Lanes([f32; LANES]);

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);

    #[inline(always)]
    fn load<T: Element>(xs: &[T]) -> Self {
        let mut out = [0.0; LANES];
        for (o, &x) in out.iter_mut().zip(xs) {
            *o = x.to_f32();
        }
        Self(out)
    }

    #[inline(always)]
    fn store<T: Element>(self, out: &mut [T]) {
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

/// Bᵀ d: six inputs.
#[inline(always)]
fn input(d: [Lanes; 6]) -> [Lanes; 6] {
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

/// Aᵀ m: six products to four outputs.
#[inline(always)]
fn output(m: [Lanes; 6]) -> [Lanes; 4] {
    let (sum1, difference1) = (m[1] + m[2], m[1] - m[2]);
    let (sum2, difference2) = (m[3] + m[4], m[3] - m[4]);
    [
        m[0] + sum1 + sum2,
        difference1 + difference2 * 2.0,
        sum1 + sum2 * 4.0,
        difference1 + difference2 * 8.0 + m[5],
    ]
}

/// A y: four output gradients to six.
#[inline(always)]
fn output_gradient(y: [Lanes; 4]) -> [Lanes; 6] {
    let (even1, odd1) = (y[0] + y[2], y[1] + y[3]);
    let (even2, odd2) = (y[0] + y[2] * 4.0, y[1] * 2.0 + y[3] * 8.0);
    [y[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, y[3]]
}

/// G: three taps to six values.
fn filter(g: [f32; 3]) -> [f32; 6] {
    let (outer, quarter) = ((g[0] + g[2]) / 6.0, g[0] / 24.0 + g[2] / 6.0);
    [g[0] / 4.0, -outer - g[1] / 6.0, -outer + g[1] / 6.0, quarter + g[1] / 12.0, quarter - g[1] / 12.0, g[2]]
}

/// Gᵀ: six values to three taps.
fn filter_gradient(u: [f32; 6]) -> [f32; 3] {
    let (sum1, difference1) = ((u[1] + u[2]) / 6.0, (u[2] - u[1]) / 6.0);
    let (sum2, difference2) = (u[3] + u[4], u[3] - u[4]);
    [u[0] / 4.0 - sum1 + sum2 / 24.0, difference1 + difference2 / 12.0, sum2 / 6.0 - sum1 + u[5]]
}

/// G g Gᵀ of a 3×3 filter.
pub(super) fn to_filter(taps: &[f32; 9]) -> [f32; 36] {
    let columns: [[f32; 6]; 3] = std::array::from_fn(|x| filter([taps[x], taps[3 + x], taps[6 + x]]));
    let mut out = [0.0; 36];
    for y in 0..6 {
        out[y * 6..][..6].copy_from_slice(&filter([columns[0][y], columns[1][y], columns[2][y]]));
    }
    out
}

/// Gᵀ u G of a transformed filter's gradient.
pub(super) fn from_filter_gradient(u: &[f32; 36]) -> [f32; 9] {
    let columns: [[f32; 3]; 6] =
        std::array::from_fn(|x| filter_gradient(std::array::from_fn(|y| u[y * 6 + x])));
    let mut out = [0.0; 9];
    for y in 0..3 {
        out[y * 3..][..3].copy_from_slice(&filter_gradient(std::array::from_fn(|x| columns[x][y])));
    }
    out
}

/// An image [height, width, channels] and the pixel at which a tile starts, which may lie outside.
#[derive(Clone, Copy)]
pub(super) struct Window<'a, T> {
    pub(super) image: &'a [T],
    pub(super) size: (usize, usize),
    pub(super) corner: (isize, isize),
}

impl<T: Element> Window<'_, T> {
    /// Eight channels, from `ch` on, of the pixel at (y, x) of the tile; zeros outside the image.
    #[inline(always)]
    fn at(&self, y: usize, x: usize, channels: usize, ch: usize) -> Lanes {
        let (row, column) = (self.corner.0 + y as isize, self.corner.1 + x as isize);
        let inside = 0 <= row && row < self.size.0 as isize && 0 <= column && column < self.size.1 as isize;
        if !inside {
            return Lanes::ZERO;
        }
        let pixel = &self.image[(row as usize * self.size.1 + column as usize) * channels..][..channels];
        Lanes::load(&pixel[ch..])
    }
}

multiversion! {
    /// Bᵀ d B of a 6×6 tile; `out[position]` has the tile's channels.
    pub(super) fn input_tile<T: Element>(window: Window<'_, T>, out: &mut [&mut [f32]], at: usize, channels: usize) {
        for ch in (0..channels).step_by(LANES) {
            let mut columns = [[Lanes::ZERO; 6]; 6];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = input(std::array::from_fn(|y| window.at(y, x, channels, ch)));
            }
            let end = (ch + LANES).min(channels);
            for y in 0..6 {
                let row = input(std::array::from_fn(|x| columns[x][y]));
                for (x, value) in row.into_iter().enumerate() {
                    value.store(&mut out[y * 6 + x][at + ch..at + end]);
                }
            }
        }
    }
}

multiversion! {
    /// A dy Aᵀ of a 4×4 tile of output gradients.
    pub(super) fn output_gradient_tile<T: Element>(
        window: Window<'_, T>, out: &mut [&mut [f32]], at: usize, channels: usize
    ) {
        for ch in (0..channels).step_by(LANES) {
            let mut columns = [[Lanes::ZERO; 6]; 4];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = output_gradient(std::array::from_fn(|y| window.at(y, x, channels, ch)));
            }
            let end = (ch + LANES).min(channels);
            for y in 0..6 {
                let row = output_gradient(std::array::from_fn(|x| columns[x][y]));
                for (x, value) in row.into_iter().enumerate() {
                    value.store(&mut out[y * 6 + x][at + ch..at + end]);
                }
            }
        }
    }
}

/// Where a tile of outputs goes: rows of `width` pixels of `channels`, as many rows and columns as lie inside.
pub(super) struct Target<'a, T> {
    pub(super) rows: &'a mut [T],
    pub(super) width: usize,
    pub(super) column: usize,
    pub(super) size: (usize, usize),
}

multiversion! {
    /// Aᵀ m A of the products of a tile, `products[position * stride..]` having its channels.
    pub(super) fn output_tile<T: Element>(products: &[f32], stride: usize, channels: usize, target: Target<'_, T>) {
        for ch in (0..channels).step_by(LANES) {
            let end = (ch + LANES).min(channels);
            let mut columns = [[Lanes::ZERO; 4]; 6];
            for (x, column) in columns.iter_mut().enumerate() {
                let at = |y: usize| Lanes::load(&products[(y * 6 + x) * stride..][ch..end]);
                *column = output(std::array::from_fn(at));
            }
            let rows = target.rows.chunks_exact_mut(target.width * channels).take(target.size.0);
            for (y, pixels) in rows.enumerate() {
                let row = output(std::array::from_fn(|x| columns[x][y]));
                for (x, value) in row.into_iter().take(target.size.1).enumerate() {
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

    /// The one-dimensional identity behind it all: A'[(G g) * (B' d)] is the correlation of d with g.
    #[test]
    fn transforms_compose_to_a_correlation() {
        let (d, g) = ([1.0, -2.0, 3.0, 0.5, -1.5, 2.5], [0.3, -0.7, 1.1]);
        let (seen, taps) = (input(d.map(|v| Lanes([v; LANES]))), filter(g));
        let products: [Lanes; 6] = std::array::from_fn(|i| seen[i] * taps[i]);
        for (i, y) in output(products).into_iter().enumerate() {
            let direct = d[i] * g[0] + d[i + 1] * g[1] + d[i + 2] * g[2];
            assert!((y.0[0] - direct).abs() < 1e-5, "{i}: {} and {direct}", y.0[0]);
        }
    }
}
