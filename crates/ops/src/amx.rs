//! Products of bf16 matrices on AMX, the tile registers of Intel's server processors from 2023 on: 16 rows of 64
//! bytes each, and an instruction that adds the product of two to a third, in f32.

use half::bf16;
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// Rows and columns of a product.
pub(crate) const SIDE: usize = 32;

/// Elements of the inner dimension that one step takes.
pub(crate) const STEP: usize = 32;

/// Words of a packed right matrix for each step.
pub(crate) const STEP_WORDS: usize = STEP / 2 * SIDE;

/// Whether the processor has AMX with bf16 and the system lets this process use it. Asks for the permission,
/// which Linux gives a whole process.
pub(crate) fn detect() -> bool {
    const BF16_AND_TILE: u32 = (1 << 22) | (1 << 24);
    __cpuid_count(7, 0).edx & BF16_AND_TILE == BF16_AND_TILE && ask_for_permission()
}

#[cfg(target_os = "linux")]
fn ask_for_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: takes two numbers and touches no memory of this process.
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_permission() -> bool {
    false
}

/// The tile registers of this thread, configured while this lives.
pub(crate) struct Tiles(());

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// # Panics
    /// Where [`crate::dispatch::instruction_set`] is not AMX.
    pub(crate) fn configure() -> Self {
        use crate::dispatch::{InstructionSet, instruction_set};
        assert_eq!(instruction_set(), InstructionSet::Amx);
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..8].fill(16);
        #[expect(unsafe_code, reason = "processor instructions")]
        // SAFETY: AMX was detected, and the configuration is one that it takes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
        Self(())
    }

    /// `out = left · right`, 32 × 32. Rows of `left` start `pitch` elements apart; `right` is packed in words of
    /// two elements: [step][half of the columns][pair of rows][column]. Both have whole steps.
    pub(crate) fn product(&self, left: &[bf16], pitch: usize, right: &[f32], out: &mut [f32; SIDE * SIDE]) {
        let steps = right.len() / STEP_WORDS;
        if steps == 0 {
            out.fill(0.0);
            return;
        }
        assert!(pitch >= steps * STEP && left.len() >= (SIDE - 1) * pitch + steps * STEP);
        #[expect(unsafe_code, reason = "processor instructions")]
        // SAFETY: the tiles are configured while `self` lives. The assertion bounds what is read on the left; on
        // the right it is `steps` times the words of a step; `out` has 32 rows of 128 bytes.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{upper} + {pitch}]",
                "tileloadd tmm6, [{right} + {right_pitch}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {right_pitch} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {pitch}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {upper}, 64",
                "add {lower}, 64",
                "add {right}, 2048",
                "sub {steps}, 1",
                "jnz 2b",
                "tilestored [{out} + {out_pitch}], tmm0",
                "tilestored [{out} + {out_pitch} + 64], tmm1",
                "tilestored [{out} + {out_pitch} + 2048], tmm2",
                "tilestored [{out} + {out_pitch} + 2112], tmm3",
                upper = inout(reg) left.as_ptr() => _,
                lower = inout(reg) left.as_ptr().add(SIDE / 2 * pitch) => _,
                pitch = in(reg) pitch * size_of::<bf16>(),
                right = inout(reg) right.as_ptr() => _,
                right_pitch = in(reg) 64usize,
                steps = inout(reg) steps => _,
                out = in(reg) out.as_mut_ptr(),
                out_pitch = in(reg) 128usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a processor instruction")]
        // SAFETY: AMX is there, or there would be no value to drop.
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}

/// Turns a matrix of words round: `xs` has rows of `columns` words, `out` columns of them. Both numbers are
/// multiples of eight.
///
/// # Panics
/// Where they are not, or [`crate::dispatch::instruction_set`] is less than AVX2.
pub(crate) fn transpose(xs: &[f32], columns: usize, out: &mut [f32]) {
    use crate::dispatch::{InstructionSet, instruction_set};
    let rows = xs.len() / columns;
    assert!(instruction_set() >= InstructionSet::Avx2);
    assert!(rows.is_multiple_of(8) && columns.is_multiple_of(8));
    assert!(xs.len() == rows * columns && out.len() == xs.len());
    for row in (0..rows).step_by(8) {
        for column in (0..columns).step_by(8) {
            let (from, to) = (row * columns + column, column * rows + row);
            #[expect(unsafe_code, reason = "processor instructions")]
            // SAFETY: AVX2 is there. A square of eight is read from within `xs` and written within `out`, whose
            // rows are `columns` and `rows` long.
            unsafe {
                transpose_square(xs.as_ptr().add(from), columns, out.as_mut_ptr().add(to), rows);
            }
        }
    }
}

/// Eight rows of eight words, `pitch` apart, to eight that are `out_pitch` apart.
///
/// # Safety
/// The processor has AVX2, and both squares lie in memory that may be read and written.
#[expect(unsafe_code, reason = "processor instructions")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_square(xs: *const f32, pitch: usize, out: *mut f32, out_pitch: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the contract of this function.
    let row = |i: usize| unsafe { _mm256_loadu_ps(xs.add(i * pitch)) };
    let rows: [__m256; 8] = std::array::from_fn(row);
    // Words of two rows, then of four, then of all.
    let pairs: [[__m256; 2]; 4] = std::array::from_fn(|i| {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
    });
    let fours: [[__m256; 4]; 2] = std::array::from_fn(|i| {
        let ([a, b], [c, d]) = (pairs[2 * i], pairs[2 * i + 1]);
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    });
    let [low, high] = fours;
    for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
        // SAFETY: the contract of this function.
        unsafe {
            _mm256_storeu_ps(out.add(i * out_pitch), _mm256_permute2f128_ps::<0x20>(low, high));
            _mm256_storeu_ps(out.add((i + 4) * out_pitch), _mm256_permute2f128_ps::<0x31>(low, high));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{InstructionSet, instruction_set};
    use crate::pairs::word;

    #[test]
    fn products_equal_plain_sums() {
        if instruction_set() != InstructionSet::Amx {
            eprintln!("no AMX here: nothing was tested");
            return;
        }
        const STEPS: usize = 3;
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 64.0 - 0.75;
        let (depth, pitch) = (STEPS * STEP, STEPS * STEP + 32);
        let left: Vec<bf16> = (0..SIDE * pitch).map(|i| bf16::from_f32(value(i))).collect();
        let element = |k: usize, column: usize| value(k * 61 + column * 7);
        let mut right = vec![0.0; STEPS * STEP_WORDS];
        for (i, packed) in right.iter_mut().enumerate() {
            let (step, rest) = (i / STEP_WORDS, i % STEP_WORDS);
            let (half, pair, column) = (rest / 256, rest % 256 / 16, rest % 16);
            let k = step * STEP + 2 * pair;
            let element = |k: usize| bf16::from_f32(element(k, half * 16 + column));
            *packed = word(element(k), element(k + 1));
        }
        let mut out = [f32::NAN; SIDE * SIDE];
        Tiles::configure().product(&left, pitch, &right, &mut out);
        for (i, found) in out.into_iter().enumerate() {
            let product = |k: usize| {
                f64::from(left[i / SIDE * pitch + k].to_f32())
                    * f64::from(bf16::from_f32(element(k, i % SIDE)).to_f32())
            };
            let expected: f64 = (0..depth).map(product).sum();
            assert!((f64::from(found) - expected).abs() < 1e-4, "{i}: {found} for {expected}");
        }
    }

    #[test]
    fn a_matrix_is_turned_round() {
        if instruction_set() < InstructionSet::Avx2 {
            eprintln!("no AVX2 here: nothing was tested");
            return;
        }
        let (rows, columns) = (24, 32);
        let xs: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let mut out = vec![f32::NAN; xs.len()];
        transpose(&xs, columns, &mut out);
        for (i, x) in out.into_iter().enumerate() {
            assert_eq!(x, xs[i % rows * columns + i / rows]);
        }
    }
}
