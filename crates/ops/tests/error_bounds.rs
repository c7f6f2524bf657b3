//! How exact each algorithm of a convolution is: the largest error of its output and gradients, relative to
//! their root mean square, against the reference in f64. `conv2d/cpu/README.md` quotes these bounds.

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_ops::dispatch::{InstructionSet, instruction_set};
use zoo_ops::{Conv2dConfig, FeatureMap, backward, conv2d, set_strict_f32, with_reference};

/// (algorithm, stride, strict, dtype, shapes, greatest error of the output, the input gradient and the weight gradient)
type Row = (&'static str, usize, bool, DType, &'static [[usize; 4]], [f64; 3]);

const BOUNDS: &[Row] = &[
    ("implicit gemm", 2, true, DType::F32, &SHAPES, [1.5e-5, 1.5e-5, 1.5e-5]),
    ("winograd f2x2", 1, true, DType::F32, &SHAPES, [6e-6, 6e-6, 6e-6]),
    ("winograd f4x4", 1, false, DType::F32, &SHAPES, [1e-4, 1e-4, 4e-5]),
    ("pixels in lanes", 1, true, DType::F32, &FEW, [2e-6, 3e-6, 3e-6]),
    (ON_AMX, 2, false, DType::F32, &SHAPES, [6e-5, 6e-5, 6e-5]),
    ("implicit gemm in bf16", 2, true, DType::BF16, &SHAPES, [3e-2, 3e-2, 1.5e-5]),
    ("winograd f2x2 in bf16", 1, true, DType::BF16, &SHAPES, [3e-2, 3e-2, 6e-6]),
    ("winograd f4x4 in bf16", 1, false, DType::BF16, &SHAPES, [3e-2, 3e-2, 4e-5]),
];

/// What products in f32 are on AMX; its row is of such machines only.
const ON_AMX: &str = "three times bf16 on amx";

/// [batch, channels in, side, channels out]
const SHAPES: [[usize; 4]; 3] = [[2, 64, 32, 64], [4, 256, 12, 128], [16, 512, 4, 512]];

/// Those of few channels on both sides.
const FEW: [[usize; 4]; 2] = [[8, 1, 28, 6], [4, 3, 40, 8]];

/// Numbers in [-1, 1) without a pattern, the same on every machine.
fn numbers(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    Tensor::from_vec((0..shape.iter().product()).map(next).collect(), shape, &Device::Cpu)
}

/// Output, input gradient and weight gradient under a given gradient of the output.
fn run(parts: &[Tensor; 3], stride: usize, map: DType, parameter: DType) -> Result<[Tensor; 3]> {
    let images = Var::from_tensor(&parts[0].to_dtype(map)?)?;
    let weight = Var::from_tensor(&parts[1].to_dtype(parameter)?)?;
    let xs = FeatureMap::from_nchw(images.as_tensor())?;
    let ys = conv2d(&xs, weight.as_tensor(), None, &Conv2dConfig::new(stride, 1))?.to_nchw()?;
    let gradients = backward(&(&ys * parts[2].to_dtype(map)?)?.sum_all()?)?;
    let of = |var: &Var| gradients.get(var.as_tensor()).cloned().expect("a gradient").to_dtype(DType::F64);
    Ok([ys.to_dtype(DType::F64)?, of(&images)?, of(&weight)?])
}

fn error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let rms = expected.sqr()?.mean_all()?.sqrt()?.to_scalar::<f64>()?;
    Ok((found - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()? / rms)
}

#[test]
fn errors_stay_within_their_bounds() -> Result<()> {
    for &(algorithm, stride, strict, dtype, shapes, bounds) in BOUNDS {
        if algorithm == ON_AMX && instruction_set() != InstructionSet::Amx {
            continue;
        }
        set_strict_f32(strict);
        for &[n, c_in, side, c_out] in shapes {
            let parts = [
                numbers(1, &[n, c_in, side, side])?,
                numbers(2, &[c_out, c_in, 3, 3])?,
                numbers(3, &[n, c_out, side / stride, side / stride])?,
            ];
            // What bf16 loses of the inputs is not the algorithm's doing.
            let parts = parts.map(|part| part.to_dtype(dtype).and_then(|part| part.to_dtype(DType::F32)));
            let [images, weight, gradient] = parts;
            let parts = [images?, weight?, gradient?];
            let expected = with_reference(|| run(&parts, stride, DType::F64, DType::F64))?;
            let found = run(&parts, stride, dtype, DType::F32)?;
            for (i, what) in ["output", "input gradient", "weight gradient"].into_iter().enumerate() {
                let error = error(&found[i], &expected[i])?;
                println!("{algorithm}, {c_in} to {c_out} channels at {side}: {what} {error:.1e}");
                assert!(error <= bounds[i], "{algorithm}, {c_in} to {c_out}, {what}: {error:e}");
                // A bound that is far from what is seen says nothing.
                assert!(error >= bounds[i] / 100.0, "{algorithm}, {c_in} to {c_out}, {what}: {error:e}");
            }
        }
    }
    Ok(())
}
