//! The folder of a run.

use crate::{Error, Result, TrainConfig};
use serde::Serialize;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The files of a run: see the constants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The resolved settings; can be used as a recipe.
    pub const CONFIG: &'static str = "config.toml";
    /// A line of JSON per epoch, and per `log_every` steps.
    pub const METRICS: &'static str = "metrics.jsonl";
    /// The weights with the best top-1 accuracy so far.
    pub const BEST: &'static str = "best.safetensors";
    /// The weights at the end of the last epoch, or where the run was interrupted.
    pub const LAST: &'static str = "last.safetensors";
    /// All that a resumed run needs.
    pub const STATE: &'static str = "state.safetensors";

    /// Creates the folder of a new run.
    ///
    /// # Errors
    /// If it holds a run already or cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let dir = Self(path.to_path_buf());
        if [Self::CONFIG, Self::STATE, Self::LAST, Self::BEST].iter().any(|name| dir.file(name).exists()) {
            return Err(Error::RunExists(path.to_path_buf()));
        }
        fs::create_dir_all(path).map_err(Error::io(path))?;
        Ok(dir)
    }

    /// Creates `root/<model>-<dataset>-<n>` with the lowest `n` from 1 that is free.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_numbered(root: &Path, model: &str, dataset: &str) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io(root))?;
        let mut n = 1u32;
        loop {
            let path = root.join(format!("{model}-{dataset}-{n}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => n += 1,
                Err(error) => return Err(Error::io(path)(error)),
            }
        }
    }

    /// The folder of a run that was started before.
    ///
    /// # Errors
    /// If there is none at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = Self(path.to_path_buf());
        if !dir.file(Self::CONFIG).is_file() {
            let problem = format!("there is no run; expected a folder with {}", Self::CONFIG);
            return Err(Error::Resume { dir: path.to_path_buf(), problem });
        }
        Ok(dir)
    }

    /// A folder that another process writes: the first of the ranks of a run.
    pub fn of_first_rank(path: &Path) -> Self {
        Self(path.to_path_buf())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// One of the files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The settings of the run.
    ///
    /// # Errors
    /// If `config.toml` cannot be read.
    pub fn config(&self) -> Result<TrainConfig> {
        TrainConfig::read(&self.file(Self::CONFIG))
    }

    pub(crate) fn save_config(&self, config: &TrainConfig) -> Result<()> {
        let path = self.file(Self::CONFIG);
        zoo::weights::replace_file(&path, |out| out.write_all(config.to_toml().as_bytes()))
            .map_err(Error::io(path))
    }
}

/// `metrics.jsonl`, open for appending and locked against other processes; or nothing, for a process that writes none.
#[derive(Debug, Default)]
pub(crate) struct MetricsLog {
    file: Option<(File, PathBuf)>,
    len: u64,
}

impl MetricsLog {
    /// Opens or creates the log without changing it, and locks it where the file system has locks.
    pub(crate) fn open(dir: &RunDir) -> Result<Self> {
        let path = dir.file(RunDir::METRICS);
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(Error::io(&path))?;
        // A process that has just ended, or one that this one is starting, may hold the lock for a moment.
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Err(TryLockError::WouldBlock) = file.try_lock() {
            if Instant::now() > deadline {
                return Err(Error::Busy(dir.path().to_path_buf()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let len = file.metadata().map_err(Error::io(&path))?.len();
        Ok(Self { file: Some((file, path)), len })
    }

    /// Removes what was written after the log had `len` bytes.
    pub(crate) fn cut(&mut self, len: u64) -> Result<()> {
        if let Some((file, path)) = &self.file
            && len < self.len
        {
            file.set_len(len).map_err(Error::io(path))?;
            self.len = len;
        }
        Ok(())
    }

    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let mut text = serde_json::to_string(line).map_err(|error| Error::io(&*path)(error.into()))?;
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(Error::io(&*path))?;
        self.len += text.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Waits until the lines are on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |(file, path)| file.sync_data().map_err(Error::io(path)))
    }
}
