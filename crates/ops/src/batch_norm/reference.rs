//! Batch normalisation in candle's own operations.

use super::{BatchNorm, Statistics, affine};
use crate::activation::{self, Activation};
use crate::ranks::{differentiable_sum, synchronised};
use candle_core::{DType, Device, Result, Tensor};

/// The result, and with `train` the batch's statistics.
pub(super) fn batch_norm(
    xs: &Tensor,
    norm: &BatchNorm,
    residual: Option<&Tensor>,
    activation: Activation,
    train: bool,
) -> Result<(Tensor, Option<Statistics>)> {
    let dtype = xs.dtype();
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let c = xs.dim(3)?;
    let rows = xs.reshape(((), c))?.to_dtype(compute)?;
    let mut count = rows.dim(0)? as f64;
    let (mean, var) = if let (true, Some(ranks)) = (train, synchronised()) {
        // Not every device has f64, and f32 does not count so far.
        count = ranks.sum(&Tensor::new(&[count], &Device::Cpu)?)?.get(0)?.to_scalar()?;
        let mean_of = |xs: &Tensor| differentiable_sum(&ranks, &xs.sum_keepdim(0)?)?.affine(1.0 / count, 0.0);
        let mean = mean_of(&rows)?;
        let var = mean_of(&rows.broadcast_sub(&mean)?.sqr()?)?;
        (mean, var)
    } else if train {
        let mean = rows.mean_keepdim(0)?;
        let var = rows.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
        (mean, var)
    } else {
        let running = |v: &candle_core::Var| v.as_detached_tensor().to_dtype(compute)?.reshape((1, c));
        (running(&norm.running_mean)?, running(&norm.running_var)?)
    };
    let (gamma, beta) = affine(norm, compute)?;
    let normal = rows.broadcast_sub(&mean)?.broadcast_div(&(&var + norm.eps)?.sqrt()?)?;
    let ys = normal.broadcast_mul(&gamma)?.broadcast_add(&beta)?;
    let mut ys = ys.reshape(xs.shape())?;
    if let Some(residual) = residual {
        ys = (ys + residual.to_dtype(compute)?)?;
    }
    let ys = activation::reference(&ys, activation)?.to_dtype(dtype)?;
    let statistics =
        if train { Some(Statistics { count, mean: mean.reshape(c)?, var: var.reshape(c)? }) } else { None };
    Ok((ys, statistics))
}
