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
}
