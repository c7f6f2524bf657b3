//! The sliding window that convolutions and pools share.

use candle_core::{Result, bail};

/// A window that slides over the two spatial axes; each pair is (height, width), in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window2d {
    /// Extent of the window.
    pub kernel: (usize, usize),
    /// Distance between neighbouring windows.
    pub stride: (usize, usize),
    /// Rows and columns added on each side.
    pub padding: (usize, usize),
    /// Distance between neighbouring taps of one window.
    pub dilation: (usize, usize),
    /// Whether the last window may hang over the far edge (PyTorch's `ceil_mode`).
    pub ceil_mode: bool,
}

impl Window2d {
    /// A square window of `kernel`, moved by `stride`, without padding.
    pub fn square(kernel: usize, stride: usize) -> Self {
        Self {
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: (0, 0),
            dilation: (1, 1),
            ceil_mode: false,
        }
    }

    /// The same window with `padding` on every side.
    pub fn padding(self, padding: usize) -> Self {
        Self { padding: (padding, padding), ..self }
    }

    /// The same window with or without `ceil_mode`.
    pub fn ceil_mode(self, ceil_mode: bool) -> Self {
        Self { ceil_mode, ..self }
    }

    /// Output height and width on an input of `h` by `w`, by PyTorch's rule: with `ceil_mode`, a last window
    /// that would start beyond the input and its left padding is dropped, and the only window may be larger than
    /// the padded input, by less than a stride.
    ///
    /// # Errors
    /// If a stride, kernel or dilation is 0 or the window is too large for the padded input.
    pub fn output(&self, op: &str, h: usize, w: usize) -> Result<(usize, usize)> {
        let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
            if stride == 0 || kernel == 0 || dilation == 0 {
                bail!("{op}: kernel, stride and dilation must be at least 1, found {self:?}");
            }
            let (padded, extent) = (size + 2 * padding, dilation * (kernel - 1) + 1);
            let hang = if self.ceil_mode && padded > 0 { stride - 1 } else { 0 };
            let Some(free) = (padded + hang).checked_sub(extent) else {
                bail!("{op}: the window {self:?} is larger than its padded input of {h}x{w} pixels");
            };
            let out = free / stride + 1;
            Ok(if self.ceil_mode && (out - 1) * stride >= size + padding { out - 1 } else { out })
        };
        Ok((
            axis(h, self.kernel.0, self.stride.0, self.padding.0, self.dilation.0)?,
            axis(w, self.kernel.1, self.stride.1, self.padding.1, self.dilation.1)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_over_the_edge_are_counted_as_pytorch_counts_them() -> Result<()> {
        // torch.nn.functional.max_pool2d(torch.zeros(1, 1, size, size), kernel, stride, padding, ceil_mode=True)
        for (size, kernel, stride, padding, expected) in [
            (2, 3, 2, 0, 1),
            (1, 2, 2, 0, 1),
            (1, 3, 3, 0, 1),
            (8, 3, 2, 0, 4),
            (7, 2, 2, 1, 4),
            (5, 2, 3, 1, 2),
        ] {
            let window = Window2d::square(kernel, stride).padding(padding).ceil_mode(true);
            assert_eq!(window.output("max_pool2d", size, size)?, (expected, expected), "{size} {window:?}");
        }
        for (size, kernel, stride, ceil_mode) in [(2, 3, 2, false), (1, 3, 2, true), (0, 2, 2, true)] {
            let window = Window2d::square(kernel, stride).ceil_mode(ceil_mode);
            assert!(window.output("max_pool2d", size, size).is_err(), "{size} {window:?}");
        }
        Ok(())
    }
}
