//! A convolution and the max-pool after it, a few rows at a time: the convolution's result, the widest map of most networks
//! for photographs, is neither written to memory nor read from it. Every value is computed as without the pool, bit for
//! bit, however images are cut.

use super::chain::{self, Link, Step, cut};
use super::correlation::block_pixels;
use super::reach::Block;
use crate::element::Element;
use crate::max_pool::MaxPool;
use crate::parallel::{each, parts, with_scratch_of};
use crate::pool::{Buffer, take};
use std::ops::Range;

/// Bytes of a map that does not stay in a core's own cache.
const FAR_BYTES: usize = 4 << 20;

/// How many bands the images are cut into; nothing where a pool is better computed alone.
pub(in super::super) fn bands<T>(pool: &MaxPool) -> Option<usize> {
    let (n, rows, columns, c) = pool.dims;
    let is_far = n * rows * columns * c * size_of::<T>() >= FAR_BYTES;
    chain::bands(n, pool.out, &pool.window, rows, true).filter(|_| is_far)
}

/// What the pool gives.
pub(in super::super) fn run<T: Element>(
    link: &Link<'_, T>,
    pool: &MaxPool,
    bands: usize,
    xs: &[T],
) -> Buffer<T> {
    let (g, (h, w)) = (&link.g, pool.out);
    let step = Step::new(link, g);
    let mut ys = take::<T>(g.n * h * w * g.c_out);
    let tasks = cut(g.n, h, bands);
    let parts = parts(&mut ys, tasks.iter().map(|(_, rows)| rows.len() * w * g.c_out));
    each(tasks.iter().zip(parts), |_, ((image, rows), (_, out))| band(&step, pool, xs, *image, rows, out));
    ys
}

/// Rows of the pool of an image.
fn band<T: Element>(
    step: &Step<'_, T>,
    pool: &MaxPool,
    xs: &[T],
    image: usize,
    rows: &Range<usize>,
    out: &mut [T],
) {
    let (source, target) = (step.correlation.source_channels, step.correlation.target);
    let (row_len, out_len) = (pool.dims.2 * pool.dims.3, pool.out.1 * pool.dims.3);
    // As many rows as make a block of the convolution.
    let at_once = (block_pixels(source) / (target.1 * pool.window.stride.0)).clamp(1, rows.len().max(1));
    let span = (at_once - 1) * pool.window.stride.0 + (pool.window.kernel.0 - 1) * pool.window.dilation.0 + 1;
    let mut merged = pool.row();
    // The rows that `between` starts with.
    let mut made = 0..0;
    with_scratch_of(span.min(target.0) * row_len, |between| {
        for start in rows.clone().step_by(at_once) {
            let some = start..rows.end.min(start + at_once);
            let seen = pool.reach(&some);
            // Rows that the last step has made, too, move to the start.
            let kept = seen.start.clamp(made.start, made.end)..made.end.min(seen.end);
            between.copy_within((kept.start - made.start) * row_len..(kept.end - made.start) * row_len, 0);
            let new = seen.start + kept.len()..seen.end;
            // At the lower edge there may be none.
            if !new.is_empty() {
                let made = &mut between[kept.len() * row_len..][..new.len() * row_len];
                step.compute(xs, &Block { images: image..image + 1, rows: new }, 0, made);
            }
            let out = &mut out[(start - rows.start) * out_len..][..some.len() * out_len];
            pool.rows_of(between, some, &mut merged, out);
            made = seen;
        }
    });
}
