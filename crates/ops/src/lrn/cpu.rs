//! Local response normalisation, pixel by pixel.

use super::LocalResponseNorm;
use crate::element::{Element, Elements, by_element, operand};
use crate::parallel::{buffer, chunks};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

/// Pixels per task.
const PIXELS: usize = 64;

pub(super) fn local_response_norm(xs: &Tensor, norm: LocalResponseNorm) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(Op(norm))
}

struct Op(LocalResponseNorm);

impl Op {
    /// `k + alpha / size · Σ x²` for each channel of a pixel.
    fn bases<T: Element>(&self, pixel: &[T], bases: &mut [f32]) {
        let norm = &self.0;
        let factor = (norm.alpha / norm.size as f64) as f32;
        for (ch, base) in bases.iter_mut().enumerate() {
            let near = ch.saturating_sub(norm.size / 2)..(ch + norm.size.div_ceil(2)).min(pixel.len());
            let squares: f32 = pixel[near].iter().map(|x| x.to_f32() * x.to_f32()).sum();
            *base = norm.k as f32 + factor * squares;
        }
    }

    fn forward<T: Element>(&self, xs: &[T], c: usize) -> Vec<T> {
        let mut ys = buffer::<T>(xs.len());
        chunks(&mut ys, PIXELS * c, |i, out| {
            let mut bases = buffer::<f32>(c);
            let xs = &xs[i * PIXELS * c..][..out.len()];
            for (out, pixel) in out.chunks_exact_mut(c).zip(xs.chunks_exact(c)) {
                self.bases(pixel, &mut bases);
                for ((o, &x), &base) in out.iter_mut().zip(pixel).zip(&bases) {
                    *o = T::from_f32(x.to_f32() * base.powf(-self.0.beta as f32));
                }
            }
        });
        ys
    }
}

fn backward<T: Element>(op: &Op, xs: &Tensor, dys: &Tensor) -> Result<Tensor> {
    let c = xs.dim(3)?;
    let norm = &op.0;
    let (x, dy) = (Elements::<T>::of(xs)?, Elements::<T>::of(dys)?);
    let (x, dy): (&[T], &[T]) = (&x, &dy);
    let factor = (2.0 * norm.alpha * norm.beta / norm.size as f64) as f32;
    let mut dxs = buffer::<T>(x.len());
    chunks(&mut dxs, PIXELS * c, |i, out| {
        let (mut bases, mut pull) = (buffer::<f32>(c), buffer::<f32>(c));
        let at = i * PIXELS * c..i * PIXELS * c + out.len();
        let pixels = x[at.clone()].chunks_exact(c).zip(dy[at].chunks_exact(c));
        for (out, (pixel, dy)) in out.chunks_exact_mut(c).zip(pixels) {
            op.bases(pixel, &mut bases);
            for ch in 0..c {
                pull[ch] = dy[ch].to_f32() * pixel[ch].to_f32() * bases[ch].powf(-norm.beta as f32 - 1.0);
            }
            for ch in 0..c {
                // Outputs whose neighbourhood holds this channel: the mirror image of the forward one.
                let near = (ch + 1).saturating_sub(norm.size.div_ceil(2))..(ch + norm.size / 2 + 1).min(c);
                let pulled: f32 = pull[near].iter().sum();
                let direct = dy[ch].to_f32() * bases[ch].powf(-norm.beta as f32);
                out[ch] = T::from_f32(direct - factor * pixel[ch].to_f32() * pulled);
            }
        }
    });
    Tensor::from_vec(dxs, xs.shape(), &Device::Cpu)
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "local_response_norm"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let c = layout.shape().dims4()?.3;
        let ys = match xs {
            CpuStorage::BF16(_) => CpuStorage::BF16(self.forward(operand(xs, layout)?, c)),
            _ => CpuStorage::F32(self.forward(operand(xs, layout)?, c)),
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        by_element!(xs.dtype(), backward(self, xs, &dys)).map(Some)
    }
}
