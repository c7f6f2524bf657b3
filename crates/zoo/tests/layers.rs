//! Every convolution of every model against the reference, forward and backward, on maps of few pixels: which kernel serves
//! a layer depends on its channels, groups and window first of all.

use candle_core::{DType, Device, Result, Tensor, Var};
use std::collections::BTreeSet;
use zoo::{Summary, registry};
use zoo_ops::{Conv2dConfig, FeatureMap, backward, conv2d, with_reference};

/// Rows and columns of a result, at most: whole tiles of minimal filtering, and registers of pixels that are not whole.
const SIDE: usize = 12;
/// The same where a layer has many channels.
const SMALL_SIDE: usize = 5;
const MANY_MACS_PER_PIXEL: usize = 1 << 20;

/// A layer on one image: channels in and out, groups, kernel, stride, padding and dilation, height and width of the result.
type Layer = (usize, usize, usize, [(usize, usize); 4], (usize, usize));

/// Of all models, at the size that they are for and as they are for small images.
fn layers() -> Result<BTreeSet<Layer>> {
    let mut layers = BTreeSet::new();
    for spec in registry() {
        let (config, mut small) = (spec.config(), spec.config());
        small.image_size = (config.image_size.0.min(32), config.image_size.1.min(32));
        // Some are for large images only.
        let small = Summary::new(spec.name, &small).ok();
        for summary in std::iter::once(Summary::new(spec.name, &config)?).chain(small) {
            for row in summary.layers.iter().chain(&summary.auxiliary).filter(|row| row.kind == "conv2d") {
                let Some(w) = row.window else { continue };
                let ([c_out, height, width], taps) = (row.output, w.kernel.0 * w.kernel.1);
                let group = row.macs as usize / (height * width * c_out * taps);
                let most = if group * taps * c_out > MANY_MACS_PER_PIXEL { SMALL_SIDE } else { SIDE };
                let window = [w.kernel, w.stride, w.padding, w.dilation];
                let out = (height.min(most), width.min(most));
                layers.insert((group * row.groups, c_out, row.groups, window, out));
            }
        }
    }
    Ok(layers)
}

/// Numbers in [-1, 1) without a pattern, which bf16 has.
fn numbers(seed: usize, shape: &[usize]) -> Result<Tensor> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as f32 / 128.0 - 1.0
    };
    Tensor::from_vec((0..shape.iter().product()).map(|_| next()).collect::<Vec<_>>(), shape, &Device::Cpu)
}

/// The result, and the gradients of image and weight.
fn run(layer: &Layer, dtype: DType) -> Result<[Tensor; 3]> {
    let &(c_in, c_out, groups, [kernel, stride, padding, dilation], out) = layer;
    let seen = |out: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        ((out - 1) * stride + dilation * (kernel - 1) + 1).saturating_sub(2 * padding).max(1)
    };
    let size = [
        seen(out.0, kernel.0, stride.0, padding.0, dilation.0),
        seen(out.1, kernel.1, stride.1, padding.1, dilation.1),
    ];
    let image = Var::from_tensor(&numbers(1, &[1, c_in, size[0], size[1]])?.to_dtype(dtype)?)?;
    let weight = Var::from_tensor(&numbers(2, &[c_out, c_in / groups, kernel.0, kernel.1])?)?;
    let config = Conv2dConfig { stride, padding, dilation, groups };
    let ys = conv2d(&FeatureMap::from_nchw(image.as_tensor())?, &weight, None, &config)?.to_nchw()?;
    let probe = numbers(3, ys.dims())?.to_dtype(dtype)?;
    let gradients = backward(&(&ys * probe)?.sum_all()?)?;
    let of = |var: &Var| gradients.get(var).cloned().expect("a gradient").to_dtype(DType::F32);
    Ok([ys.detach().to_dtype(DType::F32)?, of(&image)?, of(&weight)?])
}

#[test]
fn layers_equal_the_reference() -> Result<()> {
    let layers = layers()?;
    assert!(layers.len() > 1000, "{}", layers.len());
    let mut failures = Vec::new();
    for layer in &layers {
        let expected = with_reference(|| run(layer, DType::F32))?;
        for (dtype, bound) in [(DType::F32, 3e-5), (DType::BF16, 1e-2)] {
            let found = run(layer, dtype)?;
            for ((found, expected), what) in found.iter().zip(&expected).zip(["output", "input", "weight"]) {
                let norm = |t: &Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
                let error = norm(&(found - expected)?)? / norm(expected)?;
                if error.is_nan() || error > bound {
                    failures.push(format!("{layer:?} in {dtype:?}: {what} off by {error:.1e}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// The other instruction sets of this machine, each in a process of its own, since the choice is made once.
#[test]
fn layers_equal_the_reference_on_lower_instruction_sets() {
    let program = std::env::current_exe().expect("a test knows its program");
    for set in ["portable", "avx2", "avx512"] {
        let mut tests = std::process::Command::new(&program);
        let output =
            tests.args(["--exact", "layers_equal_the_reference"]).env("ZOO_INSTRUCTION_SET", set).output();
        let output = output.expect("the program of a test runs again");
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
