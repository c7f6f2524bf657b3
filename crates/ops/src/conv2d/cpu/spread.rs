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

/// Numbers of neighbouring taps that there are kernels for: those that find what they need in registers, where it was
/// loaded and spread for the tap before.
pub(super) const ALONG: [usize; 4] = [1, 2, 3, 5];

/// The most of them.
const MOST_ALONG: usize = 5;

/// Neighbouring taps whose weight gradients are summed together, each finding in registers what the tap after it saw a
/// pixel before: those of a row of most windows.
const SUMMED_ALONG: usize = 3;

/// Pixels of the result that see the same taps.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    pub(super) data: &'a [f32],
    /// Where each starts; as far apart as neighbouring taps are, where there are several `along`.
    pub(super) starts: &'a [usize],
    /// The first of so many neighbours.
    pub(super) taps: &'a [Tap],
    /// How many neighbours, each a row of the weights further than the one before.
    pub(super) along: usize,
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
    /// How far it is from one of neighbouring taps to the next.
    step: usize,
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
    /// Offset of the tap, and which element of the group, of each row; of neighbouring taps the first elements of the
    /// first.
    rows: &'a [(usize, usize)],
    /// Of neighbouring taps: pixels that are neighbours, and how far it is from one to the next.
    line: usize,
    step: usize,
    out: *mut f32,
    stride: usize,
    columns: usize,
    end: End<'a>,
}

type TileKernel = unsafe fn(&Tile<'_>);
type SumsKernel = unsafe fn(&Sums<'_>);

/// The compiled tiles of an instruction set, by the width of groups, the number of neighbouring taps and that of rows.
struct Kernels {
    tiles: [[[TileKernel; ROWS]; ALONG.len()]; GROUPS.len()],
    sums: [[SumsKernel; ROWS]; GROUPS.len()],
    /// Of neighbouring taps, and the elements that are taken together; not for groups of one, which are not spread.
    sums_along: [SumsKernel; GROUPS.len() - 1],
    elements: usize,
}

macro_rules! kernels {
    ($module:ident) => {
        Kernels {
            tiles: kernels!($module; 1, 2, 4, 8),
            sums: [
                kernels!($module::sums, 1),
                kernels!($module::sums, 2),
                kernels!($module::sums, 4),
                kernels!($module::sums, 8),
            ],
            sums_along: [
                $module::sums_along::<2>,
                $module::sums_along::<4>,
                $module::sums_along::<8>,
            ],
            elements: $module::ELEMENTS,
        }
    };
    ($module:ident; $($group:literal),*) => {
        [$([
            kernels!($module::tile, $group, 1),
            kernels!($module::tile, $group, 2),
            kernels!($module::tile, $group, 3),
            kernels!($module::tile, $group, 5),
        ]),*]
    };
    ($module:ident :: $f:ident $(, $of:literal)*) => {
        [
            $module::$f::<$($of,)* 1>,
            $module::$f::<$($of,)* 2>,
            $module::$f::<$($of,)* 3>,
            $module::$f::<$($of,)* 4>,
            $module::$f::<$($of,)* 5>,
            $module::$f::<$($of,)* 6>,
        ]
    };
}

/// The kernels compiled for an instruction set.
macro_rules! compiled {
    ($name:ident, $vector:ty, $elements:literal $(, $feature:literal)?) => {
        mod $name {
            use super::*;

            /// As many as there are registers for.
            pub(super) const ELEMENTS: usize = $elements;

            $(#[target_feature(enable = $feature)])?
            #[expect(unsafe_code, reason = "see `compute_tile`")]
            pub(super) unsafe fn tile<const G: usize, const T: usize, const M: usize>(tile: &Tile<'_>) {
                // SAFETY: the caller's promise.
                unsafe { compute_tile::<$vector, G, T, M>(tile) }
            }

            $(#[target_feature(enable = $feature)])?
            #[expect(unsafe_code, reason = "see `compute_sums`")]
            pub(super) unsafe fn sums<const G: usize, const M: usize>(sums: &Sums<'_>) {
                // SAFETY: the caller's promise.
                unsafe { compute_sums::<$vector, G, M>(sums) }
            }

            $(#[target_feature(enable = $feature)])?
            #[expect(unsafe_code, reason = "see `compute_sums_along`")]
            pub(super) unsafe fn sums_along<const G: usize>(sums: &Sums<'_>) {
                // SAFETY: the caller's promise.
                unsafe { compute_sums_along::<$vector, G, ELEMENTS>(sums) }
            }
        }
    };
}

compiled!(portable, Portable, 1);
#[cfg(target_arch = "aarch64")]
compiled!(neon, Neon, 2);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, Avx2, 1, "avx2,fma");
#[cfg(target_arch = "x86_64")]
compiled!(avx512, Avx512, 2, "avx512f");

static KERNELS: PerSet<Kernels> = PerSet {
    portable: kernels!(portable),
    #[cfg(target_arch = "aarch64")]
    neon: kernels!(neon),
    #[cfg(target_arch = "x86_64")]
    avx2: kernels!(avx2),
    #[cfg(target_arch = "x86_64")]
    avx512: kernels!(avx512),
};

fn index(of: usize, kernels: &[usize]) -> usize {
    kernels.iter().position(|&kernel| kernel == of).expect("a number that there are kernels for")
}

/// Sums over taps for some pixels, of `out.columns` channels in those of the panels; fewer than a panel's width are
/// read over all of it.
pub(super) fn multiply(pixels: Pixels<'_>, weights: Weights<'_>, out: Out<'_>) {
    let (width, count, along) = (panel_width(), pixels.starts.len(), pixels.along);
    let panels = weights.panels;
    if count == 0 || panels.is_empty() {
        return;
    }
    assert!((count - 1) * out.stride + out.columns <= out.data.len());
    out.end.check(out.columns.max(width));
    let panel_len = weights.rows * width;
    assert!(panels.end <= out.columns.div_ceil(width) && panels.end * panel_len <= weights.data.len());
    let step = if count > 1 && along > 1 { pixels.starts[1] - pixels.starts[0] } else { 0 };
    if along > 1 {
        assert!(count > 1 && pixels.starts.windows(2).all(|pair| pair[1] == pair[0] + step));
    }
    if !pixels.taps.is_empty() {
        let last = pixels.taps.iter().map(|tap| tap.offset).max().unwrap_or(0);
        let start = pixels.starts.iter().max().copied().unwrap_or(0);
        assert!(start + last + (along - 1) * step + out.columns.max(width) <= pixels.data.len());
        assert!(pixels.taps.iter().all(|tap| (tap.row + along) * weights.group <= weights.rows));
    }
    let kernels = &KERNELS.best().tiles[index(weights.group, &GROUPS)][index(along, &ALONG)];
    let steps = count.div_ceil(ROWS) * panels.len();
    let lines = (pixels.next.len() / LINE).div_ceil(steps);
    for (tile, first) in (0..count).step_by(ROWS).enumerate() {
        let end = count.min(first + ROWS);
        let tile = Tile {
            left: pixels.data.as_ptr(),
            starts: &pixels.starts[first..end],
            taps: pixels.taps,
            step,
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
/// right is a pixel. Each `line` pixels are neighbours.
pub(super) fn sum(left: Left<'_>, right: Right<'_>, line: usize, out: Out<'_>) {
    let (width, pixels, group) = (panel_width(), left.starts.len(), left.run);
    let row_count = left.runs.len() * group;
    assert!((1..=width).contains(&out.columns));
    assert!(row_count == 0 || (row_count - 1) * out.stride + out.columns <= out.data.len());
    assert!(!matches!(out.end, End::Finish { .. }));
    assert!(pixels == 0 || (pixels - 1) * right.step + width <= right.data.len());
    check_reads(&left, width);
    let kernels = KERNELS.best();
    let of_group = index(group, &GROUPS);
    let along = (group > 1).then(|| neighbours(&left, line)).flatten();
    let mut sums = |rows: &[_], first_row: usize, kernel: SumsKernel| {
        let sums = Sums {
            left: left.data.as_ptr(),
            starts: left.starts,
            right: right.data.as_ptr(),
            right_step: right.step,
            rows,
            line,
            step: along.unwrap_or(0),
            out: out.data[first_row * out.stride..].as_mut_ptr(),
            stride: out.stride,
            columns: out.columns,
            end: out.end,
        };
        #[expect(unsafe_code, reason = "a kernel for a detected instruction set, on pointers")]
        // SAFETY: as above.
        unsafe {
            kernel(&sums);
        }
    };
    if along.is_some() {
        for (i, &tap) in left.runs.iter().enumerate().step_by(SUMMED_ALONG) {
            for element in (0..group).step_by(kernels.elements) {
                sums(&[(tap, element)], i * group + element, kernels.sums_along[of_group - 1]);
            }
        }
        return;
    }
    let rows: Vec<(usize, usize)> =
        left.runs.iter().flat_map(|&tap| (0..group).map(move |i| (tap, i))).collect();
    for (i, rows) in rows.chunks(ROWS).enumerate() {
        sums(rows, i * ROWS, kernels.sums[of_group][rows.len() - 1]);
    }
}

/// How far apart pixels of a line are, if neighbouring taps are as far apart, a line has several pixels, and all taps
/// have neighbours.
fn neighbours(left: &Left<'_>, line: usize) -> Option<usize> {
    let (starts, taps) = (left.starts, left.runs);
    if line < 2 || !starts.len().is_multiple_of(line) || !taps.len().is_multiple_of(SUMMED_ALONG) {
        return None;
    }
    let step = starts.get(1)?.checked_sub(starts[0])?;
    let apart = |of: &[usize]| of.windows(2).all(|pair| pair[1] == pair[0] + step);
    let all = starts.chunks(line).all(apart) && taps.chunks(SUMMED_ALONG).all(apart);
    all.then_some(step)
}

/// Panics unless a panel can be read from every tap of every pixel.
fn check_reads(left: &Left<'_>, width: usize) {
    let largest = |offsets: &[usize]| offsets.iter().max().copied().unwrap_or(0);
    assert!(largest(left.starts) + largest(left.runs) + width <= left.data.len());
}

/// # Safety
/// What the tile points at can be read and written, over a whole panel's width at least; it has `M` rows, and `T` taps
/// from each of its taps on, for which rows are a step apart if they are several.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn compute_tile<V: Vector, const G: usize, const T: usize, const M: usize>(tile: &Tile<'_>) {
    let width = 2 * V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        // Those of the rows, and those that the last row sees beyond; of an array as long as any tile's.
        let mut pixels = [tile.left; ROWS + MOST_ALONG - 1];
        for (i, pixel) in pixels.iter_mut().enumerate().take(M + T - 1) {
            let beyond = (i + 1).saturating_sub(M);
            *pixel = pixel.wrapping_add(*tile.starts.get_unchecked(i - beyond) + beyond * tile.step);
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
                let rows = weights.add(tap.row * G * width);
                for i in 0..G {
                    let choice = V::choice(G, i);
                    for j in 0..2 {
                        let mut columns = [V::splat(0.0); T];
                        for (t, column) in columns.iter_mut().enumerate() {
                            *column = V::load(rows.add((t * G + i) * width + j * V::LANES));
                        }
                        let mut xs = [V::splat(0.0); ROWS + MOST_ALONG - 1];
                        for (x, pixel) in xs.iter_mut().zip(&pixels).take(M + T - 1) {
                            *x = V::spread::<G>(pixel.add(tap.offset + first), j, choice);
                        }
                        for (m, sums) in sums.iter_mut().enumerate() {
                            for (t, &column) in columns.iter().enumerate() {
                                sums[j] = sums[j].mul_add(xs[m + t], column);
                            }
                        }
                    }
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

/// Sums of neighbouring taps, for `E` elements of a group.
///
/// # Safety
/// That of [`compute_sums`], for all elements that are summed; the starts are whole lines of pixels, which are `step`
/// apart, as are the taps.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn compute_sums_along<V: Vector, const G: usize, const E: usize>(of: &Sums<'_>) {
    const T: usize = SUMMED_ALONG;
    let mut sums = [[[V::splat(0.0); 2]; E]; T];
    let &[(tap, element)] = of.rows else { return };
    let choices: [_; E] = std::array::from_fn(|e| V::choice(G, element + e));
    // SAFETY: the caller's promise.
    unsafe {
        let spread = |pixel: *const f32| -> [[V; 2]; E] {
            std::array::from_fn(|e| std::array::from_fn(|j| V::spread::<G>(pixel, j, choices[e])))
        };
        let mut right = of.right;
        for starts in of.starts.chunks_exact(of.line) {
            // What a pixel sees at tap `t` is at `(pixel + t) % T`, and the next pixel sees it at the tap before.
            let mut pixel = of.left.add(starts[0] + tap);
            let mut seen = [[[V::splat(0.0); 2]; E]; T];
            for seen in seen.iter_mut().take(T - 1) {
                *seen = spread(pixel);
                pixel = pixel.wrapping_add(of.step);
            }
            let mut left = of.line;
            while left > 0 {
                for i in 0..T {
                    if i == left {
                        break;
                    }
                    seen[(i + T - 1) % T] = spread(pixel);
                    pixel = pixel.wrapping_add(of.step);
                    let columns = [V::load(right), V::load(right.add(V::LANES))];
                    right = right.wrapping_add(of.right_step);
                    for (t, sums) in sums.iter_mut().enumerate() {
                        for (sums, seen) in sums.iter_mut().zip(&seen[(i + t) % T]) {
                            for ((sum, &x), &column) in sums.iter_mut().zip(seen).zip(&columns) {
                                *sum = sum.mul_add(x, column);
                            }
                        }
                    }
                }
                left = left.saturating_sub(T);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (e, sums) in sums.iter().enumerate() {
                write(*sums, of.out.add((t * G + e) * of.stride), of.columns, &of.end, 0);
            }
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
            let cases = (1..=2 * ROWS + 1).flat_map(|n| channels.map(|c| (n, c)));
            for ((count, channels), along) in cases.flat_map(|case| ALONG.map(|along| (case, along))) {
                // Neighbouring taps are as far apart as neighbouring pixels, of which there are several.
                if channels == 0 || along > 1 && count == 1 {
                    continue;
                }
                let step = 131;
                let starts: Vec<usize> =
                    (0..count).map(|i| if along > 1 { i * step } else { i * step % 900 }).collect();
                let rows = (3 + MOST_ALONG) * group;
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
                    let pixels = Pixels { data: &data, starts: &starts, taps: &taps, along, next: &data };
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
                        let neighbours = |tap: &Tap| {
                            let first = *tap;
                            (0..along)
                                .map(move |t| Tap { offset: first.offset + t * step, row: first.row + t })
                        };
                        let sum: f64 = taps.iter().flat_map(neighbours).map(|tap| of_tap(&tap)).sum();
                        let expected = match end {
                            End::Set => sum,
                            End::Add => sum + 0.5,
                            End::Finish { .. } => {
                                let y = sum * f64::from(scale[j]) + f64::from(shift[j]);
                                y.clamp(-0.5, 1.5)
                            }
                        };
                        let found = f64::from(out[i * stride + j]);
                        assert!(
                            (found - expected).abs() < 1e-4,
                            "{group} {count} {channels} {along} ({i}, {j})"
                        );
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
        let apart: Vec<usize> = (1..=2 * ROWS + 1).collect();
        // Pixels anywhere, and lines of neighbours that see neighbouring taps.
        let strewn = apart.iter().map(|&pixels| (pixels, 1, 131, [5, 300, 77, 910, 33, 34]));
        let lines =
            [2, 3, 4, 5, 7].into_iter().flat_map(|line| [line, 3 * line].map(|pixels| (pixels, line)));
        let in_lines = lines.map(|(pixels, line)| (pixels, line, 40, [5, 45, 85, 300, 340, 380]));
        let cases: Vec<_> = strewn.chain(in_lines).collect();
        for group in GROUPS {
            let of_width = |case| [(case, width), (case, width - 1), (case, 1)];
            for ((pixels, line, step, taps), columns) in cases.iter().copied().flat_map(of_width) {
                let start =
                    |i: usize| if line > 1 { i / line * 500 + i % line * step } else { i * step % 900 };
                let starts: Vec<usize> = (0..pixels).map(start).collect();
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
                    let mut out = vec![0.5; taps.len() * group * stride];
                    let columns_of = Right { data: &right, step: width + 3, next: &[] };
                    let end = End::add_if(accumulate);
                    sum(left, columns_of, line, Out { data: &mut out, stride, columns, end });
                    let before = if accumulate { 0.5 } else { 0.0 };
                    let rows = taps.len() * group;
                    for (row, j) in (0..rows).flat_map(|row| (0..columns).map(move |j| (row, j))) {
                        let of_right = |i: usize| f64::from(right[i * (width + 3) + j]);
                        let sum: f64 = (0..pixels).map(|i| of_group(i, row, j) * of_right(i)).sum();
                        let found = f64::from(out[row * stride + j]);
                        assert!((found - before - sum).abs() < 1e-5, "{group} {pixels} {line} {columns}");
                    }
                }
            }
        }
    }
}
