use crate::classes::list_names;
use std::path::PathBuf;

/// What can be wrong with a data set, a file or a request. Each message is one line that names the place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is not in the catalogue.
    #[error("unknown data set '{name}'; there are: {known}")]
    UnknownDataset {
        /// The name that was asked for.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// A file or folder that must be there is not.
    #[error("{what} not found; looked for {}", list(looked_for))]
    NotFound {
        /// What was looked for.
        what: String,
        /// Every place that was tried.
        looked_for: Vec<PathBuf>,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A fixed-format file has another size than its format says.
    #[error("{}: expected {expected} bytes, found {found}{}", path.display(), size_hint(*expected, *found))]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes the format asks for (after decompression).
        expected: u64,
        /// Bytes there are (after decompression).
        found: u64,
    },
    /// A fixed-format file has the right size for nothing, or content that its format forbids.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A label is outside of the classes.
    #[error("{}: record {record} has label {found}, expected 0 to {}", path.display(), classes - 1)]
    Label {
        /// The file.
        path: PathBuf,
        /// Number of the record in the file, from 0.
        record: usize,
        /// The label found.
        found: u32,
        /// How many classes there are.
        classes: usize,
    },
    /// One image cannot be decoded.
    #[error("{origin}: {reason}")]
    Image {
        /// The file, or a word for bytes that come from elsewhere.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An image folder without the expected structure.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The data set needs files and none were named, in a build that cannot download.
    #[error(
        "{name} needs --data-dir DIR with its files: this build cannot download (it lacks the feature `hub`); \
         --dataset shapes needs no files"
    )]
    NoHub {
        /// The data set.
        name: String,
    },
    /// The download failed.
    #[error(
        "cannot download {name} from the Hugging Face hub ({reason}); give --data-dir DIR with its files, or use \
         --dataset shapes, which needs none"
    )]
    Download {
        /// The data set.
        name: String,
        /// The cause in a few words.
        reason: String,
    },
    /// The download arrived but is not the data set.
    #[error("{name} as downloaded is not the expected set: expected {expected}, found {found}")]
    Content {
        /// The data set and split.
        name: String,
        /// The expected count or digest.
        expected: String,
        /// The count or digest found.
        found: String,
    },
    /// There are images of classes that a network has no output for.
    #[error("{}", unknown_classes(unknown, known, *unnamed, *all))]
    UnknownClasses {
        /// The classes of the data that the network does not know.
        unknown: Vec<String>,
        /// The classes that it knows.
        known: Vec<String>,
        /// How many outputs have no name.
        unnamed: usize,
        /// Whether no image is of another class.
        all: bool,
    },
    /// It is not known which output of a network is which class.
    #[error(
        "the weights do not name their {outputs} classes, and the data have {classes}: it is not known which are which; \
         weights without names need data with as many classes, in the same order"
    )]
    Nameless {
        /// Outputs of the network.
        outputs: usize,
        /// Classes of the data.
        classes: usize,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Config(String),
    /// A worker thread of a loader ended by a panic.
    #[error("a data worker stopped: {0}")]
    Worker(String),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn unknown_classes(unknown: &[String], known: &[String], unnamed: usize, all: bool) -> String {
    let class = if unknown.len() == 1 { "class" } else { "classes" };
    let (unknown, known) = (list_names(unknown), list_names(known));
    let unnamed = match unnamed {
        0 => String::new(),
        1 => ", and one output without a name".into(),
        n => format!(", and {n} outputs without names"),
    };
    let out = match all {
        true => "no image is of a class that it knows: rename classes that are the same, or give other data",
        false => "rename classes that are the same, or leave the images of others out with --ignore-unknown",
    };
    format!("the network does not know the {class} {unknown}; it knows {known}{unnamed}; {out}")
}

fn size_hint(expected: u64, found: u64) -> &'static str {
    if found < expected { " (truncated)" } else { "" }
}
