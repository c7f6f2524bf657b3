//! The softmax over splits, pixel by pixel. Its maps have one pixel for each image.

use crate::element::Element;
use crate::parallel::chunks;
use crate::pool::{Buffer, take};
use crate::slot::{Backward, Gradients, Keeps, Kernel, Slot};
use candle_core::Result;

pub(super) fn radix_softmax(xs: &Slot, radix: usize) -> Result<Slot> {
    Softmax { radix, channels: xs.dims().3 }.apply(&[xs], &[], xs.dims())
}

struct Softmax {
    radix: usize,
    /// Of all splits.
    channels: usize,
}

impl Kernel for Softmax {
    const NAME: &'static str = "radix_softmax";

    fn keeps(&self) -> Keeps {
        Keeps { inputs: false, output: true }
    }

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let (xs, c, split) = (maps[0], self.channels, self.channels / self.radix);
        let mut ys = take::<T>(xs.len());
        chunks(&mut ys, c, |i, ys| {
            let xs = &xs[i * c..][..c];
            for ch in 0..split {
                let of_splits = || xs[ch..].iter().step_by(split).map(|x| x.to_f32());
                let largest = of_splits().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = of_splits().map(|x| (x - largest).exp()).sum();
                for (y, x) in ys[ch..].iter_mut().step_by(split).zip(of_splits()) {
                    *y = T::from_f32((x - largest).exp() / sum);
                }
            }
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let (ys, c, split) = (call.output, self.channels, self.channels / self.radix);
        let mut dxs = std::mem::take(call.gradient);
        // dx = y · (dy - Σ y · dy), the sum over the splits.
        chunks(&mut dxs, c, |i, dxs| {
            let ys = &ys[i * c..][..c];
            for ch in 0..split {
                let of_splits = || ys[ch..].iter().step_by(split).map(|y| y.to_f32());
                let dys = dxs[ch..].iter().step_by(split).map(|dy| dy.to_f32());
                let dot: f32 = of_splits().zip(dys).map(|(y, dy)| y * dy).sum();
                for (dx, y) in dxs[ch..].iter_mut().step_by(split).zip(of_splits()) {
                    *dx = T::from_f32(y * (dx.to_f32() - dot));
                }
            }
        });
        Ok((vec![Some(dxs)], Vec::new()))
    }
}
