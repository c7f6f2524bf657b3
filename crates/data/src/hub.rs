//! Download through the Hugging Face hub cache (`HF_HOME` and the client's other variables are honoured).
//!
//! The hub keeps every data set converted to Parquet, a row per image with the encoded picture and its label.
//! What arrives is decoded to the same bytes as the official files and checked against their digest.

use crate::Result;
use crate::catalog::CatalogEntry;
use crate::dataset::Split;

/// Pixels [n, h, w, c] and labels of one split.
#[cfg(not(feature = "hub"))]
pub(crate) fn fetch(entry: &CatalogEntry, _split: Split) -> Result<(Vec<u8>, Vec<u32>)> {
    Err(crate::Error::NoHub { name: entry.name.to_owned() })
}

#[cfg(feature = "hub")]
pub(crate) use download::fetch;

/// Decodes the rows of a copy, (encoded image, label) each, and checks them against the catalogue.
#[cfg(any(feature = "hub", test))]
fn decode_records(
    entry: &CatalogEntry,
    split: Split,
    rows: impl Iterator<Item = Result<(Vec<u8>, i64)>>,
) -> Result<(Vec<u8>, Vec<u32>)> {
    use crate::{Error, decode, digest};
    let [c, h, w] = entry.shape;
    let name = format!("{} {}", entry.name, split.name());
    let differs = |expected: String, found: String| Error::Content { name: name.clone(), expected, found };
    let mut pixels = Vec::with_capacity(entry.count(split) * c * h * w);
    let mut labels = Vec::with_capacity(entry.count(split));
    for (record, row) in rows.enumerate() {
        let (encoded, label) = row?;
        let image = decode::decode_image(&encoded, &format!("{name} image {record}"))?;
        if [image.c, image.h, image.w] != entry.shape {
            let found = format!("{:?} in image {record}", [image.c, image.h, image.w]);
            return Err(differs(format!("images of {:?}", entry.shape), found));
        }
        if !(0..entry.num_classes as i64).contains(&label) {
            let expected = format!("labels from 0 to {}", entry.num_classes - 1);
            return Err(differs(expected, format!("{label} for image {record}")));
        }
        pixels.extend(image.pixels);
        labels.push(label as u32);
    }
    if labels.len() != entry.count(split) {
        return Err(differs(format!("{} images", entry.count(split)), labels.len().to_string()));
    }
    if let Some(digests) = entry.hub.as_ref().and_then(|copy| copy.digest) {
        let (expected, found) = (digests[split as usize], digest::content(&pixels, &labels));
        if expected != found {
            return Err(differs(format!("content digest {expected:016x}"), format!("{found:016x}")));
        }
    }
    Ok((pixels, labels))
}

#[cfg(feature = "hub")]
mod download {
    use super::decode_records;
    use crate::catalog::{CatalogEntry, HubCopy};
    use crate::dataset::Split;
    use crate::{Error, Result};
    use candle_datasets::hub::from_hub;
    use hf_hub::{HFClientSync, split_id};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, Row};
    use std::fs::File;
    use std::path::{Path, PathBuf};

    /// The branch on which the hub keeps its Parquet conversions.
    const REVISION: &str = "refs/convert/parquet";

    /// Pixels [n, h, w, c] and labels of one split.
    pub(crate) fn fetch(entry: &CatalogEntry, split: Split) -> Result<(Vec<u8>, Vec<u32>)> {
        let copy = entry.hub.as_ref().expect("only sets with a copy on the hub are fetched");
        let path = cached_file(copy, split)
            .map_err(|reason| Error::Download { name: entry.name.to_owned(), reason })?;
        read_parquet(entry, copy, split, &path)
    }

    /// The Parquet file in the hub's cache, where it is put first if it is not there.
    fn cached_file(copy: &HubCopy, split: Split) -> std::result::Result<PathBuf, String> {
        let client = HFClientSync::new().map_err(|error| root_cause(&error))?;
        let (owner, name) = split_id(copy.id);
        let repository = client.dataset(owner, name);
        let file = format!("{}/{}/0000.parquet", copy.folder, split.name());
        // Asking the cache by name needs no network, so that a set once downloaded works without one.
        let cached = || {
            repository
                .download_file()
                .filename(file.as_str())
                .revision(REVISION)
                .local_files_only(true)
                .send()
        };
        if let Ok(path) = cached() {
            return Ok(path);
        }
        from_hub(&client, copy.id.to_owned()).map_err(|error| root_cause(&error))?;
        cached().map_err(|error| format!("{} has no {file}: {}", copy.id, root_cause(&error)))
    }

    /// The innermost cause in one line: the outer ones repeat addresses and headers.
    fn root_cause(error: &dyn std::error::Error) -> String {
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        cause.to_string().lines().next().unwrap_or_default().chars().take(200).collect()
    }

    pub(super) fn read_parquet(
        entry: &CatalogEntry,
        copy: &HubCopy,
        split: Split,
        path: &Path,
    ) -> Result<(Vec<u8>, Vec<u32>)> {
        let damaged = |reason: String| Error::Format { path: path.to_owned(), reason };
        let file = File::open(path).map_err(Error::io(path))?;
        let reader = SerializedFileReader::new(file).map_err(|error| damaged(error.to_string()))?;
        let rows = reader.get_row_iter(None).map_err(|error| damaged(error.to_string()))?;
        let records = rows.enumerate().map(|(i, row)| {
            let row = row.map_err(|error| damaged(error.to_string()))?;
            record(copy, &row).ok_or_else(|| {
                damaged(format!("row {i} lacks {}.bytes or {}, found {row}", copy.image, copy.label))
            })
        });
        decode_records(entry, split, records)
    }

    /// The encoded image and the label of a row.
    fn record(copy: &HubCopy, row: &Row) -> Option<(Vec<u8>, i64)> {
        let column = |row: &Row, name: &str| {
            row.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field.clone())
        };
        let Field::Group(image) = column(row, copy.image)? else { return None };
        let Field::Bytes(bytes) = column(&image, "bytes")? else { return None };
        let label = match column(row, copy.label)? {
            Field::Long(label) => label,
            Field::Int(label) => label.into(),
            _ => return None,
        };
        Some((bytes.data().to_vec(), label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest, open};
    use image::{GrayImage, ImageFormat, Luma};

    fn png(value: u8, side: u32) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = GrayImage::from_fn(side, side, |x, _| Luma([value.wrapping_add(x as u8)]));
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn decode(rows: Vec<(Vec<u8>, i64)>) -> Result<(Vec<u8>, Vec<u32>)> {
        let entry = CatalogEntry::find("mnist").unwrap();
        decode_records(entry, Split::Test, rows.into_iter().map(Ok))
    }

    #[test]
    fn rows_are_checked_against_the_catalogue() {
        let said = |rows| decode(rows).unwrap_err().to_string();
        let prefix = "mnist test as downloaded is not the expected set: expected ";
        assert_eq!(said(vec![(png(0, 28), 3)]), format!("{prefix}10000 images, found 1"));
        assert_eq!(said(vec![(png(0, 28), 10)]), format!("{prefix}labels from 0 to 9, found 10 for image 0"));
        assert_eq!(
            said(vec![(png(0, 28), 1), (png(0, 27), 1)]),
            format!("{prefix}images of [1, 28, 28], found [1, 27, 27] in image 1")
        );
        assert_eq!(
            said(vec![(png(0, 28), 1), (vec![1, 2, 3], 1)]),
            "mnist test image 1: not an image (it begins with the bytes [01, 02, 03])"
        );
        let rows: Vec<_> = (0..10_000).map(|i| (png(i as u8, 28), i % 10)).collect();
        let text = said(rows);
        assert!(text.starts_with(&format!("{prefix}content digest ")), "{text}");
    }

    /// Run by hand: `ZOO_DATA=DIR cargo test -p zoo-data -- --ignored digests`, where DIR/<name> holds the
    /// official files of each set.
    #[test]
    #[ignore = "needs the official files"]
    fn digests_are_those_of_the_official_files() {
        let root = std::path::PathBuf::from(std::env::var_os("ZOO_DATA").expect("ZOO_DATA names a folder"));
        for name in ["cifar10", "mnist", "fashion-mnist"] {
            let copy = CatalogEntry::find(name).unwrap().hub.as_ref().unwrap();
            for split in [Split::Train, Split::Test] {
                let set = open(name, split, Some(&root.join(name)), 0).unwrap();
                let labels: Vec<u32> = set.labels().collect();
                let found = digest::content(&set.all_pixels().unwrap(), &labels);
                let expected = copy.digest.unwrap()[split as usize];
                assert_eq!(format!("{found:016x}"), format!("{expected:016x}"), "{name} {}", split.name());
            }
        }
    }
}
