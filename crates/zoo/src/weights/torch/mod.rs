//! Files of `torch.save`: a pickle that describes the tensors, and their storages as raw bytes.

mod legacy;
mod state_dict;
mod zip;

pub(super) use legacy::read as read_legacy;
pub(super) use zip::read as read_zip;

use super::element::{Element, View};
use super::error::Reason;
use super::{Entries, is_batch_counter};
use std::collections::BTreeMap;

/// What all tensors of a file may take once decoded: views may repeat elements (stride 0, tied weights), so
/// the size of the file alone does not bound it.
const DECODED_PER_FILE_BYTE: u64 = 8;
const DECODED_FREE: u64 = 64 << 20;

/// A tensor as the pickle describes it.
#[derive(Debug)]
struct TensorRef {
    /// Name of its storage, unique in the file.
    storage: String,
    view: View,
}

/// Decodes the tensors storage by storage, so that only one storage is held beside them.
///
/// `storage_bytes` gives the content of a storage by its key.
fn decode(
    tensors: Vec<(String, TensorRef)>,
    file_len: u64,
    mut storage_bytes: impl FnMut(&str) -> Result<Vec<u8>, Reason>,
) -> Result<Entries, Reason> {
    let mut budget = DECODED_FREE + DECODED_PER_FILE_BYTE * file_len;
    let mut by_storage: BTreeMap<String, Vec<(String, View)>> = BTreeMap::new();
    for (name, tensor) in tensors {
        if !is_batch_counter(&name) {
            by_storage.entry(tensor.storage).or_default().push((name, tensor.view));
        }
    }
    let mut entries = Entries::new();
    for (key, tensors) in by_storage {
        let bytes = storage_bytes(&key)?;
        for (name, view) in tensors {
            view.check(bytes.len()).map_err(|problem| Reason::tensor(&name, problem))?;
            let cost = view.decoded_len().and_then(|len| u64::try_from(len).ok());
            budget = cost.and_then(|cost| budget.checked_sub(cost)).ok_or_else(|| {
                Reason::tensor(&name, format!("shape {:?} is out of proportion to the file", view.shape))
            })?;
            let tensor = view.decode(&bytes).map_err(|error| Reason::tensor(&name, error))?;
            entries.push((name, tensor));
        }
    }
    Ok(entries)
}

/// A storage as a pickle refers to it: `('storage', class, key, location, numel)`.
#[derive(Debug)]
struct StorageRef {
    key: String,
    /// Name of the storage class, for example `FloatStorage`.
    class: String,
    /// Of a view into another storage, where it starts in elements (files before torch 0.4).
    offset: usize,
}

impl StorageRef {
    fn element(&self) -> Option<Element> {
        Element::from_storage_class(&self.class)
    }
}
