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
    /// Multiple of each weight that is added to its gradient. Only parameters of rank two and more decay:
    /// biases and the scales and shifts of normalisations do not.
    pub weight_decay: f64,
}

/// `torch.optim.SGD` (dampening 0) with a velocity for each parameter.
#[derive(Debug)]
pub struct Optimizer {
    config: SgdConfig,
    parameters: Vec<(String, Var)>,
    velocities: Vec<Var>,
    /// What the learning rate of each parameter is multiplied by.
    lr_scales: Vec<f64>,
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
        let lr_scales = vec![1.0; parameters.len()];
        Ok(Self { config, parameters, velocities, lr_scales })
    }

    /// With learning rates of their own: that of a parameter is multiplied by what `scale` gives for its name.
    #[must_use]
    pub fn scale_lr(mut self, scale: impl Fn(&str) -> f64) -> Self {
        self.lr_scales = self.parameters.iter().map(|(name, _)| scale(name)).collect();
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
        let SgdConfig { momentum, nesterov, weight_decay } = self.config;
        let state = self.parameters.iter().zip(&self.velocities).zip(&self.lr_scales);
        let mut steps = Vec::with_capacity(self.parameters.len());
        for ((((_, var), velocity), scale), gradient) in state.zip(gradients.iter()) {
            let Some(gradient) = gradient else { continue };
            let weight_decay = if var.rank() >= 2 { weight_decay } else { 0.0 };
            steps.push((var, velocity, gradient, Sgd { lr: lr * scale, momentum, nesterov, weight_decay }));
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
