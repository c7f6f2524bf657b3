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
        return Ok(FeatureMap::on_gpu(on_gpu::masked(&xs, shape, &noise.draw(shape, 1.0 - p))?));
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
    use crate::cuda::{Arg, Gradients, Map, Operator, launch, pointer, record, times, uninitialised};
    use crate::rng::Draw;
    use candle_core::{Result, Tensor};

    /// Words of a block of ChaCha.
    const WORDS: u128 = 16;

    /// With one factor for each element or for each image.
    pub(super) fn masked(xs: &Map, shape: &[usize], draw: &Draw) -> Result<Map> {
        let values = xs.values();
        let mask = mask(values, shape, draw)?;
        let per_value = values.elem_count() / mask.elem_count().max(1);
        let ys = times(values, &mask, (per_value, 1))?;
        record(&[xs], &[], ys, || Mask { mask, per_value })
    }

    /// In the element type of a map, drawn where the map is: a thread for each block of ChaCha.
    pub(super) fn mask(like: &Tensor, shape: &[usize], draw: &Draw) -> Result<Tensor> {
        let mask = uninitialised(shape, like.dtype(), like.device())?;
        let Draw { key, first_word, threshold, scale } = draw;
        let words = |bytes: &[u8]| -> Vec<Arg> {
            bytes.as_chunks::<4>().0.iter().map(|&word| i32::from_le_bytes(word).into()).collect()
        };
        let (block, skipped) = (first_word / WORDS, (first_word % WORDS) as usize);
        let mut args = vec![pointer(&mask)?];
        // The last two words of the key are zeros, and so is the upper half of the block's number.
        args.extend(words(&key[..24]));
        args.extend(words(&(block as u64).to_le_bytes()));
        args.extend([Arg::from(skipped), (*threshold as u32 as i32).into(), (*scale).into()]);
        args.push(mask.elem_count().into());
        let blocks = (skipped + mask.elem_count()).div_ceil(WORDS as usize);
        launch(like.device(), "keep_mask", like.dtype(), blocks, &args)?;
        Ok(mask)
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Tensor};

    /// What a GPU draws, here on the CPU, is what the CPU draws.
    #[test]
    fn a_gpu_draws_the_same_masks() -> Result<()> {
        for dtype in [DType::F32, DType::BF16] {
            for (first, shape, p) in
                [(0, vec![3, 5, 1, 7], 0.5), (5, vec![2, 1, 1, 3], 0.1), (1 << 33, vec![9, 1, 1, 1], 0.9)]
            {
                let noise = || {
                    let noise = Noise::new(1 << 40 | 3);
                    noise.set_calls(1 << 35 | 11);
                    noise.set_first_image(first);
                    noise
                };
                let like = Tensor::zeros(1, dtype, &Device::Cpu)?;
                let drawn = on_gpu::mask(&like, &shape, &noise().draw(&shape, 1.0 - p))?;
                let expected = noise().keep_mask(&shape, 1.0 - p, &Device::Cpu)?.to_dtype(dtype)?;
                let values = |mask: &Tensor| mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
                assert_eq!(values(&drawn)?, values(&expected)?, "{dtype:?} {first} {shape:?}");
            }
        }
        Ok(())
    }
}
