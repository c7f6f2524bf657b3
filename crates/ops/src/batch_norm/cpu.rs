//! Fused batch normalisation: one pass for the statistics, one for the output, two for the gradients.

use super::{BatchNorm, affine};
use crate::activation::{Activation, Function, by_activation, cpu as functions};
use crate::element::{Element, Elements, operand};
use crate::parallel::{buffer, chunks, map};
use crate::simd::multiversion;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// Pixels per block: few enough for a block to stay in cache between its two sweeps.
const ROWS: usize = 512;

/// The result, and with `train` the batch's mean and biased variance \[c\].
pub(super) fn batch_norm(
    xs: &Tensor,
    norm: &BatchNorm,
    residual: Option<&Tensor>,
    activation: Activation,
    train: bool,
) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
    let statistics = Arc::new(OnceLock::new());
    if !train {
        let fixed = Statistics { mean: floats(&norm.running_mean)?, var: floats(&norm.running_var)? };
        let _ = statistics.set(fixed);
    }
    let op = Op { eps: norm.eps, activation, train, statistics: statistics.clone() };
    let affine = affine(norm, DType::F32)?.contiguous()?;
    let xs = xs.contiguous()?;
    let ys = match residual {
        Some(residual) => xs.apply_op3(&affine, &residual.contiguous()?, op)?,
        None => xs.apply_op2(&affine, op)?,
    };
    let batch = match statistics.get() {
        Some(s) if train => {
            let tensor = |v: &[f32]| Tensor::from_slice(v, v.len(), &Device::Cpu);
            Some((tensor(&s.mean)?, tensor(&s.var)?))
        }
        _ => None,
    };
    Ok((ys, batch))
}

fn floats(var: &candle_core::Var) -> Result<Vec<f32>> {
    var.as_detached_tensor().to_dtype(DType::F32)?.to_vec1()
}

struct Statistics {
    mean: Vec<f32>,
    /// The biased variance.
    var: Vec<f32>,
}

struct Op {
    eps: f64,
    activation: Activation,
    train: bool,
    /// Filled by forward when training, before it when not.
    statistics: Arc<OnceLock<Statistics>>,
}

/// Per-channel factors of the forward pass.
struct Factors {
    inv_std: Vec<f32>,
    /// γ · inv_std
    scale: Vec<f32>,
    /// β - mean · scale
    shift: Vec<f32>,
}

impl Op {
    fn factors(&self, statistics: &Statistics, affine: &[f32]) -> Factors {
        let (gamma, beta) = affine.split_at(affine.len() / 2);
        let inv_std: Vec<f32> =
            statistics.var.iter().map(|&v| (1.0 / (f64::from(v) + self.eps).sqrt()) as f32).collect();
        let scale: Vec<f32> = inv_std.iter().zip(gamma).map(|(s, g)| s * g).collect();
        let shift = beta.iter().zip(&statistics.mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        Factors { inv_std, scale, shift }
    }

    fn forward<T: Element>(&self, xs: &[T], affine: &[f32], residual: Option<&[T]>) -> Vec<T> {
        let c = affine.len() / 2;
        let statistics = self.statistics.get_or_init(|| moments(xs, c));
        let Factors { scale, shift, .. } = self.factors(statistics, affine);
        let mut ys = buffer::<T>(xs.len());
        chunks(&mut ys, ROWS * c, |i, ys| {
            let at = i * ROWS * c..i * ROWS * c + ys.len();
            let xs = &xs[at.clone()];
            match residual {
                Some(r) => {
                    by_activation!(self.activation, normalise_add::<T>(xs, &r[at], &scale, &shift, ys));
                }
                None => by_activation!(self.activation, normalise::<T>(xs, &scale, &shift, ys)),
            }
        });
        ys
    }

    /// Gradients of the input, of the affine parameters and of the residual.
    fn backward<T: Element>(
        &self,
        xs: &Tensor,
        affine: &Tensor,
        residual: Option<&Tensor>,
        ys: &Tensor,
        dys: &Tensor,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let Some(statistics) = self.statistics.get() else { bail!("batch_norm: backward before forward") };
        let (shape, c) = (xs.shape(), xs.dim(3)?);
        let (x, y, dy) = (Elements::<T>::of(xs)?, Elements::<T>::of(ys)?, Elements::<T>::of(dys)?);
        let (x, y, dy): (&[T], &[T], &[T]) = (&x, &y, &dy);
        let affine_values = Elements::<f32>::of(affine)?;
        let factors = self.factors(statistics, &affine_values);
        let from_output =
            matches!(self.activation, Activation::Relu | Activation::Relu6 | Activation::Identity);
        let (dx, sums, dz) = if residual.is_none() && from_output {
            // The derivative comes from the output and is cheaper to form twice than to store.
            let (dx, sums) =
                by_activation!(self.activation, gradients::<T>(x, y, dy, self, statistics, &factors));
            (dx, sums, None)
        } else {
            let r = residual.map(Elements::<T>::of).transpose()?;
            let r: Option<&[T]> = r.as_deref();
            let mut dz = buffer::<T>(x.len());
            chunks(&mut dz, ROWS * c, |i, dz| {
                let at = i * ROWS * c..i * ROWS * c + dz.len();
                let (x, y, dy) = (&x[at.clone()], &y[at.clone()], &dy[at.clone()]);
                let r = r.map_or(&[] as &[T], |r| &r[at]);
                by_activation!(self.activation, through_activation::<T>(x, y, r, dy, &factors, dz));
            });
            let (dx, sums) = gradients(functions::Identity, x, y, &dz, self, statistics, &factors);
            (dx, sums, Some(dz))
        };
        let dx = Tensor::from_vec(dx, shape, &Device::Cpu)?;
        let d_affine = Tensor::from_vec(sums, affine.shape(), &Device::Cpu)?;
        let dr = match (residual, dz) {
            (Some(_), Some(dz)) => Some(Tensor::from_vec(dz, shape, &Device::Cpu)?),
            _ => None,
        };
        Ok((dx, d_affine, dr))
    }
}

/// Mean and biased variance of each column: exact two-sweep moments per block, merged in f64 in the order of
/// the blocks (Chan, Golub and LeVeque 1983).
fn moments<T: Element>(xs: &[T], c: usize) -> Statistics {
    let partial = map(xs.len().div_ceil(ROWS * c), |i| {
        let block = &xs[i * ROWS * c..xs.len().min((i + 1) * ROWS * c)];
        let (mut mean, mut m2) = (buffer::<f32>(c), buffer::<f32>(c));
        block_moments(block, &mut mean, &mut m2);
        (block.len() / c, mean, m2)
    });
    let (mut count, mut mean, mut m2) = (0f64, vec![0f64; c], vec![0f64; c]);
    for (rows, block_mean, block_m2) in &partial {
        let rows = *rows as f64;
        let total = count + rows;
        for ((m, s), (&bm, &bs)) in mean.iter_mut().zip(&mut m2).zip(block_mean.iter().zip(block_m2)) {
            let delta = f64::from(bm) - *m;
            *m += delta * rows / total;
            *s += f64::from(bs) + delta * delta * count * rows / total;
        }
        count = total;
    }
    let var = m2.into_iter().map(|s| (s / count) as f32).collect();
    Statistics { mean: mean.into_iter().map(|m| m as f32).collect(), var }
}

/// dx, and the sums that are the gradients of γ and β, given the gradient of the normalised value as
/// `dy · f'(y)`.
fn gradients<T: Element, F: Function>(
    f: F,
    x: &[T],
    y: &[T],
    dy: &[T],
    op: &Op,
    statistics: &Statistics,
    factors: &Factors,
) -> (Vec<T>, Vec<f32>) {
    let c = statistics.mean.len();
    let partial = map(x.len().div_ceil(ROWS * c), |i| {
        let at = i * ROWS * c..x.len().min((i + 1) * ROWS * c);
        let (mut sum, mut dot) = (buffer::<f32>(c), buffer::<f32>(c));
        block_sums(f, &x[at.clone()], &y[at.clone()], &dy[at], &statistics.mean, &mut sum, &mut dot);
        (sum, dot)
    });
    let (mut sum, mut dot) = (vec![0f64; c], vec![0f64; c]);
    for (block_sum, block_dot) in &partial {
        for ((s, d), (&bs, &bd)) in sum.iter_mut().zip(&mut dot).zip(block_sum.iter().zip(block_dot)) {
            *s += f64::from(bs);
            *d += f64::from(bd);
        }
    }
    // In training, mean and variance move with x:
    // dx = γ·s · (dz - Σdz / N - (x - mean) · s² · Σ dz·(x - mean) / N), with s the inverse deviation.
    let rows = (x.len() / c) as f64;
    let moving = if op.train { 1.0 / rows } else { 0.0 };
    let (mut slope, mut offset) = (buffer::<f32>(c), buffer::<f32>(c));
    for ch in 0..c {
        let (scale, s) = (f64::from(factors.scale[ch]), f64::from(factors.inv_std[ch]));
        slope[ch] = (-scale * s * s * dot[ch] * moving) as f32;
        offset[ch] = (-scale * sum[ch] * moving) as f32;
    }
    let mut dx = buffer::<T>(x.len());
    chunks(&mut dx, ROWS * c, |i, dx| {
        let at = i * ROWS * c..i * ROWS * c + dx.len();
        let lines = Lines { mean: &statistics.mean, scale: &factors.scale, slope: &slope, offset: &offset };
        block_input_gradient(f, &x[at.clone()], &y[at.clone()], &dy[at], lines, dx);
    });
    let weight = dot.iter().zip(&factors.inv_std).map(|(&d, &s)| (d * f64::from(s)) as f32);
    let sums = weight.chain(sum.iter().map(|&s| s as f32)).collect();
    (dx, sums)
}

/// Per-channel coefficients of dx = scale · dz + slope · (x - mean) + offset.
#[derive(Clone, Copy)]
struct Lines<'a> {
    mean: &'a [f32],
    scale: &'a [f32],
    slope: &'a [f32],
    offset: &'a [f32],
}

multiversion! {
    fn block_moments<T: Element>(xs: &[T], mean: &mut [f32], m2: &mut [f32]) {
        let c = mean.len();
        for row in xs.chunks_exact(c) {
            for (m, &x) in mean.iter_mut().zip(row) {
                *m += x.to_f32();
            }
        }
        let inv = 1.0 / (xs.len() / c) as f32;
        for m in mean.iter_mut() {
            *m *= inv;
        }
        for row in xs.chunks_exact(c) {
            for ((s, &m), &x) in m2.iter_mut().zip(mean.iter()).zip(row) {
                let d = x.to_f32() - m;
                *s += d * d;
            }
        }
    }
}

multiversion! {
    fn normalise<T: Element, F: Function>(f: F, xs: &[T], scale: &[f32], shift: &[f32], ys: &mut [T]) {
        let c = scale.len();
        for (y, x) in ys.chunks_exact_mut(c).zip(xs.chunks_exact(c)) {
            for (((y, &x), &a), &b) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = T::from_f32(f.value(x.to_f32() * a + b));
            }
        }
    }
}

multiversion! {
    fn normalise_add<T: Element, F: Function>(f: F, xs: &[T], rs: &[T], scale: &[f32], shift: &[f32], ys: &mut [T]) {
        let c = scale.len();
        for ((y, x), r) in ys.chunks_exact_mut(c).zip(xs.chunks_exact(c)).zip(rs.chunks_exact(c)) {
            for ((((y, &x), &r), &a), &b) in y.iter_mut().zip(x).zip(r).zip(scale).zip(shift) {
                *y = T::from_f32(f.value(x.to_f32() * a + b + r.to_f32()));
            }
        }
    }
}

multiversion! {
    /// `dz = dy · f'`, with f' from the output where that tells, else from the recomputed input of f.
    fn through_activation<T: Element, F: Function>(
        f: F, xs: &[T], ys: &[T], rs: &[T], dys: &[T], factors: &Factors, dz: &mut [T]
    ) {
        if F::FROM_OUTPUT {
            for ((d, &y), &dy) in dz.iter_mut().zip(ys).zip(dys) {
                *d = T::from_f32(dy.to_f32() * f.derivative(y.to_f32()));
            }
            return;
        }
        let (scale, shift) = (&factors.scale, &factors.shift);
        let c = scale.len();
        for (i, (d, x)) in dz.chunks_exact_mut(c).zip(xs.chunks_exact(c)).enumerate() {
            let r = rs.get(i * c..(i + 1) * c);
            for ch in 0..c {
                let z = x[ch].to_f32() * scale[ch] + shift[ch] + r.map_or(0.0, |r| r[ch].to_f32());
                d[ch] = T::from_f32(dys[i * c + ch].to_f32() * f.derivative(z));
            }
        }
    }
}

multiversion! {
    fn block_sums<T: Element, F: Function>(
        f: F, xs: &[T], ys: &[T], dys: &[T], mean: &[f32], sum: &mut [f32], dot: &mut [f32]
    ) {
        let c = mean.len();
        for ((x, y), dy) in xs.chunks_exact(c).zip(ys.chunks_exact(c)).zip(dys.chunks_exact(c)) {
            for ch in 0..c {
                let dz = dy[ch].to_f32() * f.derivative(y[ch].to_f32());
                sum[ch] += dz;
                dot[ch] += dz * (x[ch].to_f32() - mean[ch]);
            }
        }
    }
}

multiversion! {
    fn block_input_gradient<T: Element, F: Function>(
        f: F, xs: &[T], ys: &[T], dys: &[T], lines: Lines<'_>, dxs: &mut [T]
    ) {
        let c = lines.mean.len();
        let (mean, scale, slope, offset) = (lines.mean, &lines.scale[..c], &lines.slope[..c], &lines.offset[..c]);
        let rows = xs.chunks_exact(c).zip(ys.chunks_exact(c)).zip(dys.chunks_exact(c));
        for (dx, ((x, y), dy)) in dxs.chunks_exact_mut(c).zip(rows) {
            for ch in 0..c {
                let dz = dy[ch].to_f32() * f.derivative(y[ch].to_f32());
                dx[ch] = T::from_f32(scale[ch] * dz + slope[ch] * (x[ch].to_f32() - mean[ch]) + offset[ch]);
            }
        }
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let affine = operand(a, la)?;
        let ys = match xs {
            CpuStorage::BF16(_) => CpuStorage::BF16(self.forward(operand(xs, lx)?, affine, None)),
            _ => CpuStorage::F32(self.forward(operand(xs, lx)?, affine, None)),
        };
        Ok((ys, lx.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        a: &Tensor,
        ys: &Tensor,
        dys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dys = dys.contiguous()?;
        let backward = match xs.dtype() {
            DType::BF16 => Self::backward::<half::bf16>,
            _ => Self::backward::<f32>,
        };
        let (dx, da, _) = backward(self, xs, a, None, ys, &dys)?;
        Ok((Some(dx), Some(da)))
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let affine = operand(a, la)?;
        let ys = match xs {
            CpuStorage::BF16(_) => {
                CpuStorage::BF16(self.forward(operand(xs, lx)?, affine, Some(operand(r, lr)?)))
            }
            _ => CpuStorage::F32(self.forward(operand(xs, lx)?, affine, Some(operand(r, lr)?))),
        };
        Ok((ys, lx.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        a: &Tensor,
        r: &Tensor,
        ys: &Tensor,
        dys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dys = dys.contiguous()?;
        let backward = match xs.dtype() {
            DType::BF16 => Self::backward::<half::bf16>,
            _ => Self::backward::<f32>,
        };
        let (dx, da, dr) = backward(self, xs, a, Some(r), ys, &dys)?;
        Ok((Some(dx), Some(da), dr))
    }
}
