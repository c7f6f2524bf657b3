//! The softmax that weighs the splits of ResNeSt's attention.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::FeatureMap;
use crate::feature_map::View;
use crate::trace::Step;
use candle_core::{Result, bail};

/// The softmax over `radix` splits, for each of a pixel's c / radix channels: channel `r · c / radix + ch` of the
/// result is `exp xs[r, ch] / Σ_s exp xs[s, ch]` (Zhang et al., "ResNeSt: split-attention networks", arXiv
/// 2004.08955, equation 2, with one cardinal group). (n, h, w, c) to the same.
///
/// # Errors
/// If `radix` does not divide the channels.
pub fn radix_softmax(xs: &FeatureMap, radix: usize) -> Result<FeatureMap> {
    let c = xs.dims().3;
    if radix == 0 || !c.is_multiple_of(radix) {
        bail!("radix_softmax: {radix} splits do not divide {c} channels");
    }
    #[cfg(any(test, feature = "cuda"))]
    if let Some(map) = xs.gpu()? {
        return Ok(FeatureMap::on_gpu(cuda::radix_softmax(&map, radix)?));
    }
    match xs.view()? {
        View::Traced(t) => Ok(FeatureMap::traced_step(t, t.dims, Step::new("radix_softmax"))),
        View::Reference(xs) => Ok(FeatureMap::stored(reference::radix_softmax(&xs, radix)?)),
        View::Cpu(xs) => Ok(FeatureMap::slot(cpu::radix_softmax(&xs, radix)?)),
    }
}
