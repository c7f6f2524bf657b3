//! Convolution as a sum over taps of matrix products, in candle's own operations.

use super::Geometry;
use crate::taps::taps;
use candle_core::{DType, Result, Tensor};

/// Products and sums in f32 (f64 for f64 input), rounded once to the input's dtype.
pub(super) fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let dtype = xs.dtype();
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (c_in, c_out) = g.group_channels();
    // A kernel that reads bf16 rounds its weights to bf16 too.
    let weight = weight.to_dtype(dtype)?.to_dtype(compute)?;
    let weight = weight.reshape((g.groups, c_out, c_in, g.taps()))?;
    let (n, (h, w), p) = (g.n, g.out, g.pixels());
    let mut sum: Option<Tensor> = None;
    for (tap, seen) in taps(&xs.to_dtype(compute)?, &g.window, g.out, 0.0)?.iter().enumerate() {
        // [groups, p, c_in] · [groups, c_in, c_out]
        let seen = seen.reshape((p, g.groups, c_in))?.transpose(0, 1)?.contiguous()?;
        let matrix = weight.narrow(3, tap, 1)?.squeeze(3)?.transpose(1, 2)?.contiguous()?;
        let product = seen.matmul(&matrix)?;
        sum = Some(match sum {
            None => product,
            Some(sum) => (sum + product)?,
        });
    }
    let Some(sum) = sum else { return Tensor::zeros((n, h, w, g.c_out), dtype, xs.device()) };
    let ys = sum.transpose(0, 1)?.contiguous()?.reshape((n, h, w, g.c_out))?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(&bias.to_dtype(compute)?)?,
        None => ys,
    };
    ys.to_dtype(dtype)
}
