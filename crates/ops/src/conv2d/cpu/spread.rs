//! Matrix products of narrow groups on one thread. A group of a few channels would leave most of a register
//! empty, so neighbouring groups share one: each lane is multiplied with an element of its own group, which is
//! spread over the group's lanes as pixels are loaded. Depthwise convolutions are groups of one.
//!
//! Rows, runs and panels are those of `product.rs`, with a tap for each run.

use super::product::{Left, Out, Right, panel_width, write};
use crate::dispatch::{InstructionSet, instruction_set};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Vector};

/// The widths of groups that there are kernels for.
pub(super) const GROUPS: [usize; 4] = [1, 2, 4, 8];

/// Rows of a tile, at most.
const ROWS: usize = 6;

/// A tile of the result: the products of a panel's channels at a few pixels.
struct Tile<'a> {
    left: *const f32,
    starts: &'a [usize],
    taps: &'a [usize],
    right: *const f32,
    right_step: usize,
    out: *mut f32,
    stride: usize,
    columns: usize,
}

/// A tile of the weight gradient: sums over pixels for a few taps and elements of a group.
struct Sums<'a> {
    left: *const f32,
    /// Where each pixel starts on the left, and the distance between those on the right.
    starts: &'a [usize],
    right: *const f32,
    right_step: usize,
    /// Offset of the tap, and which element of the group, of each row.
    rows: &'a [(usize, usize)],
    out: *mut f32,
    stride: usize,
    columns: usize,
    accumulate: bool,
}

type TileKernel = unsafe fn(&Tile<'_>);
type SumsKernel = unsafe fn(&Sums<'_>);

/// The compiled tiles of an instruction set, by the width of groups and the number of rows.
struct Kernels {
    tiles: [[TileKernel; ROWS]; GROUPS.len()],
    sums: [[SumsKernel; ROWS]; GROUPS.len()],
}

macro_rules! kernels {
    ($module:ident) => {
        Kernels {
            tiles: [
                kernels!($module::tile, 1),
                kernels!($module::tile, 2),
                kernels!($module::tile, 4),
                kernels!($module::tile, 8),
            ],
            sums: [
                kernels!($module::sums, 1),
                kernels!($module::sums, 2),
                kernels!($module::sums, 4),
                kernels!($module::sums, 8),
            ],
        }
    };
    ($module:ident :: $f:ident, $group:literal) => {
        [
            $module::$f::<$group, 1>,
            $module::$f::<$group, 2>,
            $module::$f::<$group, 3>,
            $module::$f::<$group, 4>,
            $module::$f::<$group, 5>,
            $module::$f::<$group, 6>,
        ]
    };
}

/// The kernels compiled for an instruction set.
macro_rules! compiled {
    ($name:ident, $vector:ty $(, $feature:literal)?) => {
        mod $name {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            #[expect(unsafe_code, reason = "see `compute_tile`")]
            pub(super) unsafe fn tile<const G: usize, const M: usize>(tile: &Tile<'_>) {
                // SAFETY: the caller's promise.
                unsafe { compute_tile::<$vector, G, M>(tile) }
            }

            $(#[target_feature(enable = $feature)])?
            #[expect(unsafe_code, reason = "see `compute_sums`")]
            pub(super) unsafe fn sums<const G: usize, const M: usize>(sums: &Sums<'_>) {
                // SAFETY: the caller's promise.
                unsafe { compute_sums::<$vector, G, M>(sums) }
            }
        }
    };
}

compiled!(portable, Portable);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, Avx2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
compiled!(avx512, Avx512, "avx512f");

static PORTABLE: Kernels = kernels!(portable);
#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = kernels!(avx2);
#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = kernels!(avx512);

fn kernels() -> &'static Kernels {
    match instruction_set() {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 | InstructionSet::Amx => &AVX512,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => &AVX2,
        _ => &PORTABLE,
    }
}

fn index(group: usize) -> usize {
    GROUPS.iter().position(|&width| width == group).expect("a width of group that there are kernels for")
}

/// `out = left · right` for the channels of a panel, in groups of `left.run`. Row `tap · run + i` on the right
/// holds what each channel multiplies element `i` of its group with.
pub(super) fn multiply(left: Left<'_>, right: Right<'_>, out: Out<'_>) {
    let (width, pixels, group) = (panel_width(), left.starts.len(), index(left.run));
    assert!((1..=width).contains(&out.columns) && !out.accumulate);
    if pixels == 0 {
        return;
    }
    assert!((pixels - 1) * out.stride + out.columns <= out.data.len());
    assert!(
        left.runs.is_empty() || (left.runs.len() * left.run - 1) * right.step + width <= right.data.len()
    );
    check_reads(&left, width);
    for first in (0..pixels).step_by(ROWS) {
        let end = pixels.min(first + ROWS);
        let tile = Tile {
            left: left.data.as_ptr(),
            starts: &left.starts[first..end],
            taps: left.runs,
            right: right.data.as_ptr(),
            right_step: right.step,
            out: out.data[first * out.stride..].as_mut_ptr(),
            stride: out.stride,
            columns: out.columns,
        };
        #[expect(unsafe_code, reason = "a kernel for a detected instruction set, on pointers")]
        // SAFETY: the assertions above bound what is read and written, and `kernels` gives those of a detected
        // instruction set.
        unsafe {
            kernels().tiles[group][end - first - 1](&tile);
        }
    }
}

/// The weight gradient of a panel's channels, in groups of `left.run`: row `tap · run + i` of the result is the
/// sum over pixels of element `i` of each channel's group at the tap, times the channel on the right. A row on the
/// right is a pixel.
pub(super) fn sum(left: Left<'_>, right: Right<'_>, out: Out<'_>) {
    let (width, pixels, group) = (panel_width(), left.starts.len(), index(left.run));
    let rows: Vec<(usize, usize)> =
        left.runs.iter().flat_map(|&tap| (0..left.run).map(move |i| (tap, i))).collect();
    assert!((1..=width).contains(&out.columns));
    assert!(rows.is_empty() || (rows.len() - 1) * out.stride + out.columns <= out.data.len());
    assert!(pixels == 0 || (pixels - 1) * right.step + width <= right.data.len());
    check_reads(&left, width);
    for (i, rows) in rows.chunks(ROWS).enumerate() {
        let sums = Sums {
            left: left.data.as_ptr(),
            starts: left.starts,
            right: right.data.as_ptr(),
            right_step: right.step,
            rows,
            out: out.data[i * ROWS * out.stride..].as_mut_ptr(),
            stride: out.stride,
            columns: out.columns,
            accumulate: out.accumulate,
        };
        #[expect(unsafe_code, reason = "a kernel for a detected instruction set, on pointers")]
        // SAFETY: as above.
        unsafe {
            kernels().sums[group][rows.len() - 1](&sums);
        }
    }
}

/// Panics unless a panel can be read from every tap of every pixel.
fn check_reads(left: &Left<'_>, width: usize) {
    let largest = |offsets: &[usize]| offsets.iter().max().copied().unwrap_or(0);
    assert!(largest(left.starts) + largest(left.runs) + width <= left.data.len());
}

/// # Safety
/// What the tile points at can be read and written, over a whole panel's width on both sides; it has `M` rows.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn compute_tile<V: Vector, const G: usize, const M: usize>(tile: &Tile<'_>) {
    let mut sums = [[V::splat(0.0); 2]; M];
    // SAFETY: the caller's promise.
    unsafe {
        let mut pixels = [tile.left; M];
        for (i, pixel) in pixels.iter_mut().enumerate() {
            *pixel = pixel.add(*tile.starts.get_unchecked(i));
        }
        let mut right = tile.right;
        for &tap in tile.taps {
            for i in 0..G {
                let choice = V::choice(G, i);
                let columns = [V::load(right), V::load(right.add(V::LANES))];
                for (sums, pixel) in sums.iter_mut().zip(&pixels) {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.mul_add(V::spread::<G>(pixel.add(tap), j, choice), columns[j]);
                    }
                }
                right = right.wrapping_add(tile.right_step);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            write(sums, tile.out.add(i * tile.stride), tile.columns, false);
        }
    }
}

/// # Safety
/// What `of` points at can be read and written, over a whole panel's width on both sides; it has `M` rows.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn compute_sums<V: Vector, const G: usize, const M: usize>(of: &Sums<'_>) {
    let mut sums = [[V::splat(0.0); 2]; M];
    let mut choices = [V::choice(G, 0); M];
    let mut taps = [0; M];
    for ((choice, tap), row) in choices.iter_mut().zip(&mut taps).zip(of.rows) {
        (*choice, *tap) = (V::choice(G, row.1), row.0);
    }
    // SAFETY: the caller's promise.
    unsafe {
        let mut right = of.right;
        for &start in of.starts {
            let pixel = of.left.add(start);
            let columns = [V::load(right), V::load(right.add(V::LANES))];
            for ((sums, &tap), &choice) in sums.iter_mut().zip(&taps).zip(&choices) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.mul_add(V::spread::<G>(pixel.add(tap), j, choice), columns[j]);
                }
            }
            right = right.wrapping_add(of.right_step);
        }
        for (i, sums) in sums.iter().enumerate() {
            write(sums, of.out.add(i * of.stride), of.columns, of.accumulate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> f32 {
        ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0
    }

    /// Every compiled tile that this machine can run, against plain sums in f64.
    #[test]
    fn tiles_equal_plain_sums() {
        let width = panel_width();
        let data: Vec<f32> = (0..2000).map(value).collect();
        let right: Vec<f32> = (0..100 * (width + 3)).map(|i| value(i + 7)).collect();
        let taps = [5, 300, 77];
        for group in GROUPS {
            for (pixels, columns) in (1..=2 * ROWS + 1).flat_map(|p| [(p, width), (p, width - 1), (p, 1)]) {
                let starts: Vec<usize> = (0..pixels).map(|i| i * 131 % 900).collect();
                let left = Left { data: &data, starts: &starts, runs: &taps, run: group, step: 1 };
                let stride = columns + 2;
                let of_group = |pixel: usize, row: usize, j: usize| {
                    f64::from(data[starts[pixel] + taps[row / group] + j / group * group + row % group])
                };
                let of_right = |row: usize, j: usize| f64::from(right[row * (width + 3) + j]);
                let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-5;

                let mut out = vec![0.5; pixels * stride];
                let columns_of = Right { data: &right, step: width + 3, next: &[] };
                let to = Out { data: &mut out, stride, columns, accumulate: false };
                multiply(left, columns_of, to);
                for (i, j) in (0..pixels).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                    let sum: f64 = (0..3 * group).map(|row| of_group(i, row, j) * of_right(row, j)).sum();
                    assert!(close(out[i * stride + j], sum), "{group} {pixels} {columns}");
                }
                assert!(out.chunks(stride).all(|row| row[columns..].iter().all(|&x| x == 0.5)));

                for accumulate in [false, true] {
                    let mut out = vec![0.5; 3 * group * stride];
                    sum(left, columns_of, Out { data: &mut out, stride, columns, accumulate });
                    let before = if accumulate { 0.5 } else { 0.0 };
                    for (row, j) in (0..3 * group).flat_map(|row| (0..columns).map(move |j| (row, j))) {
                        let sum: f64 = (0..pixels).map(|i| of_group(i, row, j) * of_right(i, j)).sum();
                        assert!(close(out[row * stride + j], before + sum), "{group} {pixels} {columns}");
                    }
                }
            }
        }
    }
}
