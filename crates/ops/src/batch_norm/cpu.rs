//! Fused batch normalisation: one pass for the statistics, one for the output, two for the gradients.

use super::{BatchNorm, affine};
use crate::FeatureMap;
use crate::activation::{Activation, Function, by_activation, cpu as functions};
use crate::element::{Element, Elements, by_element};
use crate::inference::{Form, keep, kept};
use crate::parallel::{chunks, each, map};
use crate::pool::{Buffer, take};
use crate::ranks::{Communicator, gather, synchronised};
use crate::rows::{folded, repeated, sum_rows};
use crate::simd::multiversion;
use crate::slot::{Affine, Backward, Gradients, Keeps, Kernel, Slot, is_constant};
use candle_core::{DType, Device, Error, Result, Tensor};
use std::sync::{Arc, OnceLock};

/// Elements of a block, few enough for it to stay in cache between its two sweeps, of maps with so many channels.
fn block_len(c: usize) -> usize {
    const ELEMENTS: usize = 32 * 1024;
    const PIXELS: (usize, usize) = (16, 512);
    (ELEMENTS / c).clamp(PIXELS.0, PIXELS.1) * c
}

/// The result, and with `train` the batch's statistics.
pub(super) fn batch_norm(
    xs: &Slot,
    norm: &BatchNorm,
    residual: Option<&Slot>,
    activation: Activation,
    train: bool,
) -> Result<(FeatureMap, Option<super::Statistics>)> {
    let (gamma, beta) = affine(norm, DType::F32)?;
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let maps: Vec<&Slot> = std::iter::once(xs).chain(residual).collect();
    if !train && is_constant(&maps, &[&gamma, &beta]) {
        let factors = fixed_factors(norm, &gamma, &beta)?;
        let factors = Some(factors.split_at(factors.len() / 2));
        if let Some(ys) = xs.normalised(&Affine { factors, residual, activation })? {
            return Ok((FeatureMap::slot(ys), None));
        }
    }
    let fixed = if train { None } else { Some(running(norm)?) };
    let statistics = Arc::new(OnceLock::new());
    let ranks = if train { synchronised() } else { None };
    if let Some(ranks) = &ranks {
        let _ = statistics.set(of_all_ranks(&**ranks, &by_element!(xs.dtype(), own_moments(xs))?)?);
    }
    let op = Op { eps: norm.eps, activation, train, fixed, batch: statistics.clone(), ranks };
    let ys = op.apply(&maps, &[&gamma, &beta], xs.dims())?;
    let tensor = |v: &[f32]| Tensor::from_slice(v, v.len(), &Device::Cpu);
    let batch: Option<&Statistics> = statistics.get();
    let tensors = |Statistics { count, mean, var }: &Statistics| {
        Ok::<_, Error>(super::Statistics { count: *count, mean: tensor(mean)?, var: tensor(var)? })
    };
    Ok((FeatureMap::slot(ys), batch.map(tensors).transpose()?))
}

/// The running statistics.
fn running(norm: &BatchNorm) -> Result<Statistics> {
    let (mean, var) = (floats(&norm.running_mean)?, floats(&norm.running_var)?);
    // How many values they are of has no influence where they are fixed.
    Ok(Statistics { count: f64::INFINITY, mean, var })
}

/// The scales and then the shifts that a normalisation by its running statistics has.
fn fixed_factors(norm: &BatchNorm, gamma: &Tensor, beta: &Tensor) -> Result<Arc<Buffer<f32>>> {
    let id = norm.running_var.as_tensor().id();
    if let Some(factors) = kept(id, Form::Affine) {
        return Ok(factors);
    }
    let (gamma, beta) = (Elements::<f32>::of(gamma)?, Elements::<f32>::of(beta)?);
    let Factors { mut scale, shift, .. } = Factors::new(&running(norm)?, norm.eps, &gamma, &beta);
    scale.extend(shift);
    Ok(keep(id, Form::Affine, Buffer::copy_of(&scale)))
}

fn floats(var: &candle_core::Var) -> Result<Vec<f32>> {
    var.as_detached_tensor().to_dtype(DType::F32)?.to_vec1()
}

struct Statistics {
    /// Values per channel.
    count: f64,
    mean: Vec<f32>,
    /// The biased variance.
    var: Vec<f32>,
}

struct Op {
    eps: f64,
    activation: Activation,
    train: bool,
    /// The running statistics, when not training.
    fixed: Option<Statistics>,
    /// The batch's, which forward forms when training.
    batch: Arc<OnceLock<Statistics>>,
    /// Those that the batch is shared with.
    ranks: Option<Arc<dyn Communicator>>,
}

/// Per-channel factors of the forward pass.
struct Factors {
    inv_std: Vec<f32>,
    /// γ · inv_std
    scale: Vec<f32>,
    /// β - mean · scale
    shift: Vec<f32>,
}

impl Factors {
    fn new(statistics: &Statistics, eps: f64, gamma: &[f32], beta: &[f32]) -> Self {
        let inv_std: Vec<f32> =
            statistics.var.iter().map(|&v| (1.0 / (f64::from(v) + eps).sqrt()) as f32).collect();
        let scale: Vec<f32> = inv_std.iter().zip(gamma).map(|(s, g)| s * g).collect();
        let shift = beta.iter().zip(&statistics.mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        Self { inv_std, scale, shift }
    }
}

impl Op {
    fn factors(&self, statistics: &Statistics, params: &[&[f32]]) -> Factors {
        Factors::new(statistics, self.eps, params[0], params[1])
    }

    /// What dx is made of, and the gradients of γ and β, given Σ dz and Σ dz · (x - mean) of each block, dz being the
    /// gradient of the normalised value.
    fn lines(
        &self,
        partial: &[(Vec<f32>, Vec<f32>)],
        statistics: &Statistics,
        factors: &Factors,
    ) -> Result<(Lines, Vec<Option<Vec<f32>>>)> {
        let c = statistics.mean.len();
        let (mut sum, mut dot) = (vec![0f64; c], vec![0f64; c]);
        for (block_sum, block_dot) in partial {
            for ((s, d), (&bs, &bd)) in sum.iter_mut().zip(&mut dot).zip(block_sum.iter().zip(block_dot)) {
                *s += f64::from(bs);
                *d += f64::from(bd);
            }
        }
        // In training, mean and variance move with x:
        // dx = γ·s · (dz - Σdz / N - (x - mean) · s² · Σ dz·(x - mean) / N), with s the inverse deviation.
        let moving = if self.train { 1.0 / statistics.count } else { 0.0 };
        // Those of x are moved by the whole batch, while γ and β are given the gradients of this rank's share of it.
        let (all_sum, all_dot) = match &self.ranks {
            Some(ranks) => {
                let own = Tensor::new([&sum[..], &dot].concat(), &Device::Cpu)?;
                let mut all = ranks.sum(&own)?.to_vec1::<f64>()?;
                let all_dot = all.split_off(c);
                (all, all_dot)
            }
            None => (sum.clone(), dot.clone()),
        };
        let (mut slope, mut offset) = (vec![0f32; c], vec![0f32; c]);
        for ch in 0..c {
            let (scale, s) = (f64::from(factors.scale[ch]), f64::from(factors.inv_std[ch]));
            slope[ch] = (-scale * s * s * all_dot[ch] * moving) as f32;
            offset[ch] = (-scale * all_sum[ch] * moving) as f32;
        }
        let lines = Lines {
            mean: repeated(&statistics.mean),
            scale: repeated(&factors.scale),
            slope: repeated(&slope),
            offset: repeated(&offset),
        };
        let of_weight = dot.iter().zip(&factors.inv_std).map(|(&d, &s)| (d * f64::from(s)) as f32).collect();
        let of_bias = sum.iter().map(|&s| s as f32).collect();
        Ok((lines, vec![Some(of_weight), Some(of_bias)]))
    }
}

impl Kernel for Op {
    const NAME: &'static str = "batch_norm";

    fn keeps(&self) -> Keeps {
        Keeps { inputs: true, output: true }
    }

    fn forward<T: Element>(&mut self, maps: &[&[T]], params: &[&[f32]]) -> Buffer<T> {
        let (xs, c) = (maps[0], params[0].len());
        let statistics = match &self.fixed {
            Some(fixed) => fixed,
            None => self.batch.get_or_init(|| moments(xs, c)),
        };
        let Factors { scale, shift, .. } = self.factors(statistics, params);
        let (scale, shift) = (repeated(&scale), repeated(&shift));
        let mut ys = take::<T>(xs.len());
        chunks(&mut ys, block_len(c), |i, ys| {
            let at = i * block_len(c)..i * block_len(c) + ys.len();
            let xs = &xs[at.clone()];
            match maps.get(1) {
                Some(r) => {
                    by_activation!(self.activation, normalise_add::<T>(xs, &r[at], &scale, &shift, ys));
                }
                None => by_activation!(self.activation, normalise::<T>(xs, &scale, &shift, ys)),
            }
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let (x, y, residual) = (call.maps[0], call.output, call.maps.get(1).copied());
        let c = call.params[0].len();
        // `apply` has run forward before.
        let Some(statistics) = self.fixed.as_ref().or_else(|| self.batch.get()) else {
            return Ok((Vec::new(), Vec::new()));
        };
        let factors = self.factors(statistics, &call.params);
        let mean = repeated(&statistics.mean);
        let from_output =
            matches!(self.activation, Activation::Relu | Activation::Relu6 | Activation::Identity);
        if residual.is_none() && from_output {
            // The derivative comes from the output and is cheaper to form twice than to store.
            let dy: &[T] = call.gradient;
            let sums = map(x.len().div_ceil(block_len(c)), |i| {
                let at = i * block_len(c)..x.len().min((i + 1) * block_len(c));
                let (x, y, dy) = (&x[at.clone()], &y[at.clone()], &dy[at]);
                by_activation!(self.activation, sums_of_block::<T>(x, y, dy, &mean, c))
            });
            let (lines, of_params) = self.lines(&sums, statistics, &factors)?;
            let dx = by_activation!(self.activation, input_gradient::<T>(x, y, dy, &lines, c));
            return Ok((vec![Some(dx)], of_params));
        }
        let mut sums = vec![<(Vec<f32>, Vec<f32>)>::default(); x.len().div_ceil(block_len(c))];
        each(call.gradient.chunks_mut(block_len(c)).zip(&mut sums), |i, (dz, sums)| {
            let at = i * block_len(c)..i * block_len(c) + dz.len();
            let r = residual.map_or(&[] as &[T], |r| &r[at.clone()]);
            let (x, y) = (&x[at.clone()], &y[at]);
            by_activation!(self.activation, through_activation::<T>(x, y, r, &factors, dz));
            *sums = sums_of_block(functions::Identity, x, y, dz, &mean, c);
        });
        let (lines, of_params) = self.lines(&sums, statistics, &factors)?;
        let dx = input_gradient(functions::Identity, x, y, call.gradient, &lines, c);
        let dr = residual.map(|_| Some(std::mem::take(call.gradient)));
        Ok((std::iter::once(Some(dx)).chain(dr).collect(), of_params))
    }
}

/// Mean and biased variance of each column: exact two-sweep moments per block, merged in f64 in the order of
/// the blocks (Chan, Golub and LeVeque 1983).
fn moments<T: Element>(xs: &[T], c: usize) -> Statistics {
    let partial = map(xs.len().div_ceil(block_len(c)), |i| {
        let block = &xs[i * block_len(c)..xs.len().min((i + 1) * block_len(c))];
        let (mean, m2) = block_moments(block, c);
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
    Statistics { count, mean: mean.into_iter().map(|m| m as f32).collect(), var }
}

fn own_moments<T: Element>(xs: &Slot) -> Result<Statistics> {
    Ok(moments(xs.values()?.slice::<T>()?, xs.dims().3))
}

/// The statistics of the ranks' batches as one, merged as those of blocks are.
fn of_all_ranks(ranks: &dyn Communicator, own: &Statistics) -> Result<Statistics> {
    let values = own.mean.iter().chain(&own.var).map(|&v| f64::from(v));
    let row: Vec<f64> = std::iter::once(own.count).chain(values).collect();
    let parts = gather(ranks, &Tensor::new(row, &Device::Cpu)?)?.to_vec2::<f64>()?;
    let c = own.mean.len();
    let count: f64 = parts.iter().map(|part| part[0]).sum();
    let of_channel = |ch: usize| {
        let mean = parts.iter().map(|part| part[0] * part[1 + ch]).sum::<f64>() / count;
        let around = |part: &Vec<f64>| part[0] * (part[1 + c + ch] + (part[1 + ch] - mean).powi(2));
        (mean as f32, (parts.iter().map(around).sum::<f64>() / count) as f32)
    };
    let (mean, var) = (0..c).map(of_channel).unzip();
    Ok(Statistics { count, mean, var })
}

/// Σ dz and Σ dz · (x - mean) of each column over a block of pixels, with dz = `dy · f'(y)`.
fn sums_of_block<T: Element, F: Function>(
    f: F,
    x: &[T],
    y: &[T],
    dy: &[T],
    mean: &[f32],
    c: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut sum, mut dot) = (vec![0f32; mean.len()], vec![0f32; mean.len()]);
    block_sums(f, x, y, dy, mean, &mut sum, &mut dot);
    (folded(&sum, c), folded(&dot, c))
}

/// Per-channel coefficients of dx = scale · dz + slope · (x - mean) + offset, repeated.
struct Lines {
    mean: Vec<f32>,
    scale: Vec<f32>,
    slope: Vec<f32>,
    offset: Vec<f32>,
}

fn input_gradient<T: Element, F: Function>(
    f: F,
    x: &[T],
    y: &[T],
    dy: &[T],
    lines: &Lines,
    c: usize,
) -> Buffer<T> {
    let mut dx = take::<T>(x.len());
    chunks(&mut dx, block_len(c), |i, dx| {
        let at = i * block_len(c)..i * block_len(c) + dx.len();
        block_input_gradient(f, &x[at.clone()], &y[at.clone()], &dy[at], lines, dx);
    });
    dx
}

/// The mean of each column, and the sum of squared distances from it.
fn block_moments<T: Element>(xs: &[T], c: usize) -> (Vec<f32>, Vec<f32>) {
    let mut sums = repeated(&vec![0f32; c]);
    sum_rows(xs, &mut sums);
    let inv = 1.0 / (xs.len() / c) as f32;
    let mean: Vec<f32> = folded(&sums, c).into_iter().map(|sum| sum * inv).collect();
    sums.fill(0.0);
    sum_squares(xs, &repeated(&mean), &mut sums);
    (mean, folded(&sums, c))
}

// The loops below go over rows as long as the repeated factors, of which the last may end early.

multiversion! {
    fn sum_squares<T: Element>(xs: &[T], mean: &[f32], sums: &mut [f32]) {
        for row in xs.chunks(mean.len()) {
            for ((s, &m), &x) in sums.iter_mut().zip(mean).zip(row) {
                let d = x.to_f32() - m;
                *s += d * d;
            }
        }
    }
}

multiversion! {
    fn normalise<T: Element, F: Function>(f: F, xs: &[T], scale: &[f32], shift: &[f32], ys: &mut [T]) {
        let c = scale.len();
        for (y, x) in ys.chunks_mut(c).zip(xs.chunks(c)) {
            for (((y, &x), &a), &b) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = T::from_f32(f.value(x.to_f32() * a + b));
            }
        }
    }
}

multiversion! {
    fn normalise_add<T: Element, F: Function>(f: F, xs: &[T], rs: &[T], scale: &[f32], shift: &[f32], ys: &mut [T]) {
        let c = scale.len();
        for ((y, x), r) in ys.chunks_mut(c).zip(xs.chunks(c)).zip(rs.chunks(c)) {
            for ((((y, &x), &r), &a), &b) in y.iter_mut().zip(x).zip(r).zip(scale).zip(shift) {
                *y = T::from_f32(f.value(x.to_f32() * a + b + r.to_f32()));
            }
        }
    }
}

multiversion! {
    /// Turns `dy` into `dz = dy · f'`, with f' from the output where that tells, else from the recomputed input
    /// of f.
    fn through_activation<T: Element, F: Function>(
        f: F, xs: &[T], ys: &[T], rs: &[T], factors: &Factors, dz: &mut [T]
    ) {
        if F::FROM_OUTPUT {
            for (d, &y) in dz.iter_mut().zip(ys) {
                *d = T::from_f32(d.to_f32() * f.derivative(y.to_f32()));
            }
            return;
        }
        let (scale, shift) = (&factors.scale, &factors.shift);
        let c = scale.len();
        for (i, (d, x)) in dz.chunks_exact_mut(c).zip(xs.chunks_exact(c)).enumerate() {
            let r = rs.get(i * c..(i + 1) * c);
            for ch in 0..c {
                let z = x[ch].to_f32() * scale[ch] + shift[ch] + r.map_or(0.0, |r| r[ch].to_f32());
                d[ch] = T::from_f32(d[ch].to_f32() * f.derivative(z));
            }
        }
    }
}

multiversion! {
    fn block_sums<T: Element, F: Function>(
        f: F, xs: &[T], ys: &[T], dys: &[T], mean: &[f32], sum: &mut [f32], dot: &mut [f32]
    ) {
        let c = mean.len();
        for ((x, y), dy) in xs.chunks(c).zip(ys.chunks(c)).zip(dys.chunks(c)) {
            let (sum, dot) = (sum[..c].iter_mut(), dot[..c].iter_mut());
            for (((((sum, dot), &mean), &x), &y), &dy) in sum.zip(dot).zip(mean).zip(x).zip(y).zip(dy) {
                let dz = dy.to_f32() * f.derivative(y.to_f32());
                *sum += dz;
                *dot += dz * (x.to_f32() - mean);
            }
        }
    }
}

multiversion! {
    fn block_input_gradient<T: Element, F: Function>(
        f: F, xs: &[T], ys: &[T], dys: &[T], lines: &Lines, dxs: &mut [T]
    ) {
        let Lines { mean, scale, slope, offset } = lines;
        let c = mean.len();
        let rows = xs.chunks(c).zip(ys.chunks(c)).zip(dys.chunks(c));
        for (dx, ((x, y), dy)) in dxs.chunks_mut(c).zip(rows) {
            let lines = mean.iter().zip(scale).zip(slope).zip(offset);
            for ((((dx, &x), &y), &dy), (((&mean, &scale), &slope), &offset)) in dx.iter_mut().zip(x).zip(y).zip(dy).zip(lines) {
                let dz = dy.to_f32() * f.derivative(y.to_f32());
                *dx = T::from_f32(scale * dz + slope * (x.to_f32() - mean) + offset);
            }
        }
    }
}
