//! Image files to pixels, as torchvision's `ImageFolder` sees them: alpha is dropped, palettes and CMYK
//! become RGB, an EXIF orientation is not applied. Grey files keep their one channel here; the loader or
//! [`crate::preprocess`] gives them the channels of the model.

use crate::pixels::Image;
use crate::{Error, Result};
use image::{DynamicImage, ImageDecoder, ImageReader};
use std::io::Cursor;
use std::path::Path;

/// The most pixels a picture may have: a quarter of a GiB as RGB, where Pillow begins to warn of a
/// decompression bomb. A file whose header says more is refused before memory is set aside for it.
pub const MAX_PIXELS: u64 = 89_478_485;

/// The most memory a decoder may take, for 16 bits and 4 channels at [`MAX_PIXELS`].
const MAX_DECODER_BYTES: u64 = 1 << 30;

/// Reads and decodes an image file. The format is found from the content, not from the file name.
///
/// # Errors
/// With the path and the reason: unreadable, not an image, damaged or truncated, or more than
/// [`MAX_PIXELS`].
pub fn load_image(path: impl AsRef<Path>) -> Result<Image> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    decode_image(&bytes, &path.display().to_string())
}

/// Decodes an image file held in memory; `origin` names it in errors.
///
/// # Errors
/// As [`load_image`].
pub fn decode_image(bytes: &[u8], origin: &str) -> Result<Image> {
    let fail = |reason: String| Error::Image { origin: origin.to_owned(), reason };
    if bytes.is_empty() {
        return Err(fail("the file is empty".into()));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    if reader.format().is_none() {
        return Err(fail(format!("not an image ({})", describe(bytes))));
    }
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| fail(readable(&error)))?;
    let (w, h) = decoder.dimensions();
    if u64::from(w) * u64::from(h) > MAX_PIXELS {
        return Err(fail(format!("{w} x {h} pixels are more than the limit of {MAX_PIXELS}")));
    }
    if bytes.starts_with(&[0xff, 0xd8]) && !jpeg_is_complete(bytes) {
        return Err(fail("truncated JPEG: it ends before its end marker".into()));
    }
    let picture = DynamicImage::from_decoder(decoder).map_err(|error| fail(readable(&error)))?;
    let (h, w) = (h as usize, w as usize);
    if h == 0 || w == 0 {
        return Err(fail(format!("the picture is empty: {w} x {h} pixels")));
    }
    Ok(if picture.color().has_color() {
        Image { pixels: picture.into_rgb8().into_raw(), h, w, c: 3 }
    } else {
        Image { pixels: picture.into_luma8().into_raw(), h, w, c: 1 }
    })
}

/// One line without the crate's own preamble about formats.
fn readable(error: &image::ImageError) -> String {
    use image::ImageError;
    let reason = match error {
        ImageError::Limits(limit) => format!("it needs too much memory ({limit})"),
        ImageError::Unsupported(unsupported) => unsupported.to_string(),
        other => format!("damaged image: {other}"),
    };
    reason.replace('\n', " ")
}

/// What a file that is no image looks like.
fn describe(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(64)];
    let text =
        std::str::from_utf8(start).ok().or_else(|| std::str::from_utf8(&start[..start.len() - 1]).ok());
    match text {
        Some(text) if text.chars().all(|c| !c.is_control() || c.is_whitespace()) => {
            let line: String = text.lines().next().unwrap_or("").chars().take(24).collect();
            format!("it is text and begins with {line:?}")
        }
        _ => format!("it begins with the bytes {:02x?}", &start[..start.len().min(8)]),
    }
}

/// Whether a JPEG's end marker is there. The decoder fills what is missing with grey and says nothing.
///
/// Segments before the scan are stepped over by their length, because an EXIF thumbnail among them has an end
/// marker of its own.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[marker, code, hi, lo]) = bytes.get(at..at + 4).and_then(|s| s.first_chunk::<4>()) {
        if marker != 0xff {
            return true; // Not the structure we know: leave the judgement to the decoder.
        }
        match code {
            0xff => at += 1,
            0xd8 | 0x01 => at += 2,
            0xda => {
                // Inside entropy-coded data 0xff is always followed by 0x00 or a restart marker.
                return bytes[at + 4..].windows(2).any(|pair| pair == [0xff, 0xd9]);
            }
            _ => at += 2 + usize::from(u16::from_be_bytes([hi, lo])),
        }
    }
    false
}
