//! Max pooling on a GPU; each output remembers the tap that won.

use crate::Window2d;
use crate::cuda::{Arg, Gradients, Map, Operator, launch, pointer, record, uninitialised, window_args};
use candle_core::{DType, Result, Tensor};

pub(super) fn max_pool2d(xs: &Map, window: &Window2d, out: (usize, usize)) -> Result<Map> {
    let (values, (n, h, w, c)) = (xs.values(), xs.dims());
    let (device, dtype) = (values.device(), values.dtype());
    let ys = uninitialised((n, out.0, out.1, c), dtype, device)?;
    let winners = uninitialised((n, out.0, out.1, c), DType::I32, device)?;
    let sizes = window_args([h, w, c, out.0, out.1], window);
    let mut args = vec![pointer(values)?, pointer(&ys)?, pointer(&winners)?];
    args.extend(&sizes);
    launch(device, "max_pool", dtype, ys.elem_count(), &args)?;
    record(&[xs], &[], ys, || Op { winners, sizes, dims: (n, h, w, c) })
}

struct Op {
    winners: Tensor,
    sizes: Vec<Arg>,
    /// Of the input.
    dims: (usize, usize, usize, usize),
}

impl Operator for Op {
    const NAME: &'static str = "max_pool2d";

    fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
        let dxs = uninitialised(self.dims, dys.dtype(), dys.device())?;
        let mut args = vec![pointer(&dys)?, pointer(&self.winners)?, pointer(&dxs)?];
        args.extend(&self.sizes);
        launch(dys.device(), "max_pool_gradient", dys.dtype(), dxs.elem_count(), &args)?;
        Ok((vec![Some(dxs)], Vec::new()))
    }
}
