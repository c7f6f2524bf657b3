//! Losses on logits [n, classes].

mod cpu;

use crate::dispatch::{Path, path};
use candle_core::{D, DType, Result, Tensor, bail};

/// What a classifier should have answered.
#[derive(Debug, Clone)]
pub enum Targets {
    /// A class for each image: integers `[n]`.
    Classes(Tensor),
    /// A distribution over the classes for each image: floats [n, classes].
    Soft(Tensor),
}

/// Mean cross-entropy of `logits` [n, classes] against `targets`: PyTorch's `cross_entropy`.
///
/// `label_smoothing` ε moves that share of each target to the uniform distribution. `class_weights` `[classes]`
/// weigh each class's term; for class targets the mean is over the weights, for soft targets over the images,
/// as in PyTorch. The result is a scalar in the dtype of `logits`.
///
/// # Errors
/// If shapes do not fit, a class is out of range, or ε is outside [0, 1].
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Targets,
    label_smoothing: f64,
    class_weights: Option<&Tensor>,
) -> Result<Tensor> {
    let weights = term_weights(logits, targets, label_smoothing, class_weights)?;
    match path(logits.device(), logits.dtype()) {
        Path::Cpu if logits.dtype() == DType::F32 => cpu::weighted_nll(logits, &weights),
        _ => {
            let log_p = candle_nn::ops::log_softmax(logits, D::Minus1)?;
            (log_p * weights)?.sum_all()?.neg()
        }
    }
}

/// The factor q of each term of `loss = -Σ q · log p`, as a tensor [n, classes] without gradient.
fn term_weights(
    logits: &Tensor,
    targets: &Targets,
    label_smoothing: f64,
    class_weights: Option<&Tensor>,
) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if !(0.0..=1.0).contains(&label_smoothing) {
        bail!("cross_entropy: a label smoothing of {label_smoothing}; it must be between 0 and 1");
    }
    let (dtype, device) = (logits.dtype(), logits.device());
    let distribution = match targets {
        Targets::Classes(labels) => {
            let labels = labels.to_dtype(DType::U32)?.to_vec1::<u32>()?;
            if labels.len() != n {
                bail!("cross_entropy: {} labels for {n} rows of logits", labels.len());
            }
            let mut hot = vec![0f32; n * classes];
            for (row, &label) in labels.iter().enumerate() {
                if label as usize >= classes {
                    bail!("cross_entropy: label {label} of row {row} with {classes} classes");
                }
                hot[row * classes + label as usize] = 1.0;
            }
            Tensor::from_vec(hot, (n, classes), device)?.to_dtype(dtype)?
        }
        Targets::Soft(soft) => {
            if soft.dims() != [n, classes] {
                bail!("cross_entropy: soft targets of shape {:?} for logits [{n}, {classes}]", soft.dims());
            }
            soft.detach().to_dtype(dtype)?.to_device(device)?
        }
    };
    let smooth = distribution.affine(1.0 - label_smoothing, label_smoothing / classes as f64)?;
    let Some(class_weights) = class_weights else { return smooth.affine(1.0 / n as f64, 0.0) };
    if class_weights.dims() != [classes] {
        bail!("cross_entropy: class weights of shape {:?} for {classes} classes", class_weights.dims());
    }
    let class_weights = class_weights.detach().to_dtype(dtype)?.to_device(device)?;
    let weighted = smooth.broadcast_mul(&class_weights)?;
    match targets {
        Targets::Soft(_) => weighted.affine(1.0 / n as f64, 0.0),
        Targets::Classes(_) => {
            let total = distribution.broadcast_mul(&class_weights)?.sum_all()?;
            weighted.broadcast_div(&total)
        }
    }
}

/// Mean squared error over all elements.
///
/// # Errors
/// If the shapes differ.
pub fn mse(xs: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if xs.dims() != targets.dims() {
        bail!("mse: predictions of shape {:?} and targets of shape {:?}", xs.dims(), targets.dims());
    }
    (xs - targets.detach())?.sqr()?.mean_all()
}
