//! Matrix products of narrow groups on one thread. A group of a few channels would leave most of a register
//! empty, so neighbouring groups share one: each lane is multiplied with an element of its own group, which is
//! spread over the group's lanes as pixels are loaded. Depthwise convolutions are groups of one.
//!
//! Panels are those of `product.rs`.

use super::finish::{End, write};
use super::product::{Left, Out, Right, first_column, panel_width};
use crate::dispatch::PerSet;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Vector, prefetch};
use std::ops::Range;

/// The widths of groups that there are kernels for.
pub(super) const GROUPS: [usize; 4] = [1, 2, 4, 8];

/// Rows of a tile, at most.
const ROWS: usize = 6;

/// Floats of a cache line.
const LINE: usize = 16;

/// What a pixel of the result sees of its source.
#[derive(Clone, Copy)]
pub(super) struct Tap {
    /// Distance from the pixel's start to the tap's first channel.
    pub(super) offset: usize,
    /// Which of the weights' taps it is.
    pub(super) row: usize,
}

/// Pixels of the result that see the same taps.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    pub(super) data: &'a [f32],
    /// Where each starts.
    pub(super) starts: &'a [usize],
    pub(super) taps: &'a [Tap],
    /// What is read next, or nothing: brought nearer meanwhile.
    pub(super) next: &'a [f32],
}

/// Weights as [panel][tap × element of the group][panel width].
#[derive(Clone)]
pub(super) struct Weights<'a> {
    pub(super) data: &'a [f32],
    /// Of a panel.
    pub(super) rows: usize,
    /// Channels of a group.
    pub(super) group: usize,
    /// The panels that are multiplied with.
    pub(super) panels: Range<usize>,
}

/// A few pixels of the result, in the channels of some panels.
struct Tile<'a> {
    left: *const f32,
    starts: &'a [usize],
    taps: &'a [Tap],
    /// Those of the first panel.
    weights: *const f32,
    panel_len: usize,
    panels: Range<usize>,
    /// What is brought nearer, and how many lines with each panel; never read.
    next: *const f32,
    lines: usize,
    out: *mut f32,
    stride: usize,
    channels: usize,
    end: End<'a>,
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
    end: End<'a>,
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
#[cfg(target_arch = "aarch64")]
compiled!(neon, Neon);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, Avx2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
compiled!(avx512, Avx512, "avx512f");

static KERNELS: PerSet<Kernels> = PerSet {
    portable: kernels!(portable),
    #[cfg(target_arch = "aarch64")]
    neon: kernels!(neon),
    #[cfg(target_arch = "x86_64")]
    avx2: kernels!(avx2),
    #[cfg(target_arch = "x86_64")]
    avx512: kernels!(avx512),
};

fn index(group: usize) -> usize {
    GROUPS.iter().position(|&width| width == group).expect("a width of group that there are kernels for")
}

/// Sums over taps for some pixels, of `out.columns` channels in those of the panels; fewer than a panel's width are
/// read over all of it.
pub(super) fn multiply(pixels: Pixels<'_>, weights: Weights<'_>, out: Out<'_>) {
    let (width, count, group) = (panel_width(), pixels.starts.len(), index(weights.group));
    let panels = weights.panels;
    if count == 0 || panels.is_empty() {
        return;
    }
    assert!((count - 1) * out.stride + out.columns <= out.data.len());
    out.end.check(out.columns.max(width));
    let panel_len = weights.rows * width;
    assert!(panels.end <= out.columns.div_ceil(width) && panels.end * panel_len <= weights.data.len());
    if !pixels.taps.is_empty() {
        let last = pixels.taps.iter().map(|tap| tap.offset).max().unwrap_or(0);
        let start = pixels.starts.iter().max().copied().unwrap_or(0);
        assert!(start + last + out.columns.max(width) <= pixels.data.len());
        assert!(pixels.taps.iter().all(|tap| (tap.row + 1) * weights.group <= weights.rows));
    }
    let kernels = &KERNELS.best().tiles[group];
    let steps = count.div_ceil(ROWS) * panels.len();
    let lines = (pixels.next.len() / LINE).div_ceil(steps);
    for (tile, first) in (0..count).step_by(ROWS).enumerate() {
        let end = count.min(first + ROWS);
        let tile = Tile {
            left: pixels.data.as_ptr(),
            starts: &pixels.starts[first..end],
            taps: pixels.taps,
            weights: weights.data[panels.start * panel_len..].as_ptr(),
            panel_len,
            panels: panels.clone(),
            next: pixels.next.as_ptr().wrapping_add(tile * panels.len() * lines * LINE),
            lines,
            out: out.data[first * out.stride..].as_mut_ptr(),
            stride: out.stride,
            channels: out.columns,
            end: out.end,
        };
        #[expect(unsafe_code, reason = "a kernel for a detected instruction set, on pointers")]
        // SAFETY: the assertions above bound what is read and written, and `kernels` gives those of a detected
        // instruction set.
        unsafe {
            kernels[end - first - 1](&tile);
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
    assert!(!matches!(out.end, End::Finish { .. }));
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
            end: out.end,
        };
        #[expect(unsafe_code, reason = "a kernel for a detected instruction set, on pointers")]
        // SAFETY: as above.
        unsafe {
            KERNELS.best().sums[group][rows.len() - 1](&sums);
        }
    }
}

/// Panics unless a panel can be read from every tap of every pixel.
fn check_reads(left: &Left<'_>, width: usize) {
    let largest = |offsets: &[usize]| offsets.iter().max().copied().unwrap_or(0);
    assert!(largest(left.starts) + largest(left.runs) + width <= left.data.len());
}

/// # Safety
/// What the tile points at can be read and written, over a whole panel's width at least; it has `M` rows.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn compute_tile<V: Vector, const G: usize, const M: usize>(tile: &Tile<'_>) {
    let width = 2 * V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut pixels = [tile.left; M];
        for (i, pixel) in pixels.iter_mut().enumerate() {
            *pixel = pixel.wrapping_add(*tile.starts.get_unchecked(i));
        }
        let columns = width.min(tile.channels);
        let (mut weights, mut next) = (tile.weights, tile.next);
        for panel in tile.panels.clone() {
            let first = first_column(panel, tile.channels, width);
            for _ in 0..tile.lines {
                prefetch(next, 1);
                next = next.wrapping_add(LINE);
            }
            let mut sums = [[V::splat(0.0); 2]; M];
            for tap in tile.taps {
                let mut row = weights.add(tap.row * G * width);
                for i in 0..G {
                    let choice = V::choice(G, i);
                    let columns = [V::load(row), V::load(row.add(V::LANES))];
                    for (sums, pixel) in sums.iter_mut().zip(&pixels) {
                        for (j, sum) in sums.iter_mut().enumerate() {
                            let x = V::spread::<G>(pixel.add(tap.offset + first), j, choice);
                            *sum = sum.mul_add(x, columns[j]);
                        }
                    }
                    row = row.add(width);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                write(*sums, tile.out.add(i * tile.stride + first), columns, &tile.end, first);
            }
            weights = weights.wrapping_add(tile.panel_len);
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
            write(*sums, of.out.add(i * of.stride), of.columns, &of.end, 0);
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
        let data: Vec<f32> = (0..4000).map(value).collect();
        let taps = [(5, 1), (300, 0), (77, 3)].map(|(offset, row)| Tap { offset, row });
        for group in GROUPS {
            let channels = [group, width - group, width, width + group, 3 * width, 3 * width + group];
            for (count, channels) in (1..=2 * ROWS + 1).flat_map(|n| channels.map(|c| (n, c))) {
                if channels == 0 {
                    continue;
                }
                let starts: Vec<usize> = (0..count).map(|i| i * 131 % 900).collect();
                let rows = 4 * group;
                let packed: Vec<f32> =
                    (0..channels.div_ceil(width) * rows * width).map(|i| value(i + 7)).collect();
                // The weight of a channel, from any panel that has it: that of the last one counts.
                let weight = |row: usize, channel: usize| {
                    let panels = (0..channels.div_ceil(width)).rev();
                    let first = |panel: usize| first_column(panel, channels, width);
                    let panel = panels.into_iter().find(|&panel| first(panel) <= channel).unwrap_or(0);
                    f64::from(packed[(panel * rows + row) * width + channel - first(panel)])
                };
                let x = |pixel: usize, tap: Tap, channel: usize| {
                    f64::from(data[starts[pixel] + tap.offset + channel])
                };
                let stride = channels + 2;
                let (scale, shift): (Vec<f32>, Vec<f32>) =
                    (0..channels + width).map(|i| (value(i) + 2.0, value(i + 3))).unzip();
                let finish = End::Finish { scale: &scale, shift: &shift, range: (-0.5, 1.5) };
                for end in [End::Set, End::Add, finish] {
                    let mut out = vec![0.5; count * stride];
                    let pixels = Pixels { data: &data, starts: &starts, taps: &taps, next: &data };
                    let panels = 0..channels.div_ceil(width);
                    let weights = Weights { data: &packed, rows, group, panels };
                    // Panels overlap, which adding does not allow.
                    if matches!(end, End::Add) && channels % width > 0 && channels > width {
                        continue;
                    }
                    multiply(pixels, weights, Out { data: &mut out, stride, columns: channels, end });
                    for (i, j) in (0..count).flat_map(|i| (0..channels).map(move |j| (i, j))) {
                        let of_tap = |tap: &Tap| {
                            let of_element =
                                |k| x(i, *tap, j / group * group + k) * weight(tap.row * group + k, j);
                            (0..group).map(of_element).sum::<f64>()
                        };
                        let sum: f64 = taps.iter().map(of_tap).sum();
                        let expected = match end {
                            End::Set => sum,
                            End::Add => sum + 0.5,
                            End::Finish { .. } => {
                                let y = sum * f64::from(scale[j]) + f64::from(shift[j]);
                                y.clamp(-0.5, 1.5)
                            }
                        };
                        let found = f64::from(out[i * stride + j]);
                        assert!((found - expected).abs() < 1e-4, "{group} {count} {channels} ({i}, {j})");
                    }
                    assert!(out.chunks(stride).all(|row| row[channels..].iter().all(|&x| x == 0.5)));
                }
            }
        }
    }

    /// Sums of the weight gradient, against plain ones in f64.
    #[test]
    fn sums_equal_plain_sums() {
        let width = panel_width();
        let data: Vec<f32> = (0..2000).map(value).collect();
        let right: Vec<f32> = (0..100 * (width + 3)).map(|i| value(i + 7)).collect();
        let taps = [5, 300, 77];
        for group in GROUPS {
            for (pixels, columns) in (1..=2 * ROWS + 1).flat_map(|p| [(p, width), (p, width - 1), (p, 1)]) {
                let starts: Vec<usize> = (0..pixels).map(|i| i * 131 % 900).collect();
                let left = Left {
                    word: crate::conv2d::cpu::product::Word::Single,
                    data: &data,
                    starts: &starts,
                    runs: &taps,
                    run: group,
                    step: 1,
                };
                let stride = columns + 2;
                let of_group = |pixel: usize, row: usize, j: usize| {
                    f64::from(data[starts[pixel] + taps[row / group] + j / group * group + row % group])
                };
                for accumulate in [false, true] {
                    let mut out = vec![0.5; 3 * group * stride];
                    let columns_of = Right { data: &right, step: width + 3, next: &[] };
                    let end = End::add_if(accumulate);
                    sum(left, columns_of, Out { data: &mut out, stride, columns, end });
                    let before = if accumulate { 0.5 } else { 0.0 };
                    for (row, j) in (0..3 * group).flat_map(|row| (0..columns).map(move |j| (row, j))) {
                        let of_right = |i: usize| f64::from(right[i * (width + 3) + j]);
                        let sum: f64 = (0..pixels).map(|i| of_group(i, row, j) * of_right(i)).sum();
                        let found = f64::from(out[row * stride + j]);
                        assert!((found - before - sum).abs() < 1e-5, "{group} {pixels} {columns}");
                    }
                }
            }
        }
    }
}
