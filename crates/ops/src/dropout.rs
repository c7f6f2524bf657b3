//! Dropout and drop-path, with masks from a seeded source.

use crate::FeatureMap;
use crate::element::Element;
use crate::feature_map::View;
use crate::parallel::chunks;
use crate::pool::{Buffer, take};
use crate::rng::Noise;
use crate::simd::multiversion;
use crate::slot::{Backward, Gradients, Kernel};
use crate::trace::Step;
use candle_core::{Device, Result, bail};

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
    let apply = train && p > 0.0;
    #[cfg(any(test, feature = "cuda"))]
    if apply && let Some(xs) = xs.gpu()? {
        let mask = noise.keep_mask(shape, 1.0 - p, xs.values().device())?.to_dtype(xs.values().dtype())?;
        return Ok(FeatureMap::on_gpu(on_gpu::masked(&xs, mask)?));
    }
    match xs.view()? {
        View::Traced(t) => Ok(FeatureMap::traced_step(t, t.dims, Step::new(kind))),
        _ if !apply => Ok(xs.clone()),
        View::Reference(xs) => {
            let mask = noise.keep_mask(shape, 1.0 - p, xs.device())?.to_dtype(xs.dtype())?;
            Ok(FeatureMap::stored(xs.broadcast_mul(&mask)?))
        }
        View::Cpu(xs) => {
            let mask = noise.keep_mask(shape, 1.0 - p, &Device::Cpu)?.flatten_all()?.to_vec1()?;
            Ok(FeatureMap::slot(Mask(mask).apply(&[&xs], &[], xs.dims())?))
        }
    }
}

#[cfg(any(test, feature = "cuda"))]
mod on_gpu {
    use crate::cuda::{Gradients, Map, Operator, record, times};
    use candle_core::{Result, Tensor};

    /// With one factor for each element or for each image.
    pub(super) fn masked(xs: &Map, mask: Tensor) -> Result<Map> {
        let values = xs.values();
        let per_value = values.elem_count() / mask.elem_count().max(1);
        let ys = times(values, &mask, (per_value, 1))?;
        record(&[xs], &[], ys, || Mask { mask, per_value })
    }

    struct Mask {
        mask: Tensor,
        /// Elements that have a factor in common.
        per_value: usize,
    }

    impl Operator for Mask {
        const NAME: &'static str = "dropout";

        fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
            Ok((vec![Some(times(&dys, &self.mask, (self.per_value, 1))?)], Vec::new()))
        }
    }
}

/// What elements are multiplied by: each value serves as many neighbours as there are elements to a value.
struct Mask(Vec<f32>);

impl Mask {
    const CHUNK: usize = 16 * 1024;

    fn multiply<T: Element>(&self, xs: &mut [T]) {
        let per_value = xs.len() / self.0.len().max(1);
        chunks(xs, Self::CHUNK * per_value, |i, xs| {
            let mask = &self.0[i * Self::CHUNK..];
            if per_value == 1 {
                scale(xs, mask);
            } else {
                for (xs, &factor) in xs.chunks_exact_mut(per_value).zip(mask) {
                    for x in xs {
                        *x = T::from_f32(x.to_f32() * factor);
                    }
                }
            }
        });
    }
}

multiversion! {
    fn scale<T: Element>(xs: &mut [T], factors: &[f32]) {
        for (x, &factor) in xs.iter_mut().zip(factors) {
            *x = T::from_f32(x.to_f32() * factor);
        }
    }
}

impl Kernel for Mask {
    const NAME: &'static str = "dropout";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let mut ys = take::<T>(maps[0].len());
        ys.copy_from_slice(maps[0]);
        self.multiply(&mut ys);
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        self.multiply(call.gradient);
        Ok((vec![Some(std::mem::take(call.gradient))], Vec::new()))
    }
}
