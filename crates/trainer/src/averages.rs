//! Averages of the weights over the steps of a run.

use candle_core::{Result, Tensor, Var, bail};
use zoo_ops::sgd::average_into;

/// How the weights of a run are averaged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Averaging {
    /// An exponential moving average beside the weights, which is what is evaluated and saved. After step `t` (from 1)
    /// it moves by `1 - min(decay, (1 + t) / (10 + t))` of its distance to the weights. The second term, TensorFlow's,
    /// lets the average forget the random start of short runs.
    Ema {
        /// The share of the average that a step keeps.
        decay: f64,
    },
    /// Lookahead (Zhang et al., arXiv 1907.08610) as airbench has it (Jordan, arXiv 2404.00498): every five
    /// steps the average moves by `1 - decay⁵ · (t / total_steps)³` of its distance to the weights, which then go on from
    /// there. The run ends on the average.
    Lookahead {
        /// The share of the average that a step keeps at the end of the run.
        decay: f64,
        /// Steps of the run.
        total_steps: u64,
    },
}

/// Steps between those at which Lookahead's weights go back to their average.
const LOOKAHEAD_STEPS: u64 = 5;

/// The variables of a model, running statistics included, each with its average.
#[derive(Debug)]
pub struct AveragedWeights {
    how: Averaging,
    /// Name, variable and average.
    averages: Vec<(String, Var, Var)>,
}

impl AveragedWeights {
    /// Starts at the present values of `variables`.
    ///
    /// # Errors
    /// If memory for the averages cannot be had.
    pub fn new(variables: Vec<(String, Var)>, how: Averaging) -> Result<Self> {
        let start = |(name, var): (String, Var)| {
            let average = Var::from_tensor(&var.as_detached_tensor().copy()?)?;
            Ok((name, var, average))
        };
        Ok(Self { how, averages: variables.into_iter().map(start).collect::<Result<_>>()? })
    }

    /// Takes in the weights after step `step`, counted from 1.
    ///
    /// # Errors
    /// If the device cannot compute.
    pub fn update(&self, step: u64) -> Result<()> {
        match self.how {
            Averaging::Ema { decay } => self.take_in(decay.min((1 + step) as f64 / (10 + step) as f64)),
            Averaging::Lookahead { decay, total_steps } => {
                let due = step.is_multiple_of(LOOKAHEAD_STEPS);
                if due {
                    let share = (step as f64 / total_steps as f64).powi(3);
                    self.take_in(decay.powi(LOOKAHEAD_STEPS as i32) * share)?;
                }
                if due || step == total_steps { self.give_back() } else { Ok(()) }
            }
        }
    }

    /// Keeps `decay` of each average; the rest comes from its variable.
    fn take_in(&self, decay: f64) -> Result<()> {
        let pairs: Vec<(&Var, &Var)> = self.averages.iter().map(|(_, var, average)| (average, var)).collect();
        average_into(&pairs, decay)
    }

    /// Gives the variables the values of their averages.
    fn give_back(&self) -> Result<()> {
        self.averages.iter().try_for_each(|(_, var, average)| var.set(&average.as_detached_tensor()))
    }

    /// Exchanges the model's weights and what is evaluated in their place; a second call undoes the first.
    ///
    /// # Errors
    /// If the device cannot copy.
    pub fn swap(&self) -> Result<()> {
        if let Averaging::Lookahead { .. } = self.how {
            return Ok(());
        }
        for (_, var, average) in &self.averages {
            let weights = var.as_detached_tensor().copy()?;
            var.set(&average.as_detached_tensor())?;
            average.set(&weights)?;
        }
        Ok(())
    }

    /// What is evaluated in place of the weights, under the names of their variables.
    pub fn evaluated(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.state().filter(|_| matches!(self.how, Averaging::Ema { .. }))
    }

    /// The averages under the names of their variables.
    pub fn state(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.averages.iter().map(|(name, _, average)| (name.as_str(), average.as_tensor()))
    }

    /// Takes over averages that [`AveragedWeights::state`] gave; `saved` looks one up by name.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn restore<'t>(&mut self, saved: impl Fn(&str) -> Option<&'t Tensor>) -> Result<()> {
        for (name, _, average) in &self.averages {
            let Some(tensor) = saved(name) else { bail!("the average of {name} is missing") };
            average.set(&tensor.to_device(average.device())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn weights(value: f32) -> Tensor {
        Tensor::new(&[value], &Device::Cpu).unwrap()
    }

    fn values<'t>(state: impl Iterator<Item = (&'t str, &'t Tensor)>) -> Vec<f32> {
        state.map(|(_, tensor)| tensor.to_vec1::<f32>().unwrap()[0]).collect()
    }

    #[test]
    fn lookahead_goes_back_every_five_steps_and_ends_on_the_average() {
        let var = Var::from_tensor(&weights(0.0)).unwrap();
        let how = Averaging::Lookahead { decay: 0.9, total_steps: 12 };
        let averaged = AveragedWeights::new(vec![("w".into(), var.clone())], how).unwrap();
        let (mut slow, mut fast) = (0f64, 0f64);
        for step in 1..=12u64 {
            fast += step as f64;
            var.set(&weights(fast as f32)).unwrap();
            averaged.update(step).unwrap();
            if step % 5 == 0 {
                let kept = 0.9f64.powi(5) * (step as f64 / 12.0).powi(3);
                slow = kept * slow + (1.0 - kept) * fast;
                fast = slow;
            }
            if step == 12 {
                fast = slow;
            }
            let found = f64::from(var.to_vec1::<f32>().unwrap()[0]);
            assert!((found - fast).abs() < 1e-4, "{step}: {found} {fast}");
            assert!((f64::from(values(averaged.state())[0]) - slow).abs() < 1e-4, "{step}");
        }
        // The weights themselves are what is evaluated.
        assert!(values(averaged.evaluated()).is_empty());
        averaged.swap().unwrap();
        assert!((f64::from(var.to_vec1::<f32>().unwrap()[0]) - fast).abs() < 1e-4);
    }
}
