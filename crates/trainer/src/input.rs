//! What a network takes: the size of its images and how their bytes become numbers.

use candle_core::{DType, Device, Result};
use zoo_data::{Batch, Interpolation, Loader, Preprocess};
use zoo_ops::{FeatureMap, StoredImages};

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

    /// A batch as normalised feature maps (n, h, w, c): from its bytes, or from the images that it picks of `stored`.
    ///
    /// # Errors
    /// If the batch has another number of channels, or has picks and nothing is stored.
    pub fn normalise(
        &self,
        batch: &Batch,
        stored: Option<&StoredImages>,
        dtype: DType,
        device: &Device,
    ) -> Result<FeatureMap> {
        let (&Batch { n, h, w, c, .. }, statistics) = (batch, (&self.mean[..], &self.std[..]));
        match stored {
            Some(images) if !batch.picks.is_empty() => images.batch(&batch.picks, statistics, dtype),
            _ => FeatureMap::from_bytes(&batch.pixels, (n, h, w, c), statistics, dtype, device),
        }
    }
}

/// The part of a GPU's memory that the images of a set may take, at most.
const STORED_SHARE: usize = 8;

/// Leaves a loader's images with the device, if its batches can be made there, and they are few enough for `memory` bytes
/// of it.
pub(crate) fn store(loader: &mut Loader, device: &Device, memory: usize) -> Result<Option<StoredImages>> {
    let set = loader.dataset().clone();
    let Some((_, [h, w, c])) = set.packed(0) else { return Ok(None) };
    let bytes = set.len() * h * w * c;
    if bytes > i32::MAX as usize || bytes > memory / STORED_SHARE || !loader.leave_pixels() {
        return Ok(None);
    }
    let Some(pixels) = set.all_pixels() else { return Ok(None) };
    StoredImages::new(&pixels, (set.len(), h, w, c), device).map(Some)
}
