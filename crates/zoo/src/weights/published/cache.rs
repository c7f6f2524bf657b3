//! Where published weights lie on this machine: in PyTorch's own cache, so that what PyTorch has downloaded is
//! there already, and the other way round.

use super::super::digest::sha256;
use super::super::error::{Reason, Result};
use super::has_digest;
use crate::facts::WeightFile;
use std::env;
use std::fs::File;
use std::io::{Error as IoError, ErrorKind};
use std::path::{Path, PathBuf};

/// How many digits of a hash file names have.
pub(super) const DIGITS: usize = 8;

/// Folders of downloaded weights.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Where downloads go.
    dir: PathBuf,
    /// The cache of the Hugging Face hub's own clients, which is looked into for files of the hub.
    hub: Option<PathBuf>,
}

impl Cache {
    /// The folder of `torch.hub`: `$TORCH_HOME/hub/checkpoints`, without `TORCH_HOME` in `torch` below
    /// `$XDG_CACHE_HOME` or `~/.cache`. Files of the Hugging Face hub are also found where its clients keep them:
    /// in `$HF_HUB_CACHE`, `$HF_HOME/hub` or `~/.cache/huggingface/hub`.
    ///
    /// # Errors
    /// If none of these variables nor the home folder is known.
    pub fn from_env() -> Result<Self> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
        let hub = variable("HF_HUB_CACHE")
            .or_else(|| Some(variable("HF_HOME")?.join("hub")))
            .or_else(|| Some(cache()?.join("huggingface").join("hub")));
        match variable("TORCH_HOME").or_else(|| Some(cache()?.join("torch"))) {
            Some(torch) => Ok(Self { dir: torch.join("hub").join("checkpoints"), hub }),
            None => {
                let problem = "no folder for downloads is known; set TORCH_HOME to one";
                Err(Reason::Io(IoError::new(ErrorKind::NotFound, problem)).at(Path::new("TORCH_HOME")))
            }
        }
    }

    /// Any folder, and nothing else.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), hub: None }
    }

    /// With the cache of the Hugging Face hub's clients in this folder.
    pub fn with_hub(self, hub: impl Into<PathBuf>) -> Self {
        Self { hub: Some(hub.into()), ..self }
    }

    /// Where a file is or would be: under the last part of its URL, as `torch.hub` names it. Where that does not
    /// tell it from other files, because it has no digits of the hash, they are put in.
    pub fn path(&self, file: &WeightFile) -> PathBuf {
        let base = base_name(&file.url);
        if base.contains(digits(file)) {
            return self.dir.join(base);
        }
        // On the Hugging Face hub every file is called `model.safetensors`, and the repository says what it is.
        let repository = file.url.split_once("/resolve/").map(|(start, _)| base_name(start));
        let (stem, ending) = base.rsplit_once('.').unwrap_or((base, "pth"));
        self.dir.join(format!("{}-{}.{ending}", repository.unwrap_or(stem), digits(file)))
    }

    /// The file, which is downloaded first if it is not there; its hash is compared either way. An interrupted
    /// download is continued by the next call. `progress` is told the bytes that are there and the bytes that
    /// there will be, as far as the server says.
    ///
    /// # Errors
    /// If the file cannot be downloaded (by this build or at all), is not what was published, or cannot be
    /// written.
    pub fn fetch(&self, file: &WeightFile, progress: &mut dyn FnMut(u64, Option<u64>)) -> Result<PathBuf> {
        let path = self.path(file);
        match File::open(&path) {
            Ok(found) => {
                let digest = sha256(found).map_err(|error| Reason::Io(error).at(&path))?;
                if !has_digest(file, &digest) {
                    return Err(Reason::Stale { expected: file.sha256.clone(), found: digest }.at(&path));
                }
                Ok(path)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(path) = self.hub.as_deref().and_then(|hub| in_hub_cache(hub, file)) {
                    return Ok(path);
                }
                self.download(file, &path, progress).map_err(|reason| reason.at(&path))?;
                Ok(path)
            }
            Err(error) => Err(Reason::Io(error).at(&path)),
        }
    }

    #[cfg(feature = "hub")]
    fn download(
        &self,
        file: &WeightFile,
        path: &Path,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> std::result::Result<(), Reason> {
        std::fs::create_dir_all(&self.dir)?;
        super::download::download(file, path, progress)
    }

    #[cfg(not(feature = "hub"))]
    fn download(
        &self,
        file: &WeightFile,
        _path: &Path,
        _progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> std::result::Result<(), Reason> {
        Err(Reason::NoHub { url: file.url.clone() })
    }
}

/// The file in the cache `hub`, as `models--OWNER--NAME/snapshots/REVISION/FILE`, if it is the published one in
/// any revision that is there.
fn in_hub_cache(hub: &Path, file: &WeightFile) -> Option<PathBuf> {
    let (repository, path) = file.url.strip_prefix("https://huggingface.co/")?.split_once("/resolve/")?;
    let (_, path) = path.split_once('/')?;
    let snapshots = hub.join(format!("models--{}", repository.replace('/', "--"))).join("snapshots");
    let revisions = std::fs::read_dir(snapshots).ok()?.flatten();
    let mut candidates: Vec<PathBuf> = revisions.map(|revision| revision.path().join(path)).collect();
    candidates.sort();
    candidates.into_iter().find(|candidate| {
        File::open(candidate).and_then(sha256).is_ok_and(|digest| has_digest(file, &digest))
    })
}

/// The last part of a URL, without a query.
pub(super) fn base_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

/// The digits of a file's hash that file names have.
pub(super) fn digits(file: &WeightFile) -> &str {
    file.sha256.get(..DIGITS).unwrap_or(&file.sha256)
}
