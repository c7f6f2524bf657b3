//! Average pooling as a product with an averaging matrix on either side.

use super::Span;
use candle_core::{DType, Device, Result, Tensor};

pub(super) fn avg_pool(xs: &Tensor, rows: &[Span], columns: &[Span]) -> Result<Tensor> {
    let (n, h, w, c) = xs.dims4()?;
    let dtype = xs.dtype();
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (ho, wo) = (rows.len(), columns.len());
    let xs = xs.to_dtype(compute)?;
    let rows = matrix(rows, h, compute, xs.device())?.unsqueeze(0)?.broadcast_as((n, ho, h))?.contiguous()?;
    let ys = rows.matmul(&xs.reshape((n, h, w * c))?)?.reshape((n * ho, w, c))?;
    let columns = matrix(columns, w, compute, xs.device())?
        .unsqueeze(0)?
        .broadcast_as((n * ho, wo, w))?
        .contiguous()?;
    columns.matmul(&ys)?.reshape((n, ho, wo, c))?.to_dtype(dtype)
}

/// [out, size]: 1 / divisor where a span covers an input.
fn matrix(spans: &[Span], size: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let mut values = vec![0f64; spans.len() * size];
    for (row, span) in values.chunks_exact_mut(size.max(1)).zip(spans) {
        row[span.start..span.end].fill(1.0 / span.divisor);
    }
    // Not every device has f64, so the constants are made where they are sure to be.
    Tensor::from_vec(values, (spans.len(), size), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}
