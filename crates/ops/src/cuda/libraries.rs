//! NVIDIA's libraries, opened when they are first called and not when the program starts, so that a build with CUDA runs
//! on machines that have none of them.
//!
//! Candle binds cudarc to the libraries by the linker (`dynamic-linking`), whose loader refuses to start a program when one
//! of them is missing. So this file defines the functions that are called, each as a jump through an address that is looked
//! up in the library at the first call of any. The linker takes these definitions before those of the libraries, of which
//! the program then needs none. Of a library that is missing every function returns an error code.
//!
//! A function that is called but not listed here makes the linker need its library again, which the test
//! `a_build_with_cuda_runs_without_its_libraries` sees.

#![expect(unsafe_code, non_snake_case, reason = "defines functions of C")]

use std::ffi::{CStr, c_int, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What functions of a missing library return: it is an error of each of them.
const MISSING: c_int = 999;

/// A library and its functions that are called.
struct Library {
    /// What people call it.
    name: &'static str,
    file: &'static CStr,
    functions: &'static [Function],
}

struct Function {
    name: &'static CStr,
    /// Where it is; null before the libraries are opened.
    address: &'static AtomicPtr<c_void>,
    /// The jump to it. That it is named here keeps the linker from taking the library's.
    jump: unsafe extern "C" fn(),
}

/// Jumps to the function at `$address`, after all libraries have been opened.
macro_rules! jump {
    ($address:path) => {{
        #[cfg(target_arch = "x86_64")]
        std::arch::naked_asm!(
            "mov r11, qword ptr [rip + {address}]",
            "test r11, r11",
            "jne 2f",
            "call {open}",
            "mov r11, qword ptr [rip + {address}]",
            "2: jmp r11",
            address = sym $address,
            open = sym open_for_a_call,
        );
        #[cfg(target_arch = "aarch64")]
        std::arch::naked_asm!(
            "adrp x16, {address}",
            "ldr x16, [x16, :lo12:{address}]",
            "cbnz x16, 2f",
            "stp x29, x30, [sp, -16]!",
            "bl {open}",
            "ldp x29, x30, [sp], 16",
            "adrp x16, {address}",
            "ldr x16, [x16, :lo12:{address}]",
            "2: br x16",
            address = sym $address,
            open = sym open_for_a_call,
        );
    }};
}

/// Opens the libraries between a call and the function that it is for: all registers that hold arguments are kept.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn open_for_a_call() {
    std::arch::naked_asm!(
        // Two calls have left the stack aligned to 16 bytes; seven pushes and 136 bytes leave it so.
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "push rax",
        "sub rsp, 136",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "call {open}",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 136",
        "pop rax",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "ret",
        open = sym open_all,
    );
}

/// Opens the libraries between a call and the function that it is for: all registers that hold arguments are kept.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn open_for_a_call() {
    std::arch::naked_asm!(
        "stp x29, x30, [sp, -224]!",
        "stp x0, x1, [sp, 16]",
        "stp x2, x3, [sp, 32]",
        "stp x4, x5, [sp, 48]",
        "stp x6, x7, [sp, 64]",
        "str x8, [sp, 80]",
        "stp q0, q1, [sp, 96]",
        "stp q2, q3, [sp, 128]",
        "stp q4, q5, [sp, 160]",
        "stp q6, q7, [sp, 192]",
        "bl {open}",
        "ldp q6, q7, [sp, 192]",
        "ldp q4, q5, [sp, 160]",
        "ldp q2, q3, [sp, 128]",
        "ldp q0, q1, [sp, 96]",
        "ldr x8, [sp, 80]",
        "ldp x6, x7, [sp, 64]",
        "ldp x4, x5, [sp, 48]",
        "ldp x2, x3, [sp, 32]",
        "ldp x0, x1, [sp, 16]",
        "ldp x29, x30, [sp], 224",
        "ret",
        open = sym open_all,
    );
}

macro_rules! libraries {
    ($($constant:ident, $name:literal, $file:literal: $($function:ident)*;)*) => {
        $(
            $(
                mod $function {
                    use super::{AtomicPtr, c_void, open_for_a_call};

                    pub(super) static ADDRESS: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

                    // SAFETY: no other file of the program defines a function of NVIDIA's.
                    #[unsafe(no_mangle)]
                    #[unsafe(naked)]
                    unsafe extern "C" fn $function() {
                        jump!(ADDRESS)
                    }
                    pub(super) const JUMP: unsafe extern "C" fn() = $function;
                }
            )*
            static $constant: Library = Library {
                name: $name,
                file: $file,
                functions: &[$(Function {
                    name: match CStr::from_bytes_with_nul(concat!(stringify!($function), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!("a name with a zero in it"),
                    },
                    address: &$function::ADDRESS,
                    jump: $function::JUMP,
                }),*],
            };
        )*
        static LIBRARIES: &[&Library] = &[$(&$constant),*];
    };
}

libraries! {
    DRIVER, "the driver", c"libcuda.so.1":
        cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuCtxSynchronize cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount
        cuDeviceGetDefaultMemPool cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDriverGetVersion cuEventCreate
        cuEventDestroy_v2 cuEventRecord cuEventSynchronize cuGetErrorString cuInit cuLaunchKernel cuMemAllocAsync
        cuMemAlloc_v2 cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc cuMemPoolSetAttribute
        cuMemcpyDtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemcpyPeerAsync cuMemsetD8Async
        cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleUnload cuStreamCreate cuStreamDestroy_v2
        cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent;
    NVRTC, "NVRTC", c"libnvrtc.so.13":
        nvrtcCompileProgram nvrtcCreateProgram nvrtcDestroyProgram nvrtcGetCUBIN nvrtcGetCUBINSize nvrtcGetPTX
        nvrtcGetPTXSize nvrtcGetProgramLog nvrtcGetProgramLogSize nvrtcVersion;
    CUBLAS, "cuBLAS", c"libcublas.so.13":
        cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasGemmStridedBatchedEx cublasSetStream_v2;
    CURAND, "cuRAND", c"libcurand.so.10":
        curandCreateGenerator curandDestroyGenerator curandSetPseudoRandomGeneratorSeed curandSetStream;
    CUDNN, "cuDNN", c"libcudnn.so.9":
        cudnnConvolutionBackwardData cudnnConvolutionBackwardFilter cudnnConvolutionForward cudnnCreate
        cudnnCreateConvolutionDescriptor cudnnCreateFilterDescriptor cudnnCreateTensorDescriptor cudnnDestroy
        cudnnDestroyConvolutionDescriptor cudnnDestroyFilterDescriptor cudnnDestroyTensorDescriptor
        cudnnGetConvolutionBackwardDataAlgorithm_v7 cudnnGetConvolutionBackwardDataWorkspaceSize
        cudnnGetConvolutionBackwardFilterAlgorithm_v7 cudnnGetConvolutionBackwardFilterWorkspaceSize
        cudnnGetConvolutionForwardAlgorithm_v7 cudnnGetConvolutionForwardWorkspaceSize cudnnSetConvolution2dDescriptor
        cudnnSetConvolutionGroupCount cudnnSetConvolutionMathType cudnnSetFilter4dDescriptor cudnnSetStream
        cudnnSetTensor4dDescriptor cudnnSetTensor4dDescriptorEx;
    NCCL, "NCCL", c"libnccl.so.2":
        ncclAllReduce ncclCommAbort ncclCommInitRank ncclGetUniqueId;
}

/// Stands for the functions of a library that is missing, or too old to have them.
extern "C" fn missing() -> c_int {
    MISSING
}

/// Opens every library that the machine has, once in a process.
extern "C" fn open_all() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| LIBRARIES.iter().for_each(|library| library.open()));
}

impl Library {
    fn open(&self) {
        // SAFETY: the name ends with a zero. What these libraries run when they are loaded is their own affair, and is the
        // same as when the system's loader loads them.
        let library = unsafe { libc::dlopen(self.file.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        for function in self.functions {
            let found = if library.is_null() {
                std::ptr::null_mut()
            } else {
                // SAFETY: the handle is that of an open library, which is never closed, and the name ends with a zero.
                unsafe { libc::dlsym(library, function.name.as_ptr()) }
            };
            // The jumps themselves are no functions of a library.
            let own = function.jump as *mut c_void;
            let found = if found.is_null() || found == own { missing as *mut c_void } else { found };
            function.address.store(found, Ordering::Release);
        }
    }

    /// Whether the machine has it, with all of its functions that are called.
    fn is_there(&self) -> bool {
        open_all();
        self.functions
            .iter()
            .all(|function| function.address.load(Ordering::Acquire) != missing as *mut c_void)
    }
}

/// Whether the machine has a driver of NVIDIA.
pub(super) fn has_driver() -> bool {
    DRIVER.is_there()
}

/// The libraries that computing on one GPU needs and the machine lacks, or has in versions that are too old: their names
/// and their files, separated by commas.
pub(super) fn missing_for_one() -> Option<String> {
    list(&[&NVRTC, &CUBLAS, &CURAND, &CUDNN])
}

/// As `missing_for_one`, of those that several GPUs need as well.
#[cfg(feature = "nccl")]
pub(super) fn missing_for_several() -> Option<String> {
    list(&[&NCCL])
}

fn list(libraries: &[&Library]) -> Option<String> {
    let missing = libraries.iter().filter(|library| !library.is_there());
    let names: Vec<String> =
        missing.map(|library| format!("{} ({})", library.name, library.file.to_string_lossy())).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
