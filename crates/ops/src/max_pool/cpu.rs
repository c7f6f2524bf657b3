//! Max pooling, vectorised over channels; forward remembers which tap won.

use crate::Window2d;
use crate::element::{Element, Elements, by_element, operand};
use crate::parallel::{buffer, chunks};
use crate::simd::multiversion;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::OnceLock;

pub(super) fn max_pool2d(xs: &Tensor, window: &Window2d, out: (usize, usize)) -> Result<Tensor> {
    if window.kernel.0 * window.kernel.1 > usize::from(u16::MAX) {
        bail!("max_pool2d: a kernel of {:?} has too many taps", window.kernel);
    }
    xs.contiguous()?.apply_op1(Op { window: *window, out, winners: OnceLock::new() })
}

struct Op {
    window: Window2d,
    out: (usize, usize),
    /// For each output element the tap that won, in row-major order of the window.
    winners: OnceLock<Vec<u16>>,
}

impl Op {
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

    fn forward<T: Element>(&self, xs: &[T], dims: (usize, usize, usize, usize)) -> Vec<T> {
        let ((n, h, w, c), (ho, wo)) = (dims, self.out);
        let row = wo * c;
        let mut ys = buffer::<T>(n * ho * row);
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
        let _ = self.winners.set(winners);
        ys
    }
}

fn backward<T: Element>(op: &Op, xs: &Tensor, dys: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = xs.dims4()?;
    let (ho, wo) = op.out;
    let Some(winners) = op.winners.get() else { bail!("max_pool2d: backward before forward") };
    let dys = Elements::<T>::of(dys)?;
    let dys: &[T] = &dys;
    let mut dxs = buffer::<T>(n * h * w * c);
    chunks(&mut dxs, h * w * c, |image, out| {
        let mut sums = buffer::<f32>(h * w * c);
        for y in 0..ho {
            for x in 0..wo {
                let at = ((image * ho + y) * wo + x) * c;
                let (dy, winners) = (&dys[at..][..c], &winners[at..][..c]);
                op.for_each_tap((h, w, c), y, x, |tap, at| add_where(dy, winners, tap, &mut sums[at..][..c]));
            }
        }
        for (o, s) in out.iter_mut().zip(sums) {
            *o = T::from_f32(s);
        }
    });
    Tensor::from_vec(dxs, xs.shape(), &Device::Cpu)
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

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.shape().dims4()?;
        let ys = match xs {
            CpuStorage::BF16(_) => CpuStorage::BF16(self.forward(operand(xs, layout)?, dims)),
            _ => CpuStorage::F32(self.forward(operand(xs, layout)?, dims)),
        };
        Ok((ys, Shape::from((dims.0, self.out.0, self.out.1, dims.3))))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        by_element!(xs.dtype(), backward(self, xs, &dys)).map(Some)
    }
}
