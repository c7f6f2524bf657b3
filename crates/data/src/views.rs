//! Changed copies of images whose answers are averaged: test-time augmentation.

use crate::Batch;
use crate::augment::Shift;
use zoo_ops::Pick;

/// A way to look at an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Left and right exchanged.
    pub mirrored: bool,
    /// Pixels that the image is moved down and to the right; the edge is reflected.
    pub shift: isize,
    /// What the answer counts; those of all views add up to 1.
    pub weight: f64,
}

impl View {
    /// The image as it is.
    pub const PLAIN: Self = Self { mirrored: false, shift: 0, weight: 1.0 };
}

/// The views of Jordan 2024 (arXiv 2404.00498): the image as it is and moved by one pixel towards two
/// corners, each also mirrored where images of the set may be. The image in its place counts a half.
pub fn views(mirror: bool) -> Vec<View> {
    let sides: &[bool] = if mirror { &[false, true] } else { &[false] };
    let view = |mirrored: bool, (shift, weight): (isize, f64)| View {
        mirrored,
        shift,
        weight: weight / sides.len() as f64,
    };
    let places = [(0, 0.5), (1, 0.25), (-1, 0.25)];
    sides.iter().flat_map(|&side| places.map(|place| view(side, place))).collect()
}

impl Batch {
    /// The batch, of images as they are, with each as `view` sees it.
    #[must_use]
    pub fn seen(&self, view: View) -> Self {
        let shift = Shift::reflected(view.shift, view.mirrored);
        if !self.picks.is_empty() {
            let picks = self.picks.iter().map(|pick| Pick { index: pick.index, ..shift.pick() }).collect();
            return Self { picks, ..self.clone() };
        }
        let (mut pixels, shape) = (vec![0; self.pixels.len()], [self.h, self.w, self.c]);
        let size = shape.iter().product();
        for (to, image) in pixels.chunks_exact_mut(size).zip(self.pixels.chunks_exact(size)) {
            shift.apply(image, shape, to);
        }
        Self { pixels, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_averaged() {
        for (mirror, n) in [(true, 6), (false, 3)] {
            let views = views(mirror);
            assert_eq!(views.len(), n);
            assert_eq!(views.iter().map(|view| view.weight).sum::<f64>(), 1.0);
            let inside: f64 = views.iter().filter(|view| view.shift == 0).map(|view| view.weight).sum();
            assert_eq!(inside, 0.5);
        }
    }

    #[test]
    fn a_view_moves_and_mirrors() {
        // Two images of 2 x 3 pixels and one channel.
        let batch = Batch {
            pixels: vec![1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16],
            picks: Vec::new(),
            n: 2,
            h: 2,
            w: 3,
            c: 1,
            labels: vec![0, 1],
            mixed: None,
            indices: vec![0, 1],
            first: 0,
            number: 0,
        };
        let seen = |mirrored, shift| batch.seen(View { mirrored, shift, weight: 1.0 }).pixels;
        assert_eq!(seen(false, 0), batch.pixels);
        assert_eq!(seen(true, 0), [3, 2, 1, 6, 5, 4, 13, 12, 11, 16, 15, 14]);
        // Down and right by one: the first row is the second one reflected.
        assert_eq!(seen(false, 1), [5, 4, 5, 2, 1, 2, 15, 14, 15, 12, 11, 12]);
        assert_eq!(seen(false, -1), [5, 6, 5, 2, 3, 2, 15, 16, 15, 12, 13, 12]);
        assert_eq!(seen(true, 1)[..3], [5, 4, 5]);
    }
}
