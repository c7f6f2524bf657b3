//! The gate in candle's own operations.

use candle_core::{DType, Result, Tensor};

pub(super) fn gate(xs: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let dtype = xs.dtype();
    // The gradient of the gate is a sum over pixels, which bf16 would not hold.
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    xs.to_dtype(compute)?.broadcast_mul(&gate.to_dtype(compute)?)?.to_dtype(dtype)
}
