//! The CPU path: which kernel serves which convolution, and the link to candle's autograd.

mod deferred;
mod few;
mod finish;
mod gemm;
mod product;
mod spread;
mod winograd;

use super::Geometry;
use crate::element::Element;
use crate::parallel::map;
use crate::pool::Buffer;
use crate::rows::{folded, repeated, sum_rows};
use crate::slot::{Backward, Gradients, Keeps, Kernel, Slot, Values, is_constant};
use crate::transpose::transpose;
use candle_core::{DType, Result, Tensor, TensorId};
use deferred::Deferred;
pub(crate) use finish::Finish;
use product::Word;
use std::sync::Arc;

/// The algorithms, best first; the last takes everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    /// As many output as input channels in each group, and few: one in depthwise convolutions.
    Narrow,
    /// Few channels on both sides.
    Few,
    /// 3×3 of stride 1 with many channels, by minimal filtering.
    Winograd,
    /// Matrix products over gathered pixels.
    Gemm,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Narrow => "narrow groups",
            Self::Few => "pixels in lanes",
            Self::Winograd if winograd::outputs() == 2 => "winograd f2x2",
            Self::Winograd => "winograd f4x4",
            Self::Gemm => "implicit gemm",
        }
    }
}

fn algorithm(g: &Geometry, dtype: DType) -> Algorithm {
    if gemm::is_narrow(g) {
        Algorithm::Narrow
    } else if few::serves(g) {
        Algorithm::Few
    } else if winograd::serves(g) && !(dtype == DType::BF16 && gemm::outruns_winograd(g)) {
        Algorithm::Winograd
    } else {
        Algorithm::Gemm
    }
}

/// What serves a convolution of maps in `dtype`, in words.
pub(super) fn describe(g: &Geometry, dtype: DType) -> &'static str {
    match algorithm(g, dtype) {
        Algorithm::Gemm if gemm::on_tiles(g, dtype) && dtype == DType::BF16 => "bf16 on amx",
        Algorithm::Gemm if gemm::on_tiles(g, dtype) => "three times bf16 on amx",
        Algorithm::Gemm if gemm::word_of(g, dtype) == Word::Pair => "bf16 on avx-512",
        algorithm => algorithm.name(),
    }
}

/// A convolution's weight [c_out, c_in / groups, kh, kw]; with the tensor's identity where it may be kept as
/// kernels arrange it.
#[derive(Clone, Copy)]
struct Weight<'a> {
    values: &'a [f32],
    id: Option<TensorId>,
}

/// Differentiable in all three.
pub(super) fn conv2d(xs: &Slot, weight: &Tensor, bias: Option<&Tensor>, g: Geometry) -> Result<Slot> {
    let weight = weight.to_dtype(DType::F32)?.contiguous()?;
    let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous()).transpose()?;
    let dims = (g.n, g.out.0, g.out.1, g.c_out);
    let params: Vec<&Tensor> = std::iter::once(&weight).chain(&bias).collect();
    if is_constant(&[xs], &params) {
        let convolution = Deferred::new(g, xs, &weight, bias.as_ref());
        return Slot::deferred(dims, xs.dtype(), Arc::new(convolution));
    }
    Conv2d(g).apply(&[xs], &params, dims)
}

fn forward<T: Element>(g: &Geometry, xs: &[T], weight: Weight<'_>, finish: &Finish<'_, T>) -> Buffer<T> {
    match algorithm(g, T::DTYPE) {
        Algorithm::Winograd => winograd::forward(g, xs, weight, finish),
        Algorithm::Few => few::forward(g, xs, weight, finish),
        Algorithm::Narrow | Algorithm::Gemm => gemm::forward(g, xs, weight, finish),
    }
}

struct Conv2d(Geometry);

impl Kernel for Conv2d {
    const NAME: &'static str = "conv2d";

    fn keeps(&self) -> Keeps {
        Keeps { inputs: true, output: false }
    }

    fn forward<T: Element>(&mut self, maps: &[&[T]], params: &[&[f32]]) -> Buffer<T> {
        let weight = Weight { values: params[0], id: None };
        forward(&self.0, maps[0], weight, &Finish::bias(params.get(1).copied()))
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let (g, dy, weight): (_, &[T], _) = (&self.0, call.gradient, call.params[0]);
        let before = if call.of_map[0] { call.before[0].take() } else { None };
        let finish = Finish::sum(before.as_ref().map_or(Ok(&[] as &[T]), Values::slice)?);
        let dx = call.of_map[0].then(|| match algorithm(g, T::DTYPE) {
            Algorithm::Winograd => winograd::input_gradient(g, dy, weight, &finish),
            Algorithm::Narrow | Algorithm::Few | Algorithm::Gemm => {
                gemm::input_gradient(g, dy, weight, &finish)
            }
        });
        drop(before);
        let dw = call.of_param[0].then(|| match algorithm(g, T::DTYPE) {
            Algorithm::Winograd => winograd::weight_gradient(g, call.maps[0], dy),
            Algorithm::Narrow | Algorithm::Few | Algorithm::Gemm => {
                gemm::weight_gradient(g, call.maps[0], dy)
            }
        });
        let db = call.of_param.get(1).map(|wanted| wanted.then(|| column_sums::<T>(dy, g.c_out)));
        Ok((vec![dx], std::iter::once(dw).chain(db).collect()))
    }
}

/// Fills weights [channel][c_in][tap] from their columns: `column(ci, tap, lanes)` adds to one value for each
/// channel.
pub(super) fn from_columns(
    out: &mut [f32],
    c_in: usize,
    taps: usize,
    mut column: impl FnMut(usize, usize, &mut [f32]),
) {
    /// Input channels that are turned round together, in cache.
    const STEP: usize = 16;
    let channels = out.len() / (c_in * taps);
    let mut columns = vec![0f32; STEP * taps * channels];
    for first in (0..c_in).step_by(STEP) {
        let len = STEP.min(c_in - first) * taps;
        columns.fill(0.0);
        for (i, lanes) in columns.chunks_exact_mut(channels).take(len).enumerate() {
            column(first + i / taps, i % taps, lanes);
        }
        transpose(&columns, channels, (len, channels), &mut out[first * taps..], c_in * taps);
    }
}

/// Sum over the rows of a matrix with `columns` columns.
fn column_sums<T: Element>(xs: &[T], columns: usize) -> Vec<f32> {
    const ROWS: usize = 512;
    let piece = ROWS * columns;
    let partial = map(xs.len().div_ceil(piece.max(1)), |i| {
        let mut sums = repeated(&vec![0f32; columns]);
        sum_rows(&xs[i * piece..xs.len().min((i + 1) * piece)], &mut sums);
        folded(&sums, columns)
    });
    let mut total = vec![0f64; columns];
    for sums in &partial {
        for (t, &s) in total.iter_mut().zip(sums) {
            *t += f64::from(s);
        }
    }
    total.into_iter().map(|t| t as f32).collect()
}
