//! Activations in candle's own operations, chosen so that gradients at the kinks are PyTorch's.

use super::Activation;
use candle_core::{DType, Result, Tensor};

pub(super) fn activation(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    let dtype = xs.dtype();
    // Like the kernels: computed in f32 at least, rounded once.
    let xs = if matches!(dtype, DType::F32 | DType::F64) { xs.clone() } else { xs.to_dtype(DType::F32)? };
    // 1 where the condition on a constant copy of xs holds: carries no gradient itself.
    let indicator = |mask: Tensor| mask.to_dtype(xs.dtype());
    let ys = match activation {
        Activation::Identity => xs.clone(),
        // Candle's relu has gradient 1 at 0, so the mask is made by hand.
        Activation::Relu => (&xs * indicator(xs.detach().gt(0.0)?)?)?,
        Activation::Relu6 => relu6(&xs)?,
        Activation::LeakyRelu(slope) => {
            let positive = indicator(xs.detach().gt(0.0)?)?;
            let factor = positive.affine(1.0 - f64::from(slope), f64::from(slope))?;
            (&xs * factor)?
        }
        Activation::Sigmoid => sigmoid(&xs)?,
        Activation::Tanh => xs.tanh()?,
        Activation::Gelu => {
            let phi = (xs.affine(std::f64::consts::FRAC_1_SQRT_2, 0.0)?.erf()? * 0.5)?.affine(1.0, 0.5)?;
            (&xs * phi)?
        }
        Activation::Silu => (&xs * sigmoid(&xs)?)?,
        Activation::HardSigmoid => relu6(&xs.affine(1.0, 3.0)?)?.affine(1.0 / 6.0, 0.0)?,
        Activation::HardSwish => (&xs * relu6(&xs.affine(1.0, 3.0)?)?.affine(1.0 / 6.0, 0.0)?)?,
    };
    ys.to_dtype(dtype)
}

fn relu6(xs: &Tensor) -> Result<Tensor> {
    let fixed = xs.detach();
    let inside = (fixed.gt(0.0)?.to_dtype(xs.dtype())? * fixed.lt(6.0)?.to_dtype(xs.dtype())?)?;
    let above = fixed.ge(6.0)?.to_dtype(xs.dtype())?;
    (xs * inside)? + above.affine(6.0, 0.0)?
}

/// (tanh(x / 2) + 1) / 2: exact, and without overflow for any x.
fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    xs.affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5)
}
