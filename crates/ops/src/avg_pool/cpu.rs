//! Average pooling, vectorised over channels.

use super::Span;
use crate::element::Element;
use crate::parallel::{buffer, chunks};
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use crate::slot::{Backward, Dims, Gradients, Kernel, Slot};
use candle_core::Result;

pub(super) fn avg_pool(xs: &Slot, rows: Vec<Span>, columns: Vec<Span>) -> Result<Slot> {
    let (n, _, _, c) = xs.dims();
    let dims = (n, rows.len(), columns.len(), c);
    AvgPool { dims: xs.dims(), rows, columns }.apply(&[xs], &[], dims)
}

struct AvgPool {
    /// Of the input.
    dims: Dims,
    rows: Vec<Span>,
    columns: Vec<Span>,
}

impl Kernel for AvgPool {
    const NAME: &'static str = "avg_pool2d";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let (xs, (n, h, w, c)) = (maps[0], self.dims);
        let (ho, wo) = (self.rows.len(), self.columns.len());
        let mut ys = take::<T>(n * ho * wo * c);
        chunks(&mut ys, wo * c, |i, out| {
            let (image, row) = (i / ho, self.rows[i % ho]);
            let mut sum = buffer::<f32>(c);
            for (out, column) in out.chunks_exact_mut(c).zip(&self.columns) {
                sum.fill(0.0);
                for y in row.start..row.end {
                    add_pixels(
                        &xs[((image * h + y) * w + column.start) * c..((image * h + y) * w + column.end) * c],
                        &mut sum,
                    );
                }
                scale(&sum, (1.0 / (row.divisor * column.divisor)) as f32, out);
            }
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let (dys, (n, h, w, c)): (&[T], _) = (call.gradient, self.dims);
        let (ho, wo) = (self.rows.len(), self.columns.len());
        let mut dxs = take::<T>(n * h * w * c);
        chunks(&mut dxs, h * w * c, |image, out| {
            let mut sums = buffer::<f32>(h * w * c);
            for (y, row) in self.rows.iter().enumerate() {
                for (x, column) in self.columns.iter().enumerate() {
                    let dy = &dys[((image * ho + y) * wo + x) * c..][..c];
                    let factor = (1.0 / (row.divisor * column.divisor)) as f32;
                    for at in row.start..row.end {
                        spread(dy, factor, &mut sums[(at * w + column.start) * c..(at * w + column.end) * c]);
                    }
                }
            }
            scale(&sums, 1.0, out);
        });
        Ok((vec![Some(dxs)], Vec::new()))
    }
}

multiversion! {
    fn add_pixels<T: Element>(pixels: &[T], sum: &mut [f32]) {
        for pixel in pixels.chunks_exact(sum.len()) {
            for (s, &x) in sum.iter_mut().zip(pixel) {
                *s += x.to_f32();
            }
        }
    }
}

multiversion! {
    fn scale<T: Element>(sum: &[f32], factor: f32, out: &mut [T]) {
        for (o, &s) in out.iter_mut().zip(sum) {
            *o = T::from_f32(s * factor);
        }
    }
}

multiversion! {
    fn spread<T: Element>(dy: &[T], factor: f32, pixels: &mut [f32]) {
        for pixel in pixels.chunks_exact_mut(dy.len()) {
            for (p, &d) in pixel.iter_mut().zip(dy) {
                *p += d.to_f32() * factor;
            }
        }
    }
}
