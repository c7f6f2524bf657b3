//! Why a weight file could not be read or written.

use std::io;
use std::path::{Path, PathBuf};

/// A failure to read or write a weight file: which file, and why. Displayed as one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
#[non_exhaustive]
pub struct Error {
    /// The file that was to be read or written.
    pub path: PathBuf,
    /// What went wrong.
    pub reason: Reason,
}

/// A result whose error names the weight file.
pub type Result<T> = std::result::Result<T, Error>;

/// What was wrong with a weight file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The operating system refused: no such file, no permission, disk full.
    #[error("{0}")]
    Io(io::Error),
    /// The file is something else than weights, for example a web page saved in their place.
    #[error("not a weight file: found {found}, expected safetensors or a file of torch.save")]
    NotWeights {
        /// What the content looks like.
        found: String,
    },
    /// The file ends before its content does.
    #[error("the file ends early, in {within}; it was not copied or downloaded in full")]
    Truncated {
        /// The part of the file that is incomplete.
        within: String,
    },
    /// The content contradicts itself or the format.
    #[error("damaged file: {problem}")]
    Malformed {
        /// What was found.
        problem: String,
    },
    /// The file is valid but uses something that is not read here.
    #[error("{feature} is not supported; load the file in Python and save model.state_dict() again")]
    Unsupported {
        /// What the file uses.
        feature: String,
    },
    /// A zip archive lacks a part that its other parts refer to.
    #[error("damaged file: the archive has no entry `{entry}`")]
    MissingEntry {
        /// The path inside the archive.
        entry: String,
    },
    /// The pickled object is not a mapping from names to tensors.
    #[error("no state dict inside: found {found}, expected a dict of tensors as model.state_dict() gives")]
    NotAStateDict {
        /// What the file holds.
        found: String,
    },
    /// A file that was downloaded before is not what was published.
    #[error(
        "this is not the published file: its sha256 is {found}, expected {expected}; delete it to have it \
         downloaded again"
    )]
    Stale {
        /// The published hash, or its first digits.
        expected: String,
        /// The hash of the file.
        found: String,
    },
    /// What a server sent is not what was published.
    #[error("what {url} gives is not the published file: its sha256 is {found}, expected {expected}")]
    Digest {
        /// Where it came from.
        url: String,
        /// The published hash, or its first digits.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// A download failed. What had arrived is kept for the next attempt.
    #[error(
        "cannot download {url} ({problem}); the next attempt goes on where this one ended, or put the file there \
         yourself"
    )]
    Download {
        /// What was asked for.
        url: String,
        /// The cause in a few words.
        problem: String,
    },
    /// The file is not here, and this build has no network code.
    #[error(
        "the file is not there, and this build cannot download it (it lacks the feature `hub`; `cargo build \
         --release --features hub` has it); put {url} there yourself"
    )]
    NoHub {
        /// Where it is published.
        url: String,
    },
    /// A tensor has elements of a type that is not read or written here.
    #[error("tensor `{tensor}` has elements of type {dtype}, which is not supported")]
    Dtype {
        /// Name of the tensor.
        tensor: String,
        /// Name of its type as the file gives it.
        dtype: String,
    },
    /// A tensor contradicts its storage, or cannot be represented.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// What was wrong with it.
        problem: String,
    },
}

impl Reason {
    pub(super) fn at(self, path: &Path) -> Error {
        Error { path: path.to_path_buf(), reason: self }
    }

    pub(super) fn truncated(within: &str) -> Self {
        Self::Truncated { within: one_line(within) }
    }

    pub(super) fn malformed(problem: impl ToString) -> Self {
        Self::Malformed { problem: one_line(&problem.to_string()) }
    }

    pub(super) fn unsupported(feature: impl ToString) -> Self {
        Self::Unsupported { feature: one_line(&feature.to_string()) }
    }

    pub(super) fn missing_entry(entry: &str) -> Self {
        Self::MissingEntry { entry: one_line(entry) }
    }

    pub(super) fn dtype(tensor: &str, dtype: impl ToString) -> Self {
        Self::Dtype { tensor: one_line(tensor), dtype: one_line(&dtype.to_string()) }
    }

    pub(super) fn tensor(tensor: &str, problem: impl ToString) -> Self {
        Self::Tensor { tensor: one_line(tensor), problem: one_line(&problem.to_string()) }
    }

    /// An input error met while reading `within`: the end of the file there means a truncated file.
    pub(super) fn reading(error: io::Error, within: &str) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::truncated(within),
            _ => Self::Io(error),
        }
    }
}

/// Text out of a file, fit for the one line of an error: without line breaks and of limited length.
pub(super) fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let line = text.chars().take(MAX_CHARS).map(|c| if c.is_control() { '?' } else { c });
    line.chain(text.chars().nth(MAX_CHARS).map(|_| '…')).collect()
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        candle_core::Error::wrap(error)
    }
}
