//! Resizing as Pillow does it: bilinear or bicubic with antialiasing, in Pillow's fixed-point arithmetic, so that a
//! picture prepared here equals the one PyTorch's models were trained and are evaluated on, bit for bit.
//!
//! Each output pixel is the average of the input pixels under a curve as wide as the reduction (never narrower
//! than over input pixels themselves), along rows and along columns, rounded to 8 bits after each. The curve is a
//! triangle, or a cubic with a negative lobe on either side.

use crate::pixels::Image;
use std::ops::Range;

/// A rectangle of pixels inside a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

impl Region {
    /// The whole picture.
    pub fn all(image: &Image) -> Self {
        Self { top: 0, left: 0, h: image.h, w: image.w }
    }
}

/// How pixels between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interpolation {
    /// Linear along each axis.
    #[default]
    Bilinear,
    /// Cubic along each axis (Keys 1981, a = -0.5).
    Bicubic,
}

impl Interpolation {
    /// Its name in metadata: `bilinear` or `bicubic`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
        }
    }

    /// The interpolation of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Bilinear, Self::Bicubic].into_iter().find(|kind| kind.name() == name)
    }

    /// How far the curve reaches to either side, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The curve at this distance from its middle, in Pillow's order of operations.
    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

/// Fraction bits of the weights: 32 minus 8 for the pixel and 2 for the sum, as in Pillow.
const WEIGHT_BITS: u32 = 22;

/// The input pixels under each output pixel and their weights, which sum to 2^22 up to rounding.
struct Taps {
    spans: Vec<Range<usize>>,
    weights: Vec<i32>,
    /// Room for weights per output pixel.
    stride: usize,
}

impl Taps {
    fn new(size_in: usize, size_out: usize, how: Interpolation) -> Self {
        let scale = size_in as f64 / size_out as f64;
        let width = scale.max(1.0);
        let support = how.support() * width;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps =
            Self { spans: Vec::with_capacity(size_out), weights: vec![0; size_out * stride], stride };
        let mut window = vec![0.0; stride];
        for (out, fixed) in taps.weights.chunks_exact_mut(stride).enumerate() {
            let center = (out as f64 + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let last = ((center + support + 0.5) as usize).min(size_in);
            let n = last - first;
            for (k, weight) in window[..n].iter_mut().enumerate() {
                *weight = how.weight(((k + first) as f64 - center + 0.5) * (1.0 / width));
            }
            let sum: f64 = window[..n].iter().sum();
            for (fixed, weight) in fixed.iter_mut().zip(&window[..n]) {
                let scaled = weight / sum * f64::from(1 << WEIGHT_BITS);
                *fixed = (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32;
            }
            taps.spans.push(first..last);
        }
        taps
    }

    fn iter(&self) -> impl Iterator<Item = (Range<usize>, &[i32])> {
        self.spans.iter().cloned().zip(self.weights.chunks_exact(self.stride))
    }
}

fn round(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// The given region of a picture, resized to `h` × `w`: bilinear, antialiased.
///
/// # Panics
/// If the region is empty or reaches outside of the picture, or `h` or `w` is 0.
pub fn resize(image: &Image, region: Region, h: usize, w: usize) -> Image {
    resize_by(Interpolation::Bilinear, image, region, h, w)
}

/// As [`resize`], with any interpolation.
///
/// # Panics
/// As [`resize`].
pub fn resize_by(how: Interpolation, image: &Image, region: Region, h: usize, w: usize) -> Image {
    assert!(region.h > 0 && region.w > 0 && h > 0 && w > 0, "nothing to resize");
    assert!(
        region.top + region.h <= image.h && region.left + region.w <= image.w,
        "region outside of picture"
    );
    // The order shows in the rounding. This is Pillow 13's rule; up to Pillow 12 rows always came first.
    if region.h > h && (region.h - h) as i64 > 2 * (region.w as i64 - w as i64) {
        let columns = resize_columns(how, image, region, h);
        resize_rows(how, &columns, Region::all(&columns), w)
    } else {
        let rows = resize_rows(how, image, region, w);
        resize_columns(how, &rows, Region::all(&rows), h)
    }
}

/// The region with each of its columns resized to `h` pixels.
fn resize_columns(how: Interpolation, image: &Image, region: Region, h: usize) -> Image {
    let (c, stride, width) = (image.c, image.w * image.c, region.w * image.c);
    let row = |y: usize| &image.pixels[(region.top + y) * stride + region.left * c..][..width];
    let mut pixels = Vec::with_capacity(h * width);
    if region.h == h {
        (0..h).for_each(|y| pixels.extend_from_slice(row(y)));
        return Image { pixels, h, w: region.w, c };
    }
    let mut sums = vec![0i32; width];
    for (span, weights) in Taps::new(region.h, h, how).iter() {
        sums.fill(1 << (WEIGHT_BITS - 1));
        for (y, &weight) in span.zip(weights) {
            for (sum, &v) in sums.iter_mut().zip(row(y)) {
                *sum += i32::from(v) * weight;
            }
        }
        pixels.extend(sums.iter().map(|&sum| round(sum)));
    }
    Image { pixels, h, w: region.w, c }
}

/// The region with each of its rows resized to `w` pixels.
fn resize_rows(how: Interpolation, image: &Image, region: Region, w: usize) -> Image {
    let pixels = match image.c {
        1 => resize_rows_of::<1>(how, image, region, w),
        _ => resize_rows_of::<3>(how, image, region, w),
    };
    Image { pixels, h: region.h, w, c: image.c }
}

fn resize_rows_of<const C: usize>(how: Interpolation, image: &Image, region: Region, w: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(region.h * w * C);
    let taps = (region.w != w).then(|| Taps::new(region.w, w, how));
    for y in region.top..region.top + region.h {
        let row = &image.pixels[(y * image.w + region.left) * C..][..region.w * C];
        let Some(taps) = &taps else {
            out.extend_from_slice(row);
            continue;
        };
        let (row, _) = row.as_chunks::<C>();
        for (span, weights) in taps.iter() {
            let mut sums = [1i32 << (WEIGHT_BITS - 1); C];
            for (pixel, &weight) in row[span].iter().zip(weights) {
                for (sum, &v) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(v) * weight;
                }
            }
            out.extend(sums.map(round));
        }
    }
    out
}
