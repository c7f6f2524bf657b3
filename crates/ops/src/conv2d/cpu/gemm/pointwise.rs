//! The weight gradient of 1×1 convolutions and linear layers: a product of two matrices summed over pixels, the
//! output gradient turned on its side and the input. Both are packed in the order in which they are read, and the
//! result has PyTorch's layout at once.

use super::super::super::Geometry;
use super::super::finish::End;
use super::super::product::{Left, Out, Right, Word, multiply, panel_width, tile_height};
use super::weight_gradient::pair_rows;
use super::{TASKS, word_of};
use crate::element::{Element, load};
use crate::pairs::{pair, pair_with_zeros};
use crate::parallel::{buffer, chunks, map, with_scratch};
use crate::pool::take;
use crate::simd::multiversion;
use half::bf16;
use std::ops::Range;

/// Pixels of a block: a panel of the input over a block takes half of the first cache.
const BLOCK_PIXELS: usize = 256;

/// Elements of the output gradient that stay in the second cache while one panel of the input after the other goes
/// by.
const CHUNK_ELEMENTS: usize = 48 * 1024;

pub(super) fn serves(g: &Geometry) -> bool {
    g.groups == 1 && g.taps() == 1 && g.window.padding == (0, 0)
}

/// A part of the result: output channels and input channels, whole tiles and panels but for the last.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

pub(super) fn weight_gradient<T: Element>(g: &Geometry, xs: &[T], dys: &[T]) -> Vec<f32> {
    /// Elements of all partial sums together: 16 MB.
    const ELEMENTS: usize = 4 << 20;
    let (c_in, c_out) = (g.c_in, g.c_out);
    let blocks = g.pixels().div_ceil(BLOCK_PIXELS);
    let sums = TASKS.min(blocks).min(ELEMENTS / (c_in * c_out).max(1)).max(1);
    let pixels = |i: usize| {
        BLOCK_PIXELS * (blocks * i / sums)..g.pixels().min(BLOCK_PIXELS * (blocks * (i + 1) / sums))
    };
    let mut dw = buffer::<f32>(c_out * c_in);
    let tiles = c_out.div_ceil(tile_height());
    if sums == 1 {
        // Each task writes rows of the result.
        let rows = tiles.div_ceil(TASKS).max(1) * tile_height();
        chunks(&mut dw, rows * c_in, |i, out| {
            let part = Part { rows: i * rows..c_out.min((i + 1) * rows), columns: 0..c_in };
            add_pixels(g, xs, dys, pixels(0), &part, out);
        });
        return dw;
    }
    let parts = grid(c_out, c_in, TASKS.div_ceil(sums));
    let partial = map(sums * parts.len(), |i| {
        let part = &parts[i % parts.len()];
        let mut out = take::<f32>(part.rows.len() * part.columns.len());
        add_pixels(g, xs, dys, pixels(i / parts.len()), part, &mut out);
        out
    });
    chunks(&mut dw, c_in, |row, dw| {
        for (i, part) in parts.iter().enumerate().filter(|(_, part)| part.rows.contains(&row)) {
            let out = &mut dw[part.columns.clone()];
            for sums in partial.iter().skip(i).step_by(parts.len()) {
                let from = (row - part.rows.start) * out.len();
                out.iter_mut().zip(&sums[from..]).for_each(|(out, sum)| *out += sum);
            }
        }
    });
    dw
}

/// The result in at least so many parts, if it has as many tiles: those that have the least packed, since each
/// part packs its rows of one matrix and its columns of the other.
fn grid(c_out: usize, c_in: usize, parts: usize) -> Vec<Part> {
    let (height, width) = (tile_height(), panel_width());
    let (tiles, panels) = (c_out.div_ceil(height), c_in.div_ceil(width));
    let by_columns = |rows: usize| parts.div_ceil(rows).min(panels);
    let packed = |&rows: &usize| rows * c_in + by_columns(rows) * c_out;
    let rows = (1..=parts.min(tiles)).min_by_key(packed).unwrap_or(1);
    let columns = by_columns(rows);
    let cut = |i: usize, of: usize, units: usize, unit: usize, end: usize| {
        units * i / of * unit..end.min(units * (i + 1) / of * unit)
    };
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| Part {
            rows: cut(row, rows, tiles, height, c_out),
            columns: cut(column, columns, panels, width, c_in),
        })
        .collect()
}

/// Writes a part of the gradient, of so many pixels, to `sums`: rows of the part's columns.
fn add_pixels<T: Element>(
    g: &Geometry,
    xs: &[T],
    dys: &[T],
    pixels: Range<usize>,
    part: &Part,
    sums: &mut [f32],
) {
    let (height, width) = (tile_height(), panel_width());
    let (rows, columns) = (part.rows.len(), part.columns.len());
    let (tiles, panels) = (rows.div_ceil(height), columns.div_ceil(width));
    if pixels.is_empty() {
        sums.fill(0.0);
    }
    let word = word_of(g, T::DTYPE);
    let most = BLOCK_PIXELS.min(pixels.len()).div_ceil(word.numbers());
    let left_len = tiles * height * most;
    let starts: Vec<usize> = (0..height).collect();
    with_scratch(left_len + panels * width * most, |scratch| {
        let (left, right) = scratch.split_at_mut(left_len);
        for first in pixels.clone().step_by(BLOCK_PIXELS) {
            let n = BLOCK_PIXELS.min(pixels.end - first);
            let words = n.div_ceil(word.numbers());
            for (tile, left) in left.chunks_exact_mut(height * words).take(tiles).enumerate() {
                let from = part.rows.start + tile * height;
                let len = height.min(part.rows.end - from);
                let dys = &dys[first * g.c_out + from..(first + n) * g.c_out];
                match (word, T::as_bf16(dys)) {
                    (Word::Pair, Some(dys)) => pair_rows(dys, g.c_out, len, left, height),
                    _ => turn(dys, g.c_out, len, left, height),
                }
            }
            let seen = |i: usize| &xs[source(g, first + i) * g.c_in..][part.columns.clone()];
            for i in 0..words {
                let right = &mut right[i * width..];
                match (word, T::as_bf16(seen(i * word.numbers()))) {
                    (Word::Pair, Some(first)) => {
                        let second = (2 * i + 1 < n).then(|| T::as_bf16(seen(2 * i + 1))).flatten();
                        pair_panels(first, second.unwrap_or(&[]), right, words * width, width);
                    }
                    _ => {
                        for (panel, x) in seen(i).chunks(width).enumerate() {
                            load(&mut right[panel * words * width..][..x.len()], x);
                        }
                    }
                }
            }
            let chunk = (CHUNK_ELEMENTS / (height * words)).max(1);
            for some in (0..tiles).step_by(chunk) {
                for panel in 0..panels {
                    let data = &right[panel * words * width..][..words * width];
                    let right = Right { data, step: width, next: &[] };
                    for tile in some..tiles.min(some + chunk) {
                        let starts = &starts[..height.min(rows - tile * height)];
                        let data = &left[tile * height * words..][..height * words];
                        let out = Out {
                            data: &mut sums[tile * height * columns + panel * width..],
                            stride: columns,
                            columns: width.min(columns - panel * width),
                            end: End::add_if(first > pixels.start),
                        };
                        let left = Left { word, data, starts, runs: &[0], run: words, step: height };
                        multiply(left, right, out);
                    }
                }
            }
        }
    });
}

/// The input pixel that output pixel `i` sees.
fn source(g: &Geometry, i: usize) -> usize {
    let (stride, (h, w), (ho, wo)) = (g.window.stride, g.size, g.out);
    if stride == (1, 1) {
        return i;
    }
    let (image, y, x) = (i / (ho * wo), i / wo % ho, i % wo);
    (image * h + y * stride.0) * w + x * stride.1
}

multiversion! {
    /// Words of the elements of two rows, the second of which may be empty for zeros, to panels that are `panel` apart.
    fn pair_panels(first: &[bf16], second: &[bf16], out: &mut [f32], panel: usize, width: usize) {
        for (i, first) in first.chunks(width).enumerate() {
            let out = &mut out[i * panel..][..first.len()];
            match second.get(i * width..) {
                Some(second) if second.len() >= first.len() => pair(out, first, second),
                _ => pair_with_zeros(out, first),
            }
        }
    }
}

multiversion! {
    /// The first `len` elements of each row of `xs`, rows being `row` apart, to rows of `out` of `height`.
    fn turn<T: Element>(xs: &[T], row: usize, len: usize, out: &mut [f32], height: usize) {
        /// With a length that the compiler knows.
        #[inline(always)]
        fn copy<T: Element, const N: usize>(xs: &[T], row: usize, out: &mut [f32]) {
            for (x, out) in xs.chunks(row).zip(out.chunks_exact_mut(N)) {
                for (out, x) in out.iter_mut().zip(&x[..N]) {
                    *out = x.to_f32();
                }
            }
        }
        match height {
            _ if len < height => {
                for (x, out) in xs.chunks(row).zip(out.chunks_exact_mut(height)) {
                    for (out, x) in out.iter_mut().zip(&x[..len]) {
                        *out = x.to_f32();
                    }
                }
            }
            4 => copy::<T, 4>(xs, row, out),
            6 => copy::<T, 6>(xs, row, out),
            _ => copy::<T, 12>(xs, row, out),
        }
    }
}
