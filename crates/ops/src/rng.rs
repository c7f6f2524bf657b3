//! Seeded randomness. Every draw in the project comes from here.
//!
//! A draw is a pure function of (run seed, purpose, index): nothing depends on the order in which threads
//! or layers ask, so one seed gives one result for any number of threads, and a resumed run needs no saved
//! generator state beyond a counter.

use candle_core::{Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use rand_chacha::ChaCha8Rng;

/// The generator for one purpose (`"order"`, `"init layer1.0.conv1.weight"`, …) and one index (an epoch, an
/// image, a call) of a run with the given seed. Streams with different arguments are independent.
pub fn stream(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(key(seed, purpose, index))
}

fn key(seed: u64, purpose: &str, index: u64) -> [u8; 32] {
    // FNV-1a spells the purpose into the key; ChaCha itself does the mixing.
    let hash = purpose
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    key
}

/// The source of dropout and drop-path masks of one model: a seed and a count of the masks drawn so far.
///
/// Clones share the count. A trainer saves [`Noise::calls`] in its checkpoint and restores it with
/// [`Noise::set_calls`]; then the masks after a resume are those of a run that was never stopped.
#[derive(Debug, Clone, Default)]
pub struct Noise {
    seed: u64,
    calls: Arc<AtomicU64>,
    first_image: Arc<AtomicU64>,
}

impl Noise {
    /// A source at its start.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// How many masks have been drawn.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Continues as if `calls` masks had been drawn.
    pub fn set_calls(&self, calls: u64) {
        self.calls.store(calls, Ordering::SeqCst);
    }

    /// Says where in its batch the first image of what follows lies, 0 unless said: a rank that has a share of the
    /// batch draws the masks that one rank would draw for those images.
    pub fn set_first_image(&self, first: usize) {
        self.first_image.store(first as u64, Ordering::SeqCst);
    }

    /// A tensor of `shape`, of which the first dimension is that of the images, in f32 whose elements are `1 / keep` with probability `keep` and 0 otherwise.
    pub fn keep_mask(&self, shape: &[usize], keep: f64, device: &Device) -> Result<Tensor> {
        let Draw { key, first_word, threshold, scale } = self.draw(shape, keep);
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_word_pos(first_word);
        let n = shape.iter().product();
        let mask: Vec<f32> =
            (0..n).map(|_| if u64::from(rng.random::<u32>()) < threshold { scale } else { 0.0 }).collect();
        Tensor::from_vec(mask, shape, device)
    }

    /// What decides the next mask of that shape.
    pub(crate) fn draw(&self, shape: &[usize], keep: f64) -> Draw {
        let of_image: usize = shape.iter().skip(1).product();
        let first_image = self.first_image.load(Ordering::SeqCst);
        Draw {
            key: key(self.seed, "dropout", self.calls.fetch_add(1, Ordering::SeqCst)),
            first_word: u128::from(first_image) * of_image as u128,
            threshold: (keep * 2f64.powi(32)) as u64,
            scale: (1.0 / keep) as f32,
        }
    }
}

/// A mask. Element i is kept if word `first_word + i` of the stream is below the threshold, and is then `scale`.
pub(crate) struct Draw {
    /// Of ChaCha8.
    pub(crate) key: [u8; 32],
    pub(crate) first_word: u128,
    pub(crate) threshold: u64,
    pub(crate) scale: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_batch_have_the_masks_of_the_whole() {
        let mask = |first, n| {
            let noise = Noise::new(7);
            noise.set_first_image(first);
            let mask = noise.keep_mask(&[n, 5, 3], 0.5, &Device::Cpu).unwrap();
            mask.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let whole = mask(0, 6);
        assert_eq!([mask(0, 2), mask(2, 4)].concat(), whole);
        assert_ne!(mask(0, 2), mask(2, 2));
    }

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |s, p, i| stream(s, p, i).random::<u64>();
        assert_eq!(draw(1, "order", 0), draw(1, "order", 0));
        let all = [draw(1, "order", 0), draw(2, "order", 0), draw(1, "augment", 0), draw(1, "order", 1)];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(a));
        }
    }

    #[test]
    fn mask_keeps_its_share_and_resumes() -> Result<()> {
        let noise = Noise::new(7);
        let first = noise.keep_mask(&[100, 100], 0.8, &Device::Cpu)?;
        let second = noise.keep_mask(&[100, 100], 0.8, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let mean = first.mean_all()?.to_scalar::<f32>()?;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let resumed = Noise::new(7);
        resumed.set_calls(1);
        assert_eq!(
            resumed.keep_mask(&[100, 100], 0.8, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?,
            second
        );
        Ok(())
    }
}
