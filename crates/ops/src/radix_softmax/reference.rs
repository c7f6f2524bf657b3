//! The softmax over splits in candle's own operations.

use candle_core::{DType, Result, Tensor};

pub(super) fn radix_softmax(xs: &Tensor, radix: usize) -> Result<Tensor> {
    let (dtype, (n, h, w, c)) = (xs.dtype(), xs.dims4()?);
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let xs = xs.to_dtype(compute)?.reshape((n * h * w, radix, c / radix))?;
    // The largest is a constant to the softmax, which does not change with it.
    let exps = xs.broadcast_sub(&xs.detach().max_keepdim(1)?)?.exp()?;
    let ys = exps.broadcast_div(&exps.sum_keepdim(1)?)?;
    ys.reshape((n, h, w, c))?.to_dtype(dtype)
}
