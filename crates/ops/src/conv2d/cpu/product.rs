//! Matrix products on one thread, from blocks of registers: the rows of the left matrix lie anywhere in
//! memory, so that pixels are multiplied where they are (Dukhan, "The indirect convolution algorithm",
//! arXiv 1907.02129).
//!
//! A block of registers holds a *tile* of the result: as many rows as fit, two registers wide.

#[cfg(target_arch = "x86_64")]
use super::finish::finished;
use super::finish::{End, write};
use crate::dispatch::PerSet;
#[cfg(target_arch = "x86_64")]
use crate::dispatch::{InstructionSet, instruction_set};
use crate::element::Element;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Vector, prefetch};
use candle_core::DType;
#[cfg(target_arch = "x86_64")]
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::mem::MaybeUninit;

/// What the elements of the two matrices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Numbers in f32.
    Single,
    /// Two numbers in bf16 each (`pairs.rs`), for processors that multiply them: a product of two words is the sum of
    /// two.
    Pair,
}

impl Word {
    /// Numbers in a word.
    pub(super) fn numbers(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Pair => 2,
        }
    }

    /// The tiles for matrices of so many columns.
    fn kernels(self, columns: usize) -> &'static Kernels {
        #[cfg(target_arch = "x86_64")]
        {
            let set = instruction_set();
            assert!(self == Self::Single || set >= InstructionSet::Avx512Bf16);
            match self {
                Self::Single if set < InstructionSet::Avx512 || columns > HALF.width => {}
                Self::Single => return &HALF,
                Self::Pair if columns > HALF.width => return &PAIRS,
                Self::Pair => return &HALF_PAIRS,
            }
        }
        let _ = columns;
        KERNELS.best()
    }
}

/// The left matrix. Element (i, k) lies at `data[starts[i] + runs[k / run] + k % run * step]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    /// What both matrices hold.
    pub(super) word: Word,
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

/// The result: a matrix with rows of `stride` elements, of which the first `columns` are computed. In bf16 it is rounded
/// before it is written, and is a product of [`Word::Pair`].
pub(super) struct Out<'a, T = f32> {
    pub(super) data: &'a mut [T],
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
    /// What is brought nearer, and how far it is to the next step's; never read. Some memory of this process in any case:
    /// for other addresses the processor searches each time.
    next: *const f32,
    next_step: usize,
    /// Elements in bf16 where they are `rounded`.
    out: *mut f32,
    #[cfg(target_arch = "x86_64")]
    rounded: bool,
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

macro_rules! tiles {
    ($tile:ident: $($height:literal)*) => { &[$($tile::<$height>),*] };
    ($tile:ident, $registers:literal: $($height:literal)*) => { &[$($tile::<$height, $registers>),*] };
}

static KERNELS: PerSet<Kernels> = PerSet {
    portable: Kernels { width: 8, tiles: tiles!(portable: 1 2 3 4) },
    #[cfg(target_arch = "aarch64")]
    neon: Kernels { width: 8, tiles: tiles!(neon: 1 2 3 4 5 6 7 8 9 10 11 12) },
    #[cfg(target_arch = "x86_64")]
    avx2: Kernels { width: 16, tiles: tiles!(avx2: 1 2 3 4 5 6) },
    #[cfg(target_arch = "x86_64")]
    avx512: Kernels { width: 32, tiles: tiles!(avx512, 2: 1 2 3 4 5 6 7 8 9 10 11 12) },
};

/// Tiles one register wide for AVX-512: of two, matrices of so few columns would leave one empty.
#[cfg(target_arch = "x86_64")]
static HALF: Kernels = Kernels { width: 16, tiles: tiles!(avx512, 1: 1 2 3 4 5 6 7 8 9 10 11 12) };

/// For [`Word::Pair`]; of the size of those for AVX-512.
#[cfg(target_arch = "x86_64")]
static PAIRS: Kernels = Kernels { width: 32, tiles: tiles!(avx512_bf16, 2: 1 2 3 4 5 6 7 8 9 10 11 12) };
#[cfg(target_arch = "x86_64")]
static HALF_PAIRS: Kernels = Kernels { width: 16, tiles: tiles!(avx512_bf16, 1: 1 2 3 4 5 6 7 8 9 10 11 12) };

/// Columns of a tile: right matrices are packed in panels of this width.
pub(super) fn panel_width() -> usize {
    KERNELS.best().width
}

/// Columns up to which a product takes no longer than one of a single column.
pub(super) fn least_width() -> usize {
    Word::Single.kernels(1).width
}

/// The first of the columns that a panel of so many has of a matrix. The last panel of several ends with the last column: it
/// repeats some of those before, so that every panel is full.
pub(super) fn first_column(panel: usize, columns: usize, width: usize) -> usize {
    (panel * width).min(columns.saturating_sub(width))
}

/// Columns of a panel of a matrix with so many.
pub(super) fn width_of(columns: usize) -> usize {
    if columns <= least_width() { least_width() } else { panel_width() }
}

/// Rows of a tile, at most.
pub(super) fn tile_height() -> usize {
    KERNELS.best().tiles.len()
}

/// Tiles of a column up to which the next panel is brought nearer.
const FEW_TILES: usize = 8;

/// `out = left · right`, or what [`End`] makes of it, for at most [`panel_width`] columns.
pub(super) fn multiply<T: Element>(left: Left<'_>, right: Right<'_>, out: Out<'_, T>) {
    let rounded = T::DTYPE == DType::BF16;
    let kernels = left.word.kernels(out.columns);
    let (rows, depth) = (left.starts.len(), left.runs.len() * left.run);
    assert!((1..=kernels.width).contains(&out.columns));
    if rows == 0 {
        return;
    }
    assert!((rows - 1) * out.stride + out.columns <= out.data.len());
    // A finish reads two registers, whatever the tile.
    out.end.check(panel_width());
    assert!(!rounded || left.word == Word::Pair && !matches!(out.end, End::Add));
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
        let (next, next_step) = if tiles <= FEW_TILES && !right.next.is_empty() {
            let step = right.step / tiles;
            (right.next.as_ptr().wrapping_add(tile * depth * step), step)
        } else {
            (right.data.as_ptr(), 0)
        };
        let tile = Tile {
            left: left.data.as_ptr(),
            starts: &left.starts[first..end],
            runs: left.runs,
            run: left.run,
            step: left.step,
            right: right.data.as_ptr(),
            right_step: right.step,
            next,
            next_step,
            out: out.data[out_at..].as_mut_ptr().cast(),
            #[cfg(target_arch = "x86_64")]
            rounded,
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
            prefetch(tile.out.wrapping_add(i * tile.stride), 1);
        }
        for &run in tile.runs {
            // Runs of one have a loop of their own, in which nothing but the columns' places is read.
            if tile.run == 1 {
                step(&mut sums, &rows, run, right);
                right = right.wrapping_add(tile.right_step);
                prefetch(next, 1);
                next = next.wrapping_add(tile.next_step);
                continue;
            }
            let mut at = run;
            for _ in 0..tile.run {
                step(&mut sums, &rows, at, right);
                at += tile.step;
                right = right.wrapping_add(tile.right_step);
                prefetch(next, 1);
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

/// Rows of a tile for AVX-512.
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 12;

/// Defines a tile for AVX-512 of `M` rows and one or two registers from the instruction that multiplies. Its loops are in assembler, since the
/// compiler, with all but a few registers taken, keeps some sums in memory: half the speed.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_tile {
    ($name:ident, $features:literal, $rounds:literal, $multiply:literal: $($row:literal $zmm0:tt $zmm1:tt,)*) => {
        #[target_feature(enable = $features)]
        #[expect(unsafe_code, reason = "see `compute`")]
        unsafe fn $name<const M: usize, const REGISTERS: usize>(tile: &Tile<'_>) {
            // The first `M` rows are set, by the assembler or where there is nothing to sum.
            let mut sums = [[const { MaybeUninit::uninit() }; 2]; ROWS];
            // SAFETY: the caller's promise.
            unsafe {
                let mut rows = [tile.left; M];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = row.add(*tile.starts.get_unchecked(i));
                    if $rounds && tile.rounded {
                        prefetch(tile.out.cast::<bf16>().wrapping_add(i * tile.stride), 1);
                        continue;
                    }
                    for register in 0..REGISTERS {
                        prefetch(tile.out.wrapping_add(i * tile.stride + register * Avx512::LANES), 1);
                    }
                }
                if tile.runs.is_empty() || tile.run == 0 {
                    sums = [[MaybeUninit::new(Avx512::splat(0.0).0); 2]; ROWS];
                } else {
                    std::arch::asm!(
                        $(
                            concat!(".if {height} > ", $row),
                            concat!("vpxord ", $zmm0, ", ", $zmm0, ", ", $zmm0),
                            concat!("vpxord ", $zmm1, ", ", $zmm1, ", ", $zmm1),
                            ".endif",
                        )*
                        "2:",
                        "mov {at}, [{runs}]",
                        "add {runs}, 8",
                        "mov {left}, {run}",
                        "sub {left}, 2",
                        "jb 4f",
                        // Two columns: where a row lies is read once for both. Reading it for each keeps processors that
                        // multiply two registers at a time from multiplying.
                        "3:",
                        "lea {second}, [{at} + {step}]",
                        "vmovups zmm30, [{right}]",
                        "vmovups zmm28, [{right} + {right_step}]",
                        ".if {registers} > 1",
                        "vmovups zmm31, [{right} + 64]",
                        "vmovups zmm29, [{right} + {right_step} + 64]",
                        ".endif",
                        $(
                            concat!(".if {height} > ", $row),
                            concat!("mov {row}, [{rows} + 8 * ", $row, "]"),
                            ".if {registers} > 1",
                            "vbroadcastss zmm27, [{row} + 4 * {at}]",
                            "vbroadcastss zmm26, [{row} + 4 * {second}]",
                            concat!($multiply, " ", $zmm0, ", zmm27, zmm30"),
                            concat!($multiply, " ", $zmm1, ", zmm27, zmm31"),
                            concat!($multiply, " ", $zmm0, ", zmm26, zmm28"),
                            concat!($multiply, " ", $zmm1, ", zmm26, zmm29"),
                            ".else",
                            concat!($multiply, " ", $zmm0, ", zmm30, dword ptr [{row} + 4 * {at}]{{1to16}}"),
                            concat!($multiply, " ", $zmm0, ", zmm28, dword ptr [{row} + 4 * {second}]{{1to16}}"),
                            ".endif",
                            ".endif",
                        )*
                        "lea {right}, [{right} + 2 * {right_step}]",
                        "lea {at}, [{second} + {step}]",
                        "prefetcht1 [{next}]",
                        "prefetcht1 [{next} + {next_step}]",
                        "lea {next}, [{next} + 2 * {next_step}]",
                        "sub {left}, 2",
                        "jae 3b",
                        // The last one of an odd run.
                        "4:",
                        "add {left}, 2",
                        "jz 5f",
                        "vmovups zmm30, [{right}]",
                        ".if {registers} > 1",
                        "vmovups zmm31, [{right} + 64]",
                        ".endif",
                        $(
                            concat!(".if {height} > ", $row),
                            concat!("mov {row}, [{rows} + 8 * ", $row, "]"),
                            ".if {registers} > 1",
                            "vbroadcastss zmm27, [{row} + 4 * {at}]",
                            concat!($multiply, " ", $zmm0, ", zmm27, zmm30"),
                            concat!($multiply, " ", $zmm1, ", zmm27, zmm31"),
                            ".else",
                            concat!($multiply, " ", $zmm0, ", zmm30, dword ptr [{row} + 4 * {at}]{{1to16}}"),
                            ".endif",
                            ".endif",
                        )*
                        "add {right}, {right_step}",
                        "prefetcht1 [{next}]",
                        "add {next}, {next_step}",
                        "5:",
                        "cmp {runs}, {runs_end}",
                        "jne 2b",
                        height = const M,
                        registers = const REGISTERS,
                        runs = inout(reg) tile.runs.as_ptr() => _,
                        runs_end = in(reg) tile.runs.as_ptr_range().end,
                        run = in(reg) tile.run,
                        step = in(reg) tile.step,
                        rows = in(reg) rows.as_ptr(),
                        right = inout(reg) tile.right => _,
                        right_step = in(reg) tile.right_step * size_of::<f32>(),
                        next = inout(reg) tile.next => _,
                        next_step = in(reg) tile.next_step * size_of::<f32>(),
                        row = out(reg) _,
                        at = out(reg) _,
                        second = out(reg) _,
                        left = out(reg) _,
                        $(out($zmm0) sums[$row][0], out($zmm1) sums[$row][1],)*
                        out("zmm26") _,
                        out("zmm27") _,
                        out("zmm28") _,
                        out("zmm29") _,
                        out("zmm30") _,
                        out("zmm31") _,
                        options(nostack, readonly),
                    );
                }
                for (i, sums) in sums.iter().take(M).enumerate() {
                    let sums = sums.map(|register: MaybeUninit<_>| Avx512(register.assume_init()));
                    if $rounds && tile.rounded {
                        let out = tile.out.cast::<bf16>().add(i * tile.stride);
                        Avx512::store_rounded(finished(sums, &tile.end, 0), out, tile.columns);
                    } else {
                        write(sums, tile.out.add(i * tile.stride), tile.columns, &tile.end, 0);
                    }
                }
            }
        }
    };
    ($name:ident, $features:literal, $rounds:literal, $multiply:literal) => {
        avx512_tile!($name, $features, $rounds, $multiply:
            0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9", 5 "zmm10" "zmm11",
            6 "zmm12" "zmm13", 7 "zmm14" "zmm15", 8 "zmm16" "zmm17", 9 "zmm18" "zmm19", 10 "zmm20" "zmm21",
            11 "zmm22" "zmm23",);
    };
}

#[cfg(target_arch = "x86_64")]
avx512_tile!(avx512, "avx512f", false, "vfmadd231ps");
#[cfg(target_arch = "x86_64")]
avx512_tile!(avx512_bf16, "avx512f,avx512bw,avx512bf16", true, "vdpbf16ps");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::elements;
    use half::bf16;

    /// The numbers of a word: a pair's, or one.
    fn numbers(word: Word, element: &f32) -> Vec<f64> {
        match word {
            Word::Single => vec![f64::from(*element)],
            Word::Pair => elements(std::slice::from_ref(element)).iter().map(|x| x.to_f64()).collect(),
        }
    }

    /// Every compiled tile that this machine can run, against sums in f64.
    #[test]
    fn tiles_equal_plain_sums() {
        tiles_of_words_equal_plain_sums(Word::Single);
        #[cfg(target_arch = "x86_64")]
        if instruction_set() >= InstructionSet::Avx512Bf16 {
            tiles_of_words_equal_plain_sums(Word::Pair);
        }
    }

    /// Products that are rounded as they are written, against those that are not.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn rounded_tiles_are_the_others_rounded() {
        if instruction_set() < InstructionSet::Avx512Bf16 {
            eprintln!("no products of bf16 here: nothing was tested");
            return;
        }
        let (width, depth) = (panel_width(), 5);
        let word = |i: usize| crate::pairs::word(bf16::from_f32(i as f32 - 40.0), bf16::from_f32(0.3));
        let data: Vec<f32> = (0..400).map(|i| word(i * 37 % 101)).collect();
        let right: Vec<f32> = (0..depth * width).map(|i| word(i * 31 % 89)).collect();
        let (scale, shift) = (vec![0.37; width], vec![-1.5; width]);
        let finish = End::Finish { scale: &scale, shift: &shift, range: (0.0, 900.0) };
        for rows in [1, 11, 12, 29] {
            for (columns, end) in [(width, End::Set), (width - 5, finish), (width / 2, finish), (3, End::Set)]
            {
                let starts: Vec<usize> = (0..rows).map(|i| i * 13).collect();
                let left =
                    Left { word: Word::Pair, data: &data, starts: &starts, runs: &[0], run: depth, step: 1 };
                let right = Right { data: &right, step: width, next: &[] };
                let stride = columns + 1;
                let (mut exact, mut rounded) =
                    (vec![7.0; rows * stride], vec![bf16::from_f32(7.0); rows * stride]);
                multiply(left, right, Out { data: &mut exact, stride, columns, end });
                multiply(left, right, Out { data: &mut rounded, stride, columns, end });
                let expected: Vec<bf16> = exact.iter().map(|&x| bf16::from_f32(x)).collect();
                assert_eq!(rounded, expected, "{rows} rows of {columns}");
            }
        }
    }

    fn tiles_of_words_equal_plain_sums(word: Word) {
        let width = panel_width();
        let number = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        let value = |i: usize| match word {
            Word::Single => number(i),
            Word::Pair => crate::pairs::word(bf16::from_f32(number(i)), bf16::from_f32(number(i + 50))),
        };
        let data: Vec<f32> = (0..5000).map(value).collect();
        let right: Vec<f32> = (0..40 * (width + 3)).map(|i| value(i + 7)).collect();
        for rows in 1..=2 * word.kernels(width).tiles.len() + 1 {
            for (columns, accumulate, step) in [
                (width, false, 1),
                (width, true, 3),
                (width - 1, true, 1),
                (width / 2, true, 2),
                (1, false, 2),
            ] {
                let starts: Vec<usize> = (0..rows).map(|i| (i * 131) % 900).collect();
                let left = Left { word, data: &data, starts: &starts, runs: &[5, 400, 77], run: 13, step };
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
                            let a = &data[starts[i] + [5, 400, 77][k / 13] + k % 13 * step];
                            let (a, b) = (numbers(word, a), numbers(word, &right[k * (width + 3) + j]));
                            a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()
                        };
                        let before = if accumulate || j >= columns { 0.5 } else { 0.0 };
                        let sum = if j < columns { (0..39).map(product).sum::<f64>() } else { 0.0 };
                        assert!(
                            (f64::from(found) - before - sum).abs() < 1e-5,
                            "{word:?} {rows} {columns} ({i}, {j}): {found}, not {}",
                            before + sum
                        );
                    }
                }
            }
        }
    }
}
