//! Local response normalisation on a GPU.

use super::LocalResponseNorm;
use crate::cuda::{
    Gradients, Map, Operator, is_constant, launch, pointer, pointer_or_null, record, uninitialised,
};
use candle_core::{DType, Result, Tensor};

pub(super) fn local_response_norm(xs: &Map, norm: LocalResponseNorm) -> Result<Map> {
    let (values, dims) = (xs.values(), xs.dims());
    let (dtype, device) = (values.dtype(), values.device());
    let bases = match is_constant(&[xs], &[]) {
        true => None,
        false => Some(uninitialised(dims, DType::F32, device)?),
    };
    let ys = uninitialised(dims, dtype, device)?;
    let args = [
        pointer(values)?,
        pointer_or_null(bases.as_ref())?,
        pointer(&ys)?,
        ((norm.alpha / norm.size as f64) as f32).into(),
        (norm.k as f32).into(),
        (norm.beta as f32).into(),
        norm.size.into(),
        dims.3.into(),
    ];
    launch(device, "local_response", dtype, ys.elem_count(), &args)?;
    match bases {
        Some(bases) => record(&[xs], &[], ys, || Op { norm, xs: values.clone(), bases }),
        None => Map::constant(ys),
    }
}

struct Op {
    norm: LocalResponseNorm,
    xs: Tensor,
    /// What is raised to the power, in f32.
    bases: Tensor,
}

impl Operator for Op {
    const NAME: &'static str = "local_response_norm";

    fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
        let Self { norm, xs, bases } = self;
        let dxs = uninitialised(dys.shape(), dys.dtype(), dys.device())?;
        let args = [
            pointer(&xs)?,
            pointer(&dys)?,
            pointer(&bases)?,
            pointer(&dxs)?,
            ((2.0 * norm.beta * norm.alpha / norm.size as f64) as f32).into(),
            (norm.beta as f32).into(),
            norm.size.into(),
            xs.dim(3)?.into(),
        ];
        launch(dys.device(), "local_response_gradient", dys.dtype(), dxs.elem_count(), &args)?;
        Ok((vec![Some(dxs)], Vec::new()))
    }
}
