//! The format of torch before 1.6: four pickles (magic number, protocol version, system, object), a pickled
//! list of storage keys, then for each key the number of elements (i64) and the elements.
//!
//! As written by `_legacy_save` in `torch/serialization.py`. Storages are little endian on every machine.

use super::super::Entries;
use super::super::error::Reason;
use super::super::pickle::{self, Node, Pickle};
use super::state_dict;
use std::collections::HashMap;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// 0x1950a86a20f9469cfc6c, as little-endian bytes.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL_VERSION: i64 = 1001;

/// Reads the state dict of a file of `file_len` bytes.
pub(in super::super) fn read(file: impl Read + Seek, file_len: u64) -> Result<Entries, Reason> {
    let mut reader = PickleReader { file: BufReader::new(file), position: 0, file_len };
    let magic = reader.next()?;
    if !matches!(magic.node(magic.root()), Node::Long(bytes) if bytes == &MAGIC) {
        return Err(Reason::NotWeights { found: "a pickle that torch.save did not write".to_string() });
    }
    let version = reader.next()?;
    match version.node(version.root()) {
        Node::Int(PROTOCOL_VERSION) => {}
        Node::Int(other) => {
            let feature = format!("version {other} of torch's format (expected {PROTOCOL_VERSION})");
            return Err(Reason::unsupported(feature));
        }
        _ => return Err(Reason::malformed("the format version is no number")),
    }
    // The system's byte order and integer sizes, which the storages do not depend on.
    reader.next()?;
    let object = reader.next()?;
    let tensors = state_dict::tensors(&object)?;
    let keys = reader.next()?;
    let PickleReader { mut file, position, .. } = reader;
    let ranges = storage_ranges(&object, &keys, &mut file, position, file_len)?;

    super::decode(tensors, file_len, |key| {
        let &(start, len) =
            ranges.get(key).ok_or_else(|| Reason::malformed("a tensor's storage is not in the file"))?;
        file.seek(SeekFrom::Start(start))?;
        // `storage_ranges` has checked that the file is long enough.
        let mut bytes = vec![0; len as usize];
        file.read_exact(&mut bytes).map_err(|error| Reason::reading(error, "its tensors"))?;
        Ok(bytes)
    })
}

struct PickleReader<R> {
    file: BufReader<R>,
    position: u64,
    file_len: u64,
}

impl<R: Read> PickleReader<R> {
    fn next(&mut self) -> Result<Pickle, Reason> {
        let (pickle, len) = pickle::read(&mut self.file, self.file_len - self.position)?;
        self.position += len;
        Ok(pickle)
    }
}

/// Start and length in bytes of each storage's elements; the first one's record starts at `position`.
fn storage_ranges(
    object: &Pickle,
    keys: &Pickle,
    file: &mut (impl Read + Seek),
    mut position: u64,
    file_len: u64,
) -> Result<HashMap<String, (u64, u64)>, Reason> {
    // Where one storage is seen under several types, torch counts its elements in the first one.
    let mut element_sizes: HashMap<String, Option<usize>> = HashMap::new();
    for storage in state_dict::storages(object) {
        let size = storage.element().map(|element| element.size());
        element_sizes.entry(storage.key).or_insert(size);
    }
    let Node::List(keys_list) = keys.node(keys.root()) else {
        return Err(Reason::malformed("its storages have no list of keys"));
    };
    let mut ranges = HashMap::new();
    for &key in keys_list {
        let key = keys.str(key).ok_or_else(|| Reason::malformed("a storage key is no string"))?;
        let size = match element_sizes.get(key) {
            Some(Some(size)) => *size as u64,
            Some(None) => return Err(Reason::unsupported("the element type of one of its storages")),
            None => return Err(Reason::malformed("a storage that no tensor uses")),
        };
        let mut numel = [0; 8];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut numel).map_err(|error| Reason::reading(error, "its tensors"))?;
        position += numel.len() as u64;
        let len = u64::try_from(i64::from_le_bytes(numel))
            .ok()
            .and_then(|numel| numel.checked_mul(size))
            .ok_or_else(|| Reason::malformed("a storage of impossible length"))?;
        if len > file_len.saturating_sub(position) {
            return Err(Reason::truncated("its tensors"));
        }
        ranges.insert(key.to_string(), (position, len));
        position += len;
    }
    Ok(ranges)
}
