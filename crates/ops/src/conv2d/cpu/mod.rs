//! The CPU path: which kernel serves which convolution, and the link to candle's autograd.

mod depthwise;
mod gemm;
mod product;
mod winograd;

use super::Geometry;
use crate::element::{Element, Elements, by_element, operand};
use crate::parallel::{buffer, chunks, map};
use crate::simd::multiversion;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor};

/// The kernels, best first; the last takes everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// One input and one output channel in each group.
    Depthwise,
    /// 3×3 of stride 1 with many channels, by minimal filtering.
    Winograd,
    /// Matrix products over gathered pixels.
    Gemm,
}

fn kernel(g: &Geometry) -> Kernel {
    if g.groups > 1 && g.group_channels() == (1, 1) {
        Kernel::Depthwise
    } else if winograd::serves(g) {
        Kernel::Winograd
    } else {
        Kernel::Gemm
    }
}

/// Differentiable in all three tensors.
pub(super) fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, g: Geometry) -> Result<Tensor> {
    let (xs, weight) = (xs.contiguous()?, weight.to_dtype(DType::F32)?.contiguous()?);
    match bias {
        Some(bias) => xs.apply_op3(&weight, &bias.to_dtype(DType::F32)?.contiguous()?, Conv2d(g)),
        None => xs.apply_op2(&weight, Conv2d(g)),
    }
}

struct Conv2d(Geometry);

impl Conv2d {
    fn forward(
        &self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let g = &self.0;
        let weight = operand::<f32>(weight.0, weight.1)?;
        let bias = bias.map(|(storage, layout)| operand::<f32>(storage, layout)).transpose()?;
        let ys = match xs.0 {
            CpuStorage::BF16(_) => CpuStorage::BF16(forward(g, operand(xs.0, xs.1)?, weight, bias)),
            _ => CpuStorage::F32(forward(g, operand(xs.0, xs.1)?, weight, bias)),
        };
        Ok((ys, Shape::from((g.n, g.out.0, g.out.1, g.c_out))))
    }

    fn backward(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dys = dys.contiguous()?;
        by_element!(xs.dtype(), backward(&self.0, xs, weight, bias, &dys))
    }
}

fn forward<T: Element>(g: &Geometry, xs: &[T], weight: &[f32], bias: Option<&[f32]>) -> Vec<T> {
    let mut ys = match kernel(g) {
        Kernel::Depthwise => depthwise::forward(g, xs, weight),
        Kernel::Winograd => winograd::forward(g, xs, weight),
        Kernel::Gemm => gemm::forward(g, xs, weight),
    };
    if let Some(bias) = bias {
        chunks(&mut ys, 1024 * g.c_out, |_, piece| add_rows(piece, bias));
    }
    ys
}

fn backward<T: Element>(
    g: &Geometry,
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    dys: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let (x, w, dy) = (Elements::<T>::of(xs)?, Elements::<f32>::of(weight)?, Elements::<T>::of(dys)?);
    let dx = if xs.track_op() {
        let dx = match kernel(g) {
            Kernel::Depthwise => depthwise::input_gradient(g, &dy, &w),
            Kernel::Winograd => winograd::input_gradient(g, &dy, &w),
            Kernel::Gemm => gemm::input_gradient(g, &dy, &w),
        };
        Some(Tensor::from_vec(dx, xs.shape(), &Device::Cpu)?)
    } else {
        None
    };
    let dw = if weight.track_op() {
        let dw = match kernel(g) {
            Kernel::Depthwise => depthwise::weight_gradient(g, &x, &dy),
            Kernel::Winograd => winograd::weight_gradient(g, &x, &dy),
            Kernel::Gemm => gemm::weight_gradient(g, &x, &dy),
        };
        Some(Tensor::from_vec(dw, weight.shape(), &Device::Cpu)?)
    } else {
        None
    };
    let db = match bias {
        Some(bias) if bias.track_op() => {
            Some(Tensor::from_vec(column_sums::<T>(&dy, g.c_out), bias.shape(), &Device::Cpu)?)
        }
        _ => None,
    };
    Ok((dx, dw, db))
}

/// Fills weights [channel][c_in][tap] from their columns: `column(ci, tap, lanes)` adds to one value for each
/// channel.
pub(super) fn from_columns(
    out: &mut [f32],
    c_in: usize,
    taps: usize,
    mut column: impl FnMut(usize, usize, &mut [f32]),
) {
    /// Input channels that are turned round together, in cache.
    const STEP: usize = 16;
    let channels = out.len() / (c_in * taps);
    let mut lanes = vec![0f32; channels];
    let mut turned = vec![0f32; channels * STEP * taps];
    for first in (0..c_in).step_by(STEP) {
        let len = STEP.min(c_in - first) * taps;
        for i in 0..len {
            lanes.fill(0.0);
            column(first + i / taps, i % taps, &mut lanes);
            for (out, &lane) in turned[i..].iter_mut().step_by(STEP * taps).zip(&lanes) {
                *out = lane;
            }
        }
        for (out, turned) in out.chunks_exact_mut(c_in * taps).zip(turned.chunks_exact(STEP * taps)) {
            out[first * taps..][..len].copy_from_slice(&turned[..len]);
        }
    }
}

multiversion! {
    /// Adds `row` to every row of `ys`.
    fn add_rows<T: Element>(ys: &mut [T], row: &[f32]) {
        for y in ys.chunks_exact_mut(row.len()) {
            for (y, &b) in y.iter_mut().zip(row) {
                *y = T::from_f32(y.to_f32() + b);
            }
        }
    }
}

/// Sum over the rows of a matrix with `columns` columns.
fn column_sums<T: Element>(xs: &[T], columns: usize) -> Vec<f32> {
    const ROWS: usize = 512;
    let piece = ROWS * columns;
    let partial = map(xs.len().div_ceil(piece.max(1)), |i| {
        let mut sums = buffer::<f32>(columns);
        sum_rows(&xs[i * piece..xs.len().min((i + 1) * piece)], &mut sums);
        sums
    });
    let mut total = vec![0f64; columns];
    for sums in &partial {
        for (t, &s) in total.iter_mut().zip(sums) {
            *t += f64::from(s);
        }
    }
    total.into_iter().map(|t| t as f32).collect()
}

multiversion! {
    fn sum_rows<T: Element>(xs: &[T], sums: &mut [f32]) {
        for row in xs.chunks_exact(sums.len()) {
            for (s, &x) in sums.iter_mut().zip(row) {
                *s += x.to_f32();
            }
        }
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((xs, lx), (w, lw), None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.backward(xs, w, None, dys)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((xs, lx), (w, lw), Some((b, lb)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.backward(xs, w, Some(b), dys)
    }
}
