//! Weight files: reading safetensors and every format of `torch.save`, checking, and writing safetensors.
//!
//! Nothing in a file is trusted. Lengths are checked against the size of the file before memory is taken,
//! pickles are read as data and never run, and what cannot be read ends in an [`Error`] of one line.
//!
//! ```no_run
//! use std::path::Path;
//! use zoo::weights;
//!
//! # fn main() -> weights::Result<()> {
//! let found = weights::read(Path::new("resnet18.pth"))?;
//! let expected = vec![("fc.bias".to_string(), vec![1000])];
//! let report = weights::check(&expected, &found);
//! if !report.is_match() {
//!     eprintln!("{report}");
//! }
//! weights::write_safetensors(Path::new("resnet18.safetensors"), &found.tensors, &found.metadata)?;
//! # Ok(())
//! # }
//! ```

mod adapt;
mod atomic;
mod check;
mod digest;
mod element;
mod error;
mod naming;
mod pickle;
mod published;
mod safetensors;
mod torch;

pub use self::safetensors::write_safetensors;
pub(crate) use adapt::check_except;
pub use adapt::{Adapted, Head, adapt, class_tensors};
pub use atomic::replace_file;
pub use check::{Mismatch, Report, check};
pub use error::{Error, Reason, Result};
pub use naming::{Translated, translate};
pub use published::{Cache, DEFAULT_TAG, KnownBy, identify, published};

use candle_core::{Device, Tensor};
use error::one_line;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// What wrappers put before every name: `DataParallel`, `DistributedDataParallel` and averages of weights;
/// `torch.compile`; modules that hold the network, as Lightning's do.
const WRAPPER_PREFIXES: [&str; 5] = ["module.", "_orig_mod.", "model.", "net.", "network."];

/// Enough of a file to tell its format: the magic of tar, the last of them, ends at byte 262.
const HEAD: usize = 512;

/// Tensors in the order of a file.
type Entries = Vec<(String, Tensor)>;

/// The named tensors of a model.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    /// By name, on the CPU. Weights are f32 whatever float type the file has; integers and booleans are i64.
    pub tensors: BTreeMap<String, Tensor>,
    /// The `__metadata__` of a safetensors file; empty for the files of torch.
    pub metadata: BTreeMap<String, String>,
}

impl StateDict {
    /// Drops what is no weight and what a wrapper put before the names.
    fn new(entries: Entries, metadata: BTreeMap<String, String>) -> Self {
        let mut tensors: BTreeMap<String, Tensor> =
            entries.into_iter().filter(|(name, _)| !is_batch_counter(name)).collect();
        while let Some(prefix) = WRAPPER_PREFIXES
            .iter()
            .find(|prefix| !tensors.is_empty() && tensors.keys().all(|name| name.starts_with(**prefix)))
        {
            tensors = tensors
                .into_iter()
                .map(|(name, tensor)| (name[prefix.len()..].to_string(), tensor))
                .collect();
        }
        Self { tensors, metadata }
    }

    /// Renames tensors: in each name the pairs `(from, to)` are replaced one after the other, wherever they
    /// occur, so that `(".norm.1.", ".norm1.")` turns the names of an old DenseNet file into today's.
    ///
    /// # Errors
    /// If two tensors would have the same name; nothing is renamed then.
    pub fn rename(&mut self, pairs: &[(&str, &str)]) -> candle_core::Result<()> {
        let new_name =
            |name: &str| pairs.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to));
        let mut renamed = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            let new = new_name(name);
            if renamed.insert(new.clone(), tensor.clone()).is_some() {
                candle_core::bail!("renaming `{name}` to `{new}`, which is the name of another tensor");
            }
        }
        self.tensors = renamed;
        Ok(())
    }
}

/// The entries that PyTorch's state dict has beyond the zoo's, for a file that `load_state_dict` takes as it is:
/// for each normalisation in `names` a `num_batches_tracked`, a scalar i64. `batches` is how many batches it has
/// seen in training; PyTorch uses it with `momentum=None` only.
///
/// # Errors
/// If a tensor cannot be made.
pub fn batch_counters<'n>(
    names: impl IntoIterator<Item = &'n str>,
    batches: i64,
) -> candle_core::Result<Vec<(String, Tensor)>> {
    let norms = names.into_iter().filter_map(|name| name.strip_suffix("running_var"));
    norms
        .map(|norm| Ok((format!("{norm}num_batches_tracked"), Tensor::new(batches, &Device::Cpu)?)))
        .collect()
}

/// Whether this is a count of batches, such as BatchNorm's, which PyTorch saves and only `momentum=None` uses.
fn is_batch_counter(name: &str) -> bool {
    name == "num_batches_tracked"
        || name.ends_with(".num_batches_tracked")
        // The same of torch.optim.swa_utils.AveragedModel.
        || name == "n_averaged"
}

/// Whether this is a tensor of an auxiliary head, which training alone uses: `aux1`, `aux2` in GoogLeNet,
/// `AuxLogits` in Inception v3. Published weights come with and without them.
fn is_auxiliary(name: &str) -> bool {
    name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("aux"))
}

/// Reads the weights in the file at `path`, whatever its name ends in: safetensors, or either format of
/// `torch.save` (zip since torch 1.6, legacy before).
///
/// A state dict that lies in a checkpoint under `state_dict`, `model_state_dict`, `model`, `net` or another usual
/// key is taken out, or that under the only key with tensors; of weights and their moving average the weights
/// are taken. A `module.`, `_orig_mod.`, `model.` or `net.` before all names is removed; `num_batches_tracked` is
/// dropped.
///
/// # Errors
/// Names `path` and the cause: no such file, not a weight file, truncated or damaged, or a feature, class or
/// dtype that is not supported.
pub fn read(path: &Path) -> Result<StateDict> {
    File::open(path).map_err(Reason::Io).and_then(read_from).map_err(|reason| reason.at(path))
}

/// Reads weights as [`read`] does, from the content of a file that is open or in memory.
///
/// # Errors
/// As [`read`], without a path.
pub fn read_from<R: Read + Seek>(mut file: R) -> std::result::Result<StateDict, Reason> {
    let file_len = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    file.rewind()?;
    // First, because safetensors starts with a length, which may have the bytes of any magic number.
    if safetensors::is_safetensors(&head) {
        return safetensors::read(file, file_len);
    }
    let entries = match head.as_slice() {
        [b'P', b'K', 3, 4, ..] => torch::read_zip(file, file_len)?,
        [0x80, 1..=5, ..] => torch::read_legacy(file, file_len)?,
        head if head.get(257..262) == Some(b"ustar") => {
            return Err(Reason::unsupported("the tar format of torch before 0.2"));
        }
        head => return Err(Reason::NotWeights { found: describe_content(head) }),
    };
    Ok(StateDict::new(entries, BTreeMap::new()))
}

/// What a file that is no weight file seems to be, by its first bytes.
fn describe_content(head: &[u8]) -> String {
    if head.is_empty() {
        return "an empty file".to_string();
    }
    // A character may be cut at the end of `head`.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.valid_up_to() + 4 > head.len() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => "",
    };
    let readable = !text.is_empty() && text.chars().all(|c| !c.is_control() || c.is_whitespace());
    if !readable {
        return "unknown binary content".to_string();
    }
    let start = text.trim_start();
    if start.starts_with('<') {
        return "a web page (a download that failed?)".to_string();
    }
    if start.starts_with("version https://git-lfs") {
        return "a Git LFS pointer (fetch the file itself with `git lfs pull`)".to_string();
    }
    let line: String = start.lines().next().unwrap_or_default().chars().take(40).collect();
    format!("text that starts with {line:?}")
}
