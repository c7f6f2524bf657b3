//! The step in two passes in place, without temporaries, and averages in one.

use super::Sgd;
use crate::element::operand;
use crate::parallel::chunks;
use crate::simd::multiversion;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var, bail};

const CHUNK: usize = 64 * 1024;

pub(super) fn step(parameter: &Var, velocity: &Var, gradient: &Tensor, step: &Sgd) -> Result<()> {
    velocity.inplace_op3(gradient, parameter, &Velocity(*step))?;
    parameter.inplace_op3(gradient, velocity, &Parameter(*step))
}

pub(super) fn average_into(average: &Var, var: &Var, kept: f64) -> Result<()> {
    average.inplace_op2(var, &Average(kept))
}

/// What an average keeps of itself; the rest is the variable's.
struct Average(f64);

multiversion! {
    fn update_average(average: &mut [f32], xs: &[f32], kept: f32, new: f32) {
        for (a, &x) in average.iter_mut().zip(xs) {
            *a = kept * *a + new * x;
        }
    }
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "average"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout, x: &CpuStorage, lx: &Layout) -> Result<()> {
        let xs = operand::<f32>(x, lx)?;
        let (kept, new) = (self.0 as f32, (1.0 - self.0) as f32);
        chunks(written(a, la)?, CHUNK, |i, average| {
            update_average(average, &xs[i * CHUNK..][..average.len()], kept, new);
        });
        Ok(())
    }
}

/// v = momentum · v + g + weight_decay · p
struct Velocity(Sgd);

/// With v the new velocity: p -= lr · v, or with Nesterov p -= lr · (g + weight_decay · p + momentum · v).
struct Parameter(Sgd);

multiversion! {
    fn update_velocity(v: &mut [f32], g: &[f32], p: &[f32], momentum: f32, weight_decay: f32) {
        for ((v, &g), &p) in v.iter_mut().zip(g).zip(p) {
            *v = momentum * *v + (g + weight_decay * p);
        }
    }
}

multiversion! {
    fn update_parameter(p: &mut [f32], v: &[f32], lr: f32) {
        for (p, &v) in p.iter_mut().zip(v) {
            *p -= lr * v;
        }
    }
}

multiversion! {
    fn update_nesterov(p: &mut [f32], g: &[f32], v: &[f32], constants: (f32, f32, f32)) {
        let (lr, momentum, weight_decay) = constants;
        for ((p, &g), &v) in p.iter_mut().zip(g).zip(v) {
            *p -= lr * (g + weight_decay * *p + momentum * v);
        }
    }
}

/// The elements of the operand that is written, in place.
fn written<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(all), Some((start, end))) => Ok(&mut all[start..end]),
        _ => bail!("sgd: parameters must be contiguous f32"),
    }
}

impl InplaceOp3 for Velocity {
    fn name(&self) -> &'static str {
        "sgd velocity"
    }

    fn cpu_fwd(
        &self,
        v: &mut CpuStorage,
        lv: &Layout,
        g: &CpuStorage,
        lg: &Layout,
        p: &CpuStorage,
        lp: &Layout,
    ) -> Result<()> {
        let (g, p) = (operand::<f32>(g, lg)?, operand::<f32>(p, lp)?);
        let (momentum, weight_decay) = (self.0.momentum as f32, self.0.weight_decay as f32);
        chunks(written(v, lv)?, CHUNK, |i, v| {
            let at = i * CHUNK..i * CHUNK + v.len();
            update_velocity(v, &g[at.clone()], &p[at], momentum, weight_decay);
        });
        Ok(())
    }
}

impl InplaceOp3 for Parameter {
    fn name(&self) -> &'static str {
        "sgd parameter"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        lp: &Layout,
        g: &CpuStorage,
        lg: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<()> {
        let (g, v) = (operand::<f32>(g, lg)?, operand::<f32>(v, lv)?);
        let Sgd { lr, momentum, nesterov, weight_decay } = self.0;
        let constants = (lr as f32, momentum as f32, weight_decay as f32);
        chunks(written(p, lp)?, CHUNK, |i, p| {
            let at = i * CHUNK..i * CHUNK + p.len();
            if nesterov {
                update_nesterov(p, &g[at.clone()], &v[at], constants);
            } else {
                update_parameter(p, &v[at], constants.0);
            }
        });
        Ok(())
    }
}
