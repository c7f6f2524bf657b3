//! The idx files of MNIST and its kin, plain or gzipped: a big-endian header (magic number, then one size per
//! dimension) and bytes. Magic 2049 is a list of labels, 2051 a list of images.

use crate::catalog::CatalogEntry;
use crate::cifar::locate;
use crate::dataset::Split;
use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

const LABELS: u32 = 2049;
const IMAGES: u32 = 2051;

/// Pixels [n, h, w, 1] and labels of one split.
pub(crate) fn read(entry: &CatalogEntry, split: Split, dir: &Path) -> Result<(Vec<u8>, Vec<u32>)> {
    let [_, h, w] = entry.shape;
    let mut files = entry.files(split).map(|file| find(entry, dir, file.name));
    let (images, labels) = (files.next().expect("an image file")?, files.next().expect("a label file")?);
    let (n, pixels) = read_file(&images, IMAGES, &[h, w])?;
    let (n_labels, bytes) = read_file(&labels, LABELS, &[])?;
    if n_labels != n {
        let reason = format!("expected {n} labels, one per image in {}, found {n_labels}", images.display());
        return Err(Error::Format { path: labels, reason });
    }
    if let Some(record) = bytes.iter().position(|&label| usize::from(label) >= entry.num_classes) {
        let found = u32::from(bytes[record]);
        return Err(Error::Label { path: labels, record, found, classes: entry.num_classes });
    }
    Ok((pixels, bytes.into_iter().map(u32::from).collect()))
}

/// The idx file of that name, with or without `.gz`, with `-idx` or `.idx` in its name.
pub(crate) fn find(entry: &CatalogEntry, dir: &Path, name: &str) -> Result<PathBuf> {
    let dotted = name.replace("-idx", ".idx");
    let mut looked_for = Vec::new();
    for name in [name.to_owned(), format!("{name}.gz"), dotted.clone(), format!("{dotted}.gz")] {
        let (path, tried) = locate(dir, entry.subfolders, &name);
        if let Some(path) = path {
            return Ok(path);
        }
        // The dotted spelling is a courtesy and would only make the message longer.
        if !name.contains(".idx") {
            looked_for.extend(tried);
        }
    }
    Err(Error::NotFound { what: format!("{} file {name}[.gz]", entry.name), looked_for })
}

/// The file's content, uncompressed if its name ends in `.gz`.
pub(crate) fn content(path: &Path) -> Result<Box<dyn Read>> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let gzipped = path.extension().is_some_and(|extension| extension == "gz");
    Ok(if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

/// What went wrong while reading: damage inside a gzip stream, or the disk.
pub(crate) fn read_error(path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    let gzipped = path.extension().is_some_and(|extension| extension == "gz");
    if gzipped && matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) {
        return Error::Format { path: path.to_owned(), reason: format!("damaged gzip file: {error}") };
    }
    Error::io(path)(error)
}

/// Number of items and their bytes; `item` holds the expected sizes of the dimensions after the first.
fn read_file(path: &Path, magic: u32, item: &[usize]) -> Result<(usize, Vec<u8>)> {
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let header_bytes = 4 * (2 + item.len());
    let mut source = content(path)?;
    let mut header = Vec::new();
    source
        .by_ref()
        .take(header_bytes as u64)
        .read_to_end(&mut header)
        .map_err(|error| read_error(path, error))?;
    if header.len() < header_bytes {
        return Err(format(format!(
            "no idx file: expected a header of {header_bytes} bytes, found {}",
            header.len()
        )));
    }
    let mut numbers = header.as_chunks::<4>().0.iter().map(|&bytes| u32::from_be_bytes(bytes));
    let found = numbers.next().expect("a header begins with its magic number");
    if found != magic {
        let kind = if magic == IMAGES { "images" } else { "labels" };
        return Err(format(format!(
            "no idx file of {kind}: expected the magic number {magic}, found {found}"
        )));
    }
    let n = numbers.next().expect("a header has a count") as usize;
    let sizes: Vec<usize> = numbers.map(|size| size as usize).collect();
    if sizes != item {
        return Err(format(format!("expected items of {item:?}, found {sizes:?}")));
    }
    let expected = n as u64 * item.iter().product::<usize>() as u64;
    // One byte more than expected shows a file that is too long, and reading to the end makes gzip check its sum.
    // Capacity grows with what is really there, so that a header alone cannot claim memory.
    let mut bytes = Vec::new();
    source.take(expected + 1).read_to_end(&mut bytes).map_err(|error| read_error(path, error))?;
    if bytes.len() as u64 != expected {
        let longer = bytes.len() as u64 > expected;
        let whole = if longer { content(path).map(count)? } else { (header_bytes + bytes.len()) as u64 };
        return Err(Error::Size {
            path: path.to_owned(),
            expected: expected + header_bytes as u64,
            found: whole,
        });
    }
    Ok((n, bytes))
}

/// How many bytes there are, up to a GiB: enough to say how much too long a file is.
fn count(source: Box<dyn Read>) -> u64 {
    std::io::copy(&mut source.take(1 << 30), &mut std::io::sink()).unwrap_or(0)
}
