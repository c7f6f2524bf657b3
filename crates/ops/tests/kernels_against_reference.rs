//! Every CPU kernel against its reference in f64: outputs and all gradients, in f32 and bf16.

mod cases;

use candle_core::{DType, Device, Result, Tensor};
use cases::{Case, evaluate};
use zoo_ops::dispatch::{InstructionSet, instruction_set};
use zoo_ops::{Inference, set_strict_f32, with_reference};

/// Largest difference over the root mean square of the expected values.
fn max_error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    assert_eq!(found.dims(), expected.dims());
    if found.elem_count() == 0 {
        return Ok(0.0);
    }
    let largest = (found - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
    let rms = expected.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt();
    Ok(if largest == 0.0 { 0.0 } else { largest / rms.max(1e-30) })
}

/// Relative error in the Euclidean norm.
fn l2_error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
    let difference = norm(&(found - expected)?)?;
    Ok(if difference == 0.0 { 0.0 } else { difference / norm(expected)?.max(1e-30) })
}

fn compare(
    case: &Case,
    dtype: DType,
    strict: bool,
    bound: f64,
    error: impl Fn(&Tensor, &Tensor) -> Result<f64>,
) -> Result<Vec<String>> {
    // Where bf16 rounds a value onto a kink, its derivative jumps; and sums over a handful of values cancel.
    let rough =
        ["Relu6", "HardSwish", "HardSigmoid", "[3, 1, 2, 3]"].iter().any(|part| case.name.contains(part));
    let bound = if dtype == DType::BF16 && rough { 0.1 } else { bound };
    // F(4×4, 3×3), which serves these unless it must not, loses digits to the constants of its transforms.
    const MINIMAL_FILTERING: [&str; 6] =
        ["2x16x32x32", "2x64x32x32", "7x48x14x13", "6x50x15x17", "9x19x11x14", "9x16x14x11"];
    let winograd = MINIMAL_FILTERING.iter().any(|part| case.name.contains(part));
    // So do three products of bf16 for one of f32.
    let tiles = instruction_set() == InstructionSet::Amx && case.name.starts_with("conv2d");
    let bound = if (winograd || tiles) && !strict { bound.max(1e-4) } else { bound };
    let (output, gradients) = evaluate(case, &Device::Cpu, dtype, DType::F32)?;
    let (expected, expected_gradients) =
        with_reference(|| evaluate(case, &Device::Cpu, DType::F64, DType::F64))?;
    let mut failures = Vec::new();
    let mut check = |what: String, found: &Tensor, expected: &Tensor| -> Result<()> {
        let error = error(found, expected)?;
        if error.is_nan() || error > bound {
            failures.push(format!("{}: {what} off by {error:.1e}", case.name));
        }
        Ok(())
    };
    check("output".into(), &output, &expected)?;
    for (i, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        check(format!("gradient {i}"), found, expected)?;
    }
    // Weights are arranged by the first pass of an inference and kept for the second; few tiles suffice for minimal
    // filtering there.
    let bound = if strict { bound } else { bound.max(1e-4) };
    for output in infer(case, dtype)? {
        let error = error(&output, &expected)?;
        if error.is_nan() || error > bound {
            failures.push(format!("{}: output of an inference off by {error:.1e}", case.name));
        }
    }
    Ok(failures)
}

/// The outputs of two passes of an inference.
fn infer(case: &Case, dtype: DType) -> Result<[Tensor; 2]> {
    let vars = cases::inputs(case, &Device::Cpu, dtype, DType::F32)?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let inference = Inference::default();
    let pass = || inference.run(|| (case.run)(&tensors))?.to_dtype(DType::F64);
    Ok([pass()?, pass()?])
}

fn run_all(
    dtype: DType,
    strict: bool,
    bound: f64,
    error: impl Fn(&Tensor, &Tensor) -> Result<f64>,
) -> Result<()> {
    let mut failures = Vec::new();
    for case in cases::all() {
        match compare(&case, dtype, strict, bound, &error) {
            Ok(found) => failures.extend(found),
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn f32_kernels_equal_the_reference() -> Result<()> {
    run_all(DType::F32, false, 3e-5, max_error)?;
    // The other test may change to these algorithms in its midst: its bound is far beyond what they differ by.
    set_strict_f32(true);
    run_all(DType::F32, true, 1.5e-5, max_error)
}

/// bf16 keeps 8 bits: half a unit in the last place is 0.2 %, and gradients pass several roundings.
#[test]
fn bf16_kernels_equal_the_reference() -> Result<()> {
    run_all(DType::BF16, false, 1.5e-2, l2_error)
}

/// The other instruction sets of this machine, each in a process of its own, since the choice is made once.
#[test]
fn lower_instruction_sets_equal_the_reference() {
    let program = std::env::current_exe().expect("a test knows its program");
    for set in ["portable", "avx2", "avx512"] {
        let mut tests = std::process::Command::new(&program);
        let output = tests.arg("_kernels_equal").env("ZOO_INSTRUCTION_SET", set).output();
        let output = output.expect("the program of a test runs again");
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// On the GPU that `ZOO_TEST_GPU` numbers: the reference is computed on the CPU.
#[cfg(feature = "cuda")]
#[test]
fn gpu_equals_the_reference() -> Result<()> {
    let Some(number) = std::env::var("ZOO_TEST_GPU").ok().and_then(|number| number.parse().ok()) else {
        return Ok(());
    };
    let gpu = zoo_ops::cuda::open(number)?;
    let mut failures = Vec::new();
    // cuDNN may round the factors of f32 to TF32's 10 bits unless it must not.
    for (dtype, strict, bound) in [
        (DType::F32, true, 1e-5),
        (DType::F32, false, 2e-3),
        (DType::BF16, false, 1.5e-2),
        (DType::F16, false, 5e-3),
    ] {
        set_strict_f32(strict);
        // Of maps without elements: candle's kernels are launched with no block then, which CUDA refuses.
        for case in cases::all().into_iter().filter(|case| !case.shapes.iter().flatten().any(|&n| n == 0)) {
            let rough = ["Relu6", "HardSwish", "HardSigmoid", "[3, 1, 2, 3]"].iter();
            let bound =
                if rough.clone().any(|part| case.name.contains(part)) { f64::max(bound, 0.1) } else { bound };
            let found = evaluate(&case, &gpu, dtype, DType::F32);
            let (expected, of_reference) =
                with_reference(|| evaluate(&case, &Device::Cpu, DType::F64, DType::F64))?;
            let (output, gradients) = match found {
                Ok(found) => found,
                Err(error) => {
                    failures.push(format!("{} {dtype:?}: {error}", case.name));
                    continue;
                }
            };
            let pairs = std::iter::once((&output, &expected)).chain(gradients.iter().zip(&of_reference));
            for (i, (found, expected)) in pairs.enumerate() {
                let error = l2_error(found, expected)?;
                if error.is_nan() || error > bound {
                    failures.push(format!("{} {dtype:?}: tensor {i} off by {error:.1e}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}
