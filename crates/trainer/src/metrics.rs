//! Counting hits and averaging losses, exactly and in any batching.

use candle_core::{DType, Device, Result, Tensor, bail};
use serde::Serialize;
use zoo_ops::ranks::Communicator;

/// Classes that count as a hit of top-5.
const TOP: usize = 5;

/// Hits and losses over the images seen so far.
///
/// Hits are integers and each image's loss is computed and added in f64 in the order of the images, so how
/// images are grouped into batches has no influence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Images.
    pub n: u64,
    /// Images whose class has the highest logit.
    pub top1: u64,
    /// Images whose class is among the five highest logits.
    pub top5: u64,
    /// Sum of the images' cross-entropies.
    pub loss: f64,
    /// (images, top-1 hits) of each class.
    pub per_class: Vec<(u64, u64)>,
}

/// One class's share of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassAccuracy {
    /// The class's name.
    pub class: String,
    /// Images of the class.
    pub n: u64,
    /// Percent of them that were recognised; `None` without images.
    pub top1: Option<f64>,
}

impl Metrics {
    /// Takes in logits [n, classes] and the classes that would be right.
    ///
    /// Of equal logits the one of the lower class counts as higher. A row with a NaN is never a hit.
    ///
    /// # Errors
    /// If the shapes do not fit, or a label is out of range.
    pub fn update(&mut self, logits: &Tensor, labels: &[u32]) -> Result<()> {
        let (n, classes) = logits.dims2()?;
        if n != labels.len() {
            bail!("{} labels for {n} rows of logits", labels.len());
        }
        let values = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        self.per_class.resize(self.per_class.len().max(classes), (0, 0));
        for (row, &label) in values.chunks_exact(classes.max(1)).zip(labels) {
            let label = label as usize;
            let Some(&target) = row.get(label) else { bail!("label {label} with {classes} classes") };
            let above = |(class, &logit): (usize, &f32)| logit > target || (logit == target && class < label);
            let valid = row.iter().all(|logit| !logit.is_nan());
            let rank = row.iter().enumerate().filter(|&entry| above(entry)).count();
            self.n += 1;
            self.loss += cross_entropy(row, target);
            self.top5 += u64::from(valid && rank < TOP);
            let hit = u64::from(valid && rank == 0);
            self.top1 += hit;
            self.per_class[label].0 += 1;
            self.per_class[label].1 += hit;
        }
        Ok(())
    }

    /// Those of the images of all ranks, each of which has seen its own; `classes` is how many there are.
    ///
    /// # Errors
    /// If a rank has ended or does not answer.
    pub fn sum_over(&self, ranks: &dyn Communicator, classes: usize) -> Result<Self> {
        let count = |n: u64| n as f64;
        let mut own = vec![count(self.n), count(self.top1), count(self.top5), self.loss];
        let of_class = (0..classes).map(|class| self.per_class.get(class).copied().unwrap_or_default());
        own.extend(of_class.flat_map(|(n, hits)| [count(n), count(hits)]));
        let sums = ranks.sum(&Tensor::new(own, &Device::Cpu)?)?.to_vec1::<f64>()?;
        let of_class = sums[4..].as_chunks::<2>().0;
        Ok(Self {
            n: sums[0] as u64,
            top1: sums[1] as u64,
            top5: sums[2] as u64,
            loss: sums[3],
            per_class: of_class.iter().map(|&[n, hits]| (n as u64, hits as u64)).collect(),
        })
    }

    /// Percent of images whose class has the highest logit; 0 without images.
    pub fn top1_percent(&self) -> f64 {
        percent(self.top1, self.n)
    }

    /// Percent of images whose class is among the five highest logits; 0 without images.
    pub fn top5_percent(&self) -> f64 {
        percent(self.top5, self.n)
    }

    /// Mean cross-entropy; 0 without images.
    pub fn mean_loss(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.loss / self.n as f64 }
    }

    /// Each class's accuracy; a class without a name has its number for one.
    pub fn class_accuracies(&self, names: &[String]) -> Vec<ClassAccuracy> {
        let of_class = |(class, &(n, hits)): (usize, &(u64, u64))| ClassAccuracy {
            class: names
                .get(class)
                .filter(|name| !name.is_empty())
                .cloned()
                .unwrap_or_else(|| class.to_string()),
            n,
            top1: (n > 0).then(|| percent(hits, n)),
        };
        self.per_class.iter().enumerate().map(of_class).collect()
    }
}

pub(crate) fn percent(hits: u64, n: u64) -> f64 {
    if n == 0 { 0.0 } else { 100.0 * hits as f64 / n as f64 }
}

/// `-log softmax(row)[target]` in f64.
fn cross_entropy(row: &[f32], target: f32) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(rows: &[[f32; 7]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), (rows.len(), 7), &Device::Cpu).unwrap()
    }

    #[test]
    fn counts_of_known_rows() {
        let mut metrics = Metrics::default();
        let rows = [
            [0.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            [0.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            [0.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            [0.0; 7],
            [f32::NAN, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ];
        metrics.update(&logits(&rows), &[1, 3, 2, 0, 1]).unwrap();
        assert_eq!((metrics.n, metrics.top1, metrics.top5), (5, 2, 3));
        assert_eq!(metrics.per_class[..4], [(1, 1), (2, 1), (1, 0), (1, 0)]);
        assert!(metrics.loss.is_nan());
        let classes = metrics.class_accuracies(&["zero".into()]);
        assert_eq!((classes[0].class.as_str(), classes[0].top1), ("zero", Some(100.0)));
        assert_eq!((classes[6].class.as_str(), classes[6].top1), ("6", None));
    }

    #[test]
    fn loss_is_log_of_the_softmax() {
        let mut metrics = Metrics::default();
        metrics.update(&logits(&[[0.0; 7], [1000.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]), &[3, 1]).unwrap();
        assert!((metrics.mean_loss() - (7f64.ln() + 1000.0) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn batching_has_no_influence() {
        let rows: Vec<[f32; 7]> =
            (0..50).map(|i| std::array::from_fn(|j| ((i * 31 + j * 17) % 23) as f32 * 0.37)).collect();
        let labels: Vec<u32> = (0..50).map(|i| i * 5 % 7).collect();
        let of_batches = |size: usize| {
            let mut metrics = Metrics::default();
            for (rows, labels) in rows.chunks(size).zip(labels.chunks(size)) {
                metrics.update(&logits(rows), labels).unwrap();
            }
            metrics
        };
        let all = of_batches(50);
        assert!(all.top1 > 0 && all.top1 < all.top5 && all.top5 < 50);
        for size in [1, 7, 49] {
            assert_eq!(of_batches(size), all);
        }
    }

    #[test]
    fn labels_out_of_range_are_refused() {
        let message = Metrics::default().update(&logits(&[[0.0; 7]]), &[7]).unwrap_err().to_string();
        assert!(message.contains("label 7 with 7 classes"), "{message}");
    }
}
