//! From a picture of any size to a model's input, without randomness: what evaluation and prediction do.

use crate::dataset::Meta;
use crate::pixels::Image;
use crate::resize::{Interpolation, Region, resize, resize_by};
use crate::{Error, Result};

/// Inputs up to this size count as small: they are resized whole, and augmented by shifting.
pub(crate) const SMALL: usize = 64;

/// How a picture becomes an input of `crop` × `crop` pixels: the short side is resized to `resize`
/// (antialiased), then the centre is cut out. Equals torchvision's `Resize`, `CenterCrop` on a Pillow image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preprocess {
    /// Short side after resizing.
    pub resize: usize,
    /// Side of the square that is cut out; at most `resize`.
    pub crop: usize,
    /// Channels of the result: 1 or 3.
    pub channels: usize,
    /// How it is resized.
    pub interpolation: Interpolation,
}

impl Preprocess {
    /// The usual evaluation for inputs of that size: up to 64 pixels `resize` = `crop`; above, `crop` is 7/8 of
    /// `resize` (256 for 224).
    pub fn new(image_size: usize, channels: usize) -> Self {
        let resize =
            if image_size <= SMALL { image_size } else { (image_size as f64 / 0.875).round() as usize };
        Self { resize, crop: image_size, channels, interpolation: Interpolation::default() }
    }

    /// Like [`Preprocess::new`], but the images of a set of one size are used whole, because their subject
    /// already fills them.
    pub fn for_dataset(meta: &Meta, image_size: usize, channels: usize) -> Self {
        let usual = Self::new(image_size, channels);
        if meta.fixed_size { Self { resize: image_size, ..usual } } else { usual }
    }

    /// # Errors
    /// If a size is 0, `crop` is larger than `resize`, or `channels` is neither 1 nor 3.
    pub fn check(&self) -> Result<()> {
        let Self { resize, crop, channels, .. } = *self;
        if crop == 0 || crop > 1 << 14 {
            return Err(Error::Config(format!("image size must be between 1 and 16384, found {crop}")));
        }
        if crop > resize || resize > 1 << 14 {
            let message = format!("resize must be between the crop's {crop} and 16384, found {resize}");
            return Err(Error::Config(message));
        }
        if channels != 1 && channels != 3 {
            return Err(Error::Config(format!("models take images of 1 or 3 channels, found {channels}")));
        }
        Ok(())
    }

    /// # Errors
    /// If the picture is so thin that resizing its short side would leave more than [`crate::MAX_PIXELS`].
    pub(crate) fn apply(&self, image: Image) -> Result<Image> {
        let image = image.with_channels(self.channels);
        // torchvision truncates the long side and rounds the offsets of the crop half to even.
        let long = |side: usize, short: usize| (self.resize as f64 * side as f64 / short as f64) as usize;
        let (h, w) = if image.h < image.w {
            (self.resize, long(image.w, image.h))
        } else {
            (long(image.h, image.w), self.resize)
        };
        if h as u64 * w as u64 > crate::MAX_PIXELS {
            return Err(Error::Config(format!(
                "a picture of {} x {} pixels is too thin to resize",
                image.w, image.h
            )));
        }
        // Pixels that the crop throws away are resized too: that costs little beside decoding, and keeps the
        // arithmetic plain.
        let resized = resize_by(self.interpolation, &image, Region::all(&image), h, w);
        let offset = |side: usize| ((side - self.crop) as f64 / 2.0).round_ties_even() as usize;
        let region = Region { top: offset(h), left: offset(w), h: self.crop, w: self.crop };
        Ok(resize(&resized, region, self.crop, self.crop))
    }
}

/// Prepares one picture: see [`Preprocess`].
///
/// # Errors
/// If the preprocessing contradicts itself, see [`Preprocess::check`], or the picture is so long and thin that
/// resizing its short side would leave more than [`crate::MAX_PIXELS`].
pub fn preprocess(image: Image, how: &Preprocess) -> Result<Image> {
    how.check()?;
    how.apply(image)
}
