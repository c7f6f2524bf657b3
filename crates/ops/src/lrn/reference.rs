//! Local response normalisation in candle's own operations.

use super::LocalResponseNorm;
use candle_core::{DType, Result, Tensor};

pub(super) fn local_response_norm(xs: &Tensor, norm: &LocalResponseNorm) -> Result<Tensor> {
    let dtype = xs.dtype();
    let xs = if dtype == DType::F64 { xs.clone() } else { xs.to_dtype(DType::F32)? };
    let c = xs.dim(3)?;
    let squares = xs.sqr()?.pad_with_zeros(3, norm.size / 2, (norm.size - 1) / 2)?;
    let mut sum = squares.narrow(3, 0, c)?;
    for shift in 1..norm.size {
        sum = (sum + squares.narrow(3, shift, c)?)?;
    }
    let base = sum.affine(norm.alpha / norm.size as f64, norm.k)?;
    // base^-beta; the base is positive.
    (xs * base.log()?.affine(-norm.beta, 0.0)?.exp()?)?.to_dtype(dtype)
}
