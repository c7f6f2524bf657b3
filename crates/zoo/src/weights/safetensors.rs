//! The safetensors format: an 8-byte length, a JSON header, then the tensors one after the other.
//!
//! <https://github.com/huggingface/safetensors#format>. The crate `safetensors` defines and checks the header.
//! The writing is done here because that crate keeps metadata in a `HashMap`, whose order changes from run to
//! run, and does not sync what it wrote.

use super::atomic::replace_file;
use super::element::{Element, View};
use super::error::{Reason, Result};
use super::{Entries, StateDict};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

/// The limit of the format, also in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

const LENGTH_SIZE: usize = 8;
const METADATA_KEY: &str = "__metadata__";

/// Whether the first bytes of a file announce a safetensors header: a length that is allowed, then a brace.
///
/// No file of torch does. The ninth byte of its pickles belongs to the magic number that they start with, or to the
/// length of a frame around it; that of a zip archive is the method of compression, of which none has the number of a
/// brace.
pub(super) fn is_safetensors(head: &[u8]) -> bool {
    match head.split_first_chunk::<LENGTH_SIZE>() {
        Some((length, header)) => header.starts_with(b"{") && u64::from_le_bytes(*length) <= MAX_HEADER,
        None => false,
    }
}

/// Reads all tensors of a file of `file_len` bytes.
pub(super) fn read(file: impl Read, file_len: u64) -> std::result::Result<StateDict, Reason> {
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut length = [0; LENGTH_SIZE];
    file.read_exact(&mut length).map_err(|error| Reason::reading(error, "its header"))?;
    let header_len = u64::from_le_bytes(length);
    let data_start = header_len.checked_add(LENGTH_SIZE as u64).filter(|&start| start <= file_len);
    let Some(data_start) = data_start else { return Err(Reason::truncated("its header")) };
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(|error| Reason::reading(error, "its header"))?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| Reason::malformed(format!("its safetensors header is invalid: {error}")))?;

    let data_len = header.data_len() as u64;
    let available = file_len - data_start;
    if data_len > available {
        return Err(Reason::truncated(&format!("its tensors: {available} of {data_len} bytes are there")));
    }
    if data_len < available {
        return Err(Reason::malformed(format!("{} bytes follow the last tensor", available - data_len)));
    }

    let mut entries = Entries::new();
    let mut bytes = Vec::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let element =
            Element::from_safetensors(info.dtype).ok_or_else(|| Reason::dtype(&name, info.dtype))?;
        // The header was checked: offsets follow one another, shape and dtype give the length.
        bytes.resize(info.data_offsets.1 - info.data_offsets.0, 0);
        file.read_exact(&mut bytes).map_err(|error| Reason::reading(error, &format!("tensor `{name}`")))?;
        let view = View::contiguous(element, &info.shape);
        view.check(bytes.len()).map_err(|problem| Reason::tensor(&name, problem))?;
        let tensor = view.decode(&bytes).map_err(|error| Reason::tensor(&name, error))?;
        entries.push((name, tensor));
    }
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(StateDict::new(entries, metadata))
}

/// Writes `tensors` as a safetensors file, atomically: `path` holds the old content or the new, never a part.
///
/// Each tensor keeps its shape and dtype (f64, f32, f16, bf16, i64, i32, i16, u32 or u8) and may lie on any
/// device and have any strides; one at a time is copied to host memory, and only if it is not there already.
/// The same tensors and metadata give the same bytes, whatever their order.
///
/// # Errors
/// Names `path` and the cause: the file system's refusal (unwritable folder, full disk), two tensors of one
/// name, a dtype without a counterpart. The old file is then untouched and no temporary file stays.
pub fn write_safetensors<'t, K: AsRef<str>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (K, &'t Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let tensors: Vec<(K, &Tensor)> = tensors.into_iter().collect();
    write(path, tensors, metadata).map_err(|reason| reason.at(path))
}

fn write<K: AsRef<str>>(
    path: &Path,
    mut tensors: Vec<(K, &Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> std::result::Result<(), Reason> {
    let dtype = |tensor: &Tensor| safetensors::Dtype::from(tensor.dtype());
    // The order of the reference implementation: largest alignment first, then by name.
    tensors.sort_by(|(a_name, a), (b_name, b)| {
        dtype(b).cmp(&dtype(a)).then_with(|| a_name.as_ref().cmp(b_name.as_ref()))
    });
    let header = header(&tensors, metadata)?;
    replace_file(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.iter().try_for_each(|(name, tensor)| write_tensor(out, name.as_ref(), tensor))
    })
}

/// The JSON header in the order of the data, padded so that the tensors start at a multiple of 8 bytes.
fn header<K: AsRef<str>>(
    tensors: &[(K, &Tensor)],
    metadata: &BTreeMap<String, String>,
) -> std::result::Result<Vec<u8>, Reason> {
    let json = |error: serde_json::Error| Reason::Io(error.into());
    let mut fields = Vec::new();
    if !metadata.is_empty() {
        fields.push(format!("\"{METADATA_KEY}\":{}", serde_json::to_string(metadata).map_err(json)?));
    }
    let mut names = BTreeSet::new();
    let mut offset = 0;
    for (name, tensor) in tensors {
        let name = name.as_ref();
        if name == METADATA_KEY || !names.insert(name) {
            return Err(Reason::tensor(name, "the name is already taken"));
        }
        let end = offset + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let info = TensorInfo {
            dtype: tensor.dtype().into(),
            shape: tensor.dims().to_vec(),
            data_offsets: (offset, end),
        };
        let name = serde_json::to_string(name).map_err(json)?;
        fields.push(format!("{name}:{}", serde_json::to_string(&info).map_err(json)?));
        offset = end;
    }
    let mut header = format!("{{{}}}", fields.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_SIZE), b' ');
    if header.len() as u64 > MAX_HEADER {
        return Err(Reason::unsupported(format!("a safetensors header of more than {MAX_HEADER} bytes")));
    }
    Ok(header)
}

fn write_tensor(out: &mut impl Write, name: &str, tensor: &Tensor) -> std::result::Result<(), Reason> {
    let unsupported = || Reason::dtype(name, tensor.dtype().as_str());
    // Checked before the copy: candle cannot make every one of its types contiguous.
    if !matches!(
        tensor.dtype(),
        DType::F64
            | DType::F32
            | DType::F16
            | DType::BF16
            | DType::I64
            | DType::I32
            | DType::I16
            | DType::U32
            | DType::U8
    ) {
        return Err(unsupported());
    }
    let tensor = tensor
        .to_device(&Device::Cpu)
        .and_then(|tensor| tensor.contiguous())
        .map_err(|error| Reason::tensor(name, error))?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Reason::tensor(name, "it could not be copied to host memory"));
    };
    match storage {
        CpuStorage::F64(values) => write_elements(out, &values[start..end], f64::to_le_bytes),
        CpuStorage::F32(values) => write_elements(out, &values[start..end], f32::to_le_bytes),
        CpuStorage::F16(values) => write_elements(out, &values[start..end], half::f16::to_le_bytes),
        CpuStorage::BF16(values) => write_elements(out, &values[start..end], half::bf16::to_le_bytes),
        CpuStorage::I64(values) => write_elements(out, &values[start..end], i64::to_le_bytes),
        CpuStorage::I32(values) => write_elements(out, &values[start..end], i32::to_le_bytes),
        CpuStorage::I16(values) => write_elements(out, &values[start..end], i16::to_le_bytes),
        CpuStorage::U32(values) => write_elements(out, &values[start..end], u32::to_le_bytes),
        CpuStorage::U8(values) => out.write_all(&values[start..end]),
        _ => return Err(unsupported()),
    }?;
    Ok(())
}

/// Writes through a small buffer, so that no tensor is held twice.
fn write_elements<T: Copy, const SIZE: usize>(
    out: &mut impl Write,
    values: &[T],
    encode: impl Fn(T) -> [u8; SIZE],
) -> io::Result<()> {
    const ELEMENTS: usize = 4096;
    let mut buffer = [[0; SIZE]; ELEMENTS];
    for values in values.chunks(ELEMENTS) {
        for (bytes, &value) in buffer.iter_mut().zip(values) {
            *bytes = encode(value);
        }
        out.write_all(buffer[..values.len()].as_flattened())?;
    }
    Ok(())
}
