//! Matrix products on one thread, from blocks of registers: the rows of the left matrix lie anywhere in
//! memory, so that pixels are multiplied where they are (Dukhan, "The indirect convolution algorithm",
//! arXiv 1907.02129).
//!
//! A block of registers holds a *tile* of the result: as many rows as fit, two registers wide.

use super::finish::{End, write};
use crate::dispatch::PerSet;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Vector};

/// The left matrix. Element (i, k) lies at `data[starts[i] + runs[k / run] + k % run * step]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    /// Where each row starts.
    pub(super) starts: &'a [usize],
    /// Where each run of columns starts, from the start of the row.
    pub(super) runs: &'a [usize],
    /// Columns of a run.
    pub(super) run: usize,
    /// Distance between the columns of a run.
    pub(super) step: usize,
}

/// The right matrix, of a panel's width at most: row k is at `data[k * step]`, readable over a whole panel's
/// width.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) data: &'a [f32],
    pub(super) step: usize,
    /// What is multiplied with next, or nothing: brought nearer meanwhile where rows are so few that reading a
    /// panel takes as long as multiplying with it.
    pub(super) next: &'a [f32],
}

/// The result: a matrix with rows of `stride` elements, of which the first `columns` are computed.
pub(super) struct Out<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) columns: usize,
    pub(super) end: End<'a>,
}

/// A tile of the result: what [`Left`], [`Right`] and [`Out`] say, as pointers.
struct Tile<'a> {
    left: *const f32,
    starts: &'a [usize],
    runs: &'a [usize],
    run: usize,
    step: usize,
    right: *const f32,
    right_step: usize,
    /// What is brought nearer, and how far it is to the next step's; never read.
    next: *const f32,
    next_step: usize,
    out: *mut f32,
    stride: usize,
    columns: usize,
    end: End<'a>,
}

/// The compiled tiles of an instruction set.
struct Kernels {
    /// Columns of a tile.
    width: usize,
    /// By the number of rows, from one up.
    tiles: &'static [unsafe fn(&Tile<'_>)],
}

static KERNELS: PerSet<Kernels> = PerSet {
    portable: Kernels { width: 8, tiles: &[portable::<1>, portable::<2>, portable::<3>, portable::<4>] },
    #[cfg(target_arch = "aarch64")]
    neon: Kernels {
        width: 8,
        tiles: &[
            neon::<1>, neon::<2>, neon::<3>, neon::<4>, neon::<5>, neon::<6>, neon::<7>, neon::<8>,
            neon::<9>, neon::<10>, neon::<11>, neon::<12>,
        ],
    },
    #[cfg(target_arch = "x86_64")]
    avx2: Kernels { width: 16, tiles: &[avx2::<1>, avx2::<2>, avx2::<3>, avx2::<4>, avx2::<5>, avx2::<6>] },
    #[cfg(target_arch = "x86_64")]
    avx512: Kernels {
        width: 32,
        tiles: &[
            avx512::<1>,
            avx512::<2>,
            avx512::<3>,
            avx512::<4>,
            avx512::<5>,
            avx512::<6>,
            avx512::<7>,
            avx512::<8>,
            avx512::<9>,
            avx512::<10>,
            avx512::<11>,
            avx512::<12>,
        ],
    },
};

/// Columns of a tile: right matrices are packed in panels of this width.
pub(super) fn panel_width() -> usize {
    KERNELS.best().width
}

/// The first of the columns that a panel of so many has of a matrix. The last panel of several ends with the last column: it
/// repeats some of those before, so that every panel is full.
pub(super) fn first_column(panel: usize, columns: usize, width: usize) -> usize {
    (panel * width).min(columns.saturating_sub(width))
}

/// Rows of a tile, at most.
pub(super) fn tile_height() -> usize {
    KERNELS.best().tiles.len()
}

/// Tiles of a column up to which the next panel is brought nearer.
const FEW_TILES: usize = 8;

/// `out = left · right`, or what [`End`] makes of it, for at most [`panel_width`] columns.
pub(super) fn multiply(left: Left<'_>, right: Right<'_>, out: Out<'_>) {
    let kernels = KERNELS.best();
    let (rows, depth) = (left.starts.len(), left.runs.len() * left.run);
    assert!((1..=kernels.width).contains(&out.columns));
    if rows == 0 {
        return;
    }
    assert!((rows - 1) * out.stride + out.columns <= out.data.len());
    out.end.check(kernels.width);
    if depth > 0 {
        let (start, run) = (left.starts.iter().max(), left.runs.iter().max());
        let (start, run) = (start.copied().unwrap_or(0), run.copied().unwrap_or(0));
        assert!(start + run + (left.run - 1) * left.step < left.data.len());
        assert!((depth - 1) * right.step + kernels.width <= right.data.len());
    }
    // Tiles of nearly equal height, since low ones keep the registers less busy.
    let tiles = rows.div_ceil(kernels.tiles.len());
    for tile in 0..tiles {
        let (first, end) = (rows * tile / tiles, rows * (tile + 1) / tiles);
        let out_at = first * out.stride;
        // Each tile brings its share of the next panel.
        let next_step = if tiles <= FEW_TILES && !right.next.is_empty() { right.step / tiles } else { 0 };
        let tile = Tile {
            left: left.data.as_ptr(),
            starts: &left.starts[first..end],
            runs: left.runs,
            run: left.run,
            step: left.step,
            right: right.data.as_ptr(),
            right_step: right.step,
            next: right.next.as_ptr().wrapping_add(tile * depth * next_step),
            next_step,
            out: out.data[out_at..].as_mut_ptr(),
            stride: out.stride,
            columns: out.columns,
            end: out.end,
        };
        #[expect(unsafe_code, reason = "a kernel for a detected instruction set, on pointers")]
        // SAFETY: the assertions above bound what the tiles read and write, and `kernels` gives those of a
        // detected instruction set.
        unsafe {
            kernels.tiles[end - first - 1](&tile);
        }
    }
}

/// Adds the products of the elements `at` of all rows with a row of the right matrix.
///
/// # Safety
/// Both can be read, the row on the right over a whole panel's width.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn step<V: Vector, const M: usize>(
    sums: &mut [[V; 2]; M],
    rows: &[*const f32; M],
    at: usize,
    right: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let columns = [V::load(right), V::load(right.add(V::LANES))];
        for (sums, row) in sums.iter_mut().zip(rows) {
            let x = V::splat(*row.add(at));
            sums[0] = sums[0].mul_add(x, columns[0]);
            sums[1] = sums[1].mul_add(x, columns[1]);
        }
    }
}

/// # Safety
/// What the tile points at can be read and written, over a whole panel's width on the right; it has `M` rows.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn compute<V: Vector, const M: usize>(tile: &Tile<'_>) {
    let mut sums = [[V::splat(0.0); 2]; M];
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [tile.left; M];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = row.add(*tile.starts.get_unchecked(i));
        }
        let (mut right, mut next) = (tile.right, tile.next);
        for i in 0..M {
            V::prefetch(tile.out.wrapping_add(i * tile.stride));
        }
        for &run in tile.runs {
            // Runs of one have a loop of their own, in which nothing but the columns' places is read.
            if tile.run == 1 {
                step(&mut sums, &rows, run, right);
                right = right.wrapping_add(tile.right_step);
                V::prefetch(next);
                next = next.wrapping_add(tile.next_step);
                continue;
            }
            let mut at = run;
            for _ in 0..tile.run {
                step(&mut sums, &rows, at, right);
                at += tile.step;
                right = right.wrapping_add(tile.right_step);
                V::prefetch(next);
                next = next.wrapping_add(tile.next_step);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            write(*sums, tile.out.add(i * tile.stride), tile.columns, &tile.end, 0);
        }
    }
}

#[expect(unsafe_code, reason = "see `compute`")]
unsafe fn portable<const M: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { compute::<Portable, M>(tile) }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "see `compute`")]
unsafe fn neon<const M: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { compute::<Neon, M>(tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "see `compute`")]
unsafe fn avx2<const M: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { compute::<Avx2, M>(tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "see `compute`")]
unsafe fn avx512<const M: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { compute::<Avx512, M>(tile) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every compiled tile that this machine can run, against sums in f64.
    #[test]
    fn tiles_equal_plain_sums() {
        let width = panel_width();
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        let data: Vec<f32> = (0..5000).map(value).collect();
        let right: Vec<f32> = (0..40 * (width + 3)).map(|i| value(i + 7)).collect();
        for rows in 1..=2 * KERNELS.best().tiles.len() + 1 {
            for (columns, accumulate, step) in
                [(width, false, 1), (width, true, 3), (width - 1, true, 1), (1, false, 2)]
            {
                let starts: Vec<usize> = (0..rows).map(|i| (i * 131) % 900).collect();
                let left = Left { data: &data, starts: &starts, runs: &[5, 400, 77], run: 13, step };
                let stride = columns + 2;
                let mut out = vec![0.5; rows * stride];
                let of_right = Right { data: &right, step: width + 3, next: &right };
                multiply(
                    left,
                    of_right,
                    Out { data: &mut out, stride, columns, end: End::add_if(accumulate) },
                );
                for (i, row) in out.chunks_exact(stride).enumerate() {
                    for (j, &found) in row.iter().enumerate() {
                        let product = |k: usize| {
                            let a = data[starts[i] + [5, 400, 77][k / 13] + k % 13 * step];
                            f64::from(a) * f64::from(right[k * (width + 3) + j])
                        };
                        let before = if accumulate || j >= columns { 0.5 } else { 0.0 };
                        let sum = if j < columns { (0..39).map(product).sum::<f64>() } else { 0.0 };
                        assert!(
                            (f64::from(found) - before - sum).abs() < 1e-5,
                            "{rows} {columns} ({i}, {j})"
                        );
                    }
                }
            }
        }
    }
}
