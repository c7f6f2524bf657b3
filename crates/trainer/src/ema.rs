//! An exponential moving average of the weights.

use candle_core::{Result, Tensor, Var, bail};

/// A running average of the variables of a model that change, running statistics included.
///
/// After step `t` (from 1) the average moves by `1 - min(decay, (1 + t) / (10 + t))` of its distance to the
/// weights. The second term, TensorFlow's, lets the average forget the random start of short runs.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    averages: Vec<(String, Var, Var)>,
}

impl Ema {
    /// Starts at the present values of `variables`.
    ///
    /// # Errors
    /// If memory for the averages cannot be had.
    pub fn new(variables: Vec<(String, Var)>, decay: f64) -> Result<Self> {
        let averages = variables
            .into_iter()
            .map(|(name, var)| {
                let average = Var::from_tensor(&var.as_detached_tensor().copy()?)?;
                Ok((name, var, average))
            })
            .collect::<Result<_>>()?;
        Ok(Self { decay, averages })
    }

    /// Takes in the weights after step `step`, counted from 1.
    ///
    /// # Errors
    /// If the device cannot compute.
    pub fn update(&self, step: u64) -> Result<()> {
        let decay = self.decay.min((1 + step) as f64 / (10 + step) as f64);
        for (_, var, average) in &self.averages {
            let kept = average.as_detached_tensor().affine(decay, 0.0)?;
            average.set(&(kept + var.as_detached_tensor().affine(1.0 - decay, 0.0)?)?)?;
        }
        Ok(())
    }

    /// Exchanges the model's weights and their averages; a second call undoes the first.
    ///
    /// # Errors
    /// If the device cannot copy.
    pub fn swap(&self) -> Result<()> {
        for (_, var, average) in &self.averages {
            let weights = var.as_detached_tensor().copy()?;
            var.set(&average.as_detached_tensor())?;
            average.set(&weights)?;
        }
        Ok(())
    }

    /// The averages under the names of their variables.
    pub fn state(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.averages.iter().map(|(name, _, average)| (name.as_str(), average.as_tensor()))
    }

    /// Takes over averages that [`Ema::state`] gave; `saved` looks one up by name.
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
