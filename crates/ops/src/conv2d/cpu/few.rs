//! Few channels into few, as in the first layer of LeNet-5: neighbouring pixels of a row share a register, of which so few
//! channels would leave most lanes empty. Rows lie channel by channel meanwhile, and a max-pool is computed while they do.

use super::super::Geometry;
use super::Weight;
use super::finish::Finish;
use super::gemm::{TASK_MACS, chain::cut};
use crate::element::{Element, load};
use crate::inference::{Form, prepared};
use crate::max_pool::{MaxPool, larger};
use crate::parallel::{each, parts, with_scratch};
use crate::pool::{Buffer, take};
use crate::simd::{Vector, multiversion, vectorised};
use candle_core::DType;
use std::ops::Range;
use std::sync::Arc;

/// The most channels that come of it, for their sums to be registers.
const CHANNELS: usize = 8;
/// The most channels that it sees, since each row of them is laid out anew.
const SOURCES: usize = 4;
/// The fewest pixels of a row.
const PIXELS: usize = 8;
/// Pixels that a row has memory for are a multiple of this, which is one of two registers.
const BLOCK: usize = 32;
/// Floats that a task makes, at most.
const TASK_FLOATS: usize = 16 * 1024;

pub(super) fn serves(g: &Geometry) -> bool {
    let few = (1..=CHANNELS).contains(&g.c_out) && g.c_in <= SOURCES;
    g.groups == 1 && few && g.window.stride.1 == 1 && g.out.1 >= PIXELS
}

/// The result.
pub(super) fn forward<T: Element>(
    g: &Geometry,
    xs: &[T],
    weight: Weight<'_>,
    finish: &Finish<'_, T>,
) -> Buffer<T> {
    let few = Few::new(g, weight, finish);
    few.run(xs, g.out, Range::clone, |made, _, at, out| {
        for (row, out) in made.chunks_exact(few.row_len()).zip(out.chunks_exact_mut(g.out.1 * g.c_out)) {
            side_by_side(row, few.pitch, out);
        }
        if few.finish.is_none() {
            finish.apply(at, out);
        }
    })
}

/// Pixels that a row of the result has memory for.
fn pitch(g: &Geometry) -> usize {
    g.out.1.next_multiple_of(BLOCK)
}

/// Whether a max-pool of the result is computed while rows lie channel by channel. Its last window may end beyond the last
/// pixel, but not beyond the row's memory.
pub(super) fn pools(g: &Geometry, pool: &MaxPool) -> bool {
    let w = &pool.window;
    let last = (pool.out.1.max(1) - 1) * w.stride.1 + (w.kernel.1 - 1) * w.dilation.1;
    w.stride.1 == 2 && w.padding.1 == 0 && last < pitch(g)
}

/// What such a max-pool makes of the result, to which nothing is added before.
pub(super) fn pooled<T: Element>(
    g: &Geometry,
    xs: &[T],
    weight: Weight<'_>,
    finish: &Finish<'_, T>,
    pool: &MaxPool,
) -> Buffer<T> {
    let few = Few::new(g, weight, finish);
    let (len, half) = (few.row_len(), few.row_len() / 2);
    few.run(
        xs,
        pool.out,
        |rows| pool.reach(rows),
        |made, rows, _, out| {
            let first = pool.reach(rows).start;
            with_scratch(3 * len + 2 * half, |scratch| {
                let (mut merged, others) = scratch.split_at_mut(len);
                let (mut after, others) = others.split_at_mut(len);
                let (halves, largest) = others.split_at_mut(len);
                let (mut largest, mut largest_after) = largest.split_at_mut(half);
                for (y, out) in rows.clone().zip(out.chunks_exact_mut(pool.out.1 * g.c_out)) {
                    let mut seen = pool.rows(y).map(|(_, at)| &made[(at - first) * len..][..len]);
                    match seen.next() {
                        Some(row) => merged.copy_from_slice(row),
                        None => merged.fill(f32::NEG_INFINITY),
                    }
                    for row in seen {
                        merge(row, merged, after);
                        std::mem::swap(&mut merged, &mut after);
                    }
                    // Windows may end beyond the last pixel.
                    merged.chunks_exact_mut(few.pitch).for_each(|row| row[g.out.1..].fill(f32::NEG_INFINITY));
                    part(merged, halves);
                    largest.copy_from_slice(&halves[..half]);
                    for column in (1..pool.window.kernel.1).map(|kx| kx * pool.window.dilation.1) {
                        let of_parity = &halves[column % 2 * half..][..half];
                        merge(&of_parity[(column / 2).min(half)..], largest, largest_after);
                        std::mem::swap(&mut largest, &mut largest_after);
                    }
                    side_by_side(largest, few.pitch / 2, out);
                }
            });
        },
    )
}

/// A convolution, ready to compute any rows.
struct Few {
    g: Geometry,
    /// [tap, c_out], where a tap is one of the channels seen, too.
    weights: Arc<Buffer<f32>>,
    /// What is done to whole rows, if nothing is added to them.
    finish: Option<Finish<'static, f32>>,
    /// Pixels from a row of the result to the next, and of what it is made of.
    pitch: usize,
    source_pitch: usize,
}

impl Few {
    fn new<T: Element>(g: &Geometry, weight: Weight<'_>, finish: &Finish<'_, T>) -> Self {
        let (w, taps) = (&g.window, g.c_in * g.taps());
        let weights = prepared(weight.id, Form::Taps { bf16: T::DTYPE == DType::BF16 }, || {
            let mut weights = take::<f32>(weight.values.len());
            for (tap, weights) in weights.chunks_exact_mut(g.c_out).enumerate() {
                for (channel, out) in weights.iter_mut().enumerate() {
                    *out = T::round(weight.values[channel * taps + tap]);
                }
            }
            weights
        });
        let pitch = pitch(g);
        let source_pitch = pitch + (w.kernel.1 - 1) * w.dilation.1;
        Self { g: *g, weights, finish: finish.of_channels(g.c_out, pitch), pitch, source_pitch }
    }

    /// Floats of a row of the result: its channels one after the other.
    fn row_len(&self) -> usize {
        self.g.c_out * self.pitch
    }

    /// Computes rows that are made of those rows of the result that they see: `write(rows seen, rows, where they lie, out)`.
    fn run<T: Element>(
        &self,
        xs: &[T],
        (rows, columns): (usize, usize),
        seen: impl Fn(&Range<usize>) -> Range<usize> + Sync,
        write: impl Fn(&[f32], &Range<usize>, usize, &mut [T]) + Sync,
    ) -> Buffer<T> {
        let Geometry { n, size: (h, w), c_in, c_out, .. } = self.g;
        let mut ys = take::<T>(n * rows * columns * c_out);
        let of_image = self.g.out.0 * self.row_len();
        let macs = of_image * c_in * self.g.taps();
        let bands = (macs / TASK_MACS).max(of_image.div_ceil(TASK_FLOATS)).clamp(1, rows.max(1));
        let tasks = cut(n, rows, bands);
        let parts = parts(&mut ys, tasks.iter().map(|(_, rows)| rows.len() * columns * c_out));
        each(tasks.iter().zip(parts), |_, ((image, rows), (at, out))| {
            let seen = seen(rows);
            let made_len = seen.len() * self.row_len();
            with_scratch(made_len + self.source_len(seen.len()), |scratch| {
                let (made, source) = scratch.split_at_mut(made_len);
                self.compute(&xs[image * h * w * c_in..][..h * w * c_in], &seen, source, made);
                write(made, rows, at, out);
            });
        });
        ys
    }

    /// Floats of what so many rows see.
    fn source_len(&self, rows: usize) -> usize {
        self.g.c_in * self.source_rows(rows) * self.source_pitch
    }

    fn source_rows(&self, rows: usize) -> usize {
        let w = &self.g.window;
        (rows.max(1) - 1) * w.stride.0 + (w.kernel.0 - 1) * w.dilation.0 + 1
    }

    /// Rows of the result of an image, finished unless there is a residual.
    fn compute<T: Element>(&self, xs: &[T], rows: &Range<usize>, source: &mut [f32], made: &mut [f32]) {
        let (w, plane) = (&self.g.window, self.source_rows(rows.len()) * self.source_pitch);
        for (channel, source) in source.chunks_exact_mut(plane).enumerate() {
            self.lay_out(xs, channel, rows.start * w.stride.0, source);
        }
        let tap = |(channel, y, x)| channel * plane + y * w.dilation.0 * self.source_pitch + x * w.dilation.1;
        let (channels, (kh, kw)) = (0..self.g.c_in, w.kernel);
        let taps =
            channels.flat_map(|channel| (0..kh).flat_map(move |y| (0..kw).map(move |x| (channel, y, x))));
        let offsets: Vec<usize> = taps.map(tap).collect();
        let source = (&*source, w.stride.0 * self.source_pitch);
        products(self.g.c_out, source, &offsets, &self.weights, (&mut *made, self.pitch));
        if let Some(finish) = &self.finish {
            finish.apply(0, made);
        }
    }

    /// A channel of rows of an image with zeros around it, from one of them on.
    fn lay_out<T: Element>(&self, xs: &[T], channel: usize, first: usize, out: &mut [f32]) {
        let Geometry { size: (h, w), c_in, window, .. } = self.g;
        for (y, out) in out.chunks_exact_mut(self.source_pitch).enumerate() {
            let inside = (first + y).checked_sub(window.padding.0).filter(|&y| y < h);
            let (before, out) = out.split_at_mut(window.padding.1.min(self.source_pitch));
            let (row, after) = out.split_at_mut(w.min(out.len()));
            before.fill(0.0);
            after.fill(0.0);
            match inside {
                None => row.fill(0.0),
                Some(y) if c_in == 1 => load(row, &xs[y * w..][..row.len()]),
                Some(y) => load_channel(&xs[y * w * c_in..][..w * c_in], (channel, c_in), row),
            }
        }
    }
}

multiversion! {
    /// One of so many channels of the pixels of a row.
    fn load_channel<T: Element>(xs: &[T], of: (usize, usize), out: &mut [f32]) {
        let (channel, channels) = of;
        for (o, x) in out.iter_mut().zip(xs.chunks_exact(channels)) {
            *o = x[channel].to_f32();
        }
    }
}

vectorised! {
    /// Rows of channels: the sums of what lies at the offsets from each pixel on, times the weights [offset, channel]. Rows
    /// of the source are a number of floats apart, those of a channel `pitch` long.
    fn products<V>(
        channels: usize,
        source: (&[f32], usize),
        offsets: &[usize],
        weights: &[f32],
        out: (&mut [f32], usize),
    ) {
        match channels {
            1 => products_of::<V, 1>(source, offsets, weights, out),
            2 => products_of::<V, 2>(source, offsets, weights, out),
            3 => products_of::<V, 3>(source, offsets, weights, out),
            4 => products_of::<V, 4>(source, offsets, weights, out),
            5 => products_of::<V, 5>(source, offsets, weights, out),
            6 => products_of::<V, 6>(source, offsets, weights, out),
            7 => products_of::<V, 7>(source, offsets, weights, out),
            _ => products_of::<V, 8>(source, offsets, weights, out),
        }
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "registers are loaded and stored by pointers")]
fn products_of<V: Vector, const C: usize>(
    (source, step): (&[f32], usize),
    offsets: &[usize],
    weights: &[f32],
    (out, pitch): (&mut [f32], usize),
) {
    let (rows, furthest) = (out.len() / (C * pitch), offsets.iter().max().copied().unwrap_or(0));
    assert!(rows == 0 || (rows - 1) * step + furthest + pitch <= source.len());
    assert!(pitch.is_multiple_of(2 * V::LANES) && weights.len() == C * offsets.len());
    for (row, out) in out.chunks_exact_mut(C * pitch).enumerate() {
        for x in (0..pitch).step_by(2 * V::LANES) {
            let mut sums = [[V::splat(0.0); 2]; C];
            for (&offset, weights) in offsets.iter().zip(weights.as_chunks::<C>().0) {
                // SAFETY: two registers from `x` on lie below `pitch`, and so many floats behind each offset in `source`.
                let pixels = unsafe {
                    let at = source.as_ptr().add(row * step + offset + x);
                    [V::load(at), V::load(at.add(V::LANES))]
                };
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    let weight = V::splat(weight);
                    *sum = [sum[0].mul_add(pixels[0], weight), sum[1].mul_add(pixels[1], weight)];
                }
            }
            for (sum, out) in sums.into_iter().zip(out.chunks_exact_mut(pitch)) {
                // SAFETY: as above, in a row of `pitch` floats.
                unsafe {
                    let at = out.as_mut_ptr().add(x);
                    sum[0].store(at);
                    sum[1].store(at.add(V::LANES));
                }
            }
        }
    }
}

multiversion! {
    /// The larger of two elements, as far as there are two.
    fn merge(seen: &[f32], best: &[f32], larger_of_both: &mut [f32]) {
        for ((out, &best), &seen) in larger_of_both.iter_mut().zip(best).zip(seen) {
            *out = larger((seen, ()), (best, ())).0;
        }
    }
}

multiversion! {
    /// Every other element from the first on, and from the second on.
    fn part(xs: &[f32], halves: &mut [f32]) {
        let (even, odd) = halves.split_at_mut(xs.len() / 2);
        for ((even, odd), xs) in even.iter_mut().zip(odd).zip(xs.as_chunks::<2>().0) {
            (*even, *odd) = (xs[0], xs[1]);
        }
    }
}

multiversion! {
    /// The channels of each pixel side by side, from rows of channels that are `pitch` apart.
    fn side_by_side<T: Element>(rows: &[f32], pitch: usize, out: &mut [T]) {
        let channels = rows.len() / pitch;
        for (channel, row) in rows.chunks_exact(pitch).enumerate() {
            for (pixel, &x) in out.chunks_exact_mut(channels).zip(row) {
                pixel[channel] = T::from_f32(x);
            }
        }
    }
}
