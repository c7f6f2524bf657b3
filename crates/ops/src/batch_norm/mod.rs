//! Batch normalisation with an optional residual and activation in the same pass.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::FeatureMap;
use crate::activation::Activation;
use crate::feature_map::View;
#[cfg(any(test, feature = "cuda"))]
use crate::ranks::synchronised;
use crate::trace::Step;
use candle_core::{DType, Result, Tensor, Var, bail};

/// The parameters and running statistics of a batch normalisation over `c` channels, all of shape `[c]` (Ioffe
/// and Szegedy, arXiv 1502.03167).
#[derive(Debug, Clone)]
pub struct BatchNorm {
    /// Scale γ; `None` is 1.
    pub weight: Option<Tensor>,
    /// Shift β; `None` is 0.
    pub bias: Option<Tensor>,
    /// Running mean.
    pub running_mean: Var,
    /// Running variance; the unbiased one, as PyTorch keeps it.
    pub running_var: Var,
    /// Added to the variance.
    pub eps: f64,
    /// Weight of the new statistics in the running ones, in PyTorch's sense (its default is 0.1).
    pub momentum: f64,
}

/// `activation(γ · (xs - mean) / √(var + eps) + β + residual)`.
///
/// With `train`, mean and variance are the batch's and the running statistics move towards them; otherwise
/// they are the running ones. Differentiable in `xs`, γ, β and `residual` either way. Statistics are in f32,
/// summed in a fixed order. Within [`crate::ranks::with_synchronised_batch_norm`] the batch is that of all ranks.
///
/// # Errors
/// If channels or the residual's dimensions do not fit, or `train` has a single value per channel.
pub fn batch_norm(
    xs: &FeatureMap,
    norm: &BatchNorm,
    residual: Option<&FeatureMap>,
    activation: Activation,
    train: bool,
) -> Result<FeatureMap> {
    let (n, h, w, c) = xs.dims();
    if norm.running_mean.dims() != [c] {
        bail!("batch_norm: {:?} running means for a map of {c} channels", norm.running_mean.dims());
    }
    if let Some(residual) = residual
        && residual.dims() != xs.dims()
    {
        bail!("batch_norm: residual {:?} on a map of {:?} (n, h, w, c)", residual.dims(), xs.dims());
    }
    if train && n * h * w == 1 && !xs.is_traced() {
        bail!("batch_norm: training needs more than one value per channel, found a map of {n}x{h}x{w}");
    }
    #[cfg(any(test, feature = "cuda"))]
    if !(train && synchronised().is_some())
        && let Some(xs) = xs.gpu()?
        && let residual = residual.map(FeatureMap::gpu).transpose()?
        && !matches!(residual, Some(None))
    {
        let residual = residual.flatten();
        return Ok(FeatureMap::on_gpu(cuda::batch_norm(&xs, norm, residual.as_ref(), activation, train)?));
    }
    let (ys, statistics) = match (xs.view()?, residual.map(FeatureMap::view).transpose()?) {
        (View::Traced(t), _) => return traced(t, norm, residual, activation),
        (View::Reference(xs), None) => {
            let (ys, statistics) = reference::batch_norm(&xs, norm, None, activation, train)?;
            (FeatureMap::stored(ys), statistics)
        }
        (View::Reference(xs), Some(View::Reference(residual))) => {
            let (ys, statistics) = reference::batch_norm(&xs, norm, Some(&residual), activation, train)?;
            (FeatureMap::stored(ys), statistics)
        }
        (View::Cpu(xs), None) => cpu::batch_norm(&xs, norm, None, activation, train)?,
        (View::Cpu(xs), Some(View::Cpu(residual))) => {
            cpu::batch_norm(&xs, norm, Some(&residual), activation, train)?
        }
        _ => bail!("batch_norm: a residual of another kind: traced or not, or of another dtype or device"),
    };
    if let Some(Statistics { count, mean, var }) = statistics {
        update(&norm.running_mean, &mean, norm.momentum)?;
        update(&norm.running_var, &(var * (count / (count - 1.0)))?, norm.momentum)?;
    }
    Ok(ys)
}

/// Those of the batch that a normalisation is trained on.
struct Statistics {
    /// Values per channel.
    count: f64,
    /// `[c]`
    mean: Tensor,
    /// The biased variance, `[c]`.
    var: Tensor,
}

fn update(running: &Var, new: &Tensor, momentum: f64) -> Result<()> {
    let new = new.detach().to_dtype(running.dtype())?;
    running.set(&((running.as_detached_tensor() * (1.0 - momentum))? + (new * momentum)?)?)
}

fn traced(
    t: &crate::trace::Traced,
    norm: &BatchNorm,
    residual: Option<&FeatureMap>,
    activation: Activation,
) -> Result<FeatureMap> {
    let params = |p: &Option<Tensor>| p.as_ref().map_or(0, Tensor::elem_count);
    let step = Step { params: params(&norm.weight) + params(&norm.bias), ..Step::new("batch_norm") };
    let mut out = t.step(t.dims, step);
    if let Some(View::Traced(r)) = residual.map(FeatureMap::view).transpose()? {
        out = out.join(std::iter::once(r)).step(t.dims, Step::new("add"));
    }
    if activation != Activation::Identity {
        out = out.step(t.dims, Step::new(activation.kind()));
    }
    Ok(FeatureMap::from_traced(out))
}

/// γ and β in `dtype`.
fn affine(norm: &BatchNorm, dtype: DType) -> Result<(Tensor, Tensor)> {
    let mean = norm.running_mean.as_tensor();
    let weight = match &norm.weight {
        Some(weight) => weight.to_dtype(dtype)?,
        None => Tensor::ones(mean.shape(), dtype, mean.device())?,
    };
    let bias = match &norm.bias {
        Some(bias) => bias.to_dtype(dtype)?,
        None => Tensor::zeros(mean.shape(), dtype, mean.device())?,
    };
    Ok((weight, bias))
}
