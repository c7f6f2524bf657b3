//! Activations on a GPU.

use super::Activation;
use crate::cuda::{Gradients, Map, Operator, code, launch_flat, pointer, record, uninitialised};
use candle_core::{Result, Tensor};

pub(super) fn activation(xs: &Map, activation: Activation) -> Result<Map> {
    let values = xs.values();
    let ys = uninitialised(xs.dims(), values.dtype(), values.device())?;
    let [code, slope] = code(activation);
    let args = [pointer(values)?, pointer(&ys)?, code, slope];
    launch_flat(values.device(), "activate", values.dtype(), ys.elem_count(), &args)?;
    record(&[xs], &[], ys, || Op { xs: values.clone(), activation })
}

struct Op {
    xs: Tensor,
    activation: Activation,
}

impl Operator for Op {
    const NAME: &'static str = "activation";

    fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
        let dxs = uninitialised(dys.shape(), dys.dtype(), dys.device())?;
        let [code, slope] = code(self.activation);
        let args = [pointer(&self.xs)?, pointer(&dys)?, pointer(&dxs)?, code, slope];
        launch_flat(dys.device(), "activate_gradient", dys.dtype(), dxs.elem_count(), &args)?;
        Ok((vec![Some(dxs)], Vec::new()))
    }
}
