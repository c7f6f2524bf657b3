//! The one place where a path or an instruction set is chosen.

use crate::scoped::scoped;
use candle_core::{DType, Device};
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The implementation that an operator takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Composed of candle's own operations.
    Reference,
    /// The kernels of this crate for f32 and bf16 on the CPU.
    Cpu,
    /// Those for f32, bf16 and f16 on GPUs of NVIDIA, with the feature `cuda`.
    Cuda,
}

thread_local! {
    static REFERENCE_ONLY: RefCell<bool> = const { RefCell::new(false) };
}

/// Runs `f` with every operator called from this thread on its reference path.
pub fn with_reference<R>(f: impl FnOnce() -> R) -> R {
    scoped(&REFERENCE_ONLY, true, f).0
}

/// The path for an operator on maps of an element type on a device.
pub fn path(device: &Device, dtype: DType) -> Path {
    let path = match (device, dtype) {
        #[cfg(test)]
        (Device::Cpu, DType::F32 | DType::BF16 | DType::F16) if GPU_ON_CPU.with_borrow(|&on| on) => {
            Path::Cuda
        }
        (Device::Cpu, DType::F32 | DType::BF16) => Path::Cpu,
        #[cfg(feature = "cuda")]
        (Device::Cuda(_), DType::F32 | DType::BF16 | DType::F16) => Path::Cuda,
        _ => Path::Reference,
    };
    let reference_only = REFERENCE_ONLY.with_borrow(|&only| only) || always_reference();
    if reference_only { Path::Reference } else { path }
}

/// The variable that limits what [`path`] and [`instruction_set`] take.
const LIMIT: &str = "ZOO_INSTRUCTION_SET";

/// Whether the user asks for candle's own operations everywhere.
fn always_reference() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| std::env::var(LIMIT).as_deref() == Ok("reference"))
}

#[cfg(test)]
thread_local! {
    static GPU_ON_CPU: RefCell<bool> = const { RefCell::new(false) };
}

/// Runs `f` with what runs on a GPU on the CPU; see [`crate::cuda`].
#[cfg(test)]
pub(crate) fn with_gpu_on_cpu<R>(f: impl FnOnce() -> R) -> R {
    scoped(&GPU_ON_CPU, true, f).0
}

static STRICT_F32: AtomicBool = AtomicBool::new(false);

/// Whether the CPU kernels keep to algorithms that are as exact as direct sums in f32, from now on in the whole
/// process. By default they may use Winograd's minimal filtering on tiles of 4×4 outputs, whose largest error is some
/// seven times as large (`conv2d/cpu/README.md` has figures) and which takes a quarter of the multiplications; strictly,
/// on tiles of 2×2, which takes four ninths of them.
pub fn set_strict_f32(strict: bool) {
    STRICT_F32.store(strict, Ordering::Relaxed);
}

pub(crate) fn strict_f32() -> bool {
    STRICT_F32.load(Ordering::Relaxed)
}

/// The instruction sets that the CPU kernels are compiled for, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What every machine of this architecture has.
    Portable,
    /// 64-bit ARM.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with its products of bf16.
    Avx512Bf16,
    /// The same with AMX for bf16, on Linux.
    Amx,
}

impl InstructionSet {
    /// What `ZOO_INSTRUCTION_SET` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Amx => "amx",
        }
    }
}

/// The best instruction set of this machine, or a lower one named by the environment variable
/// `ZOO_INSTRUCTION_SET` (`portable`, `avx2`, `avx512`, `avx512_bf16`, `amx`; with `reference`, [`path`] takes no kernel of
/// this crate at all, on any device).
pub fn instruction_set() -> InstructionSet {
    static CHOICE: OnceLock<InstructionSet> = OnceLock::new();
    *CHOICE.get_or_init(|| {
        let best = detect();
        let limit = match std::env::var(LIMIT).as_deref() {
            Ok("portable") => InstructionSet::Portable,
            Ok("avx2") => InstructionSet::Avx2,
            Ok("avx512") => InstructionSet::Avx512,
            Ok("avx512_bf16") => InstructionSet::Avx512Bf16,
            _ => InstructionSet::Amx,
        };
        best.min(limit)
    })
}

/// Something for each instruction set that has loops of its own.
pub(crate) struct PerSet<T> {
    pub(crate) portable: T,
    #[cfg(target_arch = "aarch64")]
    pub(crate) neon: T,
    #[cfg(target_arch = "x86_64")]
    pub(crate) avx2: T,
    #[cfg(target_arch = "x86_64")]
    pub(crate) avx512: T,
}

impl<T> PerSet<T> {
    /// That of [`instruction_set`].
    pub(crate) fn best(&self) -> &T {
        match instruction_set() {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Avx512Bf16 | InstructionSet::Amx => &self.avx512,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => &self.avx2,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => &self.neon,
            _ => &self.portable,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> InstructionSet {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        InstructionSet::Portable
    } else if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
        InstructionSet::Avx2
    } else if !has!("avx512bf16") {
        InstructionSet::Avx512
    } else if !crate::amx::detect() {
        InstructionSet::Avx512Bf16
    } else {
        InstructionSet::Amx
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> InstructionSet {
    InstructionSet::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> InstructionSet {
    InstructionSet::Portable
}
