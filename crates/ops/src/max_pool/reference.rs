//! Max pooling in candle's own operations: the values of all taps side by side, and a gather of the largest.

use crate::Window2d;
use crate::taps::taps;
use candle_core::{D, DType, Result, Tensor};

pub(super) fn max_pool2d(xs: &Tensor, window: &Window2d, out: (usize, usize)) -> Result<Tensor> {
    let dtype = xs.dtype();
    let (n, _, _, c) = xs.dims4()?;
    if n * c * out.0 * out.1 == 0 {
        return Tensor::zeros((n, out.0, out.1, c), dtype, xs.device());
    }
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let taps = taps(&xs.to_dtype(compute)?, window, out, f64::NEG_INFINITY)?;
    let seen = Tensor::stack(&taps, D::Minus1)?.contiguous()?;
    let first = seen.detach().argmax_keepdim(D::Minus1)?;
    seen.gather(&first, D::Minus1)?.squeeze(D::Minus1)?.to_dtype(dtype)
}
