//! The format of torch since 1.6: an uncompressed zip archive with one folder, in it `data.pkl`, `data/<key>`
//! for each storage and, since 2.1, `byteorder`.
//!
//! As written by `_save` in `torch/serialization.py`.

use super::super::Entries;
use super::super::error::Reason;
use super::super::pickle;
use super::{TensorRef, state_dict};
use std::collections::HashMap;
use std::io::{BufReader, Read, Seek};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// Reads the state dict of a file of `file_len` bytes.
pub(in super::super) fn read(file: impl Read + Seek, file_len: u64) -> Result<Entries, Reason> {
    let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| match error {
        ZipError::Io(error) => Reason::reading(error, "its zip directory"),
        // The directory is at the end of the archive: most often the file was not copied in full.
        error => Reason::malformed(format!("the zip directory at its end is missing or broken ({error})")),
    })?;
    let folder = folder(&archive)?;
    let mut archive = Archive { archive, folder, file_len };
    if archive.contains("constants.pkl") {
        return Err(Reason::unsupported("TorchScript (torch.jit.save)"));
    }

    let pickled = archive.entry("data.pkl")?;
    let (pickle, _) = pickle::read(&mut pickled.as_slice(), pickled.len() as u64)?;
    let tensors = state_dict::tensors(&pickle)?;
    let big_endian = archive.contains("byteorder") && archive.entry("byteorder")? == b"big";
    let element_sizes: HashMap<String, usize> = tensors.iter().map(element_size).collect();
    super::decode(tensors, file_len, |key| {
        let mut bytes = archive.entry(&format!("data/{key}"))?;
        if big_endian {
            bytes.chunks_exact_mut(element_sizes.get(key).copied().unwrap_or(1)).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    })
}

fn element_size((_, tensor): &(String, TensorRef)) -> (String, usize) {
    (tensor.storage.clone(), tensor.view.element.size())
}

/// The folder of `data.pkl` with its slash; its name is up to whoever saved the file.
fn folder(archive: &ZipArchive<impl Read + Seek>) -> Result<String, Reason> {
    let folders = archive.file_names().flatten().filter_map(|name| {
        let folder = name.strip_suffix("data.pkl")?;
        (folder.is_empty() || folder.find('/') == Some(folder.len() - 1)).then(|| folder.to_string())
    });
    folders.min().ok_or_else(|| Reason::NotWeights { found: "a zip archive without data.pkl".to_string() })
}

struct Archive<R> {
    archive: ZipArchive<R>,
    folder: String,
    file_len: u64,
}

impl<R: Read + Seek> Archive<R> {
    fn contains(&self, name: &str) -> bool {
        self.archive.index_for_name(&format!("{}{name}", self.folder)).is_some()
    }

    /// The content of the entry `name` of the folder.
    fn entry(&mut self, name: &str) -> Result<Vec<u8>, Reason> {
        let path = format!("{}{name}", self.folder);
        let mut entry = self.archive.by_name(&path).map_err(|error| from_zip(error, &path))?;
        // Torch never compresses; refusing it leaves no room for an archive that unpacks to far more.
        if entry.compression() != CompressionMethod::Stored {
            return Err(Reason::unsupported("a compressed zip archive"));
        }
        let size = entry.size();
        if size > self.file_len {
            return Err(Reason::truncated(&format!("`{path}`")));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        entry.by_ref().take(size).read_to_end(&mut bytes).map_err(|error| damaged(error, &path))?;
        if (bytes.len() as u64) < size {
            return Err(Reason::truncated(&format!("`{path}`")));
        }
        // Reads past the last byte to have the checksum compared.
        let rest = entry.read(&mut [0]).map_err(|error| damaged(error, &path))?;
        if rest > 0 {
            return Err(Reason::malformed(format!("`{path}` is longer than the archive says")));
        }
        Ok(bytes)
    }
}

/// A failed checksum reaches here as an input error without a number of the operating system.
fn damaged(error: std::io::Error, path: &str) -> Reason {
    match error.raw_os_error() {
        Some(_) => Reason::Io(error),
        None => Reason::malformed(format!("`{path}`: {error}")),
    }
}

fn from_zip(error: ZipError, within: &str) -> Reason {
    match error {
        ZipError::Io(error) => Reason::reading(error, within),
        ZipError::FileNotFound => Reason::missing_entry(within),
        ZipError::CompressionMethodNotSupported(_) => Reason::unsupported("a compressed zip archive"),
        error => Reason::malformed(format!("`{within}`: {error}")),
    }
}
