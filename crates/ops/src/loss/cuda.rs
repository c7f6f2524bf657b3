//! Losses on a GPU, of which nothing is read back: a block for each row of logits.

use crate::cuda::{Arg, Grid, computed, launch_common, merged, pointer, uninitialised, with_bytes};
use candle_core::{DType, Device, Result, Tensor};

/// `(1 - ε) · one-hot + ε / classes`, divided by the number of labels: [n, classes] in f32.
pub(super) fn terms(labels: &[u32], classes: usize, smoothing: f64, device: &Device) -> Result<Tensor> {
    let n = labels.len();
    let of_each = smoothing / (classes * n) as f64;
    let of_label = (1.0 - smoothing) / n as f64 + of_each;
    let labels = Tensor::from_slice(labels, n, device)?;
    let terms = uninitialised((n, classes), DType::F32, device)?;
    let args = [
        pointer(&labels)?,
        pointer(&terms)?,
        (of_label as f32).into(),
        (of_each as f32).into(),
        classes.into(),
    ];
    launch_common(device, "loss_terms", Grid::Threads(n * classes), &args)?;
    Ok(terms)
}

/// `(1 - ε) · q + ε / classes`, divided by the number of rows, of distributions q [n, classes] on any device: [n, classes]
/// in f32. What comes from the host goes through page-locked memory, because copies from other memory may wait for all
/// that the device was given before.
pub(super) fn soft_terms(soft: &Tensor, smoothing: f64, device: &Device) -> Result<Tensor> {
    let (n, classes) = soft.dims2()?;
    let soft = soft.detach().to_dtype(DType::F32)?.contiguous()?;
    let terms = uninitialised((n, classes), DType::F32, device)?;
    let factor = ((1.0 - smoothing) / n as f64) as f32;
    let term = (smoothing / (classes * n) as f64) as f32;
    let launch = |soft: Arg| {
        let args = [soft, pointer(&terms)?, factor.into(), term.into()];
        launch_common(device, "soft_terms", Grid::Threads(n * classes), &args)
    };
    if soft.device().same_device(device) {
        launch(pointer(&soft)?)?;
    } else {
        let bytes: Vec<u8> =
            soft.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|value| value.to_ne_bytes()).collect();
        with_bytes(device, &bytes, launch)?;
    }
    Ok(terms)
}

/// `-Σ q · log softmax(x)`, differentiable in `logits` [n, classes] of f32; `weights` q is a constant of the same shape.
pub(super) fn weighted_nll(logits: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    let device = logits.device();
    let (xs, qs) = (logits.detach().contiguous()?, weights.detach().contiguous()?);
    let (rows, losses) =
        (uninitialised((n, 3), DType::F32, device)?, uninitialised((n, 1), DType::F32, device)?);
    let args = [pointer(&xs)?, pointer(&qs)?, pointer(&rows)?, pointer(&losses)?, classes.into()];
    launch_common(device, "nll_rows", Grid::Blocks(n), &args)?;
    computed(logits, merged(&losses)?.reshape(())?, move |logits, dy| {
        let dxs = uninitialised((n, classes), DType::F32, logits.device())?;
        let dy = dy.contiguous()?;
        let maps = [&xs, &qs, &rows, &dy, &dxs].map(pointer).into_iter().collect::<Result<Vec<Arg>>>()?;
        let args: Vec<Arg> = maps.into_iter().chain([classes.into()]).collect();
        launch_common(logits.device(), "nll_gradient", Grid::Threads(n * classes), &args)?;
        Ok(Some(dxs))
    })
}

/// The loss, and how many rows have their highest logit at their label: [2] in f32.
pub(super) fn score(loss: &Tensor, logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    let device = logits.device();
    let (xs, labels) = (logits.detach().contiguous()?, Tensor::from_slice(labels, n, device)?);
    let hits = uninitialised((n, 1), DType::F32, device)?;
    let args = [pointer(&xs)?, pointer(&labels)?, pointer(&hits)?, classes.into()];
    launch_common(device, "hit_rows", Grid::Blocks(n), &args)?;
    Tensor::cat(&[loss.detach().reshape(1)?, merged(&hits)?], 0)
}
