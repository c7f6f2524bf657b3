//! `-Σ q · log softmax(x)` with its gradient in one pass over the logits.

use crate::element::{Elements, operand};
use crate::parallel::buffer;
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

/// Differentiable in `logits` [n, classes]; `weights` q is a constant of the same shape.
pub(super) fn weighted_nll(logits: &Tensor, weights: &Tensor) -> Result<Tensor> {
    logits.contiguous()?.apply_op2(&weights.contiguous()?, Op)
}

struct Op;

/// Largest value of a row, and the sum of exponentials of the differences to it.
fn log_sum_parts(row: &[f32]) -> (f32, f64) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, row.iter().map(|&x| f64::from((x - max).exp())).sum())
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        q: &CpuStorage,
        lq: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let classes = lx.shape().dims2()?.1.max(1);
        let (x, q) = (operand::<f32>(x, lx)?, operand::<f32>(q, lq)?);
        let mut loss = 0f64;
        for (x, q) in x.chunks_exact(classes).zip(q.chunks_exact(classes)) {
            let (max, sum) = log_sum_parts(x);
            let log_sum = f64::from(max) + sum.ln();
            loss += x.iter().zip(q).map(|(&x, &q)| f64::from(q) * (log_sum - f64::from(x))).sum::<f64>();
        }
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        q: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let classes = x.dims2()?.1.max(1);
        let dy = dy.to_scalar::<f32>()?;
        let (xs, qs) = (Elements::<f32>::of(x)?, Elements::<f32>::of(q)?);
        let mut dx = buffer::<f32>(xs.len());
        let rows = xs.chunks_exact(classes).zip(qs.chunks_exact(classes));
        for (dx, (x, q)) in dx.chunks_exact_mut(classes).zip(rows) {
            let (max, sum) = log_sum_parts(x);
            let total: f64 = q.iter().map(|&q| f64::from(q)).sum();
            for ((d, &x), &q) in dx.iter_mut().zip(x).zip(q) {
                let p = f64::from((x - max).exp()) / sum;
                *d = dy * (p * total - f64::from(q)) as f32;
            }
        }
        Ok((Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?), None))
    }
}
