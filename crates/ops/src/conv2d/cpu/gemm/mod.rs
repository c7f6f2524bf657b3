//! Convolution as matrix products over pixels where they lie: serves every shape.
//!
//! The forward pass and the input gradient are both correlations: output `t` along an axis is a sum over taps
//! of the source at `t · stride + offset`. The input gradient of a strided convolution falls into phases, one
//! for each residue of the position, each with the taps that reach it. A task takes a block of output pixels:
//! it copies the part of the source that they see, with zeros around it, and multiplies with the packed
//! weights. Blocks are cut by the shape alone, so results do not depend on the number of threads.

pub(super) mod chain;
mod correlation;
mod narrow;
mod pointwise;
pub(super) mod pooled;
mod reach;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod tiles_gradient;
mod weight_gradient;
mod wide;

use super::super::Geometry;
use super::Weight;
use super::finish::Finish;
use super::product::{Word, first_column, panel_width};
use crate::dispatch::{InstructionSet, instruction_set, strict_f32};
use crate::element::{Element, round};
use crate::inference::{Form, prepared};
use crate::pairs::word;
use crate::parallel::chunks;
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use crate::transpose::transpose;
use candle_core::DType;
pub(super) use correlation::TASK_MACS;
use correlation::{Correlation, Pass, Products};
use half::bf16;
use reach::{Axis, Reach};
use std::sync::Arc;
use wide::Wide;

/// Tasks that a pass is cut into at least, where its shape allows: work for a dozen cores.
const TASKS: usize = 16;

pub(super) fn forward<T: Element>(
    g: &Geometry,
    xs: &[T],
    weight: Weight<'_>,
    finish: &Finish<'_, T>,
) -> Buffer<T> {
    correlation::<T>(g, weight).run(xs, finish)
}

/// The correlation that a convolution is.
fn correlation<T: Element>(g: &Geometry, weight: Weight<'_>) -> Correlation {
    let (wide, products) = (Wide::of(g), Products::of::<T>(g));
    let g = wide.as_ref().map_or(g, |wide| &wide.g);
    let (y, x) = Axis::of_outputs(g);
    let ((c_in, c_out), taps) = (g.group_channels(), g.taps());
    let reach = (Reach::new(std::slice::from_ref(&y)), Reach::new(std::slice::from_ref(&x)));
    let steps = Steps { group: c_out * c_in * taps, source: taps, target: c_in * taps };
    let form = Form::Panels { bf16: T::DTYPE == DType::BF16, tiles: products == Products::Tiles };
    let weights = prepared(weight.id, form, || {
        let widened = wide.as_ref().map(|wide| wide.weight(weight.values));
        pack::<T>(g, products, (&y, &x), (c_in, c_out), widened.as_deref().unwrap_or(weight.values), steps)
    });
    let passes = vec![Pass { weights, y, x }];
    let (source, target) = (g.size, g.out);
    let (source_channels, target_channels, groups) = (g.c_in, g.c_out, g.groups);
    Correlation { n: g.n, source, source_channels, target, target_channels, groups, reach, passes, products }
}

pub(super) fn input_gradient<T: Element>(
    g: &Geometry,
    dys: &[T],
    weight: &[f32],
    finish: &Finish<'_, T>,
) -> Buffer<T> {
    if let Some((folded, weight)) = folded(g, weight) {
        return input_gradient(&folded, dys, &weight, finish);
    }
    if let Some((turned, weight)) = turned(g, weight) {
        return forward(&turned, dys, Weight { values: &weight, id: None }, finish);
    }
    let w = &g.window;
    let ys = Axis::phases(g.size.0, w.kernel.0, w.stride.0, w.padding.0, w.dilation.0);
    let xs = Axis::phases(g.size.1, w.kernel.1, w.stride.1, w.padding.1, w.dilation.1);
    let ((c_in, c_out), taps) = (g.group_channels(), g.taps());
    let (reach, products) = ((Reach::new(&ys), Reach::new(&xs)), Products::of::<T>(g));
    let steps = Steps { group: c_out * c_in * taps, source: c_in * taps, target: taps };
    let mut passes = Vec::new();
    for y in &ys {
        for x in &xs {
            let weights = Arc::new(pack::<T>(g, products, (y, x), (c_out, c_in), weight, steps));
            passes.push(Pass { weights, y: y.clone(), x: x.clone() });
        }
    }
    let (source, target) = (g.out, g.size);
    let (source_channels, target_channels, groups) = (g.c_out, g.c_in, g.groups);
    Correlation { n: g.n, source, source_channels, target, target_channels, groups, reach, passes, products }
        .run(dys, finish)
}

pub(super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if on_tiles(g, T::DTYPE) {
        return tiles_gradient::run(g, xs, dys);
    }
    match Wide::of(g) {
        _ if narrow::serves(g) => narrow::weight_gradient(g, xs, dys),
        _ if pointwise::serves(g) => pointwise::weight_gradient(g, xs, dys),
        Some(wide) => wide.weight_gradient(&weight_gradient::run(&wide.g, xs, dys)),
        None => weight_gradient::run(g, xs, dys),
    }
}

/// A window as wide as the map sees each column with one tap. Its columns, which lie side by side in memory as
/// channels do, are then taken for channels: a column need not ask every tap.
fn folded(g: &Geometry, weight: &[f32]) -> Option<(Geometry, Vec<f32>)> {
    let (columns, mut window) = (g.size.1, g.window);
    let (kh, kw) = window.kernel;
    if g.groups > 1 || kw == 1 || kw != columns || window.padding.1 > 0 {
        return None;
    }
    (window.kernel.1, window.stride.1) = (1, 1);
    let folded = Geometry { size: (g.size.0, 1), c_in: g.c_in * columns, window, ..*g };
    let mut weights = vec![0.0; weight.len()];
    for (i, row) in weight.chunks_exact(kw).enumerate() {
        let (c_out, c_in, y) = (i / kh / g.c_in, i / kh % g.c_in, i % kh);
        for (x, &weight) in row.iter().enumerate() {
            weights[(c_out * folded.c_in + x * g.c_in + c_in) * kh + y] = weight;
        }
    }
    Some((folded, weights))
}

/// The input gradient as a convolution of the output gradient with the filters turned round, where it is one and
/// has so few channels that [`Wide`] serves it.
fn turned(g: &Geometry, weight: &[f32]) -> Option<(Geometry, Vec<f32>)> {
    let mut window = g.window;
    if window.stride != (1, 1) || window.dilation != (1, 1) || g.groups > 1 {
        return None;
    }
    let ((kh, kw), padding) = (window.kernel, window.padding);
    window.padding = ((kh - 1).checked_sub(padding.0)?, (kw - 1).checked_sub(padding.1)?);
    let (c_in, c_out, taps) = (g.c_out, g.c_in, g.taps());
    let turned = Geometry { size: g.out, c_in, out: g.size, c_out, window, ..*g };
    Wide::of(&turned)?;
    let mut weights = vec![0.0; weight.len()];
    for (i, weight) in weight.chunks_exact(taps).enumerate() {
        let at = (i % c_out * c_in + i / c_out) * taps;
        for (out, &weight) in weights[at..][..taps].iter_mut().rev().zip(weight) {
            *out = weight;
        }
    }
    Some((turned, weights))
}

pub(super) use narrow::serves as is_narrow;

/// Whether a convolution of maps in `dtype` runs on AMX. Three products of bf16 for one of f32 are as exact as
/// F(4×4, 3×3), and quicker than AVX-512 where tiles are full.
pub(super) fn on_tiles(g: &Geometry, dtype: DType) -> bool {
    let f32 = || !strict_f32() && g.c_in.min(g.c_out) >= 32;
    instruction_set() == InstructionSet::Amx && g.groups == 1 && (dtype == DType::BF16 || f32())
}

/// What products of maps in `dtype` are formed of where no other path serves them: pairs of bf16 where the processor
/// multiplies them. Channels of a group are whole words; those of one group can be filled up with zeros.
pub(super) fn word_of(g: &Geometry, dtype: DType) -> Word {
    #[cfg(target_arch = "x86_64")]
    if dtype == DType::BF16 && instruction_set() >= InstructionSet::Avx512Bf16 {
        let (c_in, c_out) = g.group_channels();
        if g.groups == 1 || c_in.is_multiple_of(2) && c_out.is_multiple_of(2) {
            return Word::Pair;
        }
    }
    let _ = (g, dtype);
    Word::Single
}

/// Whether products in bf16 are quicker than minimal filtering in f32, which takes a quarter of the products: always on
/// AMX; in pairs, which are twice as quick as f32, where channels are few.
pub(super) fn outruns_winograd(g: &Geometry) -> bool {
    const CHANNELS: usize = 32;
    on_tiles(g, DType::BF16) || word_of(g, DType::BF16) == Word::Pair && g.c_in.min(g.c_out) < CHANNELS
}

/// How far apart the weights of neighbouring groups, source channels and target channels are. Those of one source and
/// target channel, a tap after the other, are neighbours of the next source's or the next target's.
#[derive(Clone, Copy)]
struct Steps {
    group: usize,
    source: usize,
    target: usize,
}

impl Steps {
    /// Where the taps of a source and a target channel start.
    fn start(self, group: usize, source: usize, target: usize) -> usize {
        group * self.group + source * self.source + target * self.target
    }
}

/// Weights as [group][panel][tap × word of source channels][panel width], rounded as `T` stores them.
fn pack<T: Element>(
    g: &Geometry,
    products: Products,
    (y, x): (&Axis, &Axis),
    (c_source, c_target): (usize, usize),
    weight: &[f32],
    steps: Steps,
) -> Buffer<f32> {
    /// Rows that are turned round together, about.
    const ROWS: usize = 128;
    let width = panel_width();
    let taps: Vec<usize> =
        y.taps.iter().flat_map(|y| x.taps.iter().map(move |x| y.1 * g.window.kernel.1 + x.1)).collect();
    if products == Products::Narrow {
        return narrow::pack::<T>(g, &taps, weight, |group, source, target| {
            steps.start(group, source, target)
        });
    }
    #[cfg(target_arch = "x86_64")]
    if products == Products::Tiles {
        let row = |k: usize| (k % c_source, taps[k / c_source]);
        let element = |(source, tap), target| weight[steps.start(0, source, target) + tap];
        return tiles::pack::<T, _>(taps.len() * c_source, c_target, row, element);
    }
    let Products::Groups(word) = products else { return take::<f32>(0) };
    let (panels, words) = (c_target.div_ceil(width), c_source.div_ceil(word.numbers()));
    let mut packed = take::<f32>(g.groups * panels * taps.len() * words * width);
    chunks(&mut packed, taps.len() * words * width, |i, out| {
        let (group, first) = (i / panels, first_column(i % panels, c_target, width));
        let (columns, of_kernel) = (width.min(c_target), g.taps());
        let weight = |source| &weight[steps.start(group, source, first)..];
        if (word, of_kernel) == (Word::Single, 1) {
            // Rows of the panel as they are.
            for (i, out) in out.chunks_mut(ROWS * width).enumerate() {
                let (weight, sources) = (weight(i * ROWS), out.len() / width);
                if steps.target == 1 {
                    let rows = weight.chunks(steps.source).zip(out.chunks_exact_mut(width));
                    rows.for_each(|(weight, out)| out[..columns].copy_from_slice(&weight[..columns]));
                } else {
                    transpose(weight, steps.target, (columns, sources), out, width);
                }
            }
            return round::<T>(out);
        }
        let step = (ROWS / of_kernel).max(8).next_multiple_of(2);
        // [source channel × tap of the kernel][column] of a few source channels, for all of it to stay in cache.
        let mut turned = take::<f32>(step * of_kernel * width);
        for some in (0..c_source).step_by(step) {
            let sources = step.min(c_source - some);
            if steps.source == of_kernel {
                transpose(weight(some), steps.target, (columns, sources * of_kernel), &mut turned, width);
            } else {
                for (i, turned) in turned.chunks_exact_mut(of_kernel * width).take(sources).enumerate() {
                    transpose(weight(some + i), steps.target, (columns, of_kernel), turned, width);
                }
            }
            for (j, &tap) in taps.iter().enumerate() {
                let row = |source: usize| &turned[(source * of_kernel + tap) * width..][..columns];
                for source in (0..sources).step_by(word.numbers()) {
                    let at = (j * words + (some + source) / word.numbers()) * width;
                    let out = &mut out[at..][..columns];
                    match word {
                        Word::Single => {
                            out.copy_from_slice(row(source));
                            round::<T>(out);
                        }
                        Word::Pair => {
                            let second = if source + 1 < sources { row(source + 1) } else { &[] };
                            round_pairs(row(source), second, out);
                        }
                    }
                }
            }
        }
    });
    packed
}

multiversion! {
    /// Words of the elements of two rows, rounded; the second may be empty for zeros.
    fn round_pairs(first: &[f32], second: &[f32], out: &mut [f32]) {
        let rounded = <bf16 as Element>::from_f32;
        if second.len() < first.len() {
            for (out, &first) in out.iter_mut().zip(first) {
                *out = word(rounded(first), bf16::ZERO);
            }
            return;
        }
        for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
            *out = word(rounded(first), rounded(second));
        }
    }
}
