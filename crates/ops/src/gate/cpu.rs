//! The gate, pixel by pixel.

use crate::element::Element;
use crate::parallel::{buffer, chunks, map, task_items};
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use crate::slot::{Backward, Gradients, Keeps, Kernel, Slot};
use candle_core::Result;

/// Pixels per task, all of one image; few enough for a sum over them in f32 to keep its digits.
const PIXELS: usize = 256;

pub(super) fn gate(xs: &Slot, gate: &Slot) -> Result<Slot> {
    let (_, h, w, c) = xs.dims();
    Gate { pixels: h * w, channels: c }.apply(&[xs, gate], &[], xs.dims())
}

struct Gate {
    /// Of an image.
    pixels: usize,
    channels: usize,
}

impl Gate {
    /// Calls `f` with stretches of pixels, each of one image, and the factors of that image.
    fn multiply<T: Element>(&self, gate: &[T], out: &mut [T], f: impl Fn(usize, &[T], &mut [T]) + Sync) {
        let c = self.channels;
        let task = task_items(out.len() / c.max(1), c, PIXELS);
        chunks(out, task * c, |i, mut out| {
            let mut pixel = i * task;
            while !out.is_empty() {
                let left = self.pixels - pixel % self.pixels;
                let (stretch, rest) = out.split_at_mut(out.len().min(left * c));
                let len = stretch.len() / c;
                f(pixel * c, &gate[pixel / self.pixels * c..][..c], stretch);
                (out, pixel) = (rest, pixel + len);
            }
        });
    }

    /// Σ xs · dys over the pixels of each image.
    fn dots<T: Element>(&self, xs: &[T], dys: &[T]) -> Buffer<T> {
        let (image, task) = (self.pixels * self.channels, PIXELS * self.channels);
        let images = xs.len() / image.max(1);
        let tasks = self.pixels.div_ceil(PIXELS).max(1);
        let partial = map(images * tasks, |i| {
            let end = (i / tasks + 1) * image;
            let start = i / tasks * image + i % tasks * task;
            let at = start..end.min(start + task);
            let mut sums = buffer::<f32>(self.channels);
            dot(&xs[at.clone()], &dys[at], &mut sums);
            sums
        });
        let mut dots = take::<T>(images * self.channels);
        for (dots, partial) in dots.chunks_exact_mut(self.channels.max(1)).zip(partial.chunks_exact(tasks)) {
            for (ch, dot) in dots.iter_mut().enumerate() {
                let sum: f64 = partial.iter().map(|sums| f64::from(sums[ch])).sum();
                *dot = T::from_f32(sum as f32);
            }
        }
        dots
    }
}

impl Kernel for Gate {
    const NAME: &'static str = "gate";

    fn keeps(&self) -> Keeps {
        Keeps { inputs: true, output: false }
    }

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let (xs, gate) = (maps[0], maps[1]);
        let mut ys = take::<T>(xs.len());
        self.multiply(gate, &mut ys, |at, gate, ys| products(&xs[at..][..ys.len()], gate, ys));
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let (xs, gate) = (call.maps[0], call.maps[1]);
        let of_gate = call.of_map[1].then(|| self.dots(xs, call.gradient));
        let of_xs = call.of_map[0].then(|| {
            let mut dxs = std::mem::take(call.gradient);
            self.multiply(gate, &mut dxs, |_, gate, dxs| scale(gate, dxs));
            dxs
        });
        Ok((vec![of_xs, of_gate], Vec::new()))
    }
}

multiversion! {
    fn products<T: Element>(xs: &[T], gate: &[T], ys: &mut [T]) {
        for (y, x) in ys.chunks_exact_mut(gate.len()).zip(xs.chunks_exact(gate.len())) {
            for ((y, &x), &factor) in y.iter_mut().zip(x).zip(gate) {
                *y = T::from_f32(x.to_f32() * factor.to_f32());
            }
        }
    }
}

multiversion! {
    fn scale<T: Element>(gate: &[T], xs: &mut [T]) {
        for x in xs.chunks_exact_mut(gate.len()) {
            for (x, &factor) in x.iter_mut().zip(gate) {
                *x = T::from_f32(x.to_f32() * factor.to_f32());
            }
        }
    }
}

multiversion! {
    fn dot<T: Element>(xs: &[T], ys: &[T], sums: &mut [f32]) {
        for (x, y) in xs.chunks_exact(sums.len()).zip(ys.chunks_exact(sums.len())) {
            for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
                *sum += x.to_f32() * y.to_f32();
            }
        }
    }
}
