//! Max pooling.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::feature_map::View;
use crate::trace::Step;
use crate::{FeatureMap, Window2d};
use candle_core::{Result, bail};
pub(crate) use cpu::{MaxPool, larger};

/// The largest value under each window; padding never wins, and the first of equal values gets the gradient:
/// PyTorch's `max_pool2d`.
///
/// # Errors
/// If the padding is more than half the kernel, or the window is larger than the padded input.
pub fn max_pool2d(xs: &FeatureMap, window: &Window2d) -> Result<FeatureMap> {
    let (n, h, w, c) = xs.dims();
    let (kh, kw) = window.kernel;
    if window.padding.0 > kh / 2 || window.padding.1 > kw / 2 {
        bail!("max_pool2d: padding {:?} is more than half the kernel {:?}", window.padding, window.kernel);
    }
    let out = window.output("max_pool2d", h, w)?;
    #[cfg(any(test, feature = "cuda"))]
    if let Some(xs) = xs.gpu()? {
        return Ok(FeatureMap::on_gpu(cuda::max_pool2d(&xs, window, out)?));
    }
    match xs.view()? {
        View::Traced(t) => {
            Ok(FeatureMap::traced_step(t, (n, out.0, out.1, c), Step::window("max_pool2d", *window)))
        }
        View::Reference(xs) => Ok(FeatureMap::stored(reference::max_pool2d(&xs, window, out)?)),
        View::Cpu(xs) => Ok(FeatureMap::slot(cpu::max_pool2d(&xs, window, out)?)),
    }
}
