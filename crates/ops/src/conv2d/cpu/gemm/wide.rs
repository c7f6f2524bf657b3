//! Few output channels leave most columns of even the narrowest product empty. Neighbouring outputs of a row, whose channels lie
//! side by side in memory, are then taken for the channels of one output with a wider window: each tap is
//! there once for every neighbour, and zero elsewhere.

use super::super::super::Geometry;
use super::super::product::least_width;

/// A convolution with neighbouring outputs taken together.
pub(super) struct Wide {
    pub(super) g: Geometry,
    /// Outputs that are one now.
    together: usize,
    /// Of the convolution itself.
    kernel: (usize, usize),
    stride: usize,
}

impl Wide {
    /// The widening that saves most multiplications, if one does.
    pub(super) fn of(g: &Geometry) -> Option<Self> {
        let w = &g.window;
        let (kernel, stride) = (w.kernel, w.stride.1);
        if g.groups > 1 || w.dilation.1 > 1 || kernel.1 <= stride {
            return None;
        }
        // A wider window grows slower than the outputs that it serves.
        let most = least_width() / g.c_out.max(1);
        let together = (2..=most).rev().find(|&together| g.out.1.is_multiple_of(together))?;
        let mut wide = *g;
        wide.window.kernel.1 += (together - 1) * stride;
        wide.window.stride.1 *= together;
        wide.out.1 /= together;
        wide.c_out *= together;
        Some(Self { g: wide, together, kernel, stride })
    }

    /// Calls `f(index in the wide weight, index in the weight)` for each tap of each neighbour.
    fn for_each_tap(&self, mut f: impl FnMut(usize, usize)) {
        let (c_in, c_out, (kh, kw)) = (self.g.c_in, self.g.c_out / self.together, self.kernel);
        for neighbour in 0..self.together {
            for channel in 0..c_out {
                for row in 0..c_in * kh {
                    let to = ((neighbour * c_out + channel) * c_in * kh + row) * self.g.window.kernel.1;
                    let from = (channel * c_in * kh + row) * kw;
                    (0..kw).for_each(|kx| f(to + neighbour * self.stride + kx, from + kx));
                }
            }
        }
    }

    pub(super) fn weight(&self, weight: &[f32]) -> Vec<f32> {
        let mut wide = vec![0.0; self.g.c_out * self.g.c_in * self.g.taps()];
        self.for_each_tap(|to, from| wide[to] = weight[from]);
        wide
    }

    /// The gradient of the weight from that of the wide one.
    pub(super) fn weight_gradient(&self, wide: &[f32]) -> Vec<f32> {
        let mut gradient = vec![0.0; wide.len() / self.together / self.g.window.kernel.1 * self.kernel.1];
        self.for_each_tap(|from, to| gradient[to] += wide[from]);
        gradient
    }
}
