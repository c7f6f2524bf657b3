//! A decoded picture in memory.

/// An 8-bit picture, [h, w, c] in memory, c = 1 (grey) or 3 (red, green, blue).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The bytes, `h * w * c` of them.
    pub pixels: Vec<u8>,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels, 1 or 3.
    pub c: usize,
}

impl Image {
    /// A picture of one value.
    pub fn filled(h: usize, w: usize, c: usize, value: u8) -> Self {
        Self { pixels: vec![value; h * w * c], h, w, c }
    }

    /// The picture with `c` channels: grey is repeated, colour becomes its ITU-R 601 luma, as in
    /// Pillow.
    pub fn with_channels(self, c: usize) -> Self {
        match (self.c, c) {
            (1, 3) => Self { pixels: self.pixels.iter().flat_map(|&v| [v, v, v]).collect(), c: 3, ..self },
            (3, 1) => {
                let grey = self.pixels.as_chunks::<3>().0.iter().map(|&p| luma(p)).collect();
                Self { pixels: grey, c: 1, ..self }
            }
            _ => self,
        }
    }

    /// The picture as the `image` crate's type, for saving.
    pub fn to_rgb(&self) -> image::RgbImage {
        let rgb = self.clone().with_channels(3);
        image::RgbImage::from_raw(rgb.w as u32, rgb.h as u32, rgb.pixels).expect("h * w * 3 bytes")
    }
}

/// ITU-R 601 luma in the fixed-point form Pillow uses for mode "L", so that grey values equal PyTorch's.
pub(crate) fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}
