//! Local response normalisation, pixel by pixel.

use super::LocalResponseNorm;
use crate::element::Element;
use crate::parallel::{buffer, chunks};
use crate::pool::{Buffer, take};
use crate::slot::{Backward, Gradients, Keeps, Kernel, Slot};
use candle_core::Result;

/// Pixels per task.
const PIXELS: usize = 64;

pub(super) fn local_response_norm(xs: &Slot, norm: LocalResponseNorm) -> Result<Slot> {
    Pixelwise { norm, channels: xs.dims().3 }.apply(&[xs], &[], xs.dims())
}

struct Pixelwise {
    norm: LocalResponseNorm,
    channels: usize,
}

impl Pixelwise {
    /// `k + alpha / size · Σ x²` for each channel of a pixel.
    fn bases<T: Element>(&self, pixel: &[T], bases: &mut [f32]) {
        let norm = &self.norm;
        let factor = (norm.alpha / norm.size as f64) as f32;
        for (ch, base) in bases.iter_mut().enumerate() {
            let near = ch.saturating_sub(norm.size / 2)..(ch + norm.size.div_ceil(2)).min(pixel.len());
            let squares: f32 = pixel[near].iter().map(|x| x.to_f32() * x.to_f32()).sum();
            *base = norm.k as f32 + factor * squares;
        }
    }
}

impl Kernel for Pixelwise {
    const NAME: &'static str = "local_response_norm";

    fn keeps(&self) -> Keeps {
        Keeps { inputs: true, output: false }
    }

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let (xs, c) = (maps[0], self.channels);
        let mut ys = take::<T>(xs.len());
        chunks(&mut ys, PIXELS * c, |i, out| {
            let mut bases = buffer::<f32>(c);
            let xs = &xs[i * PIXELS * c..][..out.len()];
            for (out, pixel) in out.chunks_exact_mut(c).zip(xs.chunks_exact(c)) {
                self.bases(pixel, &mut bases);
                for ((o, &x), &base) in out.iter_mut().zip(pixel).zip(&bases) {
                    *o = T::from_f32(x.to_f32() * base.powf(-self.norm.beta as f32));
                }
            }
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let (x, dy, c, norm): (_, &[T], _, _) = (call.maps[0], call.gradient, self.channels, &self.norm);
        let factor = (2.0 * norm.alpha * norm.beta / norm.size as f64) as f32;
        let mut dxs = take::<T>(x.len());
        chunks(&mut dxs, PIXELS * c, |i, out| {
            let (mut bases, mut pull) = (buffer::<f32>(c), buffer::<f32>(c));
            let at = i * PIXELS * c..i * PIXELS * c + out.len();
            let pixels = x[at.clone()].chunks_exact(c).zip(dy[at].chunks_exact(c));
            for (out, (pixel, dy)) in out.chunks_exact_mut(c).zip(pixels) {
                self.bases(pixel, &mut bases);
                for ch in 0..c {
                    pull[ch] = dy[ch].to_f32() * pixel[ch].to_f32() * bases[ch].powf(-norm.beta as f32 - 1.0);
                }
                for ch in 0..c {
                    // Outputs whose neighbourhood holds this channel: the mirror image of the forward one.
                    let near =
                        (ch + 1).saturating_sub(norm.size.div_ceil(2))..(ch + norm.size / 2 + 1).min(c);
                    let pulled: f32 = pull[near].iter().sum();
                    let direct = dy[ch].to_f32() * bases[ch].powf(-norm.beta as f32);
                    out[ch] = T::from_f32(direct - factor * pixel[ch].to_f32() * pulled);
                }
            }
        });
        Ok((vec![Some(dxs)], Vec::new()))
    }
}
