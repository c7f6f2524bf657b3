//! Changes of colour that leave every pixel in its place, with Pillow's arithmetic (`ImageEnhance`,
//! `ImageOps`).

use crate::pixels::{Image, luma};

/// `from + amount × (to − from)` for each byte, cut off to 0..=255, as Pillow's `Image.blend`.
fn blend(from: u8, to: u8, amount: f64) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    (from + amount as f32 * (to - from)) as u8 // A cast from float cuts off at both ends and truncates.
}

fn map(mut image: Image, change: impl Fn(u8) -> u8) -> Image {
    let table: [u8; 256] = std::array::from_fn(|v| change(v as u8));
    image.pixels.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
    image
}

/// Black at 0, the picture at 1, brighter above.
pub(crate) fn brightness(image: Image, factor: f64) -> Image {
    map(image, |v| blend(0, v, factor))
}

/// Grey at 0, the picture at 1, more colourful above.
pub(crate) fn saturation(mut image: Image, factor: f64) -> Image {
    if image.c == 3 {
        for pixel in image.pixels.as_chunks_mut::<3>().0 {
            let grey = luma(*pixel);
            *pixel = pixel.map(|v| blend(grey, v, factor));
        }
    }
    image
}

/// The mean grey at 0, the picture at 1, more contrast above.
pub(crate) fn contrast(image: Image, factor: f64) -> Image {
    let sum: u64 = match image.c {
        3 => image.pixels.as_chunks::<3>().0.iter().map(|&pixel| u64::from(luma(pixel))).sum(),
        _ => image.pixels.iter().map(|&v| u64::from(v)).sum(),
    };
    let mean = (sum as f64 / (image.h * image.w) as f64 + 0.5) as u8;
    map(image, |v| blend(mean, v, factor))
}

/// Smoothed at 0, the picture at 1, sharper above. The outermost pixels have no full neighbourhood and stay.
pub(crate) fn sharpness(image: Image, factor: f64) -> Image {
    let Image { h, w, c, .. } = image;
    let mut out = image.clone();
    let row = w * c;
    for y in 1..h.saturating_sub(1) {
        for i in y * row + c..(y + 1) * row - c {
            let mut sum = 4 * u32::from(image.pixels[i]);
            for line in [i - row, i, i + row] {
                sum += [line - c, line, line + c].iter().map(|&j| u32::from(image.pixels[j])).sum::<u32>();
            }
            // The weights 1 and, in the middle, 5 sum to 13; rounded to the nearest, never a tie.
            out.pixels[i] = blend(((2 * sum + 13) / 26) as u8, image.pixels[i], factor);
        }
    }
    out
}

/// Only the `bits` highest bits of each value.
pub(crate) fn posterize(image: Image, bits: u32) -> Image {
    map(image, |v| v & !((1u32 << (8 - bits)) - 1) as u8)
}

/// Values from `threshold` on inverted.
pub(crate) fn solarize(image: Image, threshold: f64) -> Image {
    map(image, |v| if f64::from(v) < threshold { v } else { 255 - v })
}

/// Each channel stretched so that its darkest value becomes 0 and its brightest 255.
pub(crate) fn autocontrast(image: Image) -> Image {
    per_channel(image, |histogram| {
        let low = histogram.iter().position(|&n| n > 0)?;
        let high = histogram.iter().rposition(|&n| n > 0)?;
        let scale = (high > low).then(|| 255.0 / (high - low) as f64)?;
        let offset = -(low as f64) * scale;
        Some(std::array::from_fn(|v| (v as f64 * scale + offset) as u8))
    })
}

/// Each channel mapped so that its values are spread evenly.
pub(crate) fn equalize(image: Image) -> Image {
    per_channel(image, |histogram| {
        let last = histogram.iter().rposition(|&n| n > 0)?;
        let step = (histogram.iter().sum::<u32>() - histogram[last]) / 255;
        if step == 0 {
            return None;
        }
        let mut n = step / 2;
        Some(std::array::from_fn(|v| {
            let level = (n / step).min(255) as u8;
            n += histogram[v];
            level
        }))
    })
}

/// Applies to each channel the table made from its histogram, if there is one.
fn per_channel(mut image: Image, table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) -> Image {
    let c = image.c;
    for channel in 0..c {
        let mut histogram = [0; 256];
        image.pixels.iter().skip(channel).step_by(c).for_each(|&v| histogram[usize::from(v)] += 1);
        if let Some(table) = table(&histogram) {
            image.pixels.iter_mut().skip(channel).step_by(c).for_each(|v| *v = table[usize::from(*v)]);
        }
    }
    image
}
