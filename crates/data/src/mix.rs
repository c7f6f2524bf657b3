//! Mixing the images of a batch, and their labels with them: mixup (Zhang et al. 2018, arXiv 1710.09412) and
//! CutMix (Yun et al. 2019, arXiv 1905.04899), as torchvision's `transforms.v2.MixUp` and `CutMix` do it.

use crate::loader::Batch;
use crate::{Error, Result};
use rand::Rng;
use rand_distr::{Beta, Distribution};
use zoo_ops::rng::ChaCha8Rng;

/// How strongly the images of training batches are mixed. Where both are on, each batch gets one of the two,
/// as likely the one as the other.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mix {
    /// α of mixup, which blends an image with another one: its share is drawn from Beta(α, α). 0 for none.
    pub mixup: f64,
    /// α of CutMix, which pastes a part of another image: what is kept is drawn from Beta(α, α). 0 for none.
    pub cutmix: f64,
}

/// With what the images of a batch were mixed: image `k` with image `k - 1`, and the first with the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed {
    /// The share of its own class in each image's target, from 0 to 1. The rest is its partner's.
    pub share: f64,
    /// The class of each image's partner.
    pub partners: Vec<u32>,
}

/// The rows and columns that CutMix takes from the partner.
#[derive(Debug, Clone, PartialEq)]
struct Patch {
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
}

impl Patch {
    /// A patch of the image's aspect around a random centre, cut off at the edges, of an area of `1 - kept`
    /// before that.
    fn draw(h: usize, w: usize, kept: f64, rng: &mut ChaCha8Rng) -> Self {
        let half = 0.5 * (1.0 - kept).sqrt();
        let mut span = |side: usize| {
            let centre = rng.random_range(0..side as u32) as usize;
            let reach = (half * side as f64) as usize;
            centre.saturating_sub(reach)..(centre + reach).min(side)
        };
        let columns = span(w);
        Self { rows: span(h), columns }
    }

    fn area(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

impl Mix {
    /// # Errors
    /// If a strength is not a finite number of at least 0.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if !(alpha >= 0.0 && alpha.is_finite()) {
                let message = format!("{name} must be a finite number of at least 0, found {alpha}");
                return Err(Error::Config(message));
            }
        }
        Ok(())
    }

    /// Mixes the images of a batch, if anything is on.
    pub(crate) fn apply(&self, batch: &mut Batch, rng: &mut ChaCha8Rng) {
        let cut = match (self.mixup > 0.0, self.cutmix > 0.0) {
            (false, false) => return,
            (true, true) => rng.random::<bool>(),
            (_, cut) => cut,
        };
        let alpha = if cut { self.cutmix } else { self.mixup };
        // A strength above 0 is all that the distribution asks for.
        let Ok(beta) = Beta::new(alpha, alpha) else { return };
        let share: f64 = beta.sample(rng);
        let before = batch.pixels.clone();
        let image = batch.h * batch.w * batch.c;
        let partner = |k: usize| &before[(k + batch.n - 1) % batch.n * image..][..image];
        let share = if cut {
            let patch = Patch::draw(batch.h, batch.w, share, rng);
            for (k, pixels) in batch.pixels.chunks_exact_mut(image).enumerate() {
                paste(pixels, partner(k), &patch, batch.w * batch.c, batch.c);
            }
            // What is really left of the image, which is more where the patch was cut off.
            1.0 - patch.area() as f64 / (batch.h * batch.w) as f64
        } else {
            for (k, pixels) in batch.pixels.chunks_exact_mut(image).enumerate() {
                blend(pixels, partner(k), share as f32);
            }
            share
        };
        let mut partners = batch.labels.clone();
        partners.rotate_right(1);
        batch.mixed = Some(Mixed { share, partners });
    }
}

/// `share · pixels + (1 - share) · other`, rounded.
fn blend(pixels: &mut [u8], other: &[u8], share: f32) {
    for (p, &o) in pixels.iter_mut().zip(other) {
        *p = (f32::from(*p) * share + f32::from(o) * (1.0 - share) + 0.5) as u8;
    }
}

/// Takes a patch from another image; `row` is the length of a row of `c` channels.
fn paste(pixels: &mut [u8], other: &[u8], patch: &Patch, row: usize, c: usize) {
    for y in patch.rows.clone() {
        let at = y * row + patch.columns.start * c..y * row + patch.columns.end * c;
        pixels[at.clone()].copy_from_slice(&other[at]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_ops::rng::stream;

    /// Four 6×8 grey images of one value each: 0, 80, 160, 240, of the classes 0 to 3.
    fn batch() -> Batch {
        let pixels = (0..4 * 48).map(|i| (i / 48 * 80) as u8).collect();
        let (labels, indices) = (vec![0, 1, 2, 3], vec![0, 1, 2, 3]);
        Batch {
            pixels,
            picks: Vec::new(),
            n: 4,
            h: 6,
            w: 8,
            c: 1,
            labels,
            mixed: None,
            indices,
            first: 0,
            number: 0,
        }
    }

    fn mixed(mix: Mix, index: u64) -> Batch {
        let mut batch = batch();
        mix.apply(&mut batch, &mut stream(3, "mix", index));
        batch
    }

    #[test]
    fn mixup_blends_with_the_image_before() {
        for index in 0..50 {
            let batch = mixed(Mix { mixup: 0.4, cutmix: 0.0 }, index);
            let Mixed { share, partners } = batch.mixed.unwrap();
            assert_eq!(partners, [3, 0, 1, 2]);
            for (k, (own, other)) in
                [(0.0, 240.0), (80.0, 0.0), (160.0, 80.0), (240.0, 160.0)].iter().enumerate()
            {
                let expected = share * own + (1.0 - share) * other;
                let image = &batch.pixels[k * 48..][..48];
                assert!(image.iter().all(|&p| (f64::from(p) - expected).abs() <= 0.501), "{share} {image:?}");
            }
        }
    }

    #[test]
    fn cutmix_pastes_one_patch_and_counts_its_pixels() {
        let mut areas = Vec::new();
        for index in 0..400 {
            let batch = mixed(Mix { mixup: 0.0, cutmix: 1.0 }, index);
            let share = batch.mixed.unwrap().share;
            for (k, (own, other)) in [(0, 240), (80, 0), (160, 80), (240, 160)].into_iter().enumerate() {
                let image = &batch.pixels[k * 48..][..48];
                let taken: Vec<usize> = (0..48).filter(|&i| image[i] == other).collect();
                assert!(image.iter().all(|&p| p == own || p == other));
                assert!((share - (1.0 - taken.len() as f64 / 48.0)).abs() < 1e-9, "{share} {taken:?}");
                // A rectangle: as many as its sides say.
                let side = |of: fn(usize) -> usize| -> usize {
                    let places: std::collections::BTreeSet<usize> = taken.iter().map(|&i| of(i)).collect();
                    let (first, last) = (places.first(), places.last());
                    assert!(places.len() == last.zip(first).map_or(0, |(last, first)| last - first + 1));
                    places.len()
                };
                assert_eq!(side(|i| i / 8) * side(|i| i % 8), taken.len());
            }
            areas.push(1.0 - share);
        }
        // Uniform shares, less what the edges cut off and whole pixels round down.
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        assert!((0.2..0.4).contains(&mean), "{mean}");
    }

    #[test]
    fn with_both_each_batch_gets_one() {
        let both = Mix { mixup: 0.5, cutmix: 1.0 };
        let values =
            |batch: &Batch| batch.pixels[48..96].iter().collect::<std::collections::BTreeSet<_>>().len();
        // A blend has one value, a patch two unless it is empty.
        let patched = (0..400).filter(|&index| values(&mixed(both, index)) == 2).count();
        assert!((140..=200).contains(&patched), "{patched}");
    }

    #[test]
    fn shares_follow_their_distribution() {
        // Mean 1/2 and variance 1 / (4 (2α + 1)).
        for alpha in [1e-3, 0.2, 1.0, 8.0, 1e6] {
            let shares: Vec<f64> = (0..2000)
                .map(|index| mixed(Mix { mixup: alpha, cutmix: 0.0 }, index).mixed.unwrap().share)
                .collect();
            assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
            let mean = shares.iter().sum::<f64>() / 2000.0;
            let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / 2000.0;
            let expected = 0.25 / (2.0 * alpha + 1.0);
            assert!((mean - 0.5).abs() < 0.04, "{alpha}: {mean}");
            assert!((variance / expected - 1.0).abs() < 0.1, "{alpha}: {variance} {expected}");
        }
    }

    #[test]
    fn nothing_is_done_unless_asked() {
        assert_eq!(mixed(Mix::default(), 0), batch());
    }

    #[test]
    fn strengths_that_make_no_sense_are_refused() {
        for (mixup, cutmix, name) in
            [(-0.1, 0.0, "mixup"), (0.0, f64::NAN, "cutmix"), (f64::INFINITY, 0.0, "mixup")]
        {
            let message = Mix { mixup, cutmix }.check().unwrap_err().to_string();
            assert!(message.contains(&format!("{name} must be a finite number of at least 0")), "{message}");
        }
    }
}
