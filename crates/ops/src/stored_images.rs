//! Images that lie on a device as bytes, so that a batch of them is named and not sent.

use crate::FeatureMap;
#[cfg(any(test, feature = "cuda"))]
use crate::cuda::{Arg, Map, launch, pointer, uninitialised};
#[cfg(any(test, feature = "cuda"))]
use crate::dispatch::{Path, path};
use candle_core::{DType, Device, Result, Tensor, bail};

/// Images of one size.
#[derive(Debug, Clone)]
pub struct StoredImages {
    /// [n, h, w, c].
    bytes: Tensor,
}

/// An image as it is seen: moved, with what was outside its edge in view, and perhaps mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Which image.
    pub index: u32,
    /// The row and the column of the image that are seen first; negative ones lie before its edge. Of a mirrored image it
    /// is the column that is seen last.
    pub top: i32,
    /// See `top`.
    pub left: i32,
    /// Whether it is mirrored left to right.
    pub flip: bool,
    /// Whether the image is continued beyond its edge by its reflection, and not by black.
    pub reflect: bool,
}

impl Pick {
    /// Which of `side` rows or columns is seen at position `at`, counted from the first one's; `None` is black.
    pub fn source(self, at: i32, side: usize) -> Option<usize> {
        let last = side as i32 - 1;
        match at {
            0.. if at <= last => Some(at as usize),
            // An image of fewer pixels than lie beyond its edge has its last one there.
            0.. if self.reflect => Some((2 * last - at).max(0) as usize),
            _ if self.reflect => Some((-at).min(last) as usize),
            _ => None,
        }
    }
}

impl StoredImages {
    /// Sends images (n, h, w, c) to a device.
    ///
    /// # Errors
    /// If there are not as many bytes, or the device has no room for them.
    pub fn new(pixels: &[u8], dims: (usize, usize, usize, usize), device: &Device) -> Result<Self> {
        Ok(Self { bytes: Tensor::from_slice(pixels, dims, device)? })
    }

    /// A map of the picked images, each channel normalised to `(byte / 255 - mean) / std`.
    ///
    /// # Errors
    /// If there is no such image, or the lengths of `mean` or `std` are not the number of channels.
    pub fn batch(&self, picks: &[Pick], statistics: (&[f32], &[f32]), dtype: DType) -> Result<FeatureMap> {
        let (images, h, w, c) = self.bytes.dims4()?;
        if let Some(pick) = picks.iter().find(|pick| pick.index as usize >= images) {
            bail!("image {} of {images}", pick.index);
        }
        let dims = (picks.len(), h, w, c);
        #[cfg(any(test, feature = "cuda"))]
        if path(self.bytes.device(), dtype) == Path::Cuda {
            let device = self.bytes.device();
            let tables = FeatureMap::tables(c, statistics)?;
            let tables = Tensor::from_slice(tables.as_flattened(), c * 256, device)?;
            let rows = picks.iter().flat_map(|pick| {
                [pick.index as i32, pick.top, pick.left, i32::from(pick.flip), i32::from(pick.reflect)]
            });
            let rows = Tensor::from_iter(rows, device)?;
            let values = uninitialised(dims, dtype, device)?;
            let mut args = vec![pointer(&self.bytes)?, pointer(&rows)?, pointer(&tables)?, pointer(&values)?];
            args.extend([h, w, c].map(Arg::from));
            launch(device, "from_stored", dtype, values.elem_count(), &args)?;
            return Ok(FeatureMap::on_gpu(Map::constant(values)?));
        }
        let bytes = self.bytes.flatten_all()?.to_vec1::<u8>()?;
        let mut pixels = vec![0; picks.len() * h * w * c];
        for (out, &pick) in pixels.chunks_exact_mut((h * w * c).max(1)).zip(picks) {
            let image = &bytes[pick.index as usize * h * w * c..][..h * w * c];
            for (i, out) in out.chunks_exact_mut(c).enumerate() {
                let (y, x) = ((i / w) as i32, i % w);
                let x = if pick.flip { w - 1 - x } else { x } as i32;
                if let (Some(y), Some(x)) = (pick.source(y + pick.top, h), pick.source(x + pick.left, w)) {
                    out.copy_from_slice(&image[(y * w + x) * c..][..c]);
                }
            }
        }
        FeatureMap::from_bytes(&pixels, dims, statistics, dtype, self.bytes.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::with_gpu_on_cpu;

    #[test]
    fn a_gpu_sees_the_same_images() -> Result<()> {
        let (n, h, w, c) = (5, 6, 7, 3);
        let pixels: Vec<u8> = (0..n * h * w * c).map(|i| (i * 37 % 251 + 1) as u8).collect();
        let images = StoredImages::new(&pixels, (n, h, w, c), &Device::Cpu)?;
        let mut picks = Vec::new();
        for (i, (top, left)) in (-4..=4).flat_map(|top| (-9..=9).map(move |left| (top, left))).enumerate() {
            let (flip, reflect) = (i % 2 == 1, i % 3 == 1);
            picks.push(Pick { index: (i % n) as u32, top, left, flip, reflect });
        }
        let statistics = (&[0.4, 0.5, 0.6][..], &[0.2, 0.25, 0.3][..]);
        for dtype in [DType::F32, DType::BF16] {
            let seen = || images.batch(&picks, statistics, dtype)?.to_nchw()?.to_dtype(DType::F32);
            let (expected, found) = (seen()?, with_gpu_on_cpu(seen)?);
            assert_eq!(expected.dims(), [picks.len(), c, h, w]);
            let values = |t: Tensor| t.flatten_all()?.to_vec1::<f32>();
            assert_eq!(values(found)?, values(expected)?);
        }
        let beyond = Pick { index: 5, top: 0, left: 0, flip: false, reflect: false };
        assert!(images.batch(&[beyond], statistics, DType::F32).is_err());
        Ok(())
    }
}
