//! Elementwise activation functions.

pub(crate) mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::FeatureMap;
use crate::feature_map::View;
use crate::trace::Step;
use candle_core::{Result, Tensor};

/// An activation function, with PyTorch's definition and default constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// x
    Identity,
    /// max(x, 0), with gradient 0 at 0.
    Relu,
    /// min(max(x, 0), 6), with gradient 0 at 0 and 6.
    Relu6,
    /// x where positive, `slope` · x elsewhere.
    LeakyRelu(f32),
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// x · Φ(x) with the exact normal distribution function (not the tanh approximation).
    Gelu,
    /// x · sigmoid(x)
    Silu,
    /// x · relu6(x + 3) / 6
    HardSwish,
    /// relu6(x + 3) / 6, with gradient 0 at -3 and 3.
    HardSigmoid,
}

impl Activation {
    /// The name of the operator in a summary.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::Relu6 => "relu6",
            Self::LeakyRelu(_) => "leaky_relu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Gelu => "gelu",
            Self::Silu => "silu",
            Self::HardSwish => "hard_swish",
            Self::HardSigmoid => "hard_sigmoid",
        }
    }
}

/// Applies `activation` to every element.
///
/// # Errors
/// If the device cannot compute it.
pub fn activation(xs: &FeatureMap, activation: Activation) -> Result<FeatureMap> {
    #[cfg(any(test, feature = "cuda"))]
    if activation != Activation::Identity
        && let Some(xs) = xs.gpu()?
    {
        return Ok(FeatureMap::on_gpu(cuda::activation(&xs, activation)?));
    }
    match xs.view()? {
        View::Traced(t) => Ok(FeatureMap::traced_step(t, t.dims, Step::new(activation.kind()))),
        _ if activation == Activation::Identity => Ok(xs.clone()),
        View::Reference(xs) => Ok(FeatureMap::stored(reference::activation(&xs, activation)?)),
        View::Cpu(xs) => Ok(FeatureMap::slot(cpu::activation(&xs, activation)?)),
    }
}

pub(crate) use cpu::{Function, by_activation};

/// The reference on a plain tensor, for other operators' references.
pub(crate) fn reference(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    reference::activation(xs, activation)
}
