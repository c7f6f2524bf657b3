//! What a network takes: the size of its images and how their bytes become numbers.

use candle_core::{DType, Device, Result};
use zoo_data::{Batch, Preprocess};
use zoo_ops::FeatureMap;

/// The images a network was trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Channels, 1 or 3.
    pub in_chans: usize,
    /// Side of the square images.
    pub image_size: usize,
    /// Short side of a picture before its centre is cut out.
    pub resize: usize,
    /// Mean of each channel, of pixels in [0, 1].
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, of pixels in [0, 1].
    pub std: Vec<f32>,
}

impl Input {
    /// How a picture of any size becomes an input.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess { resize: self.resize, crop: self.image_size, channels: self.in_chans }
    }

    /// A batch of bytes as normalised feature maps (n, h, w, c).
    ///
    /// # Errors
    /// If the batch has another number of channels.
    pub fn normalise(&self, batch: &Batch, dtype: DType, device: &Device) -> Result<FeatureMap> {
        let Batch { n, h, w, c, .. } = *batch;
        FeatureMap::from_bytes(&batch.pixels, (n, h, w, c), (&self.mean, &self.std), dtype, device)
    }
}
