//! A picture of many samples, to look at.

use crate::dataset::{Dataset, permutation};
use crate::loader::{Loader, LoaderConfig, Share};
use crate::{Error, Result};
use image::RgbImage;
use image::imageops::{FilterType, replace, resize};

/// Side of a tile, at least; smaller images are enlarged by a whole factor.
const TILE: u32 = 64;
const GAP: u32 = 2;

/// `per_class` samples of each class, a row per class in their order, as the loader of that configuration
/// gives them in its first epoch. Which samples is decided by the configuration's seed. Where a class has too
/// few, or a file cannot be read, the row is shorter.
///
/// # Errors
/// As [`Loader::new`], and if no image can be read or the sheet would be unreasonably large.
pub fn contact_sheet(dataset: &Dataset, per_class: usize, config: &LoaderConfig) -> Result<RgbImage> {
    if dataset.vocabulary().is_some() {
        return Err(Error::Config(format!("{} has sentences, which make no picture", dataset.meta().name)));
    }
    let rows = dataset.meta().classes.len();
    let mut taken = vec![0; rows];
    let mut chosen = Vec::new();
    for i in permutation(dataset.len(), config.seed, "sheet", 0) {
        let label = dataset.label(i as usize) as usize;
        if taken[label] < per_class {
            taken[label] += 1;
            chosen.push(i as usize);
        }
    }
    chosen.sort_by_key(|&i| dataset.label(i));
    let columns = taken.iter().copied().max().unwrap_or(0);
    let config = LoaderConfig {
        batch_size: 16,
        shuffle: false,
        share: Share::ALL,
        drop_last: false,
        ..config.clone()
    };
    let loader = Loader::new(dataset.subset(chosen), config)?;
    let side = loader.preprocess().crop as u32;
    let tile = side * (TILE / side).max(1);
    let (width, height) = (GAP + columns as u32 * (tile + GAP), GAP + rows as u32 * (tile + GAP));
    if u64::from(width) * u64::from(height) > crate::MAX_PIXELS {
        return Err(Error::Config(format!(
            "a sheet of {width} x {height} pixels is too large: ask for fewer samples"
        )));
    }
    let mut sheet = RgbImage::from_pixel(width, height, image::Rgb([255; 3]));
    let mut filled = vec![0u32; rows];
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let size = batch.h * batch.w * batch.c;
        for (pixels, &label) in batch.pixels.chunks_exact(size).zip(&batch.labels) {
            let image = crate::Image { pixels: pixels.to_vec(), h: batch.h, w: batch.w, c: batch.c };
            let enlarged = resize(&image.to_rgb(), tile, tile, FilterType::Nearest);
            let column = &mut filled[label as usize];
            let at = |k: u32| i64::from(GAP + k * (tile + GAP));
            replace(&mut sheet, &enlarged, at(*column), at(label));
            *column += 1;
        }
    }
    Ok(sheet)
}
