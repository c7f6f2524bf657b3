//! The weights that others have published: which there are for a model, where they lie on this machine, and
//! whether a file is one of them.

mod cache;
#[cfg(feature = "hub")]
mod download;

pub use cache::Cache;

use super::digest::sha256;
use super::error::{Reason, Result};
use crate::facts::{WeightFile, facts};
use crate::registry::Spec;
use candle_core::bail;
use std::fs::File;
use std::path::Path;

/// The tag of the weights that are listed first, which are the ones that the family became known for.
pub const DEFAULT_TAG: &str = "default";

/// The published weights of a model with this tag, in any case, or with [`DEFAULT_TAG`].
///
/// # Errors
/// If there are none; the message names those there are.
pub fn published(spec: &Spec, tag: &str) -> candle_core::Result<WeightFile> {
    let all = facts(spec.name)?.weights;
    let tags: Vec<String> = all.iter().map(|file| file.tag.clone()).collect();
    let wanted = |file: &WeightFile| tag == DEFAULT_TAG || file.tag.eq_ignore_ascii_case(tag);
    match all.into_iter().find(wanted) {
        Some(file) => Ok(file),
        None if tags.is_empty() => {
            bail!("there are no published weights for {}; `zoo list` shows which models have some", spec.name)
        }
        None => bail!("{} has no weights '{tag}'; there are {}", spec.name, tags.join(", ")),
    }
}

/// How a file was found to be published weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownBy {
    /// Its content has the published hash.
    Content,
    /// Its name ends as the published one does, which holds a hash. The content is another: a copy in another
    /// format, for example.
    Name,
}

/// Which of the `known` weights (those of [`facts`]) the file at `path` holds, if any.
///
/// # Errors
/// If the file cannot be read.
pub fn identify<'k>(known: &'k [WeightFile], path: &Path) -> Result<Option<(&'k WeightFile, KnownBy)>> {
    if known.is_empty() {
        return Ok(None);
    }
    let digest = File::open(path).and_then(sha256).map_err(|error| Reason::Io(error).at(path))?;
    if let Some(file) = known.iter().find(|file| has_digest(file, &digest)) {
        return Ok(Some((file, KnownBy::Content)));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let by_name = known.iter().find(|file| {
        let official = cache::base_name(&file.url);
        // Collections put their own names before the official one. One without a hash says too little.
        official.contains(cache::digits(file)) && name.ends_with(official)
    });
    Ok(by_name.map(|file| (file, KnownBy::Name)))
}

/// Whether content with this SHA-256 is what was published, as far as its hash is.
fn has_digest(file: &WeightFile, digest: &str) -> bool {
    file.sha256.len() >= cache::DIGITS && digest.starts_with(&file.sha256.to_ascii_lowercase())
}
