//! The table of models, collected from the files in `models/`: one per family.

use crate::model::{Config, Network, Stem};
use crate::models::textcnn;
use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use std::sync::OnceLock;
use zoo_ops::rng::Noise;

/// Builds a network's layers.
pub type Build = Box<dyn Fn(&Config, VarBuilder<'_>) -> Result<Box<dyn Network>> + Send + Sync>;

/// A registered model.
pub struct Spec {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its family: the name of its source file and of its facts file.
    pub family: &'static str,
    /// Channels, height and width of the images it was published for.
    pub input: [usize; 3],
    /// Classes it was published for.
    pub num_classes: usize,
    /// Path of the first layer, whose weight has a column per input channel (or per input value).
    pub stem: &'static str,
    /// Path of the last layer, whose weight has a row per class.
    pub head: &'static str,
    /// Builds its layers.
    pub build: Build,
}

impl Spec {
    /// Whether it reads sentences, and not images: see [`zoo_ops::embedding`](mod@zoo_ops::embedding).
    pub fn reads_text(&self) -> bool {
        self.family == textcnn::FAMILY
    }

    /// The configuration it was published for.
    pub fn config(&self) -> Config {
        let [in_chans, h, w] = self.input;
        Config {
            num_classes: self.num_classes,
            in_chans,
            image_size: (h, w),
            dropout: None,
            drop_path: None,
            stem: Stem::Auto,
            noise: Noise::default(),
        }
    }
}

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec").field("name", &self.name).field("family", &self.family).finish_non_exhaustive()
    }
}

/// A family of models: its part of the table, and its facts file (see [`crate::facts`]).
pub(crate) struct Family {
    pub(crate) name: &'static str,
    specs: fn() -> Vec<Spec>,
    pub(crate) facts: &'static str,
}

/// A row for each file in `models/`, written by `build.rs`.
pub(crate) const FAMILIES: &[Family] = include!(concat!(env!("OUT_DIR"), "/families.rs"));

/// All models, sorted by family and then in the family's own order.
pub fn registry() -> &'static [Spec] {
    static ALL: OnceLock<Vec<Spec>> = OnceLock::new();
    ALL.get_or_init(|| FAMILIES.iter().flat_map(|family| (family.specs)()).collect())
}

/// The model of exactly this name.
///
/// # Errors
/// If there is none; the message names the closest ones.
pub fn find(name: &str) -> Result<&'static Spec> {
    if let Some(spec) = registry().iter().find(|spec| spec.name == name) {
        return Ok(spec);
    }
    let mut near: Vec<_> = registry().iter().map(|s| (edit_distance(name, s.name), s.name)).collect();
    near.sort();
    let near: Vec<_> = near.iter().take(3).map(|(_, name)| *name).collect();
    bail!("unknown model '{name}'; closest are {} (`zoo list` shows all)", near.join(", "))
}

/// The models whose name matches a pattern in which `*` stands for any characters and `?` for one.
pub fn list(pattern: &str) -> Vec<&'static Spec> {
    registry().iter().filter(|spec| matches(pattern.as_bytes(), spec.name.as_bytes())).collect()
}

/// Whether `*` for any bytes and `?` for one make the pattern equal to the text.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on after the last star, should its first guess be wrong.
    let (mut p, mut t, mut retry) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((after, from)) => {
                    (p, t) = (after, from + 1);
                    retry = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Levenshtein's distance: insertions, deletions and replacements from one word to the other.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = registry().iter().map(|s| s.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    #[test]
    fn wildcards() {
        assert!(matches(b"lenet*", b"lenet5") && matches(b"*", b"") && matches(b"l?net5", b"lenet5"));
        assert!(!matches(b"lenet", b"lenet5") && !matches(b"?", b""));
    }

    #[test]
    fn unknown_names_are_answered_with_the_closest() {
        let message = find("lenet_5").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("lenet5") && message.contains("lenet_5"), "{message}");
    }
}
