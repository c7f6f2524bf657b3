//! The softmax over splits on a GPU.

use crate::cuda::{Gradients, Map, Operator, launch, pointer, record, uninitialised};
use candle_core::{Result, Tensor};

pub(super) fn radix_softmax(xs: &Map, radix: usize) -> Result<Map> {
    let (values, channels) = (xs.values(), xs.dims().3 / radix);
    let ys = uninitialised(xs.dims(), values.dtype(), values.device())?;
    let args = [pointer(values)?, pointer(&ys)?, radix.into(), channels.into()];
    launch(values.device(), "radix_softmax", values.dtype(), ys.elem_count() / radix, &args)?;
    let kept = ys.clone();
    record(&[xs], &[], ys, || Softmax { radix, channels, ys: kept })
}

struct Softmax {
    radix: usize,
    /// Of a split.
    channels: usize,
    ys: Tensor,
}

impl Operator for Softmax {
    const NAME: &'static str = "radix_softmax";

    fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
        let dxs = uninitialised(dys.shape(), dys.dtype(), dys.device())?;
        let maps = [pointer(&self.ys)?, pointer(&dys)?, pointer(&dxs)?];
        let args = [&maps[..], &[self.radix.into(), self.channels.into()]].concat();
        let n = dxs.elem_count() / self.radix;
        launch(dys.device(), "radix_softmax_gradient", dys.dtype(), n, &args)?;
        Ok((vec![Some(dxs)], Vec::new()))
    }
}
