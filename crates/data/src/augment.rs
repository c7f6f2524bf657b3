//! Random changes to training images.

use crate::pixels::Image;
use crate::preprocess::{Preprocess, SMALL};
use crate::resize::{Region, resize};
use crate::trivial;
use rand::Rng;
use std::fmt;
use std::str::FromStr;
use zoo_ops::Pick;
use zoo_ops::rng::{ChaCha8Rng, stream};

/// Which random changes training images get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Augment {
    /// None: images are prepared as for evaluation.
    #[default]
    None,
    /// Up to 64 pixels: padded by 4 black pixels, cut out at random, flipped left-right half of the time
    /// (He et al. 2016, section 4.2). Above: a random part of 8 to 100 % of the area (or of a larger share, see
    /// [`crate::LoaderConfig::crop_scale`]) and aspect ratio 3/4 to 4/3, resized, and flipped (torchvision's `RandomResizedCrop`). Digits are never flipped.
    Standard,
    /// As `Standard`, but up to 64 pixels padded by 2 pixels reflected at the edge, and flipped every other time: a
    /// half of the images in even epochs, the other half in odd ones (Jordan 2024, arXiv:2404.00498).
    Alternating,
    /// `Standard`, then one operation of TrivialAugment Wide at a random strength (Müller and Hutter 2021,
    /// arXiv:2103.10158, after torchvision's `TrivialAugmentWide`).
    Trivial,
}

impl Augment {
    /// Every choice, in the order a help text shows them.
    pub const ALL: [Self; 4] = [Self::None, Self::Standard, Self::Alternating, Self::Trivial];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
            Self::Alternating => "alternating",
            Self::Trivial => "trivial",
        }
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Augment {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|augment| augment.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            crate::Error::Config(format!("unknown augmentation '{name}'; there are: {known}"))
        })
    }
}

/// The least share of a large picture's area that is taken, in torchvision and here unless told.
pub const CROP_SCALE: f64 = 0.08;

/// What decides the changes to an image in an epoch.
pub(crate) struct Dice {
    rng: ChaCha8Rng,
    /// Whether to mirror it, where that is not drawn.
    flip: Option<bool>,
    /// Whether images of the set may be mirrored.
    mirror: bool,
}

impl Dice {
    /// For image `index` of a set whose images `mirror` well or not.
    pub(crate) fn new(how: Augment, seed: u64, epoch: u64, index: u32, mirror: bool) -> Self {
        let first = || stream(seed, "flip", u64::from(index)).random::<bool>();
        let flip = (how == Augment::Alternating).then(|| first() ^ !epoch.is_multiple_of(2));
        Self { rng: stream(seed, "augment", epoch << 32 | u64::from(index)), flip, mirror }
    }

    fn flip(&mut self) -> bool {
        self.flip.unwrap_or_else(|| self.rng.random()) && self.mirror
    }
}

/// Where a padded small image is cut out, and whether it is mirrored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shift(Pick);

impl Shift {
    /// For image `index` of its set.
    pub(crate) fn draw(how: Augment, index: u32, dice: &mut Dice) -> Self {
        let (pad, reflect) = if how == Augment::Alternating { (2, true) } else { (4, false) };
        let mut offset = || dice.rng.random_range(0..=2 * pad as u32) as i32 - pad;
        let (top, left) = (offset(), offset());
        Self(Pick { index, top, left, flip: dice.flip(), reflect })
    }

    /// The image as it is.
    pub(crate) fn none(index: u32) -> Self {
        Self(Pick { index, top: 0, left: 0, flip: false, reflect: false })
    }

    /// By `pixels` down and to the right, the edge reflected.
    pub(crate) fn reflected(pixels: isize, flip: bool) -> Self {
        let first = -pixels as i32;
        Self(Pick { index: 0, top: first, left: first, flip, reflect: true })
    }

    /// The same for where images are stored.
    pub(crate) fn pick(self) -> Pick {
        self.0
    }

    /// Writes the shifted copy of `pixels`, [h, w, c], to `out` of the same size.
    pub(crate) fn apply(self, pixels: &[u8], [h, w, c]: [usize; 3], out: &mut [u8]) {
        let Pick { top, left, flip, .. } = self.0;
        let row = w * c;
        // The columns of the source that stay visible, and where they land.
        let from = (left.max(0) as usize).min(w);
        let to = (left.min(0).unsigned_abs() as usize).min(w);
        let visible = w - from.max(to);
        for (y, line) in out.chunks_exact_mut(row).enumerate() {
            let Some(y) = self.0.source(y as i32 + top, h) else {
                line.fill(0);
                continue;
            };
            let source = &pixels[y * row..][..row];
            line[to * c..][..visible * c].copy_from_slice(&source[from * c..][..visible * c]);
            for x in (0..to).chain(to + visible..w) {
                let pixel = &mut line[x * c..][..c];
                match self.0.source(x as i32 + left, w) {
                    Some(x) => pixel.copy_from_slice(&source[x * c..][..c]),
                    None => pixel.fill(0),
                }
            }
            if flip {
                mirror_row(line, c);
            }
        }
    }
}

fn mirror_row(row: &mut [u8], c: usize) {
    match c {
        3 => row.as_chunks_mut::<3>().0.reverse(),
        _ => row.reverse(),
    }
}

/// A training image from a decoded one, which already has the model's channels.
pub(crate) fn augment(
    image: Image,
    (how, crop_scale): (Augment, f64),
    input: &Preprocess,
    dice: &mut Dice,
) -> crate::Result<Image> {
    let size = input.crop;
    let image = match how {
        Augment::None => return input.apply(image),
        _ if size <= SMALL => {
            let fitted = input.apply(image)?;
            let shift = Shift::draw(how, 0, dice);
            let mut shifted = Image::filled(fitted.h, fitted.w, fitted.c, 0);
            shift.apply(&fitted.pixels, [fitted.h, fitted.w, fitted.c], &mut shifted.pixels);
            shifted
        }
        _ => {
            let region = random_region(image.h, image.w, crop_scale, &mut dice.rng);
            let mut cropped = resize(&image, region, size, size);
            if dice.flip() {
                let (row, c) = (cropped.w * cropped.c, cropped.c);
                cropped.pixels.chunks_exact_mut(row).for_each(|row| mirror_row(row, c));
            }
            cropped
        }
    };
    Ok(if how == Augment::Trivial { trivial::apply(image, &mut dice.rng) } else { image })
}

/// The part of an `h` × `w` picture that is used: torchvision's `RandomResizedCrop.get_params`.
/// Ten tries at `least` of the area and more; if none fits, the largest centred part of allowed aspect.
fn random_region(h: usize, w: usize, least: f64, rng: &mut ChaCha8Rng) -> Region {
    const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);
    let (height, width) = (h as f64, w as f64);
    for _ in 0..10 {
        let area = height * width * rng.random_range(least..1.0);
        let ratio = rng.random_range(RATIO.0.ln()..RATIO.1.ln()).exp();
        let part_w = (area * ratio).sqrt().round_ties_even() as usize;
        let part_h = (area / ratio).sqrt().round_ties_even() as usize;
        if (1..=w).contains(&part_w) && (1..=h).contains(&part_h) {
            let top = rng.random_range(0..=(h - part_h) as u32) as usize;
            let left = rng.random_range(0..=(w - part_w) as u32) as usize;
            return Region { top, left, h: part_h, w: part_w };
        }
    }
    let part_w = if width / height > RATIO.1 { (height * RATIO.1).round_ties_even() as usize } else { w };
    let part_h = if width / height < RATIO.0 { (width / RATIO.0).round_ties_even() as usize } else { h };
    Region { top: (h - part_h) / 2, left: (w - part_w) / 2, h: part_h, w: part_w }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(h: usize, w: usize, c: usize) -> Image {
        Image { pixels: (0..h * w * c).map(|i| (i % 250 + 1) as u8).collect(), h, w, c }
    }

    fn every_shift(pad: usize) -> impl Iterator<Item = (usize, usize, bool)> {
        let offsets = move || 0..=2 * pad;
        offsets().flat_map(move |t| offsets().flat_map(move |l| [(t, l, false), (t, l, true)]))
    }

    /// From row `top` and column `left` of the image padded by `pad` pixels.
    fn shifted(pad: usize, (top, left): (usize, usize), flip: bool, reflect: bool) -> Shift {
        let first = |offset: usize| offset as i32 - pad as i32;
        Shift(Pick { index: 0, top: first(top), left: first(left), flip, reflect })
    }

    #[test]
    fn every_shift_equals_its_definition() {
        for (c, (top, left, flip)) in [1, 3].into_iter().flat_map(|c| every_shift(4).map(move |s| (c, s))) {
            let image = numbered(5, 7, c);
            let mut out = vec![99; image.pixels.len()];
            shifted(4, (top, left), flip, false).apply(&image.pixels, [5, 7, c], &mut out);
            for (y, x, k) in (0..5).flat_map(|y| (0..7).flat_map(move |x| (0..c).map(move |k| (y, x, k)))) {
                let seen = if flip { 6 - x } else { x };
                let (from_y, from_x) = (y + top, seen + left);
                let inside = (4..9).contains(&from_y) && (4..11).contains(&from_x);
                let expected = if inside { image.pixels[((from_y - 4) * 7 + from_x - 4) * c + k] } else { 0 };
                assert_eq!(out[(y * 7 + x) * c + k], expected, "{top} {left} {flip} at {y} {x} {k}");
            }
        }
    }

    #[test]
    fn every_reflected_shift_equals_its_definition() {
        let (h, w, c) = (5, 7, 3);
        // A row and a column of the image with two more on each side, as PyTorch's `reflect` has them.
        let rows = [2, 1, 0, 1, 2, 3, 4, 3, 2];
        let columns = [2, 1, 0, 1, 2, 3, 4, 5, 6, 5, 4];
        let image = numbered(h, w, c);
        for (top, left, flip) in every_shift(2) {
            let mut out = vec![99; image.pixels.len()];
            shifted(2, (top, left), flip, true).apply(&image.pixels, [h, w, c], &mut out);
            for (y, x, k) in (0..h).flat_map(|y| (0..w).flat_map(move |x| (0..c).map(move |k| (y, x, k)))) {
                let seen = if flip { w - 1 - x } else { x };
                let expected = image.pixels[(rows[y + top] * w + columns[seen + left]) * c + k];
                assert_eq!(out[(y * w + x) * c + k], expected, "{top} {left} {flip} at {y} {x} {k}");
            }
        }
        // Nothing to reflect but the only pixel.
        let mut out = [0; 3];
        shifted(2, (0, 4), true, true).apply(&[7, 8, 9], [1, 1, 3], &mut out);
        assert_eq!(out, [7, 8, 9]);
    }

    #[test]
    fn shifts_are_uniform_and_digits_keep_their_side() {
        for (how, pad) in [(Augment::Standard, 4), (Augment::Alternating, 2)] {
            let mut seen = [[0u32; 9]; 2];
            let mut flips = 0;
            for i in 0..9000 {
                let pick = Shift::draw(how, i, &mut Dice::new(how, 3, 0, i, true)).pick();
                seen[0][(pick.top + pad) as usize] += 1;
                seen[1][(pick.left + pad) as usize] += 1;
                flips += u32::from(pick.flip);
                assert!(!Shift::draw(how, i, &mut Dice::new(how, 3, 0, i, false)).pick().flip);
            }
            let expected = 9000.0 / f64::from(2 * pad + 1);
            let near = |k: &u32| (0.85..1.15).contains(&(f64::from(*k) / expected));
            assert!(seen.iter().all(|s| s[..=2 * pad as usize].iter().all(near)), "{how}: {seen:?}");
            assert!((4300..4700).contains(&flips), "{how}: {flips}");
        }
    }

    #[test]
    fn every_other_epoch_is_mirrored() {
        let flip = |how, epoch, i| Shift::draw(how, i, &mut Dice::new(how, 3, epoch, i, true)).pick().flip;
        let changed = |how, epoch| (0..1000).filter(|&i| flip(how, epoch, i) != flip(how, 0, i)).count();
        let of = |how| [1, 2, 3, 4].map(|epoch| changed(how, epoch));
        assert_eq!(of(Augment::Alternating), [1000, 0, 1000, 0]);
        assert!(of(Augment::Standard).iter().all(|n| (400..600).contains(n)));
    }

    #[test]
    fn random_regions_keep_area_and_aspect() {
        let mut areas = Vec::new();
        for i in 0..2000 {
            let part = random_region(300, 400, CROP_SCALE, &mut stream(1, "augment", i));
            assert!(part.top + part.h <= 300 && part.left + part.w <= 400);
            let ratio = part.w as f64 / part.h as f64;
            assert!((0.73..1.37).contains(&ratio), "{part:?}");
            areas.push((part.h * part.w) as f64 / 120_000.0);
        }
        assert!(areas.iter().all(|area| (0.075..1.005).contains(area)));
        // Large parts that do not fit are drawn again, hence less than the 0.54 in the middle of the range.
        let mean = areas.iter().sum::<f64>() / 2000.0;
        assert!((0.42..0.48).contains(&mean), "{mean}");
        let large = |i| random_region(300, 400, 0.9, &mut stream(1, "augment", i));
        assert!((0..500).map(large).all(|part| part.h * part.w > 105_000));
    }

    #[test]
    fn pictures_too_thin_for_the_aspect_use_their_centre() {
        let mut rng = stream(0, "augment", 0);
        assert_eq!(random_region(2, 300, CROP_SCALE, &mut rng).w, 3);
        let tall = random_region(3000, 3, CROP_SCALE, &mut rng);
        assert_eq!((tall.h, tall.w, tall.top), (4, 3, 1498));
        assert_eq!(random_region(1, 1, CROP_SCALE, &mut rng), Region { top: 0, left: 0, h: 1, w: 1 });
    }

    #[test]
    fn large_images_come_out_at_the_input_size() {
        let input = Preprocess { resize: 112, ..Preprocess::new(98, 3) };
        for how in Augment::ALL {
            let out =
                augment(numbered(120, 90, 3), (how, CROP_SCALE), &input, &mut Dice::new(how, 0, 0, 5, true))
                    .unwrap();
            assert_eq!((out.h, out.w, out.pixels.len()), (98, 98, 98 * 98 * 3));
        }
    }

    #[test]
    fn names_round_trip() {
        for how in Augment::ALL {
            assert_eq!(how.to_string().parse::<Augment>().unwrap(), how);
        }
        let message = "auto".parse::<Augment>().unwrap_err().to_string();
        assert_eq!(message, "unknown augmentation 'auto'; there are: none, standard, alternating, trivial");
    }
}
