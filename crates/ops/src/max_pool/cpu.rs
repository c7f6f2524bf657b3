//! Max pooling, vectorised over channels; forward remembers which tap won.

use crate::Window2d;
use crate::element::{Element, store};
use crate::parallel::{buffer, chunks};
use crate::pool::take;
use crate::simd::multiversion;
use crate::slot::{Backward, Dims, Gradients, Keeps, Kernel, Slot};
use candle_core::{Result, bail};
use rayon::prelude::*;

pub(super) fn max_pool2d(xs: &Slot, window: &Window2d, out: (usize, usize)) -> Result<Slot> {
    if window.kernel.0 * window.kernel.1 > usize::from(u16::MAX) {
        bail!("max_pool2d: a kernel of {:?} has too many taps", window.kernel);
    }
    let (n, _, _, c) = xs.dims();
    let pool = MaxPool { window: *window, dims: xs.dims(), out, winners: Vec::new() };
    pool.apply(&[xs], &[], (n, out.0, out.1, c))
}

struct MaxPool {
    window: Window2d,
    /// Of the input.
    dims: Dims,
    out: (usize, usize),
    /// For each output element the tap that won, in row-major order of the window.
    winners: Vec<u16>,
}

impl MaxPool {
    /// Calls `f(tap, first element of the input pixel)` for each tap inside the image at output (y, x).
    #[inline(always)]
    fn for_each_tap(
        &self,
        (h, w, c): (usize, usize, usize),
        y: usize,
        x: usize,
        mut f: impl FnMut(u16, usize),
    ) {
        let window = &self.window;
        for ky in 0..window.kernel.0 {
            let at_y = (y * window.stride.0 + ky * window.dilation.0).wrapping_sub(window.padding.0);
            if at_y >= h {
                continue;
            }
            for kx in 0..window.kernel.1 {
                let at_x = (x * window.stride.1 + kx * window.dilation.1).wrapping_sub(window.padding.1);
                if at_x < w {
                    f((ky * window.kernel.1 + kx) as u16, (at_y * w + at_x) * c);
                }
            }
        }
    }
}

impl Kernel for MaxPool {
    const NAME: &'static str = "max_pool2d";
    const KEEPS: Keeps = Keeps { inputs: false, output: false };

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Vec<T> {
        let (xs, (n, h, w, c), (ho, wo)) = (maps[0], self.dims, self.out);
        let row = wo * c;
        let mut ys = take::<T>(n * ho * row);
        let mut winners = buffer::<u16>(ys.len());
        if row > 0 {
            let rows = ys.par_chunks_mut(row).zip(winners.par_chunks_mut(row)).enumerate();
            rows.for_each(|(i, (ys, winners))| {
                let image = &xs[i / ho * h * w * c..][..h * w * c];
                for x in 0..wo {
                    let (ys, winners) = (&mut ys[x * c..][..c], &mut winners[x * c..][..c]);
                    ys.fill(T::from_f32(f32::NEG_INFINITY));
                    let mut first = true;
                    self.for_each_tap((h, w, c), i % ho, x, |tap, at| {
                        let seen = &image[at..][..c];
                        // The first tap wins even over a true -inf.
                        if std::mem::take(&mut first) {
                            ys.copy_from_slice(seen);
                            winners.fill(tap);
                        } else {
                            take_larger(seen, tap, ys, winners);
                        }
                    });
                }
            });
        }
        self.winners = winners;
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Gradients<T> {
        let (dys, (n, h, w, c), (ho, wo)): (&[T], _, _) = (call.gradient, self.dims, self.out);
        let mut dxs = take::<T>(n * h * w * c);
        chunks(&mut dxs, h * w * c, |image, out| {
            let mut sums = buffer::<f32>(h * w * c);
            for y in 0..ho {
                for x in 0..wo {
                    let at = ((image * ho + y) * wo + x) * c;
                    let (dy, winners) = (&dys[at..][..c], &self.winners[at..][..c]);
                    self.for_each_tap((h, w, c), y, x, |tap, at| {
                        add_where(dy, winners, tap, &mut sums[at..][..c]);
                    });
                }
            }
            store(out, &sums);
        });
        (vec![Some(dxs)], Vec::new())
    }
}

multiversion! {
    /// Replaces what is smaller than `seen`; a NaN beats everything, as in PyTorch.
    fn take_larger<T: Element>(seen: &[T], tap: u16, ys: &mut [T], winners: &mut [u16]) {
        for ((&s, y), winner) in seen.iter().zip(ys).zip(winners) {
            let value = s.to_f32();
            let larger = value > y.to_f32() || value.is_nan();
            *y = if larger { s } else { *y };
            *winner = if larger { tap } else { *winner };
        }
    }
}

multiversion! {
    fn add_where<T: Element>(dy: &[T], winners: &[u16], tap: u16, dx: &mut [f32]) {
        for ((d, &dy), &winner) in dx.iter_mut().zip(dy).zip(winners) {
            *d += if winner == tap { dy.to_f32() } else { 0.0 };
        }
    }
}
