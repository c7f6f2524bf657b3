//! What runs on a GPU, run on the CPU: every case of the operators' tests against the reference, forward and backward.

use super::source::on_cpu;
use super::{Arg, source};
use crate::dispatch::{with_gpu_on_cpu, with_reference};
use candle_core::{CpuStorage, DType, Device, Result, Tensor, Var, bail};

#[path = "../../tests/cases/mod.rs"]
mod cases;

use cases::{Case, evaluate};

pub(super) fn address(storage: &CpuStorage) -> Result<u64> {
    Ok(match storage {
        CpuStorage::U8(values) => values.as_ptr() as u64,
        CpuStorage::U32(values) => values.as_ptr() as u64,
        CpuStorage::I32(values) => values.as_ptr() as u64,
        CpuStorage::I64(values) => values.as_ptr() as u64,
        CpuStorage::BF16(values) => values.as_ptr() as u64,
        CpuStorage::F16(values) => values.as_ptr() as u64,
        CpuStorage::F32(values) => values.as_ptr() as u64,
        _ => bail!("a kernel was given another element type"),
    })
}

/// As on a GPU, but that a thread (or a block) after the last one of the kernel runs as well: it must do nothing. C does not mind in
/// which order numbers and floats come (see `on_cpu::run`), a GPU does.
#[expect(unsafe_code, reason = "calls C")]
pub(super) fn launch(kernel: &str, n: usize, args: &[Arg]) -> Result<()> {
    let kinds = args.iter().map(|arg| match arg {
        Arg::Pointer(_) => "*",
        Arg::Int(_) => "int",
        Arg::Float(_) => "float",
    });
    assert_eq!(kinds.collect::<Vec<_>>(), source::parameters(kernel), "{kernel}");
    // SAFETY: the arguments have the types of the kernel's parameters; that they are the right ones is what is tested.
    unsafe { on_cpu::run(kernel, n + 1, args) };
    Ok(())
}

fn largest(xs: &Tensor) -> f64 {
    let values: Vec<f64> = xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().fold(0.0, |most, v| if v.is_nan() { f64::INFINITY } else { most.max(v.abs()) })
}

/// The Euclidean norm of the difference, beside that of what is expected.
fn error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
    let difference = norm(&(found - expected)?)?;
    Ok(if difference == 0.0 { 0.0 } else { difference / norm(expected)?.max(1e-30) })
}

fn compare(case: &Case, dtype: DType, bound: f64) -> Result<Vec<String>> {
    // Where bf16 or f16 rounds a value onto a kink, its derivative jumps; and sums over a handful of values cancel.
    let rough =
        ["Relu6", "HardSwish", "HardSigmoid", "[3, 1, 2, 3]"].iter().any(|part| case.name.contains(part));
    let bound = if dtype != DType::F32 && rough { 0.1 } else { bound };
    let (output, gradients) = with_gpu_on_cpu(|| evaluate(case, &Device::Cpu, dtype, DType::F32))?;
    let (expected, of_reference) = with_reference(|| evaluate(case, &Device::Cpu, DType::F64, DType::F64))?;
    let pairs = std::iter::once((&output, &expected)).chain(gradients.iter().zip(&of_reference));
    let mut failures = Vec::new();
    for (i, (found, expected)) in pairs.enumerate() {
        let error = error(found, expected)?;
        if error.is_nan() || error > bound {
            failures.push(format!("{}: tensor {i} off by {error:.1e}", case.name));
        }
    }
    Ok(failures)
}

fn run_all(dtype: DType, bound: f64) {
    let mut failures = Vec::new();
    for case in cases::all() {
        match compare(&case, dtype, bound) {
            Ok(found) => failures.extend(found),
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn kernels_equal_the_reference_in_f32() {
    run_all(DType::F32, 1e-5);
}

#[test]
fn kernels_equal_the_reference_in_bf16() {
    run_all(DType::BF16, 2e-2);
}

#[test]
fn kernels_equal_the_reference_in_f16() {
    run_all(DType::F16, 5e-3);
}

#[test]
#[expect(unsafe_code, reason = "calls C")]
fn bf16_is_rounded_as_the_half_crate_rounds() {
    let values: Vec<f32> = (0..4000u32)
        .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
        .chain([f32::NAN, f32::INFINITY, 0.0])
        .collect();
    let mut rounded = vec![half::bf16::ZERO; values.len()];

    let args = [
        Arg::Pointer(values.as_ptr() as u64),
        Arg::Pointer(rounded.as_mut_ptr() as u64),
        Arg::Int(1),
        Arg::Int(1),
        Arg::Int(values.len() as i32),
    ];
    // SAFETY: the kernel reads and writes as many elements as there are.
    unsafe { on_cpu::run("pack_weight_bf16", values.len(), &args) };
    for (value, found) in values.iter().zip(&rounded) {
        let expected = half::bf16::from_f32(*value);
        let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(same, "{value}: {found} and {expected}");
    }
}

#[test]
fn f64_has_no_kernels() {
    assert!(source::suffix(DType::F16).is_ok() && source::suffix(DType::F64).is_err());
}

/// Where NVRTC is at hand, as the library that `ZOO_NVRTC` names, it compiles the kernels for the GPUs they are for.
#[test]
#[expect(unsafe_code, reason = "calls C")]
fn nvrtc_compiles_the_kernels() {
    use std::ffi::{CString, c_char, c_int, c_void};
    use std::ptr::null_mut;

    let Some(path) = std::env::var_os("ZOO_NVRTC") else { return };
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let source = CString::new(source::cuda()).unwrap();
    // SAFETY: the functions have these types in nvrtc.h of CUDA 13; strings end with a zero and live until the calls
    // return, and the log's buffer is as long as NVRTC says.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "{path:?} cannot be loaded");
        let symbol = |name: &str| {
            let name = CString::new(name).unwrap();
            let address = libc::dlsym(library, name.as_ptr());
            assert!(!address.is_null(), "no {name:?}");
            address
        };
        type Create = unsafe extern "C" fn(
            *mut *mut c_void,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
        type LogSize = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
        type Log = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;
        let create: Create = std::mem::transmute(symbol("nvrtcCreateProgram"));
        let compile: Compile = std::mem::transmute(symbol("nvrtcCompileProgram"));
        let log_size: LogSize = std::mem::transmute(symbol("nvrtcGetProgramLogSize"));
        let get_log: Log = std::mem::transmute(symbol("nvrtcGetProgramLog"));
        for arch in ["compute_80", "compute_90"] {
            let mut program = null_mut();
            let name = c"zoo.cu".as_ptr();
            assert_eq!(create(&raw mut program, source.as_ptr(), name, 0, null_mut(), null_mut()), 0);
            let option = CString::new(format!("--gpu-architecture={arch}")).unwrap();
            let result = compile(program, 1, [option.as_ptr()].as_ptr());
            let mut size = 0;
            assert_eq!(log_size(program, &raw mut size), 0);
            let mut log = vec![0u8; size];
            assert_eq!(get_log(program, log.as_mut_ptr().cast()), 0);
            assert_eq!(result, 0, "{arch}: {}", String::from_utf8_lossy(&log));
        }
    }
}

#[test]
fn one_launch_steps_every_parameter_and_one_averages_all() {
    let shapes: [&[usize]; 3] = [&[3, 5], &[1], &[2, 2, 2]];
    let fill = |shape: &[usize], start: f32| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| (start + i as f32 * 0.37).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let state = || -> Vec<(Var, Var, Tensor)> {
        let of_shape = |(i, shape): (usize, &&[usize])| {
            let start = i as f32;
            let var = |start| Var::from_tensor(&fill(shape, start)).unwrap();
            (var(start), var(start + 0.1), fill(shape, start + 0.2))
        };
        shapes.iter().enumerate().map(of_shape).collect()
    };
    let step = |i: usize, lr: f64, nesterov| crate::sgd::Sgd {
        lr: lr * (1.0 + i as f64),
        momentum: 0.9,
        nesterov,
        weight_decay: if i == 1 { 0.0 } else { 5e-4 },
    };
    for nesterov in [false, true] {
        let (one, many) = (state(), state());
        for (i, (p, v, g)) in one.iter().enumerate() {
            crate::sgd::sgd_step(p, v, g, &step(i, 0.1, nesterov)).unwrap();
        }
        let steps: Vec<_> =
            many.iter().enumerate().map(|(i, (p, v, g))| (p, v, g, step(i, 0.1, nesterov))).collect();
        with_gpu_on_cpu(|| crate::sgd::sgd_steps(&steps)).unwrap();
        for ((p, v, _), (q, w, _)) in one.iter().zip(&many) {
            assert!(largest(&(p.as_tensor() - q.as_tensor()).unwrap()) < 1e-6);
            assert!(largest(&(v.as_tensor() - w.as_tensor()).unwrap()) < 1e-6);
        }
        let averages = |state: &[(Var, Var, Tensor)]| {
            let pairs: Vec<(&Var, &Var)> = state.iter().map(|(p, v, _)| (v, p)).collect();
            crate::sgd::average_into(&pairs, 0.9).unwrap();
        };
        averages(&one);
        with_gpu_on_cpu(|| averages(&many));
        for (i, ((p, v, _), (_, w, _))) in one.iter().zip(&many).enumerate() {
            assert!(largest(&(v.as_tensor() - w.as_tensor()).unwrap()) < 1e-6, "{i}");
            // That it moved at all.
            assert!(largest(&(v.as_tensor() - p.as_tensor()).unwrap()) > 1e-3, "{i}");
        }
    }
}
