//! Labelled sentences: a line each, its class, a tab and the sentence.
//!
//! A sentence is stored as [`zoo_ops::embedding`](mod@zoo_ops::embedding) reads it: an image whose pixels are the
//! numbers of its words. So batches, limits, held-out shares and resuming are those of images.

use crate::classes::list_names;
use crate::dataset::{Dataset, Meta, Source, Split, permutation};
use crate::digest::md5;
use crate::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zoo_ops::embedding::{PADDING, ROWS, UNKNOWN, word_bytes};

/// Share of the lines that are the test split where there is one file.
const TEST_SHARE: f64 = 0.1;

/// Sides of the squares that sentences are padded to: the paper's widest filter sees 5 words, and words beyond
/// the 256th are cut off.
const SIDES: std::ops::RangeInclusive<usize> = 3..=16;

/// Files of a folder, by split.
const TRAIN: [&str; 2] = ["train.tsv", "train.txt"];
const TEST: [&str; 4] = ["test.tsv", "test.txt", "val.tsv", "val.txt"];

/// The words that have numbers of their own. Word `i` of the list has the number `i + 2`, after
/// [`PADDING`] and [`UNKNOWN`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    words: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Vocabulary {
    /// These words in this order; those beyond the table's rows are left out.
    pub fn new(mut words: Vec<String>) -> Self {
        words.truncate(ROWS - 2);
        let numbers = words.iter().cloned().zip(UNKNOWN + 1..).collect();
        Self { words, numbers }
    }

    /// The words of these sentences, the most frequent first and equally frequent ones in alphabetical order.
    pub fn of<'s>(sentences: impl IntoIterator<Item = &'s str>) -> Self {
        let mut counts: HashMap<String, u64> = HashMap::new();
        for word in sentences.into_iter().flat_map(words) {
            *counts.entry(word).or_default() += 1;
        }
        let mut words: Vec<(String, u64)> = counts.into_iter().collect();
        words.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
        Self::new(words.into_iter().map(|(word, _)| word).collect())
    }

    /// The words.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// A digest of the words in their order: equal for vocabularies that give words the same numbers.
    pub fn digest(&self) -> String {
        // Reading from memory cannot fail.
        md5(&mut self.words.join("\n").as_bytes()).map(|(digest, _)| digest).unwrap_or_default()
    }

    /// A sentence as the bytes of `side` × `side` words: padded, or cut off where it is longer.
    pub fn encode(&self, sentence: &str, side: usize) -> Vec<u8> {
        let numbers = words(sentence).map(|word| self.numbers.get(&word).copied().unwrap_or(UNKNOWN));
        numbers.chain(std::iter::repeat(PADDING)).take(side * side).flat_map(word_bytes).collect()
    }
}

/// The words of a sentence in lower case: runs of letters, digits and apostrophes, and every other visible
/// character by itself.
fn words(sentence: &str) -> impl Iterator<Item = String> + '_ {
    let inside = |c: char| c.is_alphanumeric() || c == '\'';
    let mut rest = sentence.trim_start();
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end =
            if inside(first) { rest.find(|c| !inside(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        let (word, after) = rest.split_at(end);
        rest = after.trim_start();
        Some(word.to_lowercase())
    })
}

/// What a network that reads sentences was trained with, and its other data must be read with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The numbers of words.
    pub vocabulary: Arc<Vocabulary>,
    /// Root of the number of words that sentences are padded to.
    pub side: usize,
}

/// A line of a file.
pub(crate) struct Line {
    path: PathBuf,
    number: usize,
    class: String,
    sentence: String,
}

/// One split of labelled sentences. `path` is a file, of whose lines a share drawn by `seed` is the test split, or a
/// folder with `train.tsv` (or `.txt`) and perhaps `test.tsv` or `val.tsv`; without one, its training file is
/// divided. Words and classes are those of the training split. With `reading`, which is that of a network, words have
/// its numbers, and the classes are those of the split that is read: [`Dataset::for_network`] finds them among the
/// network's.
///
/// # Errors
/// If there is no such file, a line has no tab, a class or sentences are missing, or the test split has a class that the
/// training split has not.
pub fn open_text(path: &Path, split: Split, reading: Option<&Reading>, seed: u64) -> Result<Dataset> {
    let (train, test) = read(path, seed)?;
    let (reading, classes) = match reading {
        Some(reading) => {
            let lines = if split == Split::Train { &train } else { &test };
            (reading.clone(), classes(lines))
        }
        None => learn(path, &train)?,
    };
    let numbers: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let lines = if split == Split::Train { train } else { test };
    let (mut pixels, mut labels) = (Vec::new(), Vec::with_capacity(lines.len()));
    for Line { path, number, class, sentence } in lines {
        let Some(&label) = numbers.get(class.as_str()) else {
            let known = list_names(&classes);
            let reason = format!("line {number} has the class '{class}'; those trained on are {known}");
            return Err(Error::Format { path, reason });
        };
        labels.push(label);
        pixels.extend(reading.vocabulary.encode(&sentence, reading.side));
    }
    let side = reading.side;
    let meta = Meta {
        name: "text".into(),
        classes,
        shape: [3, side, side],
        fixed_size: true,
        mirror: false,
        // What an embedding expects.
        mean: vec![0.5; 3],
        std: vec![0.5; 3],
    };
    let source = Source::Packed { pixels, h: side, w: side, c: 3 };
    Ok(Dataset::new(meta, split, source, labels).with_vocabulary(reading.vocabulary))
}

/// The classes of these lines, in the order of their names.
fn classes(lines: &[Line]) -> Vec<String> {
    let names: BTreeSet<&str> = lines.iter().map(|line| line.class.as_str()).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// How training sentences are read, and their classes.
fn learn(path: &Path, train: &[Line]) -> Result<(Reading, Vec<String>)> {
    let classes = classes(train);
    if classes.len() < 2 {
        let reason = match classes.first() {
            Some(class) => format!("all training lines have the class '{class}'; two or more are needed"),
            None => "there are no training lines".into(),
        };
        return Err(Error::Format { path: path.to_owned(), reason });
    }
    let longest = train.iter().map(|line| words(&line.sentence).count()).max().unwrap_or(0);
    let side = SIDES.into_iter().find(|side| side * side >= longest).unwrap_or(*SIDES.end());
    let vocabulary = Arc::new(Vocabulary::of(train.iter().map(|line| line.sentence.as_str())));
    Ok((Reading { vocabulary, side }, classes))
}

/// The file of the training split at `path`, a file or a folder, and that of the test split where there is one.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let in_folder = |names: &[&str]| names.iter().map(|name| path.join(name)).find(|file| file.is_file());
    let Some(train) = in_folder(&TRAIN) else {
        let looked_for =
            if path.is_dir() { TRAIN.map(|name| path.join(name)).to_vec() } else { vec![path.to_owned()] };
        return Err(Error::NotFound { what: "file of labelled sentences".into(), looked_for });
    };
    Ok([train].into_iter().chain(in_folder(&TEST)).collect())
}

/// The lines of (train, test).
fn read(path: &Path, seed: u64) -> Result<(Vec<Line>, Vec<Line>)> {
    match files(path)?.as_slice() {
        [train, test] => Ok((read_file(train)?, read_file(test)?)),
        [file, ..] => divide(file, seed),
        [] => Ok((Vec::new(), Vec::new())),
    }
}

/// A file's lines, of which a share is the test split; both in the file's order.
fn divide(path: &Path, seed: u64) -> Result<(Vec<Line>, Vec<Line>)> {
    let lines = read_file(path)?;
    let held = ((lines.len() as f64 * TEST_SHARE).round() as usize).max(1);
    if lines.len() < 2 {
        let n = ["no lines", "one line"][lines.len()];
        let reason = format!("{n}; a training and a test split need two with a class, a tab and a sentence");
        return Err(Error::Format { path: path.to_owned(), reason });
    }
    let test: BTreeSet<u32> = permutation(lines.len(), seed, "text", 0).into_iter().take(held).collect();
    let (mut train, mut held) = (Vec::new(), Vec::new());
    for (i, line) in (0..).zip(lines) {
        if test.contains(&i) { &mut held } else { &mut train }.push(line);
    }
    Ok((train, held))
}

/// The lines of a file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<Line>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes()[..error.utf8_error().valid_up_to()].iter();
        format(format!("line {} is not UTF-8", 1 + good.filter(|&&byte| byte == b'\n').count()))
    })?;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let Some((class, sentence)) = line.split_once('\t') else {
            return Err(format(format!("line {number} has no tab; expected a class, a tab and a sentence")));
        };
        let (class, sentence) = (class.trim().to_owned(), sentence.trim().to_owned());
        if class.is_empty() || sentence.is_empty() {
            return Err(format(format!("line {number} has no class or no sentence")));
        }
        lines.push(Line { path: path.to_owned(), number, class, sentence });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(3).map(|b| u32::from_le_bytes([b[0], b[1], b[2], 0])).collect()
    }

    #[test]
    fn sentences_are_split_into_words() {
        let found: Vec<_> = words("  It's GOOD—really, \u{c9}t\u{e9} 2!").collect();
        assert_eq!(found, ["it's", "good", "—", "really", ",", "été", "2", "!"]);
        assert_eq!(words(" \t").count(), 0);
    }

    #[test]
    fn frequent_words_have_low_numbers() {
        let vocabulary = Vocabulary::of(["b a c", "b a", "b"]);
        assert_eq!(vocabulary.words(), ["b", "a", "c"]);
        assert_eq!(numbers(&vocabulary.encode("c nowhere B", 2)), [4, UNKNOWN, 2, PADDING]);
        assert_eq!(numbers(&vocabulary.encode("a b c a b", 2)), [3, 2, 4, 3]);
        assert_eq!(vocabulary, Vocabulary::new(vocabulary.words().to_vec()));
    }

    #[test]
    fn the_table_has_a_row_for_every_word() {
        let many: Vec<String> = (0..ROWS + 10).map(|i| format!("w{i}")).collect();
        let vocabulary = Vocabulary::new(many);
        assert_eq!(vocabulary.words().len(), ROWS - 2);
        let last = vocabulary.encode(&format!("w{} w{}", ROWS - 3, ROWS - 2), 2);
        assert_eq!(numbers(&last)[..2], [ROWS as u32 - 1, UNKNOWN]);
    }
}
