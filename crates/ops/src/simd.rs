//! Instruction sets chosen at run time.

use crate::element::Element;
use half::bf16;

/// Compiles a function once for each instruction set and calls the best one that this machine has.
///
/// The body is plain Rust that the compiler vectorises. It contracts nothing into fused multiply-adds by
/// itself, so every version gives the same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $crate::simd::compiled_for_each_set! {
            $(#[$meta])* $vis fn $name [$($($t: $bound),+)?] ($($arg: $ty),*) [$(-> $ret)?] {
                #[inline(always)]
                fn portable $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            }
            avx512: portable $(::<$($t),+>)?;
            avx2: portable $(::<$($t),+>)?;
            other: portable $(::<$($t),+>)?;
        }
    };
}
pub(crate) use multiversion;

/// As [`multiversion`], for a body that works on registers of the set: it starts with `<V>`, the name under which it uses
/// their [`Vector`], and the types after a semicolon are the function's own.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident <$v:ident $(; $($t:ident : $bound:path),+)?> ($($arg:ident : $ty:ty),* $(,)?) $body:block) => {
        $crate::simd::compiled_for_each_set! {
            $(#[$meta])* $vis fn $name [$($($t: $bound),+)?] ($($arg: $ty),*) [] {
                #[inline(always)]
                fn of_registers<$v: $crate::simd::Vector $(, $($t: $bound),+)?> ($($arg: $ty),*) $body
            }
            avx512: of_registers::<$crate::simd::Avx512 $(, $($t),+)?>;
            avx2: of_registers::<$crate::simd::Avx2 $(, $($t),+)?>;
            other: of_registers::<$crate::simd::Baseline $(, $($t),+)?>;
        }
    };
}
pub(crate) use vectorised;

/// A function that calls one of three, compiled for a detected instruction set.
macro_rules! compiled_for_each_set {
    (
        $(#[$meta:meta])* $vis:vis fn $name:ident [$($t:ident : $bound:path),*] ($($arg:ident : $ty:ty),*) [$(-> $ret:ty)?] { $($body:item)* }
        avx512: $avx512:expr; avx2: $avx2:expr; other: $other:expr;
    ) => {
        $(#[$meta])*
        #[cfg_attr(
            target_arch = "x86_64",
            expect(unsafe_code, reason = "calls a version compiled for a detected instruction set")
        )]
        $vis fn $name <$($t: $bound),*> ($($arg: $ty),*) $(-> $ret)? {
            $($body)*
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<$($t: $bound),*>($($arg: $ty),*) $(-> $ret)? { $avx512($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($t: $bound),*>($($arg: $ty),*) $(-> $ret)? { $avx2($($arg),*) }
                match $crate::dispatch::instruction_set() {
                    // SAFETY: the set, or one with more, was detected on this machine.
                    $crate::dispatch::InstructionSet::Avx512 | $crate::dispatch::InstructionSet::Avx512Bf16 | $crate::dispatch::InstructionSet::Amx => return unsafe { avx512::<$($t),*>($($arg),*) },
                    // SAFETY: as above.
                    $crate::dispatch::InstructionSet::Avx2 => return unsafe { avx2::<$($t),*>($($arg),*) },
                    $crate::dispatch::InstructionSet::Portable => {}
                }
            }
            $other($($arg),*)
        }
    };
}
pub(crate) use compiled_for_each_set;

/// Brings so many elements from `at` on, which need not be any, nearer to the processor: they are about to be read or
/// written.
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "a processor instruction"))]
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        const LINE_BYTES: usize = 64;
        for line in (0..len * size_of::<T>()).step_by(LINE_BYTES) {
            // SAFETY: a prefetch faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast::<i8>().wrapping_add(line)) }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, len);
}

/// Lanes of the widest register.
const MOST_LANES: usize = 16;

/// A vector register of f32, for the few loops that the compiler does not vectorise well by itself.
#[expect(unsafe_code, reason = "memory is reached by pointers")]
pub(crate) trait Vector: Copy {
    /// Floats in a register.
    const LANES: usize;

    fn splat(x: f32) -> Self;

    /// `self + a · b`, fused where the instruction set does that.
    fn mul_add(self, a: Self, b: Self) -> Self;

    fn add(self, other: Self) -> Self;

    fn sub(self, other: Self) -> Self;

    fn mul(self, other: Self) -> Self;

    /// No less than `low` and no more than `high`; NaN stays NaN.
    fn clamp(self, low: Self, high: Self) -> Self;

    /// Which element of a group [`Vector::spread`] takes.
    type Choice: Copy;

    /// Element `index` of groups of `group` lanes.
    fn choice(group: usize, index: usize) -> Self::Choice;

    /// The chosen element of each group of `G` neighbours, in all lanes of the group: register `j` of those that
    /// cover a row of groups from `at` on. `G` is 1, 2, 4 or 8.
    ///
    /// # Safety
    /// All floats up to the register's last, and those of a group, can be read from `at` on.
    unsafe fn spread<const G: usize>(at: *const f32, j: usize, choice: Self::Choice) -> Self;

    /// # Safety
    /// `LANES` floats can be read at `at`.
    unsafe fn load(at: *const f32) -> Self;

    /// # Safety
    /// `LANES` floats can be written at `at`.
    unsafe fn store(self, at: *mut f32);

    /// # Safety
    /// `LANES` elements can be read at `at`.
    #[inline(always)]
    unsafe fn widen(at: *const bf16) -> Self {
        let mut lanes = [0f32; MOST_LANES];
        // SAFETY: the caller's promise, and `LANES` is at most `MOST_LANES`.
        unsafe {
            for (i, lane) in lanes[..Self::LANES].iter_mut().enumerate() {
                *lane = (*at.add(i)).to_f32();
            }
            Self::load(lanes.as_ptr())
        }
    }

    /// Rounds as [`Element::from_f32`] does.
    ///
    /// # Safety
    /// `LANES` elements can be written at `at`.
    #[inline(always)]
    unsafe fn narrow(self, at: *mut bf16) {
        let mut lanes = [0f32; MOST_LANES];
        // SAFETY: as above.
        unsafe {
            self.store(lanes.as_mut_ptr());
            for (i, &lane) in lanes[..Self::LANES].iter().enumerate() {
                at.add(i).write(Element::from_f32(lane));
            }
        }
    }

    /// The first `LANES` elements, zeros where there are fewer.
    #[inline(always)]
    fn first_of<T: Element>(xs: &[T]) -> Self {
        let mut lanes = [T::default(); MOST_LANES];
        let xs = if xs.len() < Self::LANES {
            lanes[..xs.len()].copy_from_slice(xs);
            &lanes
        } else {
            xs
        };
        match (T::as_f32(xs), T::as_bf16(xs)) {
            // SAFETY: there are that many.
            (Some(xs), _) => unsafe { Self::load(xs.as_ptr()) },
            // SAFETY: as above.
            (_, Some(xs)) => unsafe { Self::widen(xs.as_ptr()) },
            (None, None) => unreachable!("elements are of one of the two types"),
        }
    }

    /// Writes as many lanes as there is room for, rounded to the elements' type.
    #[inline(always)]
    fn write_to<T: Element>(self, out: &mut [T]) {
        let mut lanes = [T::default(); MOST_LANES];
        let len = out.len();
        let whole = if len < Self::LANES { &mut lanes } else { &mut *out };
        if let Some(whole) = T::as_f32_mut(whole) {
            // SAFETY: there is room for all lanes.
            unsafe { self.store(whole.as_mut_ptr()) }
        } else if let Some(whole) = T::as_bf16_mut(whole) {
            // SAFETY: as above.
            unsafe { self.narrow(whole.as_mut_ptr()) }
        }
        if len < Self::LANES {
            out.copy_from_slice(&lanes[..len]);
        }
    }

    /// Stores the first `n` lanes, or adds them to what is there.
    ///
    /// # Safety
    /// `n` floats, at most `LANES`, can be read and written at `at`.
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f32, n: usize, add: bool) {
        let mut lanes = [0f32; MOST_LANES];
        // SAFETY: the caller's promise.
        unsafe {
            self.store(lanes.as_mut_ptr());
            for (i, &lane) in lanes[..n].iter().enumerate() {
                let out = &mut *at.add(i);
                *out = if add { *out + lane } else { lane };
            }
        }
    }
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
    fn sub(mut self, other: Self) -> Self {
        for i in 0..4 {
            self.0[i] -= other.0[i];
        }
        self
    }

    #[inline(always)]
    fn mul(mut self, other: Self) -> Self {
        for i in 0..4 {
            self.0[i] *= other.0[i];
        }
        self
    }

    #[inline(always)]
    fn clamp(mut self, low: Self, high: Self) -> Self {
        for i in 0..4 {
            let x = self.0[i];
            self.0[i] = if x < low.0[i] { low.0[i] } else { x };
            self.0[i] = if x > high.0[i] { high.0[i] } else { self.0[i] };
        }
        self
    }

    type Choice = usize;

    #[inline(always)]
    fn choice(_: usize, index: usize) -> usize {
        index
    }

    #[inline(always)]
    unsafe fn spread<const G: usize>(at: *const f32, j: usize, choice: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(std::array::from_fn(|lane| unsafe { *at.add((j * 4 + lane) / G * G + choice) }))
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

/// The registers that every processor of this architecture has.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) type Baseline = Portable;
#[cfg(target_arch = "aarch64")]
pub(crate) type Baseline = Neon;

/// NEON, which every 64-bit ARM processor has.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy)]
pub(crate) struct Neon(std::arch::aarch64::float32x4_t);

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "processor instructions")]
impl Vector for Neon {
    const LANES: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: every processor of this architecture has NEON.
        Self(unsafe { std::arch::aarch64::vdupq_n_f32(x) })
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { std::arch::aarch64::vfmaq_f32(self.0, a.0, b.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { std::arch::aarch64::vaddq_f32(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { std::arch::aarch64::vsubq_f32(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { std::arch::aarch64::vmulq_f32(self.0, other.0) })
    }

    #[inline(always)]
    fn clamp(self, low: Self, high: Self) -> Self {
        // SAFETY: as above. These give NaN where either is one.
        Self(unsafe { std::arch::aarch64::vminq_f32(high.0, std::arch::aarch64::vmaxq_f32(low.0, self.0)) })
    }

    type Choice = usize;

    #[inline(always)]
    fn choice(_: usize, index: usize) -> usize {
        index
    }

    #[inline(always)]
    unsafe fn spread<const G: usize>(at: *const f32, j: usize, choice: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match G {
                1 => Self::load(at.add(j * 4)),
                // A group that is one register or more is a load of one float.
                4.. => Self::splat(*at.add(j * 4 / G * G + choice)),
                _ => Self::load(Portable::spread::<G>(at, j, choice).0.as_ptr()),
            }
        }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { std::arch::aarch64::vld1q_f32(at) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { std::arch::aarch64::vst1q_f32(at, self.0) }
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($(#[$meta:meta])* $name:ident($register:ty), $lanes:literal, $set1:ident, $fma:ident, $add:ident, $sub:ident, $mul:ident, $max:ident, $min:ident, $load:ident, $store:ident, $spread:ident, { $($more:tt)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name(pub(crate) $register);

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
            fn sub(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $sub(self.0, other.0) })
            }

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $mul(self.0, other.0) })
            }

            #[inline(always)]
            fn clamp(self, low: Self, high: Self) -> Self {
                // SAFETY: as above. Of a NaN and a number these take the second.
                Self(unsafe { $min(high.0, $max(low.0, self.0)) })
            }

            type Choice = [i32; $lanes];

            #[inline(always)]
            fn choice(group: usize, index: usize) -> Self::Choice {
                std::array::from_fn(|lane| (lane / group * group + index) as i32)
            }

            #[inline(always)]
            unsafe fn spread<const G: usize>(at: *const f32, j: usize, choice: Self::Choice) -> Self {
                // SAFETY: as above, and the caller's promise.
                unsafe {
                    let register = at.add(j * $lanes);
                    match G {
                        1 => Self($load(register)),
                        // A group that is a register is a load of one float.
                        $lanes => Self($set1(*register.add(choice[0] as usize))),
                        _ => Self($spread($load(register), choice)),
                    }
                }
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

            $($more)*
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use half::bf16;
    use std::arch::x86_64::*;

    x86_vector!(
        /// AVX2 with FMA.
        Avx2(__m256), 8, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_max_ps, _mm256_min_ps, _mm256_loadu_ps, _mm256_storeu_ps, spread_avx2, {
            #[inline(always)]
            unsafe fn widen(at: *const bf16) -> Self {
                // SAFETY: as above, and the caller's promise.
                unsafe {
                    let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                    Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
                }
            }

            #[inline(always)]
            unsafe fn narrow(self, at: *mut bf16) {
                // SAFETY: as above, and the caller's promise.
                unsafe {
                    let bits = _mm256_castps_si256(self.0);
                    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
                    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                    let words = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
                    let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                    _mm_storeu_si128(at.cast(), _mm_packus_epi32(low, high));
                }
            }
        }
    );
    x86_vector!(
        /// AVX-512 F.
        Avx512(__m512), 16, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_max_ps, _mm512_min_ps, _mm512_loadu_ps, _mm512_storeu_ps, spread_avx512, {
            #[inline(always)]
            unsafe fn widen(at: *const bf16) -> Self {
                // SAFETY: as above, and the caller's promise.
                unsafe {
                    let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                    Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
                }
            }

            #[inline(always)]
            unsafe fn narrow(self, at: *mut bf16) {
                // SAFETY: as above, and the caller's promise.
                unsafe {
                    let bits = _mm512_castps_si512(self.0);
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                    let bits = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
                    _mm256_storeu_si256(at.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits)));
                }
            }

            #[inline(always)]
            unsafe fn store_first(self, at: *mut f32, n: usize, add: bool) {
                let lanes = first_lanes(n) as u16;
                // SAFETY: as above, and the caller's promise: other lanes touch no memory.
                unsafe {
                    let before = if add { _mm512_maskz_loadu_ps(lanes, at) } else { _mm512_setzero_ps() };
                    _mm512_mask_storeu_ps(at, lanes, _mm512_add_ps(before, self.0));
                }
            }
        }
    );

    /// One bit for each of the first `n` lanes, up to 32.
    #[inline(always)]
    fn first_lanes(n: usize) -> u32 {
        ((1u64 << n) - 1) as u32
    }

    impl Avx512 {
        /// Rounds two registers to the first `n` of 32 elements in bf16, to nearest, ties to even; NaN stays NaN, and what
        /// is too small for a normal number becomes zero. For functions compiled for AVX-512's BW and BF16.
        ///
        /// # Safety
        /// `n` elements, at most 32, can be written at `at`.
        #[inline(always)]
        #[expect(unsafe_code, reason = "processor instructions")]
        pub(crate) unsafe fn store_rounded(registers: [Self; 2], at: *mut half::bf16, n: usize) {
            // SAFETY: as above, and the caller's promise: other lanes touch no memory. Registers are bits.
            unsafe {
                let rounded = _mm512_cvtne2ps_pbh(registers[1].0, registers[0].0);
                let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
                if n == 32 {
                    _mm512_storeu_si512(at.cast(), rounded);
                } else {
                    _mm512_mask_storeu_epi16(at.cast(), first_lanes(n), rounded);
                }
            }
        }
    }

    /// Lane `i` of the result is lane `choice[i]`, for groups of at most four: those do not leave their half.
    ///
    /// # Safety
    /// The machine has AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    #[expect(unsafe_code, reason = "processor instructions")]
    unsafe fn spread_avx2(xs: __m256, choice: [i32; 8]) -> __m256 {
        // SAFETY: the array has the register's size.
        let choice = unsafe { _mm256_loadu_si256(choice.as_ptr().cast()) };
        _mm256_permutevar_ps(xs, choice)
    }

    /// Lane `i` of the result is lane `choice[i]`.
    ///
    /// # Safety
    /// The machine has AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[expect(unsafe_code, reason = "processor instructions")]
    unsafe fn spread_avx512(xs: __m512, choice: [i32; 16]) -> __m512 {
        // SAFETY: the array has the register's size.
        let choice = unsafe { _mm512_loadu_si512(choice.as_ptr().cast()) };
        _mm512_permutexvar_ps(choice, xs)
    }
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};
