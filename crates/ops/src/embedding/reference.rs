//! Words and their vectors in candle's own operations.

use super::PADDING;
use candle_core::{DType, Result, Tensor};

/// From the bytes of words [n, h, w, 3], normalised to [-1, 1], to vectors [n, h · w, dim, 1] in the dtype of `weight`.
pub(super) fn embedding(words: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (n, h, w, _) = words.dims4()?;
    let (rows, dim) = weight.dims2()?;
    let values = words.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let numbers: Vec<u32> = values.chunks_exact(3).map(|bytes| number(bytes) % rows as u32).collect();
    let known: Vec<f32> = numbers.iter().map(|&word| f32::from(word != PADDING)).collect();
    let known = Tensor::from_vec(known, (n * h * w, 1), weight.device())?.to_dtype(weight.dtype())?;
    let numbers = Tensor::from_vec(numbers, n * h * w, weight.device())?;
    weight.index_select(&numbers, 0)?.broadcast_mul(&known)?.reshape((n, h * w, dim, 1))
}

/// The number whose bytes were normalised to these three values. Also exact in bf16, whose steps within [-1, 1] are
/// at most half as far apart as the bytes.
pub(super) fn number(bytes: &[f32]) -> u32 {
    let byte = |x: f32| ((f64::from(x) + 1.0) * 127.5).round().clamp(0.0, 255.0) as u32;
    bytes.iter().rev().fold(0, |number, &x| number << 8 | byte(x))
}
