//! One step of stochastic gradient descent on parameters, and of averages of them, in place.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;

#[cfg(any(test, feature = "cuda"))]
use crate::dispatch::{Path, path};
use candle_core::{DType, Device, Result, Tensor, Var, bail};

/// The constants of one step, in PyTorch's convention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Share of the previous direction that is kept.
    pub momentum: f64,
    /// Whether to step along the direction one momentum step ahead.
    pub nesterov: bool,
    /// Multiple of the parameter that is added to its gradient.
    pub weight_decay: f64,
}

/// Applies `torch.optim.SGD`'s update with dampening 0:
/// `g = gradient + weight_decay · p`, `velocity = momentum · velocity + g`,
/// `p -= lr · (nesterov ? g + momentum · velocity : velocity)`.
///
/// A velocity of zeros at the start gives PyTorch's first step. All three tensors have one shape; `parameter`
/// and `velocity` one dtype.
///
/// # Errors
/// If shapes differ.
pub fn sgd_step(parameter: &Var, velocity: &Var, gradient: &Tensor, step: &Sgd) -> Result<()> {
    check(parameter, velocity, gradient)?;
    let gradient = gradient.detach().to_dtype(parameter.dtype())?.contiguous()?;
    if matches!(parameter.device(), Device::Cpu) && parameter.dtype() == DType::F32 {
        return cpu::step(parameter, velocity, &gradient, step);
    }
    let p = parameter.as_detached_tensor();
    let g = if step.weight_decay == 0.0 { gradient } else { (gradient + (&p * step.weight_decay)?)? };
    let v = ((velocity.as_detached_tensor() * step.momentum)? + &g)?;
    let direction = if step.nesterov { (g + (&v * step.momentum)?)? } else { v.clone() };
    velocity.set(&v)?;
    parameter.set(&(p - (direction * step.lr)?)?)
}

/// A parameter, its velocity, its gradient and the constants of its step.
pub type Step<'a> = (&'a Var, &'a Var, &'a Tensor, Sgd);

/// [`sgd_step`] on each of many parameters; on a GPU in one launch, if all are in f32 and differ in learning rate and
/// weight decay only.
///
/// # Errors
/// If shapes differ.
pub fn sgd_steps(steps: &[Step<'_>]) -> Result<()> {
    #[cfg(any(test, feature = "cuda"))]
    if let Some((first, ..)) = steps.first()
        && path(first.device(), first.dtype()) == Path::Cuda
    {
        steps.iter().try_for_each(|(p, v, g, _)| check(p, v, g))?;
        if cuda::steps(steps)? {
            return Ok(());
        }
    }
    steps.iter().try_for_each(|(p, v, g, step)| sgd_step(p, v, g, step))
}

/// Moves each average by `1 - kept` of its distance to the variable beside it, in place: `average = kept · average +
/// (1 - kept) · variable`. On a GPU in one launch, if all are in f32.
///
/// # Errors
/// If shapes differ.
pub fn average_into(averages: &[(&Var, &Var)], kept: f64) -> Result<()> {
    for (average, var) in averages {
        if average.dims() != var.dims() {
            bail!("an average of shape {:?} of a variable of {:?}", average.dims(), var.dims());
        }
    }
    #[cfg(any(test, feature = "cuda"))]
    if let Some((first, _)) = averages.first()
        && path(first.device(), first.dtype()) == Path::Cuda
        && cuda::average_into(averages, kept)?
    {
        return Ok(());
    }
    averages.iter().try_for_each(|(average, var)| {
        if matches!(average.device(), Device::Cpu) && average.dtype() == DType::F32 {
            return cpu::average_into(average, var, kept);
        }
        let own = average.as_detached_tensor().affine(kept, 0.0)?;
        average.set(&(own + var.as_detached_tensor().affine(1.0 - kept, 0.0)?)?)
    })
}

fn check(parameter: &Var, velocity: &Var, gradient: &Tensor) -> Result<()> {
    if parameter.dims() != gradient.dims() || parameter.dims() != velocity.dims() {
        bail!(
            "sgd: a parameter of shape {:?} with a gradient of {:?} and a velocity of {:?}",
            parameter.dims(),
            gradient.dims(),
            velocity.dims()
        );
    }
    Ok(())
}
