//! Depthwise convolution: one channel per group, vectorised over channels.

use super::super::Geometry;
use super::{Finish, Weight};
use crate::element::{Element, store};
use crate::parallel::{buffer, chunks, map};
use crate::pool::take;
use crate::simd::multiversion;

/// Weights as [tap][channel], rounded as `T` stores them.
fn by_tap<T: Element>(g: &Geometry, weight: &[f32]) -> Vec<f32> {
    let taps = g.taps();
    let mut out = buffer(weight.len());
    for (c, taps_of_channel) in weight.chunks_exact(taps).enumerate() {
        for (tap, &w) in taps_of_channel.iter().enumerate() {
            out[tap * g.c_in + c] = T::round(w);
        }
    }
    out
}

/// For each tap of the window at output row `y` that falls inside: (input row, ky).
fn rows(g: &Geometry, y: usize) -> impl Iterator<Item = (usize, usize)> {
    let (stride, padding, dilation, h) =
        (g.window.stride.0, g.window.padding.0, g.window.dilation.0, g.size.0);
    (0..g.window.kernel.0).filter_map(move |ky| {
        let at = (y * stride + ky * dilation).checked_sub(padding)?;
        (at < h).then_some((at, ky))
    })
}

/// Output columns whose tap `kx` falls inside the input, as a range, and the input column of the first.
fn columns(g: &Geometry, kx: usize) -> (std::ops::Range<usize>, usize) {
    let (stride, padding, offset) = (g.window.stride.1, g.window.padding.1, kx * g.window.dilation.1);
    let first = padding.saturating_sub(offset).div_ceil(stride);
    // The last x with x * stride + offset - padding <= w - 1.
    let end = (g.size.1 + padding).checked_sub(offset + 1).map_or(0, |room| room / stride + 1).min(g.out.1);
    (first..end.max(first), (first * stride + offset).saturating_sub(padding))
}

pub(super) fn forward<T: Element>(
    g: &Geometry,
    xs: &[T],
    weight: Weight<'_>,
    finish: Finish<'_, T>,
) -> Vec<T> {
    let weight = by_tap::<T>(g, weight.values);
    let (c, (h, w), (ho, wo)) = (g.c_in, g.size, g.out);
    let mut ys = take::<T>(g.pixels() * c);
    chunks(&mut ys, wo * c, |i, out| {
        let (image, y) = (i / ho, i % ho);
        let mut sum = buffer::<f32>(wo * c);
        for (at, ky) in rows(g, y) {
            let row = &xs[(image * h + at) * w * c..][..w * c];
            for kx in 0..g.window.kernel.1 {
                let (range, first) = columns(g, kx);
                let tap = &weight[(ky * g.window.kernel.1 + kx) * c..][..c];
                let seen = row.get(first * c..).unwrap_or(&[]);
                multiply_add(&mut sum[range.start * c..range.end * c], seen, tap, g.window.stride.1);
            }
        }
        store(out, &sum);
        finish(i * wo * c, out);
    });
    ys
}

pub(super) fn input_gradient<T: Element>(g: &Geometry, dys: &[T], weight: &[f32]) -> Vec<T> {
    let weight = by_tap::<T>(g, weight);
    let (c, (h, w), (ho, wo)) = (g.c_in, g.size, g.out);
    let mut dxs = take::<T>(g.n * h * w * c);
    chunks(&mut dxs, h * w * c, |image, out| {
        let mut sum = buffer::<f32>(h * w * c);
        for y in 0..ho {
            let dy = &dys[(image * ho + y) * wo * c..][..wo * c];
            for (at, ky) in rows(g, y) {
                let row = &mut sum[at * w * c..][..w * c];
                for kx in 0..g.window.kernel.1 {
                    let (range, first) = columns(g, kx);
                    let tap = &weight[(ky * g.window.kernel.1 + kx) * c..][..c];
                    let seen = row.get_mut(first * c..).unwrap_or(&mut []);
                    scatter_add(seen, &dy[range.start * c..range.end * c], tap, g.window.stride.1);
                }
            }
        }
        store(out, &sum);
    });
    dxs
}

pub(super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    let (c, (h, w), (ho, wo), taps) = (g.c_in, g.size, g.out, g.taps());
    let partial = map(g.n, |image| {
        let mut sum = buffer::<f32>(taps * c);
        for y in 0..ho {
            let dy = &dys[(image * ho + y) * wo * c..][..wo * c];
            for (at, ky) in rows(g, y) {
                let row = &xs[(image * h + at) * w * c..][..w * c];
                for kx in 0..g.window.kernel.1 {
                    let (range, first) = columns(g, kx);
                    let tap = &mut sum[(ky * g.window.kernel.1 + kx) * c..][..c];
                    let seen = row.get(first * c..).unwrap_or(&[]);
                    correlate(tap, seen, &dy[range.start * c..range.end * c], g.window.stride.1);
                }
            }
        }
        sum
    });
    let mut total = vec![0f64; taps * c];
    for sums in &partial {
        for (t, &s) in total.iter_mut().zip(sums) {
            *t += f64::from(s);
        }
    }
    let mut out = buffer(taps * c);
    for (channel, of_channel) in out.chunks_exact_mut(taps).enumerate() {
        for (tap, o) in of_channel.iter_mut().enumerate() {
            *o = total[tap * c + channel] as f32;
        }
    }
    out
}

multiversion! {
    /// `sum[p] += xs[p * stride] * tap` for pixels of `tap.len()` channels.
    fn multiply_add<T: Element>(sum: &mut [f32], xs: &[T], tap: &[f32], stride: usize) {
        let c = tap.len();
        for (sum, x) in sum.chunks_exact_mut(c).zip(xs.chunks(c * stride)) {
            for ((s, &x), &w) in sum.iter_mut().zip(x).zip(tap) {
                *s += x.to_f32() * w;
            }
        }
    }
}

multiversion! {
    /// `dx[p * stride] += dy[p] * tap`.
    fn scatter_add<T: Element>(dx: &mut [f32], dy: &[T], tap: &[f32], stride: usize) {
        let c = tap.len();
        for (dx, dy) in dx.chunks_mut(c * stride).zip(dy.chunks_exact(c)) {
            for ((d, &y), &w) in dx.iter_mut().zip(dy).zip(tap) {
                *d += y.to_f32() * w;
            }
        }
    }
}

multiversion! {
    /// `tap += xs[p * stride] * dy[p]` over all pixels.
    fn correlate<T: Element>(tap: &mut [f32], xs: &[T], dy: &[T], stride: usize) {
        let c = tap.len();
        for (x, dy) in xs.chunks(c * stride).zip(dy.chunks_exact(c)) {
            for ((t, &x), &y) in tap.iter_mut().zip(x).zip(dy) {
                *t += x.to_f32() * y.to_f32();
            }
        }
    }
}
