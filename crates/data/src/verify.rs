//! Checking the files of a data set without training on them.

use crate::catalog::{CatalogEntry, FileFact, Format};
use crate::dataset::Split;
use crate::{Error, Result, cifar, decode, digest, folder, idx, text};
use std::path::{Path, PathBuf};

/// What is known about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// The official name, or for folders the path below the data folder.
    pub name: String,
    /// Where it was found.
    pub path: Option<PathBuf>,
    /// Bytes found, uncompressed; 0 if there is no file.
    pub bytes: u64,
    /// The verdict.
    pub status: FileStatus,
}

/// The verdict on one file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileStatus {
    /// Right size, and right checksum (or, in a folder, it can be decoded).
    Ok,
    /// Right size; no checksum is published for it.
    SizeOk,
    /// Not there.
    Missing,
    /// It has another size.
    WrongSize {
        /// Bytes it should have.
        expected: u64,
    },
    /// Right size, other content.
    WrongChecksum {
        /// The published MD5 of the uncompressed content.
        expected: String,
        /// Its MD5.
        found: String,
    },
    /// It cannot be read or decoded.
    Unreadable(String),
}

impl FileStatus {
    /// Whether the file can be used.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok | Self::SizeOk)
    }
}

/// A report on each file of a data set: the official files of a fixed-format set, every image of a folder
/// (which is decoded for it), the files of labelled sentences. `shapes` has no files and gives an empty list.
///
/// # Errors
/// If the name is unknown, or a folder lacks the structure that [`crate::open`] asks for. Faults of single
/// files are in the report.
pub fn verify(name: &str, dir: &Path) -> Result<Vec<FileReport>> {
    let entry = CatalogEntry::find(name)?;
    if entry.format == Format::Text {
        return verify_text(dir);
    }
    if !dir.is_dir() {
        return Err(Error::NotFound { what: format!("folder of {name}"), looked_for: vec![dir.to_owned()] });
    }
    match entry.format {
        Format::Folder => verify_folder(entry, dir),
        Format::Drawn | Format::Text => Ok(Vec::new()),
        Format::Cifar { .. } | Format::Idx => {
            Ok(entry.files.iter().map(|file| verify_file(entry, file, dir)).collect())
        }
    }
}

fn verify_file(entry: &CatalogEntry, file: &FileFact, dir: &Path) -> FileReport {
    let path = match entry.format {
        Format::Idx => idx::find(entry, dir, file.name).ok(),
        _ => cifar::locate(dir, entry.subfolders, file.name).0,
    };
    let report = |bytes, status| FileReport { name: file.name.to_owned(), path: path.clone(), bytes, status };
    let Some(found_at) = &path else { return report(0, FileStatus::Missing) };
    let read = idx::content(found_at)
        .and_then(|mut content| digest::md5(&mut content).map_err(|error| idx::read_error(found_at, error)));
    match (read, file.md5) {
        (Err(error), _) => report(0, FileStatus::Unreadable(error.to_string())),
        (Ok((_, bytes)), _) if bytes != file.bytes => {
            report(bytes, FileStatus::WrongSize { expected: file.bytes })
        }
        (Ok((_, bytes)), None) => report(bytes, FileStatus::SizeOk),
        (Ok((found, bytes)), Some(expected)) if found == expected => report(bytes, FileStatus::Ok),
        (Ok((found, bytes)), Some(expected)) => {
            report(bytes, FileStatus::WrongChecksum { expected: expected.to_owned(), found })
        }
    }
}

fn verify_text(path: &Path) -> Result<Vec<FileReport>> {
    let report = |file: PathBuf| {
        let bytes = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
        let status = match text::read_file(&file) {
            Ok(_) => FileStatus::Ok,
            Err(error) => FileStatus::Unreadable(error.to_string()),
        };
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        FileReport { name, path: Some(file), bytes, status }
    };
    Ok(text::files(path)?.into_iter().map(report).collect())
}

fn verify_folder(entry: &CatalogEntry, dir: &Path) -> Result<Vec<FileReport>> {
    let mut reports = Vec::new();
    let splits =
        [Split::Train, Split::Test].into_iter().filter(|&split| folder::split_dir(dir, split).is_ok());
    let splits: Vec<Split> = splits.collect();
    if splits.is_empty() {
        let reason = "neither train nor val nor test is in it".into();
        return Err(Error::Folder { path: dir.to_owned(), reason });
    }
    for split in splits {
        let set = folder::open(entry.meta(), split, dir)?;
        for path in (0..set.len()).filter_map(|i| set.path(i)) {
            let name = path.strip_prefix(dir).unwrap_or(path).display().to_string();
            let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            let status = match decode::load_image(path) {
                Ok(_) => FileStatus::Ok,
                Err(Error::Image { reason, .. }) => FileStatus::Unreadable(reason),
                Err(error) => FileStatus::Unreadable(error.to_string()),
            };
            reports.push(FileReport { name, path: Some(path.to_owned()), bytes, status });
        }
    }
    Ok(reports)
}
