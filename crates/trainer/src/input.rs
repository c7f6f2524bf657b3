//! What a network takes: the size of its images and how their bytes become numbers.

use candle_core::{DType, Device, Result};
use zoo_data::{Batch, Interpolation, Preprocess};
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
    /// How it is resized.
    pub interpolation: Interpolation,
    /// Mean of each channel, of pixels in [0, 1].
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, of pixels in [0, 1].
    pub std: Vec<f32>,
}

impl Input {
    /// What published weights take.
    pub fn published(how: &zoo::Preprocessing) -> Self {
        Self {
            in_chans: how.mean.len(),
            image_size: how.image_size,
            resize: how.resize.unwrap_or(how.image_size),
            interpolation: match how.interpolation {
                Some(zoo::Interpolation::Bicubic) => Interpolation::Bicubic,
                Some(zoo::Interpolation::Bilinear) | None => Interpolation::Bilinear,
            },
            mean: how.mean.clone(),
            std: how.std.clone(),
        }
    }

    /// How a picture of any size becomes an input.
    pub fn preprocess(&self) -> Preprocess {
        let Self { in_chans, image_size, resize, interpolation, .. } = *self;
        Preprocess { resize, crop: image_size, channels: in_chans, interpolation }
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
