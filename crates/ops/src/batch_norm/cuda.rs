//! Batch normalisation on a GPU, with residual and activation: two passes forward, two backward.

use super::BatchNorm;
use crate::activation::Activation;
use crate::cuda::{
    Gradients, Map, Operator, code, launch, launch_common, parts, pointer, pointer_or_null, record,
    uninitialised,
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
    let vector = || uninitialised(c, DType::F32, device);
    let rows = values.elem_count() / c;
    let (running_mean, running_var) =
        (norm.running_mean.as_detached_tensor(), norm.running_var.as_detached_tensor());
    let (mean, var) = if train {
        let (per, count) = parts(rows, c);
        let means = uninitialised((count, c), DType::F32, device)?;
        let m2s = uninitialised((count, c), DType::F32, device)?;
        let args = [pointer(values)?, pointer(&means)?, pointer(&m2s)?, rows.into(), per.into(), c.into()];
        launch(device, "moments", dtype, count * c, &args)?;
        let (mean, var) = (vector()?, vector()?);
        let args = [
            pointer(&means)?,
            pointer(&m2s)?,
            pointer(&mean)?,
            pointer(&var)?,
            pointer(&running_mean)?,
            pointer(&running_var)?,
            (norm.momentum as f32).into(),
            rows.into(),
            per.into(),
            c.into(),
        ];
        launch_common(device, "merge_moments", c, &args)?;
        (mean, var)
    } else {
        (running_mean, running_var)
    };
    let plain = |param: &Option<Tensor>| param.as_ref().map(|p| p.detach().contiguous()).transpose();
    let (gamma, beta) = (plain(&norm.weight)?, plain(&norm.bias)?);
    let (inv_std, scale, shift) = (vector()?, vector()?, vector()?);
    let args = [
        pointer(&mean)?,
        pointer(&var)?,
        pointer_or_null(gamma.as_ref())?,
        pointer_or_null(beta.as_ref())?,
        pointer(&inv_std)?,
        pointer(&scale)?,
        pointer(&shift)?,
        (norm.eps as f32).into(),
        c.into(),
    ];
    launch_common(device, "norm_factors", c, &args)?;
    let ys = uninitialised(xs.dims(), dtype, device)?;
    let [activation_code, slope] = code(activation);
    let residual_values = residual.map(|residual| residual.values().clone());
    let args = [
        pointer(values)?,
        pointer_or_null(residual_values.as_ref())?,
        pointer(&scale)?,
        pointer(&shift)?,
        pointer(&ys)?,
        activation_code,
        slope,
        c.into(),
    ];
    launch(device, "normalise", dtype, ys.elem_count(), &args)?;
    let maps: Vec<&Map> = std::iter::once(xs).chain(residual).collect();
    // Where there is no γ or β nothing is differentiated in its place.
    let (gamma, beta) = super::affine(norm, DType::F32)?;
    let op = || Op {
        xs: values.clone(),
        ys: ys.clone(),
        residual: residual_values,
        mean,
        inv_std,
        scale,
        shift,
        activation,
        train,
    };
    record(&maps, &[&gamma, &beta], ys.clone(), op)
}

struct Op {
    xs: Tensor,
    ys: Tensor,
    residual: Option<Tensor>,
    mean: Tensor,
    inv_std: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: Activation,
    train: bool,
}

impl Operator for Op {
    const NAME: &'static str = "batch_norm";

    fn backward(self, dys: Tensor, of_maps: &[bool], _: &[bool]) -> Result<Gradients> {
        let (device, dtype, c) = (self.xs.device(), self.xs.dtype(), self.mean.elem_count());
        let vector = || uninitialised(c, DType::F32, device);
        let rows = self.xs.elem_count() / c;
        let (per, count) = parts(rows, c);
        let sums = uninitialised((count, c), DType::F32, device)?;
        let dots = uninitialised((count, c), DType::F32, device)?;
        let [activation, slope] = code(self.activation);
        let maps = [
            pointer(&self.xs)?,
            pointer(&self.ys)?,
            pointer_or_null(self.residual.as_ref())?,
            pointer(&dys)?,
            pointer(&self.mean)?,
        ];
        let mut args = maps.to_vec();
        args.extend([pointer(&self.scale)?, pointer(&self.shift)?, pointer(&sums)?, pointer(&dots)?]);
        args.extend([activation, slope, rows.into(), per.into(), c.into()]);
        launch(device, "gradient_sums", dtype, count * c, &args)?;
        let (sum, dot, of_gamma, of_beta) = (vector()?, vector()?, vector()?, vector()?);
        let args = [
            pointer(&sums)?,
            pointer(&dots)?,
            pointer(&self.inv_std)?,
            pointer(&sum)?,
            pointer(&dot)?,
            pointer(&of_gamma)?,
            pointer(&of_beta)?,
            count.into(),
            c.into(),
        ];
        launch_common(device, "merge_gradient_sums", c, &args)?;
        let dxs = uninitialised(self.xs.shape(), dtype, device)?;
        let wants_residual = of_maps.get(1).copied().unwrap_or(false);
        let of_residual =
            if wants_residual { Some(uninitialised(self.xs.shape(), dtype, device)?) } else { None };
        let moving = if self.train { 1.0 / rows as f32 } else { 0.0 };
        let mut args = maps.to_vec();
        args.extend([pointer(&self.inv_std)?, pointer(&self.scale)?, pointer(&self.shift)?]);
        args.extend([pointer(&sum)?, pointer(&dot)?, pointer(&dxs)?, pointer_or_null(of_residual.as_ref())?]);
        args.extend([activation, slope, moving.into(), c.into()]);
        launch(device, "norm_gradient", dtype, dxs.elem_count(), &args)?;
        let of_maps = std::iter::once(of_maps[0].then_some(dxs)).chain(self.residual.map(|_| of_residual));
        Ok((of_maps.collect(), vec![Some(of_gamma), Some(of_beta)]))
    }
}
