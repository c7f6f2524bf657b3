//! Batch normalisation in candle's own operations.

use super::{BatchNorm, affine};
use crate::activation::{self, Activation};
use candle_core::{DType, Result, Tensor};

/// The result, and with `train` the batch's mean and biased variance \[c\].
pub(super) fn batch_norm(
    xs: &Tensor,
    norm: &BatchNorm,
    residual: Option<&Tensor>,
    activation: Activation,
    train: bool,
) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
    let dtype = xs.dtype();
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let c = xs.dim(3)?;
    let rows = xs.reshape(((), c))?.to_dtype(compute)?;
    let (mean, var) = if train {
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
    let statistics = if train { Some((mean.reshape(c)?, var.reshape(c)?)) } else { None };
    Ok((ys, statistics))
}
