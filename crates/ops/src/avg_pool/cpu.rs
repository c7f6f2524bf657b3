//! Average pooling, vectorised over channels.

use super::Span;
use crate::element::{Element, Elements, by_element, operand};
use crate::parallel::{buffer, chunks};
use crate::simd::multiversion;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

pub(super) fn avg_pool(xs: &Tensor, rows: Vec<Span>, columns: Vec<Span>) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Op { rows, columns })
}

struct Op {
    rows: Vec<Span>,
    columns: Vec<Span>,
}

impl Op {
    fn forward<T: Element>(&self, xs: &[T], (n, h, w, c): (usize, usize, usize, usize)) -> Vec<T> {
        let (ho, wo) = (self.rows.len(), self.columns.len());
        let mut ys = buffer::<T>(n * ho * wo * c);
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
}

fn backward<T: Element>(op: &Op, xs: &Tensor, dys: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = xs.dims4()?;
    let (ho, wo) = (op.rows.len(), op.columns.len());
    let dys = Elements::<T>::of(dys)?;
    let dys: &[T] = &dys;
    let mut dxs = buffer::<T>(n * h * w * c);
    chunks(&mut dxs, h * w * c, |image, out| {
        let mut sums = buffer::<f32>(h * w * c);
        for (y, row) in op.rows.iter().enumerate() {
            for (x, column) in op.columns.iter().enumerate() {
                let dy = &dys[((image * ho + y) * wo + x) * c..][..c];
                let factor = (1.0 / (row.divisor * column.divisor)) as f32;
                for at in row.start..row.end {
                    spread(dy, factor, &mut sums[(at * w + column.start) * c..(at * w + column.end) * c]);
                }
            }
        }
        scale(&sums, 1.0, out);
    });
    Tensor::from_vec(dxs, xs.shape(), &Device::Cpu)
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

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.shape().dims4()?;
        let ys = match xs {
            CpuStorage::BF16(_) => CpuStorage::BF16(self.forward(operand(xs, layout)?, dims)),
            _ => CpuStorage::F32(self.forward(operand(xs, layout)?, dims)),
        };
        Ok((ys, Shape::from((dims.0, self.rows.len(), self.columns.len(), dims.3))))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        by_element!(xs.dtype(), backward(self, xs, &dys)).map(Some)
    }
}
