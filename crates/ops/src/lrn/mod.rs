//! Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3).

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::FeatureMap;
use crate::feature_map::View;
use crate::trace::Step;
use candle_core::{Result, bail};

/// The constants of a local response normalisation, in PyTorch's convention: the sum of squares is divided by
/// `size`, so `alpha` is `size` times the paper's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalResponseNorm {
    /// Channels in the neighbourhood.
    pub size: usize,
    /// Weight of the mean square.
    pub alpha: f64,
    /// Exponent.
    pub beta: f64,
    /// Added to the weighted mean square.
    pub k: f64,
}

/// `xs / (k + alpha / size · Σ xs²)^beta`, the sum over `size` neighbouring channels (`size / 2` before,
/// `(size - 1) / 2` after): PyTorch's `local_response_norm`.
///
/// # Errors
/// If `size` is 0.
pub fn local_response_norm(xs: &FeatureMap, norm: &LocalResponseNorm) -> Result<FeatureMap> {
    if norm.size == 0 {
        bail!("local_response_norm: a neighbourhood of 0 channels");
    }
    #[cfg(any(test, feature = "cuda"))]
    if let Some(map) = xs.gpu()? {
        return Ok(FeatureMap::on_gpu(cuda::local_response_norm(&map, *norm)?));
    }
    match xs.view()? {
        View::Traced(t) => Ok(FeatureMap::traced_step(t, t.dims, Step::new("local_response_norm"))),
        View::Reference(xs) => Ok(FeatureMap::stored(reference::local_response_norm(&xs, norm)?)),
        View::Cpu(xs) => Ok(FeatureMap::slot(cpu::local_response_norm(&xs, *norm)?)),
    }
}
