//! The tensors of `scripts/golden/formula.py`: functions of a name and an index, the same here and there.

use candle_core::{DType, Device, Result, Tensor};

/// u of the script: values in [-1, 1) that are exact in f32.
pub(crate) fn uniform(name: &str, n: usize) -> Vec<f64> {
    let hash =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (1..=n as u64)
        .map(|i| {
            let z = hash.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let z = z ^ (z >> 31);
            (z >> 40) as f64 / f64::from(1 << 24) * 2.0 - 1.0
        })
        .collect()
}

/// A tensor of u, in f64.
pub(crate) fn tensor(name: &str, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(uniform(name, shape.iter().product()), shape, &Device::Cpu)
}

/// The entry `name` of a state dict, in f32.
pub(crate) fn state(name: &str, shape: &[usize]) -> Result<Tensor> {
    let bound = |shape: &[usize]| 0.7 * (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
    let (scale, offset) = match shape {
        [_, _, ..] => (bound(shape), 0.0),
        _ if name.ends_with("running_var") => (0.5, 1.0),
        _ if name.ends_with("running_mean") => (0.2, 0.0),
        _ if name.ends_with("weight") => (0.2, 1.0),
        _ => (0.1, 0.0),
    };
    (tensor(name, shape)? * scale)?.affine(1.0, offset)?.to_dtype(DType::F32)
}
