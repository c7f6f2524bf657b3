use std::path::PathBuf;

/// Why a run could not start, go on or be used. Each message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting has a value that makes no sense.
    #[error("{key}: {problem}")]
    Config {
        /// The setting's name in a recipe.
        key: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A recipe, or other settings, cannot be read.
    #[error("{origin}: {problem}")]
    Recipe {
        /// The file or other place the settings come from.
        origin: String,
        /// What is wrong with them.
        problem: String,
    },
    /// The loss became infinite or not a number.
    #[error(
        "training diverged: the loss is {loss} at step {step} with learning rate {lr:.3e}; {}; try a lower lr, a \
         longer warm-up or gradient clipping",
        last_good.as_ref().map_or("there is no checkpoint from before".into(), |path| format!("the last good \
         checkpoint is {}", path.display()))
    )]
    Diverged {
        /// The optimizer step, counted from 1, that could not be taken or that was followed by the evaluation.
        step: u64,
        /// Its learning rate.
        lr: f64,
        /// The loss.
        loss: f64,
        /// The newest checkpoint whose evaluation was finite.
        last_good: Option<PathBuf>,
    },
    /// A file holds no checkpoint that this program can use.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The file or run folder.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// A run cannot be resumed, or not with these settings.
    #[error("cannot resume {}: {problem}", dir.display())]
    Resume {
        /// The run folder.
        dir: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The folder for a new run holds another run already.
    #[error("{} holds a run already; resume it, or choose another folder", .0.display())]
    RunExists(PathBuf),
    /// Another process trains in the folder.
    #[error("{} is in use by another training process", .0.display())]
    Busy(PathBuf),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The GPU has not enough memory for a batch.
    #[error(
        "out of memory on the GPU with batches of {batch_size} images; {}",
        fits.map_or("no batch would fit".into(), |fits| format!("--batch-size {fits} should fit, and --grad-accum {} \
        with it makes the same steps", batch_size.div_ceil(fits)))
    )]
    OutOfMemory {
        /// Images per batch.
        batch_size: usize,
        /// The most that should fit.
        fits: Option<usize>,
    },
    /// The processes of a run cannot work together.
    #[error("{0}")]
    Ranks(String),
    /// A data set cannot be opened or read.
    #[error(transparent)]
    Data(#[from] zoo_data::Error),
    /// A weight file cannot be read or written.
    #[error(transparent)]
    Weights(#[from] zoo::weights::Error),
    /// The network cannot be built, or a computation failed.
    #[error("{}", first_line(.0))]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn config(key: &str, problem: impl Into<String>) -> Self {
        Self::Config { key: key.into(), problem: problem.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}

/// What candle says, without the backtrace that it adds where `RUST_BACKTRACE` asks for one.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}
