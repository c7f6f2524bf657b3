//! Convolution as matrix products over gathered pixels: serves every shape.
//!
//! Pixels are taken in blocks. For each block the pixels that its windows see are gathered into a matrix
//! [pixels, taps × channels] that stays in cache, and multiplied with the packed weights. Blocks are cut by
//! the shape alone, so results do not depend on the number of threads.

use super::super::Geometry;
use crate::element::Element;
use crate::parallel::{buffer, chunks, map, with_scratch};
use std::ops::Range;

/// Elements of the gathered matrix that a task holds at a time: half a megabyte, about one core's L2 cache.
const GATHER_ELEMENTS: usize = 128 * 1024;

/// Pixels per block for a gathered matrix of `k` columns.
fn block_pixels(k: usize) -> usize {
    (GATHER_ELEMENTS / k.max(1)).clamp(128, 1024)
}

/// Weights as [c_out][tap × c_in], rounded as `T` stores them: the order in which pixels are gathered.
fn pack<T: Element>(g: &Geometry, weight: &[f32]) -> Vec<f32> {
    let (c_in, taps) = (g.group_channels().0, g.taps());
    let mut packed = buffer(weight.len());
    chunks(&mut packed, taps * c_in, |o, out| {
        let of_channel = &weight[o * taps * c_in..][..taps * c_in];
        for (tap, out) in out.chunks_exact_mut(c_in).enumerate() {
            for (out, of_input) in out.iter_mut().zip(of_channel.chunks_exact(taps)) {
                *out = T::round(of_input[tap]);
            }
        }
    });
    packed
}

/// Weights of the transposed convolution, taps turned round, from packed ones: [group][tap × c_out]\[c_in\].
fn turn(g: &Geometry, packed: &[f32]) -> Vec<f32> {
    let ((c_in, c_out), taps) = (g.group_channels(), g.taps());
    let mut turned = buffer(packed.len());
    chunks(&mut turned, c_out * c_in, |i, out| {
        let (group, tap) = (i / taps, i % taps);
        for (o, out) in out.chunks_exact_mut(c_in).enumerate() {
            out.copy_from_slice(&packed[((group * c_out + o) * taps + taps - 1 - tap) * c_in..][..c_in]);
        }
    });
    turned
}

pub(super) fn forward<T: Element>(g: &Geometry, xs: &[T], weight: &[f32]) -> Vec<T> {
    let k = g.taps() * g.group_channels().0;
    product(g, xs, Matrix::new(&pack::<T>(g, weight), 1, k))
}

/// The product of what the windows see with the weights, a matrix [taps × c_in, c_out] for each group in turn.
fn product<T: Element>(g: &Geometry, xs: &[T], weights: Matrix<'_>) -> Vec<T> {
    let (c_in, c_out) = g.group_channels();
    let k = g.taps() * c_in;
    let block = block_pixels(k);
    let direct = pointwise(g);
    let mut ys = buffer::<T>(g.pixels() * g.c_out);
    chunks(&mut ys, block * g.c_out, |i, out| {
        let (first, pixels) = (i * block, out.len() / g.c_out);
        let gathered_len = if direct && T::as_f32(xs).is_some() { 0 } else { pixels * k };
        let result_len = if T::as_f32_mut(out).is_some() { 0 } else { pixels * c_out };
        with_scratch(gathered_len + result_len, |scratch| {
            let (gathered, result) = scratch.split_at_mut(gathered_len);
            for group in 0..g.groups {
                let seen = match T::as_f32(xs) {
                    Some(xs) if direct => Matrix::new(&xs[first * g.c_in + group * c_in..], g.c_in, 1),
                    _ => {
                        gather(g, xs, first..first + pixels, 0..g.taps(), group, gathered);
                        Matrix::new(gathered, k, 1)
                    }
                };
                let of_group = &weights.data[group * k * c_out..][..k * c_out];
                let weights = Matrix::new(of_group, weights.row_stride, weights.column_stride);
                if let Some(out) = T::as_f32_mut(out) {
                    multiply((pixels, c_out, k), &mut out[group * c_out..], g.c_out, seen, weights, false);
                } else {
                    multiply((pixels, c_out, k), result, c_out, seen, weights, false);
                    for (out, row) in out.chunks_exact_mut(g.c_out).zip(result.chunks_exact(c_out)) {
                        store(&mut out[group * c_out..][..c_out], row);
                    }
                }
            }
        });
    });
    ys
}

pub(super) fn input_gradient<T: Element>(g: &Geometry, dys: &[T], weight: &[f32]) -> Vec<T> {
    let (stride, padding, dilation, kernel) =
        (g.window.stride, g.window.padding, g.window.dilation, g.window.kernel);
    let turned =
        |padding: usize, dilation: usize, kernel: usize| (dilation * (kernel - 1)).checked_sub(padding);
    let padding = turned(padding.0, dilation.0, kernel.0).zip(turned(padding.1, dilation.1, kernel.1));
    // With stride 1 the input gradient is a convolution of the output gradient with the turned weights.
    if let (true, Some(padding)) = (stride == (1, 1), padding) {
        let mut window = g.window;
        window.padding = padding;
        let transposed = Geometry { size: g.out, c_in: g.c_out, out: g.size, c_out: g.c_in, window, ..*g };
        let turned = turn(g, &pack::<T>(g, weight));
        return product(&transposed, dys, Matrix::new(&turned, g.group_channels().0, 1));
    }
    scatter_input_gradient(g, dys, &pack::<T>(g, weight))
}

/// Any stride: products with the transposed weights, added to the pixels that each window saw.
fn scatter_input_gradient<T: Element>(g: &Geometry, dys: &[T], packed: &[f32]) -> Vec<T> {
    let (c_in, c_out) = g.group_channels();
    let (k, of_image) = (g.taps() * c_in, g.out.0 * g.out.1);
    let image_len = g.size.0 * g.size.1 * g.c_in;
    let block = block_pixels(k);
    let mut dxs = buffer::<T>(g.n * image_len);
    chunks(&mut dxs, image_len, |image, out| {
        with_scratch(image_len + block * (k + c_out), |scratch| {
            let (sums, rest) = scratch.split_at_mut(image_len);
            let (gathered, converted) = rest.split_at_mut(block * k);
            sums.fill(0.0);
            for first in (0..of_image).step_by(block) {
                let pixels = block.min(of_image - first);
                let start = image * of_image + first;
                for group in 0..g.groups {
                    let dy = rows_as_f32(
                        dys,
                        start..start + pixels,
                        g.c_out,
                        group * c_out..(group + 1) * c_out,
                        converted,
                    );
                    let weights = Matrix::new(&packed[group * k * c_out..][..k * c_out], k, 1);
                    multiply((pixels, k, c_out), gathered, k, dy, weights, false);
                    scatter(g, &gathered[..pixels * k], first, group, sums);
                }
            }
            store(out, sums);
        });
    });
    dxs
}

/// Sums of partial products: so many parts, and so many ranges of taps, that two dozen cores have work,
/// within 64 MB. Depends on the shape alone.
fn split_weight_gradient(g: &Geometry, block: usize) -> (usize, usize) {
    const PARTS: usize = 16;
    const ELEMENTS: usize = 16 * 1024 * 1024;
    let (c_in, c_out) = g.group_channels();
    let weight_len = (g.groups * g.taps() * c_in * c_out).max(1);
    let parts = PARTS.min(g.pixels().div_ceil(block)).min(ELEMENTS / weight_len).max(1);
    (parts, PARTS.div_ceil(parts).min(g.taps()))
}

pub(super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    let (c_in, taps) = (g.group_channels().0, g.taps());
    let block = block_pixels(taps * c_in);
    let (parts, tap_ranges) = split_weight_gradient(g, block);
    let pixels_per_part = g.pixels().div_ceil(parts).next_multiple_of(block);
    let taps_per_range = taps.div_ceil(tap_ranges);
    let partial = map(parts * tap_ranges, |i| {
        let (part, range) = (i / tap_ranges, i % tap_ranges);
        let taps = (range * taps_per_range).min(taps)..((range + 1) * taps_per_range).min(taps);
        let pixels = (part * pixels_per_part).min(g.pixels())..((part + 1) * pixels_per_part).min(g.pixels());
        partial_weight_gradient(g, xs, dys, pixels, taps, block)
    });
    // partial[part][range] is [c_out][tap of range × c_in]; the result is [c_out][c_in][tap].
    let mut dw = buffer::<f32>(g.c_out * c_in * taps);
    chunks(&mut dw, c_in * taps, |o, out| {
        for tap in 0..taps {
            let (range, k) = (tap / taps_per_range, tap % taps_per_range * c_in);
            let width = taps_per_range.min(taps - range * taps_per_range) * c_in;
            for part in 0..parts {
                let sums = &partial[part * tap_ranges + range][o * width + k..][..c_in];
                for (d, &s) in out.chunks_exact_mut(taps).zip(sums) {
                    d[tap] += s;
                }
            }
        }
    });
    dw
}

/// Σ over `pixels` of dysᵀ · gathered(xs) for the given taps: [c_out][tap × c_in].
fn partial_weight_gradient<T: Element>(
    g: &Geometry,
    xs: &[T],
    dys: &[T],
    pixels: Range<usize>,
    taps: Range<usize>,
    block: usize,
) -> Vec<f32> {
    let (c_in, c_out) = g.group_channels();
    let k = taps.len() * c_in;
    let mut sum = buffer::<f32>(g.groups * k * c_out);
    let direct = pointwise(g);
    with_scratch(block * (k + c_out), |scratch| {
        let (gathered, converted) = scratch.split_at_mut(block * k);
        for first in pixels.clone().step_by(block) {
            let here = first..(first + block).min(pixels.end);
            for group in 0..g.groups {
                let dy =
                    rows_as_f32(dys, here.clone(), g.c_out, group * c_out..(group + 1) * c_out, converted);
                let seen = match T::as_f32(xs) {
                    Some(xs) if direct => Matrix::new(&xs[first * g.c_in + group * c_in..], g.c_in, 1),
                    _ => {
                        gather(g, xs, here.clone(), taps.clone(), group, gathered);
                        Matrix::new(gathered, k, 1)
                    }
                };
                let sum = &mut sum[group * k * c_out..][..k * c_out];
                multiply((c_out, k, here.len()), sum, k, dy.transposed(), seen, true);
            }
        }
    });
    sum
}

/// Whether the gathered matrix is the input itself.
fn pointwise(g: &Geometry) -> bool {
    g.window.kernel == (1, 1) && g.window.stride == (1, 1) && g.window.padding == (0, 0)
}

/// Calls `f(row of the matrix, tap, first element of the pixel in the image batch)` for each (pixel, tap) whose
/// input pixel lies inside, and `f(row, tap, None)` for the others.
#[inline(always)]
fn for_each_tap(
    g: &Geometry,
    pixels: Range<usize>,
    taps: Range<usize>,
    mut f: impl FnMut(usize, usize, Option<usize>),
) {
    let ((h, w), (ho, wo), window) = (g.size, g.out, g.window);
    for (row, pixel) in pixels.enumerate() {
        let (image, y, x) = (pixel / (ho * wo), pixel / wo % ho, pixel % wo);
        for (j, tap) in taps.clone().enumerate() {
            let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
            // Wraps to a huge value left of the edge, which the comparison below refuses.
            let at_y = (y * window.stride.0 + ky * window.dilation.0).wrapping_sub(window.padding.0);
            let at_x = (x * window.stride.1 + kx * window.dilation.1).wrapping_sub(window.padding.1);
            let inside = at_y < h && at_x < w;
            f(row, j, inside.then(|| ((image * h + at_y) * w + at_x) * g.c_in));
        }
    }
}

/// The matrix [pixels, taps × c_in] of what the windows at `pixels` see of one group.
fn gather<T: Element>(
    g: &Geometry,
    xs: &[T],
    pixels: Range<usize>,
    taps: Range<usize>,
    group: usize,
    out: &mut [f32],
) {
    let c = g.group_channels().0;
    let k = taps.len() * c;
    if g.groups == 1 && g.window.dilation.1 == 1 && taps.len() == g.taps() {
        for (pixel, out) in pixels.zip(out.chunks_exact_mut(k)) {
            gather_rows(g, xs, pixel, out);
        }
        return;
    }
    for_each_tap(g, pixels, taps, |row, j, at| {
        let out = &mut out[row * k + j * c..][..c];
        match at {
            Some(at) => load(out, &xs[at + group * c..][..c]),
            None => out.fill(0.0),
        }
    });
}

/// What the window at one output pixel sees, all channels: a row of the window lies together in memory, and so
/// is one copy between stretches of zeros.
#[inline(always)]
fn gather_rows<T: Element>(g: &Geometry, xs: &[T], pixel: usize, out: &mut [f32]) {
    let ((h, w), (ho, wo), c, window) = (g.size, g.out, g.c_in, g.window);
    let (image, y, x) = (pixel / (ho * wo), pixel / wo % ho, pixel % wo);
    let (left, width) = (x * window.stride.1, window.kernel.1);
    // Taps before the first and after the last that fall inside the row.
    let before = window.padding.1.saturating_sub(left).min(width);
    let after = (left + width).saturating_sub(window.padding.1 + w).min(width - before);
    for (ky, out) in out.chunks_exact_mut(width * c).enumerate() {
        let at_y = (y * window.stride.0 + ky * window.dilation.0).wrapping_sub(window.padding.0);
        if at_y >= h || before + after == width {
            out.fill(0.0);
            continue;
        }
        let at = ((image * h + at_y) * w + left + before - window.padding.1) * c;
        let (zeros, rest) = out.split_at_mut(before * c);
        let (inside, zeros_after) = rest.split_at_mut((width - before - after) * c);
        zeros.fill(0.0);
        load(inside, &xs[at..][..inside.len()]);
        zeros_after.fill(0.0);
    }
}

/// Adds the matrix [pixels, taps × c_in], whose first pixel is `first` of one image, to that image's pixels.
fn scatter(g: &Geometry, matrix: &[f32], first: usize, group: usize, image: &mut [f32]) {
    let c = g.group_channels().0;
    let k = g.taps() * c;
    for_each_tap(g, first..first + matrix.len() / k, 0..g.taps(), |row, j, at| {
        if let Some(at) = at {
            let seen = &matrix[row * k + j * c..][..c];
            for (d, &s) in image[at + group * c..][..c].iter_mut().zip(seen) {
                *d += s;
            }
        }
    });
}

/// Columns of rows of a matrix, in f32; converted into `converted` where elements are something else.
fn rows_as_f32<'a, T: Element>(
    xs: &'a [T],
    rows: Range<usize>,
    width: usize,
    columns: Range<usize>,
    converted: &'a mut [f32],
) -> Matrix<'a> {
    if let Some(xs) = T::as_f32(xs) {
        return Matrix::new(&xs[rows.start * width + columns.start..], width, 1);
    }
    let n = columns.len();
    for (row, out) in rows.zip(converted.chunks_exact_mut(n)) {
        load(out, &xs[row * width..][columns.clone()]);
    }
    Matrix::new(converted, n, 1)
}

#[inline(always)]
fn load<T: Element>(out: &mut [f32], xs: &[T]) {
    for (o, &x) in out.iter_mut().zip(xs) {
        *o = x.to_f32();
    }
}

fn store<T: Element>(out: &mut [T], xs: &[f32]) {
    for (o, &x) in out.iter_mut().zip(xs) {
        *o = T::from_f32(x);
    }
}

/// A matrix in memory: distance between rows and between columns, in elements.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    pub(super) fn new(data: &'a [f32], row_stride: usize, column_stride: usize) -> Self {
        Self { data, row_stride, column_stride }
    }

    fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn assert_holds(&self, rows: usize, columns: usize) {
        if rows > 0 && columns > 0 {
            assert!((rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len());
        }
    }
}

/// `out = lhs · rhs`, or `out += lhs · rhs`, on one thread; `out` has rows of `out_stride` elements.
pub(super) fn multiply(
    (m, n, k): (usize, usize, usize),
    out: &mut [f32],
    out_stride: usize,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    accumulate: bool,
) {
    Matrix::new(out, out_stride, 1).assert_holds(m, n);
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    if m == 0 || n == 0 {
        return;
    }
    #[expect(unsafe_code, reason = "the gemm crate takes pointers")]
    // SAFETY: the assertions above bound every element that an m×n×k product with these strides touches; `out`
    // is borrowed mutably and so overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
