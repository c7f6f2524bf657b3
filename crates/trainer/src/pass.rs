//! One forward and backward pass.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use zoo::Model;
use zoo_ops::{FeatureMap, Targets, backward, cross_entropy};

/// What a pass over a batch gives.
#[derive(Debug)]
pub struct Pass {
    /// Mean loss of the logits over the batch, without auxiliary heads: a scalar, where it was computed.
    pub loss: Tensor,
    /// [n, classes], without the graph behind them.
    pub logits: Tensor,
    /// Gradients of `scale` times the mean loss, to which that of each auxiliary head is added, times its weight.
    pub gradients: GradStore,
}

/// Runs a model forward in training mode and backward. The gradients are those of the mean cross-entropy times
/// `scale`, so that passes over the parts of a large batch can be added up. In a network with auxiliary heads it is
/// that of the logits and, with their weights, that of each head's. The graph is freed before this returns.
///
/// # Errors
/// If the images do not fit the model, or a target its classes.
pub fn train_pass(
    model: &Model,
    xs: &FeatureMap,
    targets: &Targets,
    label_smoothing: f64,
    scale: f64,
) -> Result<Pass> {
    pass_with(model, xs, targets, label_smoothing, scale, backward)
}

/// The same with a backward of one's own, such as one that gives some of the gradients away.
pub(crate) fn pass_with(
    model: &Model,
    xs: &FeatureMap,
    targets: &Targets,
    label_smoothing: f64,
    scale: f64,
    backward: impl FnOnce(&Tensor) -> Result<GradStore>,
) -> Result<Pass> {
    let (logits, heads) = model.forward_auxiliary(xs)?;
    let mut total = cross_entropy(&logits, targets, label_smoothing, None)?;
    let loss = total.detach();
    for head in &heads {
        let of_head = cross_entropy(&head.logits, targets, label_smoothing, None)?;
        total = (total + of_head.affine(head.loss_weight, 0.0)?)?;
    }
    let gradients = if scale == 1.0 { backward(&total)? } else { backward(&total.affine(scale, 0.0)?)? };
    Ok(Pass { loss, logits: logits.detach(), gradients })
}
