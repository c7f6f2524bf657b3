//! Losses and hits of steps. On a GPU they stay there until someone looks: reading one waits for everything before it.

use candle_core::{Result, Tensor};

/// Those of the passes of one step, as [`zoo_ops::score`] gives them.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    /// Of what has been read.
    read: Sums,
    /// Images of each pass that has not, and its score.
    unread: Vec<(usize, Tensor)>,
}

/// Sums over images.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sums {
    pub(crate) n: usize,
    pub(crate) top1: u64,
    /// Of the images' losses.
    pub(crate) loss: f64,
}

impl Scores {
    /// Those whose sums are known.
    pub(crate) fn known(read: Sums) -> Self {
        Self { read, unread: Vec::new() }
    }

    /// Takes in the score of a pass over so many images.
    pub(crate) fn add(&mut self, images: usize, score: Tensor) {
        self.unread.push((images, score));
    }

    /// The sums of each of several steps, in one reading.
    pub(crate) fn read<'s>(steps: impl Iterator<Item = &'s Self> + Clone) -> Result<Vec<Sums>> {
        let all: Vec<&Tensor> = steps.clone().flat_map(|step| &step.unread).map(|(_, score)| score).collect();
        let values = if all.is_empty() { Vec::new() } else { Tensor::cat(&all, 0)?.to_vec1::<f32>()? };
        let mut values = values.as_chunks::<2>().0.iter();
        let sums = |step: &Self| {
            step.unread.iter().zip(values.by_ref()).fold(step.read, |sums, (&(n, _), &[loss, hits])| Sums {
                n: sums.n + n,
                top1: sums.top1 + hits as u64,
                loss: sums.loss + f64::from(loss) * n as f64,
            })
        };
        Ok(steps.map(sums).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn every_step_gets_its_own() -> Result<()> {
        let step = |passes: &[(usize, f32, f32)]| -> Result<Scores> {
            let mut scores = Scores::default();
            for &(n, loss, hits) in passes {
                scores.add(n, Tensor::new(&[loss, hits], &Device::Cpu)?);
            }
            Ok(scores)
        };
        let sums = |n, top1, loss| Sums { n, top1, loss };
        let known = Scores::known(sums(5, 1, 2.0));
        let steps = [step(&[(4, 0.5, 3.0), (2, 1.0, 0.0)])?, known, step(&[(8, 0.25, 8.0)])?];
        assert_eq!(Scores::read(steps.iter())?, [sums(6, 3, 4.0), sums(5, 1, 2.0), sums(8, 8, 2.0)]);
        Ok(())
    }
}
