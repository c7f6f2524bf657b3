//! Reference building block: the input pixels that one tap of a sliding window sees.

use crate::Window2d;
use candle_core::{Result, Tensor};

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
        Tensor::full(fill, shape, xs.device())?.to_dtype(xs.dtype())
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
