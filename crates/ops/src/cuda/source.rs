//! The source of the kernels: what all element types share, and the rest once for each type.
//!
//! No header of CUDA is included, because a machine that runs the program need not have any; bf16 and f16 are handled
//! as bits and by the instructions that convert them.

use candle_core::{DType, Result, bail};

const COMMON: &str = include_str!("common.cu");
const ELEMENTS: &str = include_str!("elements.cu");
const ROWS: &str = include_str!("rows.cu");

/// Threads of a block.
pub(super) const BLOCK: usize = 256;

/// CUDA's way to say what the kernels' files leave open.
const CUDA: &str = r#"
#define KERNEL extern "C" __global__ void
#define INLINE static __device__ __forceinline__
#define INDEX ((int)(blockIdx.x * BLOCK + threadIdx.x))
#define BLOCK_INDEX ((int)blockIdx.x)
#define FOR_THREADS(t) for (int t = threadIdx.x, once = 1; once; once = 0)
#define BARRIER __syncthreads()
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define ALIGNED __align__(16)
INLINE float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
INLINE unsigned float_to_bits(float x) { return __float_as_uint(x); }
INLINE float f16_to_float(unsigned short x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
INLINE unsigned short float_to_f16(float x) { unsigned short y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
INLINE unsigned short float_to_bf16(float x) { unsigned short y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
"#;

/// The element types of feature maps on a GPU: their name, how they are stored, and how they are read and rounded.
const TYPES: [(DType, &str, &str, &str, &str); 3] = [
    (DType::F32, "f32", "float", "(x)", "(x)"),
    (DType::BF16, "bf16", "unsigned short", "bf16_to_float(x)", "float_to_bf16(x)"),
    (DType::F16, "f16", "unsigned short", "f16_to_float(x)", "float_to_f16(x)"),
];

/// Neighbouring channels that a thread of the kernels in `rows.cu` takes: what their names end with, and how packs of
/// them are aligned.
const WIDTHS: [(usize, &str, &str); 2] = [(1, "", ""), (WIDE, "x8", "ALIGNED")];

/// The larger of the widths.
pub(super) const WIDE: usize = 8;

/// All kernels, behind what `language` makes of them.
fn source(language: &str) -> String {
    let mut text = format!("#define BLOCK {BLOCK}\n{language}{COMMON}");
    for (_, name, stored, load, store) in TYPES {
        let with = |name: &str, also: &str, body: &str| {
            let undefined: String = also
                .lines()
                .filter_map(|line| line.split(' ').nth(1))
                .map(|m| format!("#undef {m}\n"))
                .collect();
            format!("{also}#define NAME(name) name##_{name}\n{body}\n#undef NAME\n{undefined}")
        };
        text += &format!("#define E {stored}\n#define LOAD(x) {load}\n#define STORE(x) {store}\n");
        text += &with(name, "", ELEMENTS);
        for (width, ending, aligned) in WIDTHS {
            let also = format!("#define W {width}\n#define PACKED {aligned}\n");
            text += &with(&format!("{name}{ending}"), &also, ROWS);
        }
        text += "#undef E\n#undef LOAD\n#undef STORE\n";
    }
    text
}

/// The kernels for NVRTC.
pub(super) fn cuda() -> String {
    source(CUDA)
}

/// What the name of an element type's kernel ends with.
pub(super) fn suffix(dtype: DType) -> Result<&'static str> {
    match TYPES.iter().find(|(of, ..)| *of == dtype) {
        Some((_, name, ..)) => Ok(name),
        None => bail!("feature maps on a GPU are f32, bf16 or f16, not {dtype:?}"),
    }
}

/// The types of a kernel's parameters, as its source has them; `*` for any address.
#[cfg(test)]
pub(super) fn parameters(kernel: &str) -> Vec<&'static str> {
    let (base, _) = kernel.rsplit_once('_').unwrap_or((kernel, ""));
    let named = format!("KERNEL NAME({base})(");
    let behind = COMMON.split_once(&format!("KERNEL {kernel}("));
    let behind = behind.or_else(|| ELEMENTS.split_once(&named)).or_else(|| ROWS.split_once(&named));
    let (list, _) = behind.unwrap().1.split_once(')').unwrap();
    let type_of = |parameter: &'static str| match parameter.trim().rsplit_once(' ').unwrap() {
        (_, name) if name.starts_with('*') => "*",
        (of, _) => of,
    };
    list.split(',').map(type_of).collect()
}

#[cfg(test)]
#[expect(unsafe_code, reason = "calls C")]
pub(super) mod on_cpu {
    //! The kernels as a C library, run thread by thread, or block by block.

    use crate::cuda::Arg;
    use std::ffi::{CString, c_void};
    use std::process::Command;
    use std::sync::OnceLock;

    const C: &str = r"
#include <math.h>
#include <string.h>
#define KERNEL void
#define INLINE static inline
#define INDEX zoo_index
#define BLOCK_INDEX zoo_index
#define FOR_THREADS(t) for (int t = 0; t < BLOCK; t++)
#define BARRIER
#define SHARED static _Thread_local
#define UNROLL
#define ALIGNED __attribute__((aligned(16)))
static _Thread_local int zoo_index;
INLINE float bits_to_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE unsigned float_to_bits(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
INLINE float f16_to_float(unsigned short x) { _Float16 y; memcpy(&y, &x, 2); return (float)y; }
INLINE unsigned short float_to_f16(float x) { _Float16 y = (_Float16)x; unsigned short z; memcpy(&z, &y, 2); return z; }
// To nearest, ties to even, NaN stays.
INLINE unsigned short float_to_bf16(float x) {
  unsigned bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 0x40u);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
void zoo_set_index(int index) { zoo_index = index; }
";

    struct Library(*mut c_void);
    // SAFETY: a handle of a library that is never closed may be used on any thread.
    unsafe impl Send for Library {}
    // SAFETY: as above; looking up a symbol changes nothing.
    unsafe impl Sync for Library {}

    fn library() -> &'static Library {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY.get_or_init(|| {
            let folder = std::env::temp_dir().join(format!("zoo-kernels-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let (source, library) = (folder.join("kernels.c"), folder.join("kernels.so"));
            std::fs::write(&source, super::source(C)).unwrap();
            let mut compiler = Command::new("cc");
            compiler.args(["-std=gnu11", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror"]);
            compiler.args(["-Wno-unused-function", "-fno-strict-aliasing", "-o"]);
            let done = compiler.arg(&library).arg(&source).arg("-lm").output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let name = CString::new(library.to_str().unwrap()).unwrap();
            // SAFETY: the name ends with a zero; the library was just made and runs nothing when it is loaded.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
            assert!(!handle.is_null());
            std::fs::remove_dir_all(&folder).unwrap();
            Library(handle)
        })
    }

    fn symbol(name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: the handle is that of a library that stays open, and the name ends with a zero.
        let address = unsafe { libc::dlsym(library().0, name.as_ptr()) };
        assert!(!address.is_null(), "no kernel {name:?}");
        address
    }

    /// Runs a kernel for `n` threads, or blocks where that is what it counts.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and its pointers lead to as many elements as it reads and writes.
    pub(in crate::cuda) unsafe fn run(name: &str, n: usize, args: &[Arg]) {
        // On x86-64 and 64-bit ARM, integers and pointers go in registers of one kind and floats in those of another,
        // each in their order; what is left over goes on the stack in the order of all arguments. So a call with the
        // integers first and the floats last is the same call as long as no float is left over.
        let mut words: Vec<u64> = Vec::new();
        let mut floats: Vec<f32> = Vec::new();
        for arg in args {
            match *arg {
                Arg::Pointer(address) => words.push(address),
                Arg::Int(value) => words.push(value as u64),
                Arg::Float(value) => floats.push(value),
            }
        }
        assert!(words.len() <= 20 && floats.len() <= 4);
        words.resize(20, 0);
        floats.resize(4, 0.0);
        let (w, f) = (words, floats);
        type Kernel = extern "C" fn(
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            f32,
            f32,
            f32,
            f32,
        );
        // SAFETY: the symbol is a function of C that takes such arguments, as said above.
        let kernel: Kernel = unsafe { std::mem::transmute(symbol(name)) };
        // SAFETY: `zoo_set_index` takes one integer.
        let set_index: extern "C" fn(i32) = unsafe { std::mem::transmute(symbol("zoo_set_index")) };
        for index in 0..n as i32 {
            set_index(index);
            kernel(
                w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13],
                w[14], w[15], w[16], w[17], w[18], w[19], f[0], f[1], f[2], f[3],
            );
        }
    }
}
