//! Channels multiplied by factors of their image: the gate of squeeze-and-excitation.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::FeatureMap;
use crate::feature_map::View;
use crate::trace::Step;
use candle_core::{Result, bail};

/// `xs · gate`, the factor of each image and channel at every pixel (Hu, Shen and Sun, "Squeeze-and-excitation
/// networks", arXiv 1709.01507, equation 4): (n, h, w, c) and (n, 1, 1, c) to (n, h, w, c). Differentiable in
/// both.
///
/// On a trace the receptive field stays that of `xs`: a gate sees the whole image, which would hide what the
/// convolutions see.
///
/// # Errors
/// If the dimensions do not fit.
pub fn gate(xs: &FeatureMap, gate: &FeatureMap) -> Result<FeatureMap> {
    let (n, _, _, c) = xs.dims();
    if gate.dims() != (n, 1, 1, c) {
        bail!("gate: factors {:?} for a map of {:?} (n, h, w, c)", gate.dims(), xs.dims());
    }
    #[cfg(any(test, feature = "cuda"))]
    if let (Some(xs), Some(gate)) = (xs.gpu()?, gate.gpu()?)
        && xs.values().dtype() == gate.values().dtype()
    {
        return Ok(FeatureMap::on_gpu(cuda::gate(&xs, &gate)?));
    }
    match (xs.view()?, gate.view()?) {
        (View::Reference(xs), View::Reference(gate)) => Ok(FeatureMap::stored(reference::gate(&xs, &gate)?)),
        (View::Cpu(xs), View::Cpu(gate)) => Ok(FeatureMap::slot(cpu::gate(&xs, &gate)?)),
        (View::Traced(t), View::Traced(_)) => Ok(FeatureMap::traced_step(t, t.dims, Step::new("gate"))),
        _ => bail!("gate: maps of different kinds: traced or not, or of two dtypes or devices"),
    }
}
