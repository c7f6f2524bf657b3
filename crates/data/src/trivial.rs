//! TrivialAugment Wide (Müller and Hutter 2021, arXiv:2103.10158) as torchvision applies it to Pillow images:
//! one operation drawn from fourteen, at one of 31 strengths, in either direction where it has two.
//!
//! The arithmetic is Pillow's, so an operation gives the same bytes as `torchvision.transforms.functional`
//! on the same picture (see scripts/data_golden.py).

use crate::photometric as color;
use crate::pixels::Image;
use rand::Rng;
use zoo_ops::rng::ChaCha8Rng;

/// The number of strengths.
const BINS: u32 = 31;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

use Operation::*;

pub(crate) const OPERATIONS: [Operation; 14] = [
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
];

impl Operation {
    /// The strength of a bin, 0 to 30, and whether it may be negated.
    fn magnitude(self, bin: u32) -> (f64, bool) {
        let share = f64::from(bin) / f64::from(BINS - 1);
        match self {
            ShearX | ShearY | Brightness | Color | Contrast | Sharpness => (0.99 * share, true),
            TranslateX | TranslateY => (32.0 * share, true),
            Rotate => (135.0 * share, true),
            // Bits that are kept, 8 down to 3.
            Posterize => (8.0 - (f64::from(bin) / 5.0).round_ties_even(), false),
            // Values from here on are inverted.
            Solarize => (255.0 * (1.0 - share), false),
            Identity | AutoContrast | Equalize => (0.0, false),
        }
    }

    pub(crate) fn apply(self, image: Image, magnitude: f64) -> Image {
        match self {
            Identity => image,
            // torchvision turns the shear into an angle and back; the picture shears about its corner.
            ShearX => affine(&image, [1.0, magnitude.atan().tan(), 0.0, 0.0, 1.0, 0.0]),
            ShearY => affine(&image, [1.0, 0.0, 0.0, magnitude.atan().tan(), 1.0, 0.0]),
            TranslateX => affine(&image, [1.0, 0.0, -magnitude.trunc(), 0.0, 1.0, 0.0]),
            TranslateY => affine(&image, [1.0, 0.0, 0.0, 0.0, 1.0, -magnitude.trunc()]),
            Rotate => rotate(&image, magnitude),
            Brightness => color::brightness(image, 1.0 + magnitude),
            Color => color::saturation(image, 1.0 + magnitude),
            Contrast => color::contrast(image, 1.0 + magnitude),
            Sharpness => color::sharpness(image, 1.0 + magnitude),
            Posterize => color::posterize(image, magnitude as u32),
            Solarize => color::solarize(image, magnitude),
            AutoContrast => color::autocontrast(image),
            Equalize => color::equalize(image),
        }
    }
}

/// One operation at one strength, drawn uniformly.
pub(crate) fn apply(image: Image, rng: &mut ChaCha8Rng) -> Image {
    let operation = OPERATIONS[rng.random_range(0..OPERATIONS.len() as u32) as usize];
    let (magnitude, signed) = operation.magnitude(rng.random_range(0..BINS));
    let negative = rng.random::<bool>();
    operation.apply(image, if signed && negative { -magnitude } else { magnitude })
}

/// Turns counter-clockwise by `degrees` about the centre; what comes from outside is black.
fn rotate(image: &Image, degrees: f64) -> Image {
    if degrees.rem_euclid(360.0) == 0.0 {
        return image.clone();
    }
    let angle = -degrees.rem_euclid(360.0).to_radians();
    // Pillow rounds to 15 decimals, so that a right angle has an exact zero.
    let round = |v: f64| (v * 1e15).round() / 1e15;
    let (sin, cos) = (round(angle.sin()), round(angle.cos()));
    let (cx, cy) = (image.w as f64 / 2.0, image.h as f64 / 2.0);
    affine(image, [cos, sin, cx - cos * cx - sin * cy, -sin, cos, cy + sin * cx - cos * cy])
}

/// The picture whose pixel (x, y) is that at (a x + b y + c, d x + e y + f) of `image`, nearest neighbour,
/// black outside. `matrix` is [a, b, c, d, e, f] and acts on pixel centres, in Pillow's 16.16 fixed point.
fn affine(image: &Image, [a, b, c, d, e, f]: [f64; 6]) -> Image {
    let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i64;
    let (step_x, step_y) = ([fixed(a), fixed(d)], [fixed(b), fixed(e)]);
    let mut line = [fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5)];
    let mut out = Image::filled(image.h, image.w, image.c, 0);
    let channels = image.c;
    for row in out.pixels.chunks_exact_mut(image.w * channels) {
        let [mut x, mut y] = line;
        for pixel in row.chunks_exact_mut(channels) {
            let (from_x, from_y) = (x >> 16, y >> 16);
            if (0..image.w as i64).contains(&from_x) && (0..image.h as i64).contains(&from_y) {
                let at = (from_y as usize * image.w + from_x as usize) * channels;
                pixel.copy_from_slice(&image.pixels[at..at + channels]);
            }
            x += step_x[0];
            y += step_x[1];
        }
        line = [line[0] + step_y[0], line[1] + step_y[1]];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::{Preprocess, preprocess};
    use crate::resize::{Interpolation, Region, resize, resize_by};
    use zoo_ops::rng::stream;

    #[test]
    fn strengths_span_torchvisions_ranges() {
        let ends = |operation: Operation| (operation.magnitude(0).0, operation.magnitude(30).0);
        assert_eq!(ends(ShearX), (0.0, 0.99));
        assert_eq!(ends(TranslateY), (0.0, 32.0));
        assert_eq!(ends(Rotate), (0.0, 135.0));
        assert_eq!(ends(Posterize), (8.0, 2.0));
        assert_eq!(ends(Solarize), (255.0, 0.0));
    }

    #[test]
    fn every_operation_is_drawn_and_keeps_the_shape() {
        let image = Image { pixels: (0..48 * 3).map(|i| (i * 37 % 256) as u8).collect(), h: 6, w: 8, c: 3 };
        let mut changed = 0;
        for i in 0..400 {
            let out = apply(image.clone(), &mut stream(0, "augment", i));
            assert_eq!((out.h, out.w, out.c, out.pixels.len()), (6, 8, 3, 144));
            changed += u32::from(out != image);
        }
        assert!((300..390).contains(&changed), "{changed}");
    }

    /// Every line of the golden file that scripts/data_golden.py made with Pillow and torchvision.
    #[test]
    fn pictures_equal_pillows() {
        let mut counts = [0; 5];
        for line in include_str!("../tests/golden/pillow.txt").lines().filter(|line| !line.starts_with('#')) {
            let (request, expected) = line.split_once(" = ").unwrap();
            let words: Vec<&str> = request.split(' ').collect();
            let number = |i: usize| words[i].parse::<usize>().unwrap();
            let (kind, out) = match words[0] {
                "resize" => {
                    let image = picture(number(1), number(2), number(3));
                    (0, resize(&image, Region::all(&image), number(4), number(5)))
                }
                "prepare" => {
                    let channels = number(3);
                    let how = Preprocess { resize: number(4), ..Preprocess::new(number(5), channels) };
                    (1, preprocess(picture(number(1), number(2), channels), &how).unwrap())
                }
                "bicubic" => {
                    let image = picture(number(1), number(2), number(3));
                    let all = Region::all(&image);
                    (4, resize_by(Interpolation::Bicubic, &image, all, number(4), number(5)))
                }
                "grey" => (2, picture(number(1), number(2), 3).with_channels(1)),
                _ => {
                    let operation = OPERATIONS.iter().find(|op| format!("{op:?}") == words[1]).unwrap();
                    let mut image = picture(number(3), number(4), number(5));
                    if matches!(operation, AutoContrast | Equalize) {
                        image = color::contrast(image, 0.4);
                    }
                    (3, operation.apply(image, words[2].parse().unwrap()))
                }
            };
            counts[kind] += 1;
            let digest = out.pixels.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let start: String = out.pixels.iter().take(6).map(|v| format!(" {v}")).collect();
            assert_eq!(format!("{digest:016x}{start}"), expected, "{request}");
        }
        assert_eq!(counts, [49, 6, 2, 320, 49]);
    }

    /// The picture of the golden script.
    fn picture(h: usize, w: usize, c: usize) -> Image {
        let value = |y: usize, x: usize, k: usize| {
            let smooth = (x * x * 7 + y * y * 3 + x * y * (k + 1) + k * 61) / 11;
            (smooth + ((x * 37) ^ (y * 101)) % 53) as u8
        };
        let at = |i: usize| value(i / (w * c), i / c % w, i % c);
        Image { pixels: (0..h * w * c).map(at).collect(), h, w, c }
    }
}
