//! The gate on a GPU.

use crate::cuda::{
    Arg, Gradients, Map, Operator, launch, merged, parts, pointer, record, times, uninitialised,
};
use candle_core::{DType, Result, Tensor};

pub(super) fn gate(xs: &Map, gate: &Map) -> Result<Map> {
    let (_, h, w, c) = xs.dims();
    let (values, factors) = (xs.values(), gate.values());
    let ys = times(values, factors, (h * w * c, c))?;
    record(&[xs, gate], &[], ys, || Gate { xs: values.clone(), factors: factors.clone(), dims: xs.dims() })
}

struct Gate {
    xs: Tensor,
    factors: Tensor,
    /// Of `xs`.
    dims: (usize, usize, usize, usize),
}

impl Gate {
    /// Σ xs · dys over the pixels of each image.
    fn dots(&self, dys: &Tensor) -> Result<Tensor> {
        let ((n, h, w, c), device) = (self.dims, dys.device());
        let (per, count) = parts(h * w, n * c);
        let partial = uninitialised((count, n * c), DType::F32, device)?;
        let mut args = vec![pointer(&self.xs)?, pointer(dys)?, pointer(&partial)?];
        args.extend([h * w, per, n * c, c].map(Arg::from));
        launch(device, "image_dots", dys.dtype(), count * n * c, &args)?;
        merged(&partial)?.reshape((n, 1, 1, c))?.to_dtype(dys.dtype())
    }
}

impl Operator for Gate {
    const NAME: &'static str = "gate";

    fn backward(self, dys: Tensor, of_maps: &[bool], _: &[bool]) -> Result<Gradients> {
        let (_, h, w, c) = self.dims;
        let of_xs = of_maps[0].then(|| times(&dys, &self.factors, (h * w * c, c))).transpose()?;
        let of_gate = of_maps[1].then(|| self.dots(&dys)).transpose()?;
        Ok((vec![of_xs, of_gate], Vec::new()))
    }
}
