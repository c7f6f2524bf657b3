//! Reference building block: the input pixels that one tap of a sliding window sees.

use crate::Window2d;
use candle_core::{DType, Device, Result, Tensor};

/// For each tap of the window, in row-major order, the tensor [n, h_out, w_out, c] of the pixels it sees;
/// pixels beyond the edge are `fill`. Built of concatenation and `index_select`, whose gradients are sound.
pub(crate) fn taps(xs: &Tensor, window: &Window2d, out: (usize, usize), fill: f64) -> Result<Vec<Tensor>> {
    let padded = pad(xs, 1, window.padding.0, extent(out.0, window, 0), fill)?;
    let padded = pad(&padded, 2, window.padding.1, extent(out.1, window, 1), fill)?;
    let index = |tap: usize, dilation: usize, stride: usize, len: usize| {
        let at: Vec<u32> = (0..len).map(|i| (tap * dilation + i * stride) as u32).collect();
        Tensor::from_vec(at, len, xs.device())
    };
    let mut taps = Vec::with_capacity(window.kernel.0 * window.kernel.1);
    for ky in 0..window.kernel.0 {
        let rows = padded.index_select(&index(ky, window.dilation.0, window.stride.0, out.0)?, 1)?;
        for kx in 0..window.kernel.1 {
            taps.push(rows.index_select(&index(kx, window.dilation.1, window.stride.1, out.1)?, 2)?);
        }
    }
    Ok(taps)
}

/// Padded length that `out` windows along one axis need.
fn extent(out: usize, window: &Window2d, axis: usize) -> usize {
    let pick = |pair: (usize, usize)| if axis == 0 { pair.0 } else { pair.1 };
    out.saturating_sub(1) * pick(window.stride) + pick(window.dilation) * (pick(window.kernel) - 1) + 1
}

/// `before` elements of `fill` in front and enough behind for a length of at least `len`.
fn pad(xs: &Tensor, dim: usize, before: usize, len: usize, fill: f64) -> Result<Tensor> {
    let after = len.saturating_sub(xs.dim(dim)? + before);
    let filler = |count: usize| {
        let mut shape = xs.dims().to_vec();
        shape[dim] = count;
        full(fill, shape, xs.dtype(), xs.device())
    };
    let mut parts = Vec::with_capacity(3);
    if before > 0 {
        parts.push(filler(before)?);
    }
    parts.push(xs.clone());
    if after > 0 {
        parts.push(filler(after)?);
    }
    if parts.len() == 1 { Ok(xs.clone()) } else { Tensor::cat(&parts, dim)?.contiguous() }
}

/// A tensor of one value, made in f32 unless it is to be in f64: a device that has no f64 refuses to make one that is
/// cast afterwards, too.
fn full(value: f64, shape: Vec<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
    match dtype {
        DType::F64 => Tensor::full(value, shape, device),
        _ => Tensor::full(value as f32, shape, device)?.to_dtype(dtype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This value is just above the middle of two in bf16. `half` sees that in f32, and rounds it up; in f64 it looks at
    /// the upper half of the bits only, and rounds it down.
    #[test]
    fn what_is_filled_in_is_made_in_f32() -> Result<()> {
        let fill = 1.0 + 2f64.powi(-8) + 2f64.powi(-22) + 2f64.powi(-40);
        let filled = |dtype: DType| -> Result<Vec<f64>> {
            let xs = Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu)?.to_dtype(dtype)?;
            let padded = pad(&xs, 1, 1, 3, fill)?;
            assert_eq!((padded.dtype(), padded.dims()), (dtype, &[1, 3, 1, 1][..]));
            padded.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
        };
        assert_eq!(filled(DType::BF16)?, [1.0078125, 0.0, 1.0078125]);
        assert_eq!(filled(DType::F32)?, [fill - 2f64.powi(-40), 0.0, fill - 2f64.powi(-40)]);
        assert_eq!(filled(DType::F64)?, [fill, 0.0, fill]);
        Ok(())
    }
}
