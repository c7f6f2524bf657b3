//! Instruction sets chosen at run time.

/// Compiles a function once for each instruction set and calls the best one that this machine has.
///
/// The body is plain Rust that the compiler vectorises. It contracts nothing into fused multiply-adds by
/// itself, so every version gives the same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "calls a version compiled for a detected instruction set")]
        $vis fn $name $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { portable $(::<$($t),+>)? ($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { portable $(::<$($t),+>)? ($($arg),*) }
                match $crate::dispatch::instruction_set() {
                    // SAFETY: the set was detected on this machine.
                    $crate::dispatch::InstructionSet::Avx512 | $crate::dispatch::InstructionSet::Amx => return unsafe { avx512 $(::<$($t),+>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::dispatch::InstructionSet::Avx2 => return unsafe { avx2 $(::<$($t),+>)? ($($arg),*) },
                    $crate::dispatch::InstructionSet::Portable => {}
                }
            }
            portable $(::<$($t),+>)? ($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// A vector register of f32, for the few loops that the compiler does not vectorise well by itself.
#[expect(unsafe_code, reason = "memory is reached by pointers")]
pub(crate) trait Vector: Copy {
    /// Floats in a register.
    const LANES: usize;

    fn splat(x: f32) -> Self;

    /// `self + a · b`, fused where the instruction set does that.
    fn mul_add(self, a: Self, b: Self) -> Self;

    fn add(self, other: Self) -> Self;

    /// Brings the memory at `at`, which need not be any, nearer to the processor.
    #[inline(always)]
    fn prefetch(at: *const f32) {
        let _ = at;
    }

    /// # Safety
    /// `LANES` floats can be read at `at`.
    unsafe fn load(at: *const f32) -> Self;

    /// # Safety
    /// `LANES` floats can be written at `at`.
    unsafe fn store(self, at: *mut f32);
}

/// What every machine has; the compiler makes it one register or several.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 4]);

#[expect(unsafe_code, reason = "memory is reached by pointers")]
impl Vector for Portable {
    const LANES: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    fn mul_add(mut self, a: Self, b: Self) -> Self {
        for i in 0..4 {
            self.0[i] += a.0[i] * b.0[i];
        }
        self
    }

    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for i in 0..4 {
            self.0[i] += other.0[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { at.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($(#[$meta:meta])* $name:ident($register:ty), $lanes:literal, $set1:ident, $fma:ident, $add:ident, $load:ident, $store:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name($register);

        #[expect(unsafe_code, reason = "processor instructions")]
        impl Vector for $name {
            const LANES: usize = $lanes;

            #[inline(always)]
            fn splat(x: f32) -> Self {
                // SAFETY: this type is used only in functions compiled for its instruction set.
                Self(unsafe { $set1(x) })
            }

            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $fma(a.0, b.0, self.0) })
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $add(self.0, other.0) })
            }

            #[inline(always)]
            fn prefetch(at: *const f32) {
                // SAFETY: a prefetch faults nowhere.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
            }

            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                // SAFETY: as above, and the caller's promise.
                Self(unsafe { $load(at) })
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                // SAFETY: as above, and the caller's promise.
                unsafe { $store(at, self.0) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    x86_vector!(
        /// AVX2 with FMA.
        Avx2(__m256), 8, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_loadu_ps, _mm256_storeu_ps
    );
    x86_vector!(
        /// AVX-512 F.
        Avx512(__m512), 16, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps
    );
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};
