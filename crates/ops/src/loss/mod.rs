//! Losses on logits [n, classes].

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;

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
    match (path(logits.device(), logits.dtype()), logits.dtype()) {
        (Path::Cpu, DType::F32) => cpu::weighted_nll(logits, &weights),
        #[cfg(any(test, feature = "cuda"))]
        (Path::Cuda, DType::F32) => cuda::weighted_nll(logits, &weights),
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
            check_labels(&labels, (n, classes))?;
            #[cfg(any(test, feature = "cuda"))]
            if class_weights.is_none() && (path(device, dtype), dtype) == (Path::Cuda, DType::F32) {
                return cuda::terms(&labels, classes, label_smoothing, device);
            }
            let mut hot = vec![0f32; n * classes];
            for (row, &label) in labels.iter().enumerate() {
                hot[row * classes + label as usize] = 1.0;
            }
            Tensor::from_vec(hot, (n, classes), device)?.to_dtype(dtype)?
        }
        Targets::Soft(soft) => {
            if soft.dims() != [n, classes] {
                bail!("cross_entropy: soft targets of shape {:?} for logits [{n}, {classes}]", soft.dims());
            }
            #[cfg(any(test, feature = "cuda"))]
            if class_weights.is_none() && (path(device, dtype), dtype) == (Path::Cuda, DType::F32) {
                return cuda::soft_terms(soft, label_smoothing, device);
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

fn check_labels(labels: &[u32], (n, classes): (usize, usize)) -> Result<()> {
    if labels.len() != n {
        bail!("cross_entropy: {} labels for {n} rows of logits", labels.len());
    }
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(row) => bail!("cross_entropy: label {} of row {row} with {classes} classes", labels[row]),
        None => Ok(()),
    }
}

/// A loss and the number of hits among `logits` [n, classes], as a tensor `[2]` in f32 on their device: on a GPU nothing
/// waits for them. A row is a hit if its highest logit is that of its label; of equal logits that of the lower class
/// counts as higher, and a row with a NaN is none.
///
/// # Errors
/// If shapes do not fit or a label is out of range.
pub fn score(loss: &Tensor, logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    check_labels(labels, (n, classes))?;
    let (loss, logits) = (loss.to_dtype(DType::F32)?, logits.to_dtype(DType::F32)?);
    #[cfg(any(test, feature = "cuda"))]
    if path(logits.device(), DType::F32) == Path::Cuda {
        return cuda::score(&loss, &logits, labels);
    }
    if !logits.device().is_cpu() {
        return unread_score(&loss, &logits, labels);
    }
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let hit = |&(row, &label): &(&[f32], &u32)| {
        let target = row[label as usize];
        let beaten = row.iter().enumerate().any(|(class, &logit)| {
            logit.is_nan() || logit > target || (logit == target && class < label as usize)
        });
        !beaten
    };
    let hits = values.chunks_exact(classes.max(1)).zip(labels).filter(hit).count();
    Tensor::new(&[loss.to_scalar::<f32>()?, hits as f32], logits.device())
}

/// [`score`] in candle's own operations, of which none waits for the device: a row is a hit where its label wins against
/// every class, itself among them, which a NaN never does.
fn unread_score(loss: &Tensor, logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    let device = logits.device();
    let count = |mask: Tensor| mask.to_dtype(DType::F32);
    let (loss, logits) = (loss.detach(), logits.detach().contiguous()?);
    let labels = Tensor::new(labels, device)?.reshape((n, 1))?;
    let target = logits.gather(&labels, 1)?;
    let numbers: Vec<f32> = (0..classes).map(|class| class as f32).collect();
    let numbers = Tensor::from_vec(numbers, (1, classes), device)?;
    let from_label_on = count(numbers.broadcast_ge(&count(labels)?)?)?;
    let lower = count(logits.broadcast_lt(&target)?)?;
    let equal = (count(logits.broadcast_eq(&target)?)? * from_label_on)?;
    let wins = (lower + equal)?.sum_keepdim(1)?;
    let hits = count(wins.eq(classes as f64)?)?.sum_all()?;
    Tensor::cat(&[loss.reshape(1)?, hits.reshape(1)?], 0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::with_gpu_on_cpu;
    use candle_core::Device;

    #[test]
    fn hits_are_counted_alike_everywhere() -> Result<()> {
        let (n, classes) = (40, 300);
        // Few values, so that many are equal.
        let values: Vec<f32> = (0..n * classes).map(|i| (i * 7919 % 1013 % 40) as f32).collect();
        let mut rows: Vec<&[f32]> = values.chunks_exact(classes).collect();
        let all_nan = vec![f32::NAN; classes];
        rows[3] = &all_nan;
        let highest = |row: &&[f32]| {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().position(|&x| x == most).unwrap_or(0) as u32
        };
        let right: Vec<u32> = rows.iter().map(highest).collect();
        let logits = Tensor::new(rows.concat(), &Device::Cpu)?.reshape((n, classes))?;
        let loss = Tensor::new(0.25f32, &Device::Cpu)?;
        let scores = |labels: &[u32]| -> Result<[Vec<f32>; 3]> {
            let own = score(&loss, &logits, labels)?.to_vec1()?;
            let of_candle = unread_score(&loss, &logits, labels)?.to_vec1()?;
            Ok([own, of_candle, with_gpu_on_cpu(|| score(&loss, &logits, labels))?.to_vec1()?])
        };
        assert_eq!(scores(&right)?, [[0.25, 39.0]; 3]);
        // Where another class of the same logit comes first, it is no hit.
        let last = |row: &&[f32]| {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().rposition(|&x| x == most).unwrap_or(0) as u32
        };
        let later: Vec<u32> = rows.iter().map(last).collect();
        let alone = later.iter().zip(&right).filter(|(a, b)| a == b).count() - 1;
        assert!(alone < 39);
        assert_eq!(scores(&later)?, [[0.25, alone as f32]; 3]);
        assert!(score(&loss, &logits, &[300; 40]).is_err() && score(&loss, &logits, &[0; 39]).is_err());
        Ok(())
    }
}
