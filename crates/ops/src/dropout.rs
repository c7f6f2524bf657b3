//! Dropout and drop-path, with masks from a seeded source.

use crate::FeatureMap;
use crate::feature_map::View;
use crate::rng::Noise;
use crate::trace::Step;
use candle_core::{Result, bail};

/// Zeroes each element with probability `p` and divides the others by `1 - p` (Srivastava et al. 2014, in the
/// inverted form of PyTorch). The identity without `train`.
///
/// # Errors
/// If `p` is not in [0, 1).
pub fn dropout(xs: &FeatureMap, p: f64, noise: &Noise, train: bool) -> Result<FeatureMap> {
    let (n, h, w, c) = xs.dims();
    masked("dropout", xs, p, noise, train, &[n, h, w, c])
}

/// Zeroes whole images with probability `p` and divides the others by `1 - p` (stochastic depth, arXiv
/// 1603.09382). The identity without `train`.
///
/// # Errors
/// If `p` is not in [0, 1).
pub fn drop_path(xs: &FeatureMap, p: f64, noise: &Noise, train: bool) -> Result<FeatureMap> {
    let n = xs.dims().0;
    masked("drop_path", xs, p, noise, train, &[n, 1, 1, 1])
}

fn masked(
    kind: &'static str,
    xs: &FeatureMap,
    p: f64,
    noise: &Noise,
    train: bool,
    shape: &[usize],
) -> Result<FeatureMap> {
    if !(0.0..1.0).contains(&p) {
        bail!("{kind}: a probability of {p}; it must be at least 0 and less than 1");
    }
    match xs.view() {
        View::Traced(t) => Ok(FeatureMap::traced_step(t, t.dims, Step::new(kind))),
        View::Stored(stored) => {
            if !train || p == 0.0 {
                return Ok(xs.clone());
            }
            let mask = noise.keep_mask(shape, 1.0 - p, stored.device())?.to_dtype(stored.dtype())?;
            Ok(FeatureMap::stored(stored.broadcast_mul(&mask)?))
        }
    }
}
