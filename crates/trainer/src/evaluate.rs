//! Accuracy and loss over a whole data set.

use crate::input::Input;
use crate::metrics::{ClassAccuracy, Metrics};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::Instant;
use zoo::Model;
use zoo_data::{Loader, View};
use zoo_ops::{Inference, StoredImages};

/// The result of an evaluation. Accuracies in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// Images evaluated.
    pub n: u64,
    /// Percent of images whose class has the highest logit.
    pub top1: f64,
    /// Percent of images whose class is among the five highest logits.
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Images per second, reading them included.
    pub images_per_second: f64,
    /// Seconds it took.
    pub elapsed_s: f64,
    /// Each class's accuracy.
    pub per_class: Vec<ClassAccuracy>,
}

/// Evaluates a model on every image of a loader, without dropout and with running statistics. Of several `views` of an
/// image the logits are averaged; [`View::PLAIN`] alone is the image as it is.
///
/// `progress` hears after each batch how many images are done, and may break off: then there is no report.
///
/// # Errors
/// If images cannot be read or do not fit the model.
pub fn evaluate(
    model: &Model,
    loader: &Loader,
    input: &Input,
    views: &[View],
    place: (DType, &Device),
    progress: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<EvalReport>> {
    let start = Instant::now();
    let metrics = measure(model, (loader, None), input, views, place, !place.1.is_cpu(), progress)?;
    Ok(metrics.map(|metrics| EvalReport::new(&metrics, start, &loader.dataset().meta().classes)))
}

/// Batches whose logits stay on a GPU until they are read together: reading waits for all that it was given to do before.
const READ_AT_ONCE: usize = 16;

/// What [`evaluate`] counts, of images that may be stored on the device; logits may be read `late`.
pub(crate) fn measure(
    model: &Model,
    (loader, stored): (&Loader, Option<&StoredImages>),
    input: &Input,
    views: &[View],
    (dtype, device): (DType, &Device),
    late: bool,
    mut progress: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Metrics>> {
    let mut metrics = Metrics::default();
    let inference = Inference::default();
    // Logits that have not been looked at, with their labels.
    let mut unread: Vec<(Tensor, Vec<u32>)> = Vec::new();
    let at_once = if late { READ_AT_ONCE } else { 1 };
    let batches = loader.batches();
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let answer = |view: &View| {
            let seen =
                if *view == View::PLAIN { Cow::Borrowed(&batch) } else { Cow::Owned(batch.seen(*view)) };
            let images = input.normalise(&seen, stored, dtype, device)?;
            inference.run(|| model.forward(&images, false))?.affine(view.weight, 0.0)
        };
        let mut logits = views.iter().map(answer);
        let first = logits.next().ok_or_else(|| Error::config("views", "there is none"))??;
        let logits = logits.try_fold(first, |sum, logits| sum + logits?)?;
        unread.push((logits, batch.labels));
        if unread.len() < at_once && batch.number + 1 < batches {
            continue;
        }
        for (logits, labels) in unread.drain(..) {
            metrics.update(&logits, &labels)?;
        }
        if progress(metrics.n as usize).is_break() {
            return Ok(None);
        }
    }
    // The last batch of all is left out where no image of it can be read.
    for (logits, labels) in unread {
        metrics.update(&logits, &labels)?;
    }
    Ok(Some(metrics))
}

impl EvalReport {
    pub(crate) fn new(metrics: &Metrics, start: Instant, classes: &[String]) -> Self {
        let elapsed_s = start.elapsed().as_secs_f64();
        Self {
            n: metrics.n,
            top1: metrics.top1_percent(),
            top5: metrics.top5_percent(),
            loss: metrics.mean_loss(),
            images_per_second: metrics.n as f64 / elapsed_s.max(1e-9),
            elapsed_s,
            per_class: metrics.class_accuracies(classes),
        }
    }
}
