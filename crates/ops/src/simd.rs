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
                fn avx512 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
                match $crate::dispatch::instruction_set() {
                    // SAFETY: the set was detected on this machine.
                    $crate::dispatch::InstructionSet::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::dispatch::InstructionSet::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::dispatch::InstructionSet::Portable => {}
                }
            }
            portable($($arg),*)
        }
    };
}
pub(crate) use multiversion;
