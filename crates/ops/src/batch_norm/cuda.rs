//! Batch normalisation on a GPU, with residual and activation: two passes forward, two backward.

use super::BatchNorm;
use crate::activation::Activation;
use crate::cuda::{
    Arg, Gradients, Grid, Map, Operator, code, launch_common, launch_merge, launch_rows, launch_sums,
    parts_of_blocks, pointer, pointer_or_null, record, uninitialised,
};
use candle_core::{DType, Result, Tensor};

/// Moves the running statistics, too, where it trains.
pub(super) fn batch_norm(
    xs: &Map,
    norm: &BatchNorm,
    residual: Option<&Map>,
    activation: Activation,
    train: bool,
) -> Result<Map> {
    let values = xs.values();
    let (device, dtype, c) = (values.device(), values.dtype(), xs.dims().3);
    let rows = values.elem_count() / c;
    let factors = Factors::new(values, norm, train)?;
    let ys = uninitialised(xs.dims(), dtype, device)?;
    let [activation_code, slope] = code(activation);
    let residual_values = residual.map(|residual| residual.values().clone());
    let args = [
        pointer(values)?,
        pointer_or_null(residual_values.as_ref())?,
        pointer(&factors.scale)?,
        pointer(&factors.shift)?,
        pointer(&ys)?,
        activation_code,
        slope,
    ];
    launch_rows(device, "normalise", dtype, (rows, c), &args)?;
    let maps: Vec<&Map> = std::iter::once(xs).chain(residual).collect();
    // Where there is no γ or β nothing is differentiated in its place.
    let (gamma, beta) = super::affine(norm, DType::F32)?;
    let op = || {
        // Without a residual the input says as much as the output, and is read anyway.
        let simple = matches!(activation, Activation::Identity | Activation::Relu | Activation::Relu6);
        let (ys, residual) = match residual_values {
            Some(_) if simple => (Some(ys.clone()), None),
            residual => (None, residual),
        };
        Op { xs: values.clone(), ys, residual, factors, activation, train }
    };
    record(&maps, &[&gamma, &beta], ys.clone(), op)
}

/// A normalisation as x · scale + shift, and what it was made of.
struct Factors {
    mean: Tensor,
    inv_std: Tensor,
    scale: Tensor,
    shift: Tensor,
}

impl Factors {
    /// From the map's own statistics where it trains, which moves the running ones, else from those.
    fn new(xs: &Tensor, norm: &BatchNorm, train: bool) -> Result<Self> {
        let (device, c) = (xs.device(), xs.dim(3)?);
        let vector = || uninitialised(c, DType::F32, device);
        let plain = |param: &Option<Tensor>| param.as_ref().map(|p| p.detach().contiguous()).transpose();
        let (gamma, beta) = (plain(&norm.weight)?, plain(&norm.bias)?);
        let affine = [pointer_or_null(gamma.as_ref())?, pointer_or_null(beta.as_ref())?];
        let (running_mean, running_var) =
            (norm.running_mean.as_detached_tensor(), norm.running_var.as_detached_tensor());
        let mean = if train { vector()? } else { running_mean.clone() };
        let factors = Self { mean, inv_std: vector()?, scale: vector()?, shift: vector()? };
        let made = [pointer(&factors.inv_std)?, pointer(&factors.scale)?, pointer(&factors.shift)?];
        if !train {
            let mut args = vec![pointer(&factors.mean)?, pointer(&running_var)?];
            args.extend(affine.into_iter().chain(made).chain([(norm.eps as f32).into()]));
            launch_common(device, "norm_factors", Grid::Threads(c), &args)?;
            return Ok(factors);
        }
        let rows = xs.elem_count() / c;
        let (per, count) = parts_of_blocks(rows, c);
        let means = uninitialised((count, c), DType::F32, device)?;
        let m2s = uninitialised((count, c), DType::F32, device)?;
        let args = [pointer(xs)?, pointer(&means)?, pointer(&m2s)?];
        launch_sums(device, "moments", xs.dtype(), (rows, c), &args)?;
        let mut args = vec![pointer(&means)?, pointer(&m2s)?];
        args.extend(affine.into_iter().chain([pointer(&factors.mean)?]).chain(made));
        args.extend([pointer(&running_mean)?, pointer(&running_var)?]);
        args.extend([Arg::from(norm.momentum as f32), (norm.eps as f32).into(), rows.into(), per.into()]);
        launch_merge(device, "merge_moments", c, &args)?;
        Ok(factors)
    }
}

struct Op {
    xs: Tensor,
    /// Where the activation's derivative is read off the output.
    ys: Option<Tensor>,
    /// Where it is not, and there is one.
    residual: Option<Tensor>,
    factors: Factors,
    activation: Activation,
    train: bool,
}

impl Operator for Op {
    const NAME: &'static str = "batch_norm";

    fn backward(self, dys: Tensor, of_maps: &[bool], _: &[bool]) -> Result<Gradients> {
        let Self { xs, ys, residual, factors, activation, train } = self;
        let (device, dtype, c) = (xs.device(), xs.dtype(), factors.mean.elem_count());
        let vector = || uninitialised(c, DType::F32, device);
        let rows = xs.elem_count() / c;
        let (_, count) = parts_of_blocks(rows, c);
        let sums = uninitialised((count, c), DType::F32, device)?;
        let dots = uninitialised((count, c), DType::F32, device)?;
        let [activation, slope] = code(activation);
        let common = [
            pointer(&xs)?,
            pointer_or_null(ys.as_ref())?,
            pointer_or_null(residual.as_ref())?,
            pointer(&dys)?,
            pointer(&factors.mean)?,
            pointer(&factors.scale)?,
            pointer(&factors.shift)?,
        ];
        let mut args = common.to_vec();
        args.extend([pointer(&sums)?, pointer(&dots)?, activation, slope]);
        launch_sums(device, "gradient_sums", dtype, (rows, c), &args)?;
        let (lift, pull, of_gamma, of_beta) = (vector()?, vector()?, vector()?, vector()?);
        let moving = if train { 1.0 / rows as f32 } else { 0.0 };
        let args = [
            pointer(&sums)?,
            pointer(&dots)?,
            pointer(&factors.inv_std)?,
            pointer(&lift)?,
            pointer(&pull)?,
            pointer(&of_gamma)?,
            pointer(&of_beta)?,
            moving.into(),
            count.into(),
        ];
        launch_merge(device, "merge_gradient_sums", c, &args)?;
        let dxs = uninitialised(xs.shape(), dtype, device)?;
        let of_residual = match of_maps.get(1) {
            Some(true) => Some(uninitialised(xs.shape(), dtype, device)?),
            _ => None,
        };
        let mut args = common.to_vec();
        args.extend([pointer(&lift)?, pointer(&pull)?, pointer(&dxs)?]);
        args.extend([pointer_or_null(of_residual.as_ref())?, activation, slope]);
        launch_rows(device, "norm_gradient", dtype, (rows, c), &args)?;
        let of_maps = std::iter::once(of_maps[0].then_some(dxs)).chain(of_maps.get(1).map(|_| of_residual));
        Ok((of_maps.collect(), vec![Some(of_gamma), Some(of_beta)]))
    }
}
