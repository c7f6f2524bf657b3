//! Folders of images: structure, decoding, and files that cannot be decoded.

use image::{DynamicImage, GrayImage, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use zoo_data::{FileStatus, Loader, LoaderConfig, Split, decode_image, load_image, open, verify};

fn picture(seed: u8) -> RgbImage {
    RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8 * 6, y as u8 * 8, seed]))
}

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn said(bytes: &[u8]) -> String {
    let text = decode_image(bytes, "x.jpg").unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

/// A PNG that claims a size and holds next to nothing.
fn png_bomb(w: u32, h: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [&w.to_be_bytes()[..], &h.to_be_bytes()[..], &[8, 2, 0, 0, 0]].concat();
    for (kind, body) in [(b"IHDR", &header[..]), (b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]), (b"IEND", &[])] {
        let chunk = [&kind[..], body].concat();
        bytes.extend((body.len() as u32).to_be_bytes());
        let mut sum = flate2::Crc::new();
        sum.update(&chunk);
        bytes.extend(&chunk);
        bytes.extend(sum.sum().to_be_bytes());
    }
    bytes
}

#[test]
fn every_kind_of_pixel_becomes_grey_or_rgb() {
    let rgb = picture(9);
    let expected = rgb.as_raw();
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Pnm, ImageFormat::WebP] {
        let image = decode_image(&encoded(rgb.clone(), format), "x").unwrap();
        assert_eq!((image.h, image.w, image.c), (30, 40, 3), "{format:?}");
        assert_eq!(&image.pixels, expected, "{format:?}");
    }
    let deep =
        image::ImageBuffer::from_fn(40, 30, |x, y| Rgb(rgb.get_pixel(x, y).0.map(|v| u16::from(v) * 257)));
    assert_eq!(&decode_image(&encoded(deep, ImageFormat::Png), "x").unwrap().pixels, expected);
    // Alpha is dropped, not blended, as Pillow's convert("RGB") does.
    let clear = image::RgbaImage::from_fn(40, 30, |x, y| {
        let [r, g, b] = rgb.get_pixel(x, y).0;
        Rgba([r, g, b, x as u8])
    });
    assert_eq!(&decode_image(&encoded(clear, ImageFormat::Png), "x").unwrap().pixels, expected);
    let grey = GrayImage::from_fn(5, 4, |x, y| Luma([(x * 50 + y) as u8]));
    let clear = image::GrayAlphaImage::from_fn(5, 4, |x, y| LumaA([(x * 50 + y) as u8, 3]));
    for bytes in [encoded(grey.clone(), ImageFormat::Png), encoded(clear, ImageFormat::Png)] {
        let image = decode_image(&bytes, "x").unwrap();
        assert_eq!((image.c, &image.pixels), (1, grey.as_raw()));
    }
    let jpeg = decode_image(&encoded(rgb.clone(), ImageFormat::Jpeg), "x").unwrap();
    let worst = jpeg.pixels.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst < Some(40), "{worst:?}");
}

#[test]
fn undecodable_bytes_are_explained() {
    assert_eq!(said(b""), "x.jpg: the file is empty");
    assert_eq!(
        said(b"hello, I am a text\nfile"),
        "x.jpg: not an image (it is text and begins with \"hello, I am a text\")"
    );
    assert_eq!(
        said(&[0; 20]),
        "x.jpg: not an image (it begins with the bytes [00, 00, 00, 00, 00, 00, 00, 00])"
    );
    assert_eq!(
        said(&png_bomb(60_000, 60_000)),
        "x.jpg: 60000 x 60000 pixels are more than the limit of 89478485"
    );
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let bytes = encoded(picture(1), format);
        assert!(said(&bytes[..bytes.len() * 2 / 3]).starts_with("x.jpg: damaged image: "), "{format:?}");
    }
    let jpeg = encoded(picture(1), ImageFormat::Jpeg);
    assert!(decode_image(&jpeg, "x").is_ok());
    for keep in [jpeg.len() - 2, jpeg.len() - 50] {
        assert_eq!(said(&jpeg[..keep]), "x.jpg: truncated JPEG: it ends before its end marker");
    }
    let missing = load_image("no/such/file.png").unwrap_err().to_string();
    assert!(missing.starts_with("no/such/file.png: "), "{missing}");
}

#[test]
fn classes_and_files_are_in_the_order_of_their_names() {
    let dir = TempDir::new().unwrap();
    let png = encoded(picture(0), ImageFormat::Png);
    for name in ["train/b/2.png", "train/b/10.png", "train/a/x/1.PNG", "train/a/z.jpg", "val/b/1.png"] {
        put(dir.path(), name, &png);
    }
    put(dir.path(), "train/a/notes.txt", b"not counted");
    let train = open("folder", Split::Train, Some(dir.path()), 0).unwrap();
    let names: Vec<_> = (0..train.len())
        .map(|i| train.path(i).unwrap().strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["train/a/z.jpg", "train/a/x/1.PNG", "train/b/10.png", "train/b/2.png"]);
    assert_eq!(train.labels().collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert_eq!(train.get(0).unwrap().c, 3);
    // The held-out split has no class a; b is still class 1.
    let val = open("folder", Split::Test, Some(dir.path()), 0).unwrap();
    assert_eq!((val.meta().classes.len(), val.labels().collect::<Vec<_>>()), (2, vec![1]));
}

#[test]
fn wrong_structures_are_explained() {
    let message = |dir: &Path, split| {
        open("folder", split, Some(dir), 0).unwrap_err().to_string().replace(dir.to_str().unwrap(), "DIR")
    };
    let dir = TempDir::new().unwrap();
    assert_eq!(message(dir.path(), Split::Train), "folder of train images not found; looked for DIR/train");
    assert_eq!(
        message(dir.path(), Split::Test),
        "folder of test images not found; looked for DIR/val, DIR/test"
    );
    fs::create_dir_all(dir.path().join("train")).unwrap();
    assert_eq!(
        message(dir.path(), Split::Train),
        "DIR/train: no class folders; expected one folder per class"
    );
    fs::create_dir_all(dir.path().join("train/cat")).unwrap();
    assert_eq!(
        message(dir.path(), Split::Train),
        "DIR/train/cat: no images; expected files that end in jpg, jpeg, png, ppm, bmp, pgm, tif, tiff, webp"
    );
    put(dir.path(), "train/cat/1.png", &encoded(picture(0), ImageFormat::Png));
    put(dir.path(), "val/dog/1.png", &encoded(picture(0), ImageFormat::Png));
    assert_eq!(
        message(dir.path(), Split::Test),
        "DIR/val/dog: class 'dog' is not among the 1 classes of train"
    );
    assert!(open("folder", Split::Train, None, 0).unwrap_err().to_string().contains("--data-dir"));
}

#[test]
fn undecodable_files_leave_their_batch_and_are_counted_once() {
    let dir = TempDir::new().unwrap();
    for i in 0..10 {
        put(dir.path(), &format!("train/a/{i}.png"), &encoded(picture(i), ImageFormat::Png));
    }
    put(dir.path(), "train/a/3.png", b"text");
    put(dir.path(), "train/a/6.png", &png_bomb(50_000, 50_000));
    put(dir.path(), "train/a/7.png", b"");
    let set = open("folder", Split::Train, Some(dir.path()), 0).unwrap();
    for workers in [0, 2] {
        let config = LoaderConfig { image_size: Some(24), workers: Some(workers), ..LoaderConfig::new(2, 0) };
        let loader = Loader::new(set.clone(), config).unwrap();
        for epoch in 0..2 {
            let batches: Vec<_> = loader.epoch(epoch, 0).map(Result::unwrap).collect();
            let indices: Vec<_> = batches.iter().map(|batch| batch.indices.clone()).collect();
            // The batch of 6 and 7 has nothing left and is passed over.
            assert_eq!(indices, [vec![0, 1], vec![2], vec![4, 5], vec![8, 9]]);
            assert_eq!(batches.iter().map(|batch| batch.number).collect::<Vec<_>>(), [0, 1, 2, 4]);
            assert!(batches.iter().all(|batch| batch.pixels.len() == batch.n * 24 * 24 * 3));
        }
        let skipped = loader.skipped();
        assert_eq!(skipped.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3, 6, 7]);
        let warnings = loader.take_warnings();
        assert_eq!(warnings.len(), 3);
        assert!(
            warnings[0].starts_with("skipped ") && warnings[0].contains("3.png: not an image"),
            "{warnings:?}"
        );
        assert!(loader.take_warnings().is_empty());
    }
    let only_bad = Loader::new(set.subset([3, 7]), LoaderConfig::new(1, 0)).unwrap();
    let results: Vec<_> = only_bad.epoch(0, 0).collect();
    assert_eq!(results.len(), 1);
    let text = results[0].as_ref().unwrap_err().to_string();
    assert!(text.starts_with("none of the 2 images can be read; the first: "), "{text}");
}

#[test]
fn verify_decodes_every_image() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "train/a/1.png", &encoded(picture(0), ImageFormat::Png));
    put(dir.path(), "val/a/2.png", b"nothing");
    let reports = verify("folder", dir.path()).unwrap();
    assert_eq!(reports.len(), 2);
    assert_eq!((reports[0].name.as_str(), &reports[0].status), ("train/a/1.png", &FileStatus::Ok));
    let FileStatus::Unreadable(reason) = &reports[1].status else { panic!("{:?}", reports[1]) };
    assert_eq!(reason, "not an image (it is text and begins with \"nothing\")");
}
