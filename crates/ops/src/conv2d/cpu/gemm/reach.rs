//! What outputs see of a map: taps along an axis, the rectangle that a block of outputs reaches, its copy.

use super::super::super::Geometry;
use crate::element::Element;
use std::ops::Range;

/// One axis of a correlation.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// (offset in the source, index in the kernel), by ascending offset.
    pub(super) taps: Vec<(isize, usize)>,
    /// The output's `t`-th position here is `origin + t · step`; there are `count` of them.
    pub(super) origin: usize,
    pub(super) step: usize,
    pub(super) count: usize,
    /// Distance in the source between neighbouring `t`.
    pub(super) stride: usize,
}

impl Axis {
    /// Outputs seen from the input.
    fn forward(count: usize, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Self {
        let taps = (0..kernel).map(|k| ((k * dilation) as isize - padding as isize, k)).collect();
        Self { taps, origin: 0, step: 1, count, stride }
    }

    /// Rows and columns of a convolution's outputs.
    pub(super) fn of_outputs(g: &Geometry) -> (Self, Self) {
        let w = &g.window;
        (
            Self::forward(g.out.0, w.kernel.0, w.stride.0, w.padding.0, w.dilation.0),
            Self::forward(g.out.1, w.kernel.1, w.stride.1, w.padding.1, w.dilation.1),
        )
    }

    /// Whether taps lie side by side in the source.
    pub(super) fn neighbours(&self) -> bool {
        self.taps.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1)
    }

    /// Input positions seen from the output: those of each residue modulo the stride.
    pub(super) fn phases(
        size: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        dilation: usize,
    ) -> Vec<Self> {
        let phase = |origin: usize| {
            let reach = |k: usize| {
                let distance = (origin + padding) as isize - (k * dilation) as isize;
                (distance % stride as isize == 0).then_some((distance / stride as isize, k))
            };
            let taps = (0..kernel).rev().filter_map(reach).collect();
            Self { taps, origin, step: stride, count: (size - origin).div_ceil(stride), stride: 1 }
        };
        (0..stride.min(size)).map(phase).collect()
    }
}

/// The part of the source that blocks of outputs see.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// Least and greatest offset of a tap, over all phases.
    pub(super) first: isize,
    pub(super) last: isize,
    pub(super) stride: usize,
}

impl Reach {
    pub(super) fn new(axes: &[Axis]) -> Self {
        let offsets = || axes.iter().flat_map(|axis| axis.taps.iter().map(|tap| tap.0));
        let (first, last) = (offsets().min().unwrap_or(0), offsets().max().unwrap_or(0));
        Self { first, last, stride: axes.first().map_or(1, |axis| axis.stride) }
    }

    /// Source positions that `count` outputs see.
    pub(super) fn span(&self, count: usize) -> usize {
        count.saturating_sub(1) * self.stride + (self.last - self.first) as usize + 1
    }

    /// Whether all that `count` outputs see lies inside.
    pub(super) fn inside(&self, count: usize, size: usize) -> bool {
        self.first >= 0 && self.first as usize + self.span(count) <= size
    }
}

/// A rectangle of an image, some of which may lie outside it.
pub(super) struct Patch {
    /// Top left corner.
    pub(super) corner: (isize, isize),
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Elements from one pixel to the next in the copy.
    pub(super) pixel: usize,
}

impl Patch {
    pub(super) fn len(&self) -> usize {
        self.rows * self.columns * self.pixel
    }

    /// Copies the rectangle from an image [height, width, channels] by `load`, zeros where it is outside and in what
    /// pixels have beyond their channels.
    pub(super) fn copy<T: Element, O: Element>(
        &self,
        image: &[T],
        (h, w): (usize, usize),
        channels: usize,
        out: &mut [O],
        load: impl Fn(&mut [O], &[T]),
    ) {
        let (y, x) = self.corner;
        let before = (x.min(0).unsigned_abs()).min(self.columns);
        let inside = (w as isize - x.max(0)).clamp(0, (self.columns - before) as isize) as usize;
        for (row, out) in out.chunks_exact_mut(self.columns * self.pixel).take(self.rows).enumerate() {
            let at = y + row as isize;
            if at < 0 || at >= h as isize || inside == 0 {
                out.fill(O::default());
                continue;
            }
            let (left, rest) = out.split_at_mut(before * self.pixel);
            let (middle, right) = rest.split_at_mut(inside * self.pixel);
            left.fill(O::default());
            right.fill(O::default());
            let seen = &image[(at as usize * w + x.max(0) as usize) * channels..][..inside * channels];
            if self.pixel == channels {
                load(middle, seen);
            } else {
                for (out, seen) in middle.chunks_exact_mut(self.pixel).zip(seen.chunks_exact(channels)) {
                    let (out, beyond) = out.split_at_mut(channels);
                    load(out, seen);
                    beyond.fill(O::default());
                }
            }
        }
    }
}

/// Images, and the positions of the phases along y, that a task computes.
#[derive(Clone)]
pub(super) struct Block {
    pub(super) images: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Cuts maps of `rows` × `columns` positions into blocks of whole rows with at least `pixels` positions: parts
/// of an image, or several images.
pub(super) fn blocks(n: usize, rows: usize, columns: usize, pixels: usize) -> Vec<Block> {
    if rows * columns == 0 {
        return Vec::new();
    }
    let images = pixels.div_ceil(rows * columns);
    let per_block = if images > 1 { rows } else { pixels.div_ceil(columns).min(rows) };
    // Nearly equal parts.
    let per_image = rows.div_ceil(per_block);
    (0..n)
        .step_by(images)
        .flat_map(|first| {
            (0..per_image).map(move |part| Block {
                images: first..(first + images).min(n),
                rows: rows * part / per_image..rows * (part + 1) / per_image,
            })
        })
        .collect()
}
