//! Average pooling on a GPU.

use super::Span;
use crate::cuda::{Arg, Gradients, Map, Operator, launch, pointer, record, uninitialised};
use candle_core::{Result, Tensor};

pub(super) fn avg_pool(xs: &Map, rows: &[Span], columns: &[Span]) -> Result<Map> {
    let (values, (n, h, w, c)) = (xs.values(), xs.dims());
    let device = values.device();
    let ends: Vec<i32> =
        rows.iter().chain(columns).flat_map(|span| [span.start as i32, span.end as i32]).collect();
    let factors: Vec<f32> = rows.iter().chain(columns).map(|span| (1.0 / span.divisor) as f32).collect();
    let (spans, factors) = (Tensor::new(ends, device)?, Tensor::new(factors, device)?);
    let ys = uninitialised((n, rows.len(), columns.len(), c), values.dtype(), device)?;
    let op = Op { spans, factors, sizes: [h, w, c, rows.len(), columns.len()], dims: xs.dims() };
    launch(device, "avg_pool", values.dtype(), ys.elem_count(), &op.args(values, &ys)?)?;
    record(&[xs], &[], ys, || op)
}

struct Op {
    /// Start and end of each span, rows first.
    spans: Tensor,
    /// What sums over a span are multiplied by.
    factors: Tensor,
    sizes: [usize; 5],
    /// Of the input.
    dims: (usize, usize, usize, usize),
}

impl Op {
    fn args(&self, from: &Tensor, to: &Tensor) -> Result<Vec<Arg>> {
        let mut args = vec![pointer(from)?, pointer(to)?, pointer(&self.spans)?, pointer(&self.factors)?];
        args.extend(self.sizes.map(Arg::from));
        Ok(args)
    }
}

impl Operator for Op {
    const NAME: &'static str = "avg_pool2d";

    fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
        let dxs = uninitialised(self.dims, dys.dtype(), dys.device())?;
        launch(dys.device(), "avg_pool_gradient", dys.dtype(), dxs.elem_count(), &self.args(&dys, &dxs)?)?;
        Ok((vec![Some(dxs)], Vec::new()))
    }
}
