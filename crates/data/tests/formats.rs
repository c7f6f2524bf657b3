//! Opening and checking each format, and what is said about files that are not what they should be. All files
//! are made here.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;
use zoo_data::{Dataset, FileStatus, Split, open, verify};

fn open_test(name: &str, dir: &Path) -> zoo_data::Result<Dataset> {
    open(name, Split::Test, Some(dir), 0)
}

fn message(name: &str, split: Split, dir: &Path) -> String {
    let text = open(name, split, Some(dir), 0).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    // The folder differs from run to run.
    text.replace(dir.to_str().unwrap(), "DIR")
}

/// A CIFAR file of `n` records: labels count up, pixel (y, x) is (y, x, label) plus the record's number.
fn cifar_file(n: usize, label_bytes: usize, classes: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(n * (label_bytes + 3072));
    for record in 0..n {
        let label = (record % classes) as u8;
        bytes.extend(std::iter::repeat_n(77, label_bytes - 1));
        bytes.push(label);
        for plane in 0..3 {
            let value = |i: usize| [i / 32, i % 32, usize::from(label)][plane] + record;
            bytes.extend((0..1024).map(|i| value(i) as u8));
        }
    }
    bytes
}

fn idx(magic: u32, sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let header = std::iter::once(magic).chain(sizes.iter().copied()).flat_map(u32::to_be_bytes);
    header.chain(bytes.iter().copied()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes a test split of `n` digits in idx format; image i is filled with i, label i mod 10.
fn write_digits(dir: &Path, n: u32, change: impl Fn(&[u8]) -> Vec<u8>, ending: &str) {
    let pixels: Vec<u8> = (0..n).flat_map(|i| [i as u8; 784]).collect();
    let labels: Vec<u8> = (0..n).map(|i| (i % 10) as u8).collect();
    let images = idx(2051, &[n, 28, 28], &pixels);
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(format!("t10k-images-idx3-ubyte{ending}")), change(&images)).unwrap();
    fs::write(dir.join(format!("t10k-labels-idx1-ubyte{ending}")), change(&idx(2049, &[n], &labels)))
        .unwrap();
}

#[test]
fn cifar10_in_its_folder_or_directly() {
    for sub in ["", "cifar-10-batches-bin"] {
        let dir = TempDir::new().unwrap();
        let place = dir.path().join(sub);
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("test_batch.bin"), cifar_file(10_000, 1, 10)).unwrap();
        let set = open_test("cifar10", dir.path()).unwrap();
        assert_eq!((set.len(), set.meta().classes.len(), set.label(123)), (10_000, 10, 3));
        let image = set.get(123).unwrap();
        assert_eq!((image.h, image.w, image.c), (32, 32, 3));
        // Row 2, column 5: planes became interleaved colours.
        assert_eq!(image.pixels[(2 * 32 + 5) * 3..][..3], [2 + 123, 5 + 123, 3 + 123]);
        assert!(set.labels().enumerate().all(|(i, label)| label as usize == i % 10));
    }
}

#[test]
fn cifar100_uses_the_fine_label() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("test.bin"), cifar_file(10_000, 2, 100)).unwrap();
    let set = open_test("cifar100", dir.path()).unwrap();
    assert_eq!((set.len(), set.label(45), set.meta().classes[45].as_str()), (10_000, 45, "lobster"));
    assert_eq!(set.get(45).unwrap().pixels[..3], [45, 45, 90]);
    assert!(set.meta().classes.is_sorted());
}

#[test]
fn damaged_cifar_is_refused() {
    let dir = TempDir::new().unwrap();
    assert_eq!(
        message("cifar10", Split::Test, dir.path()),
        "cifar10 file test_batch.bin not found; looked for DIR/test_batch.bin, \
         DIR/cifar-10-batches-bin/test_batch.bin"
    );
    let path = dir.path().join("test_batch.bin");
    let mut bytes = cifar_file(10_000, 1, 10);
    fs::write(&path, &bytes[..1000]).unwrap();
    assert_eq!(
        message("cifar10", Split::Test, dir.path()),
        "DIR/test_batch.bin: expected 30730000 bytes, found 1000 (truncated)"
    );
    bytes.push(0);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(
        message("cifar10", Split::Test, dir.path()),
        "DIR/test_batch.bin: expected 30730000 bytes, found 30730001"
    );
    bytes.pop();
    bytes[3073 * 7] = 10;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(
        message("cifar10", Split::Test, dir.path()),
        "DIR/test_batch.bin: record 7 has label 10, expected 0 to 9"
    );
}

#[test]
fn idx_plain_or_gzipped_in_the_usual_folders() {
    for (name, sub) in [("mnist", ""), ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")] {
        for gzipped in [false, true] {
            let dir = TempDir::new().unwrap();
            let place = dir.path().join(sub);
            if gzipped {
                write_digits(&place, 30, gzip, ".gz");
            } else {
                write_digits(&place, 30, <[u8]>::to_vec, "");
            }
            let set = open_test(name, dir.path()).unwrap();
            assert_eq!((set.len(), set.label(27), set.meta().shape), (30, 7, [1, 28, 28]));
            assert_eq!(set.get(27).unwrap().pixels, [27; 784]);
        }
    }
}

#[test]
fn idx_with_a_dot_in_its_names() {
    let dir = TempDir::new().unwrap();
    write_digits(dir.path(), 3, <[u8]>::to_vec, "");
    for (from, to) in [("images-idx3", "images.idx3"), ("labels-idx1", "labels.idx1")] {
        let name = |part: &str| dir.path().join(format!("t10k-{part}-ubyte"));
        fs::rename(name(from), name(to)).unwrap();
    }
    assert_eq!(open_test("mnist", dir.path()).unwrap().len(), 3);
}

#[test]
fn damaged_idx_is_refused() {
    let dir = TempDir::new().unwrap();
    let images = dir.path().join("t10k-images-idx3-ubyte");
    let labels = dir.path().join("t10k-labels-idx1-ubyte");
    let said = || message("mnist", Split::Test, dir.path());
    assert!(
        said().starts_with("mnist file t10k-images-idx3-ubyte[.gz] not found; looked for DIR/"),
        "{}",
        said()
    );

    write_digits(dir.path(), 30, <[u8]>::to_vec, "");
    let good = fs::read(&images).unwrap();
    fs::write(&images, &good[..5000]).unwrap();
    assert_eq!(said(), "DIR/t10k-images-idx3-ubyte: expected 23536 bytes, found 5000 (truncated)");
    fs::write(&images, [&good[..], &[1, 2, 3]].concat()).unwrap();
    assert_eq!(said(), "DIR/t10k-images-idx3-ubyte: expected 23536 bytes, found 23539");
    fs::write(&images, &good[..7]).unwrap();
    assert_eq!(said(), "DIR/t10k-images-idx3-ubyte: no idx file: expected a header of 16 bytes, found 7");
    fs::write(&images, idx(2051, &[u32::MAX, 28, 28], &[0; 100])).unwrap();
    assert!(said().ends_with("expected 3367254359296 bytes, found 116 (truncated)"), "{}", said());
    fs::write(&images, idx(2051, &[1, 32, 32], &[0; 1024])).unwrap();
    assert_eq!(said(), "DIR/t10k-images-idx3-ubyte: expected items of [28, 28], found [32, 32]");
    fs::write(&images, fs::read(&labels).unwrap()).unwrap();
    assert_eq!(
        said(),
        "DIR/t10k-images-idx3-ubyte: no idx file of images: expected the magic number 2051, found 2049"
    );
    fs::write(&images, &good).unwrap();
    fs::write(&labels, idx(2049, &[29], &[0; 29])).unwrap();
    assert_eq!(
        said(),
        "DIR/t10k-labels-idx1-ubyte: expected 30 labels, one per image in DIR/t10k-images-idx3-ubyte, found 29"
    );
    let mut bytes = [0; 30];
    bytes[12] = 11;
    fs::write(&labels, idx(2049, &[30], &bytes)).unwrap();
    assert_eq!(said(), "DIR/t10k-labels-idx1-ubyte: record 12 has label 11, expected 0 to 9");
}

#[test]
fn damaged_gzip_is_named() {
    let dir = TempDir::new().unwrap();
    let said = || message("mnist", Split::Test, dir.path());
    let images = dir.path().join("t10k-images-idx3-ubyte.gz");
    write_digits(dir.path(), 30, gzip, ".gz");
    let good = fs::read(&images).unwrap();
    // A wrong checksum at the end, a missing end, and no gzip at all.
    let mut sum = good.clone();
    let n = sum.len();
    sum[n - 6] ^= 1;
    for bytes in [&sum[..], &good[..n / 2], b"not gzip at all, not even close"] {
        fs::write(&images, bytes).unwrap();
        assert!(said().starts_with("DIR/t10k-images-idx3-ubyte.gz: damaged gzip file: "), "{}", said());
    }
}

#[test]
fn verify_reports_each_file() {
    let dir = TempDir::new().unwrap();
    write_digits(dir.path(), 10_000, gzip, ".gz");
    fs::write(dir.path().join("train-labels-idx1-ubyte"), idx(2049, &[5], &[0; 5])).unwrap();
    let reports = verify("mnist", dir.path()).unwrap();
    let status = |name: &str| &reports.iter().find(|report| report.name == name).unwrap().status;
    assert_eq!(reports.len(), 4);
    assert_eq!(*status("train-images-idx3-ubyte"), FileStatus::Missing);
    assert_eq!(*status("train-labels-idx1-ubyte"), FileStatus::WrongSize { expected: 60_008 });
    let FileStatus::WrongChecksum { expected, found } = status("t10k-labels-idx1-ubyte") else { panic!() };
    assert_eq!(expected, "27ae3e4e09519cfbb04c329615203637");
    assert_eq!(found.len(), 32);
    assert!(reports.iter().all(|report| !report.status.is_ok()));

    let cifar = TempDir::new().unwrap();
    fs::write(cifar.path().join("test.bin"), cifar_file(10_000, 2, 100)).unwrap();
    let reports = verify("cifar100", cifar.path()).unwrap();
    assert_eq!((&reports[1].status, reports[1].bytes), (&FileStatus::SizeOk, 30_740_000));
    assert!(verify("shapes", dir.path()).unwrap().is_empty());
    assert!(verify("mnist", Path::new("no/such/folder")).is_err());
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_hub_the_way_out_is_named() {
    let text = open("mnist", Split::Train, None, 0).unwrap_err().to_string();
    assert!(text.contains("--data-dir DIR") && text.contains("--dataset shapes"), "{text}");
}
