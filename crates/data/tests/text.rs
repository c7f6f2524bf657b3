//! Sets of labelled sentences in files.

use std::fs;
use std::path::Path;
use zoo_data::{Augment, Loader, LoaderConfig, Reading, Split, open, open_text};

fn message<T>(result: zoo_data::Result<T>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

fn lines(n: usize) -> String {
    (0..n).map(|i| format!("{}\tsentence number {i}\n", if i % 3 == 0 { "no" } else { "yes" })).collect()
}

#[test]
fn one_file_is_divided_the_same_way_every_time() -> zoo_data::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.tsv");
    fs::write(&file, lines(50)).unwrap();
    let pixels = |split| Ok(open("text", split, Some(&file), 0)?.all_pixels().unwrap().to_vec());
    let (train, test) =
        (open("text", Split::Train, Some(&file), 0)?, open("text", Split::Test, Some(&file), 0)?);
    assert_eq!((train.len(), test.len()), (45, 5));
    assert_eq!(train.meta().classes, ["no", "yes"]);
    assert_eq!(train.meta().shape, [3, 3, 3]);
    assert_eq!(pixels(Split::Train)?, pixels(Split::Train)?);
    // Every sentence has a word of its own; no word of the test split has a number.
    let words = train.vocabulary().unwrap().words();
    assert_eq!(words.len(), 45 + 2);
    let third_words = |set: &zoo_data::Dataset| -> Vec<[u8; 3]> {
        (0..set.len()).map(|i| set.packed(i).unwrap().0[6..9].try_into().unwrap()).collect()
    };
    assert!(third_words(&test).iter().all(|word| *word == [1, 0, 0]), "unknown");
    assert!(third_words(&train).iter().all(|word| word[0] > 3));
    Ok(())
}

#[test]
fn a_folder_has_a_file_for_each_split() -> zoo_data::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("train.txt"), "a\tone two three four five six seven eight nine ten\nb\tone\n")
        .unwrap();
    fs::write(dir.path().join("val.tsv"), "b\ttwo\n\nb\tnew\n").unwrap();
    let train = open("text", Split::Train, Some(dir.path()), 0)?;
    let test = open("text", Split::Test, Some(dir.path()), 0)?;
    // Ten words need a square of sixteen.
    assert_eq!((train.len(), test.len(), train.meta().shape), (2, 2, [3, 4, 4]));
    assert_eq!(test.labels().collect::<Vec<_>>(), [1, 1]);
    assert_eq!(test.meta().classes, ["a", "b"]);
    Ok(())
}

#[test]
fn other_data_is_read_with_the_words_trained_on() -> zoo_data::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first.tsv"), dir.path().join("second.tsv"));
    fs::write(&first, lines(20)).unwrap();
    fs::write(&second, "yes\tnumber sentence elsewhere\nyes\tsentence\n".repeat(10)).unwrap();
    let train = open("text", Split::Train, Some(&first), 0)?;
    let reading = Reading { vocabulary: train.vocabulary().unwrap().clone(), side: 3 };
    let other = open_text(&second, Split::Test, Some(&reading), 0)?;
    assert_eq!(other.meta().classes, ["yes"]);
    let labelled = other.for_network(&train.meta().classes, 2, false)?.dataset;
    assert_eq!(labelled.meta().classes, ["no", "yes"]);
    assert!(labelled.labels().all(|label| label == 1));
    fs::write(&second, "maybe\tsentence\nno\tsentence\n".repeat(10)).unwrap();
    let third = open_text(&second, Split::Train, Some(&reading), 0)?;
    let unknown = message(third.for_network(&train.meta().classes, 2, false));
    assert!(unknown.contains("the class 'maybe'; it knows 'no', 'yes'; "), "{unknown}");
    let known = third.for_network(&train.meta().classes, 2, true)?;
    assert_eq!((known.left_out + known.dataset.len(), known.dataset.label(0)), (18, 0));
    Ok(())
}

#[test]
fn what_is_no_set_of_sentences_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.tsv");
    let refused = |text: &[u8]| {
        fs::write(&file, text).unwrap();
        message(open("text", Split::Train, Some(&file), 0))
    };
    for (text, expected) in [
        (&b"a\tone\nno tab\n"[..], "line 2 has no tab"),
        (b"a\tone\n\nb\t\n", "line 3 has no class or no sentence"),
        (b"a\tone\nb\t\xff\n", "line 2 is not UTF-8"),
        (b"", "no lines; a training and a test split need two"),
        (b"a\tone\n", "one line;"),
        (b"a\tone\na\ttwo\na\tthree\n", "all training lines have the class 'a'"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line 1 is not UTF-8"),
    ] {
        let found = refused(text);
        assert!(found.contains("all.tsv") && found.contains(expected), "{found}");
    }
    let nowhere = message(open("text", Split::Train, Some(Path::new("/nowhere/at/all")), 0));
    assert!(nowhere.contains("/nowhere/at/all"), "{nowhere}");
    assert!(message(open("text", Split::Train, None, 0)).contains("--data-dir"));
}

#[test]
fn sentences_are_not_changed_like_pictures() -> zoo_data::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.tsv");
    fs::write(&file, lines(20)).unwrap();
    let train = open("text", Split::Train, Some(&file), 0)?;
    let loader = |config| Loader::new(train.clone(), config);
    let augmented = LoaderConfig { augment: Augment::Standard, ..LoaderConfig::new(4, 0) };
    assert!(message(loader(augmented)).contains("augment"));
    let resized = LoaderConfig { image_size: Some(5), ..LoaderConfig::new(4, 0) };
    assert!(message(loader(resized)).contains("5x5"));
    let grey = LoaderConfig { in_chans: Some(1), ..LoaderConfig::new(4, 0) };
    assert!(message(loader(grey)).contains("3 bytes"));
    assert_eq!(loader(LoaderConfig::new(4, 0))?.epoch(0, 0).count(), 5);
    Ok(())
}
