//! Tensors given by a formula of name and index: scripts/golden/formula.py, repeated.

use candle_core::{DType, Device, Result, Tensor};

/// The variance of the weights is about 1 / fan_in.
const GAIN: f64 = 0.7;

/// FNV-1a, 64 bits.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// Values in [-1, 1), multiples of 2⁻²³, in row-major order.
fn uniform(name: &str, n: usize) -> Vec<f64> {
    let hash = hash(name);
    let draw = |i: u64| {
        let mut z = hash.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f64 / f64::from(1 << 24) * 2.0 - 1.0
    };
    (0..n as u64).map(draw).collect()
}

/// Images or probes.
pub(crate) fn tensor(name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::from_vec(uniform(name, shape.iter().product()), shape, &Device::Cpu)?.to_dtype(dtype)
}

/// The entry `name` of a state dict, in f32.
pub(crate) fn state(name: &str, shape: &[usize]) -> Result<Tensor> {
    let (scale, shift) = match name.rsplit('.').next() {
        _ if shape.len() >= 2 => (GAIN * (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt(), 0.0),
        Some("running_var") => (0.5, 1.0),
        Some("running_mean") => (0.2, 0.0),
        Some("weight") => (0.2, 1.0),
        Some("bias") => (0.1, 0.0),
        _ => candle_core::bail!("the formula has no rule for {name}"),
    };
    let values = uniform(name, shape.iter().product()).into_iter().map(|u| (shift + scale * u) as f32);
    Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)
}
