//! Stochastic gradient descent over the parameters of a model.

use crate::gradients::Gradients;
use candle_core::{Result, Tensor, Var, bail};
use zoo_ops::sgd::{Sgd, sgd_steps};

/// The constants of an [`Optimizer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Share of the previous direction that is kept.
    pub momentum: f64,
    /// Whether to step along the direction one momentum step ahead.
    pub nesterov: bool,
    /// Multiple of each weight that is added to its gradient.
    pub weight_decay: f64,
    /// Whether biases and the scales and shifts of normalisations decay, too, and not only parameters of rank two and
    /// more. Their decay is divided by [`Scale::own`].
    pub decay_biases: bool,
}

/// What the learning rate of a parameter is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// As that of all parameters of its layer.
    pub layer: f64,
    /// On its own; how much it decays in a step is not changed by this.
    pub own: f64,
}

/// `torch.optim.SGD` (dampening 0) with a velocity for each parameter.
#[derive(Debug)]
pub struct Optimizer {
    config: SgdConfig,
    parameters: Vec<(String, Var)>,
    velocities: Vec<Var>,
    /// Of each parameter.
    scales: Vec<Scale>,
}

impl Optimizer {
    /// With velocities of zero for `parameters`, whose names identify them in [`Optimizer::state`].
    ///
    /// # Errors
    /// If memory for the velocities cannot be had.
    pub fn new(parameters: Vec<(String, Var)>, config: SgdConfig) -> Result<Self> {
        let velocities = parameters
            .iter()
            .map(|(_, var)| Var::zeros(var.shape(), var.dtype(), var.device()))
            .collect::<Result<_>>()?;
        let scales = vec![Scale { layer: 1.0, own: 1.0 }; parameters.len()];
        Ok(Self { config, parameters, velocities, scales })
    }

    /// With learning rates of their own: that of a parameter is multiplied by what `scale` gives for its name.
    #[must_use]
    pub fn scale_lr(mut self, scale: impl Fn(&str) -> Scale) -> Self {
        self.scales = self.parameters.iter().map(|(name, _)| scale(name)).collect();
        self
    }

    /// What is optimized, in the order that gradients must have.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// One step at learning rate `lr`. A parameter without a gradient stays as it is.
    ///
    /// # Errors
    /// If the gradients are not those of the parameters.
    pub fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()> {
        if gradients.iter().len() != self.parameters.len() {
            bail!("{} gradients for {} parameters", gradients.iter().len(), self.parameters.len());
        }
        let SgdConfig { momentum, nesterov, weight_decay, decay_biases } = self.config;
        let state = self.parameters.iter().zip(&self.velocities).zip(&self.scales);
        let mut steps = Vec::with_capacity(self.parameters.len());
        for ((((_, var), velocity), scale), gradient) in state.zip(gradients.iter()) {
            let Some(gradient) = gradient else { continue };
            let weight_decay = match var.rank() {
                0 | 1 if decay_biases && scale.own > 0.0 => weight_decay / scale.own,
                0 | 1 => 0.0,
                _ => weight_decay,
            };
            steps.push((
                var,
                velocity,
                gradient,
                Sgd { lr: lr * scale.layer * scale.own, momentum, nesterov, weight_decay },
            ));
        }
        sgd_steps(&steps)
    }

    /// The velocities under the names of their parameters.
    pub fn state(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().zip(&self.velocities).map(|((name, _), v)| (name.as_str(), v.as_tensor()))
    }

    /// Takes over velocities that [`Optimizer::state`] gave; `saved` looks one up by name.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn restore<'t>(&mut self, saved: impl Fn(&str) -> Option<&'t Tensor>) -> Result<()> {
        for ((name, _), velocity) in self.parameters.iter().zip(&self.velocities) {
            let Some(tensor) = saved(name) else { bail!("the velocity of {name} is missing") };
            velocity.set(&tensor.to_device(velocity.device())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::backprop::GradStore;
    use candle_core::{Device, Tensor};

    /// Without momentum and with gradients of 0 a step only decays.
    #[test]
    fn biases_decay_where_they_are_told_to_and_as_weights_do() -> Result<()> {
        for (decay_biases, layer, kept) in
            [(false, 1.0, [0.95, 1.0]), (true, 1.0, [0.95, 0.95]), (true, 0.1, [0.995, 0.995])]
        {
            let ones = |shape: &[usize]| Var::ones(shape, candle_core::DType::F32, &Device::Cpu);
            let parameters = vec![("weight".to_string(), ones(&[1, 1])?), ("bias".to_string(), ones(&[1])?)];
            let config = SgdConfig { momentum: 0.0, nesterov: false, weight_decay: 0.1, decay_biases };
            let optimizer = Optimizer::new(parameters.clone(), config)?;
            let mut optimizer =
                optimizer.scale_lr(|name| Scale { layer, own: if name == "bias" { 64.0 } else { 1.0 } });
            let loss = parameters.iter().map(|(_, var)| (var.as_tensor() * var.zeros_like()?)?.sum_all());
            let loss = loss.reduce(|a, b| a? + b?).unwrap()?;
            let gradients: GradStore = loss.backward()?;
            optimizer.step(&Gradients::take(optimizer.parameters(), gradients), 0.5)?;
            let value = |i: usize| parameters[i].1.sum_all().and_then(|sum: Tensor| sum.to_scalar::<f32>());
            let found = [value(0)?, value(1)?];
            assert!(
                (found[0] - kept[0]).abs() < 1e-6 && (found[1] - kept[1]).abs() < 1e-6,
                "{decay_biases} {found:?}"
            );
        }
        Ok(())
    }
}
