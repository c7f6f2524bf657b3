//! Labelled sentences: trains on them, then evaluates, predicts and refuses.

use crate::command::{Shell, fields};
use serde_json::Value;

const TRAIN: &str =
    "train --model textcnn --data-dir reviews.tsv --epochs 6 --batch-size 8 --lr 0.05 --threads 1";

/// Reviews whose class is decided by a word or by "not" before it, between others that say nothing.
fn reviews() -> String {
    let (praise, blame) = (["good", "great", "fine", "moving"], ["bad", "poor", "dull", "awful"]);
    let about = ["the film", "this story", "a cast", "the music", "her part"];
    let mut lines = String::new();
    for (i, about) in about.iter().cycle().take(80).enumerate() {
        let (praise, blame) = (praise[i / 2 % 4], blame[i / 2 % 4]);
        let (class, verdict) =
            if i % 2 == 0 { ("positive", format!("{praise} !")) } else { ("negative", format!("{blame} .")) };
        lines += &format!("{class}\t{about} was, number {} aside, {verdict}\n", i % 7);
    }
    lines
}

fn trained() -> Shell {
    let shell = Shell::new();
    shell.write("reviews.tsv", reviews());
    shell.zoo(&format!("{TRAIN} --out run")).ok();
    shell
}

/// The most probable class of each answer, by the sentence.
fn labels(answers: &Value) -> Vec<(&str, &str)> {
    let answers = answers.as_array().unwrap().iter();
    answers
        .map(|answer| (answer["path"].as_str().unwrap(), answer["predictions"][0]["label"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_network_learns_to_read() {
    let shell = trained();
    let record = shell.zoo("eval run --json --per-class").json();
    assert_eq!((&record["dataset"], &record["n"]), (&"text".into(), &8.into()), "a tenth of the lines");
    assert_eq!(record["top1"], 100.0, "{record}");
    assert_eq!(record["per_class"][0]["class"], "negative");
    assert_eq!(shell.zoo("eval run --split train --json").json()["n"], 72);

    // Sentences as arguments and in the lines of a file; a word that was never seen does not matter.
    let sentences = ["The MUSIC was, surprisingly, great!", "a dull story"];
    let args = ["predict", "run", sentences[0], sentences[1], "--json", "--logits"];
    let answers: Value = serde_json::from_slice(&shell.command(args).output().unwrap().stdout).unwrap();
    assert_eq!(labels(&answers), [(sentences[0], "positive"), (sentences[1], "negative")]);
    assert_eq!(fields(&answers[0]), ["logits", "path", "predictions"]);
    shell.write("new.txt", sentences.join("\n\n") + "\n");
    assert_eq!(shell.zoo("predict run new.txt --json --logits").json(), answers);
}

#[test]
fn other_sentences_are_read_with_the_words_of_the_checkpoint() {
    let shell = trained();
    // In this file "negative" comes first and every word would have another number.
    shell.write("other/train.tsv", "negative\tawful\nnegative\tpoor\npositive\tmoving, moving\n");
    shell.write("other/test.tsv", "negative\tan awful , awful film\npositive\ta moving story !\n");
    let record = shell.zoo("eval run --data-dir other --json").json();
    assert_eq!((&record["n"], &record["top1"]), (&2.into(), &Value::from(100.0)), "{record}");
    shell.write("third/train.tsv", "neutral\tso so\nneutral\tpoor\n");
    let error = shell.zoo("eval run --split train --data-dir third");
    let part = "cannot evaluate on third: the network does not know the class 'neutral'; it knows 'negative', 'positive'; ";
    assert!(error.error().starts_with(part), "{}", error.stderr);
    shell.write(
        "third/train.tsv",
        "neutral\tso so\nPositive\ta moving story\npositive\tgreat\nneutral\tpoor\n",
    );
    shell.write("third/test.tsv", "neutral\tso so\n");
    let done = shell.zoo("eval run --split train --data-dir third --ignore-unknown --json");
    assert_eq!((&done.json()["n"], &done.json()["top1"]), (&1.into(), &Value::from(100.0)));
    assert!(
        done.stderr
            .contains("left out 3 images of classes that the network does not know: 'Positive', 'neutral'")
    );
}

#[test]
fn one_seed_gives_one_result_and_an_interrupted_run_goes_on() {
    let shell = trained();
    shell.zoo(&format!("{TRAIN} --out again")).ok();
    assert_eq!(
        crate::command::bytes(&shell.path("run/best.safetensors")),
        crate::command::bytes(&shell.path("again/best.safetensors"))
    );
    assert!(shell.zoo("train --resume run --json").json()["finished"].as_bool().unwrap());
}

/// Other words than those that have numbers, in as many sentences of the same classes.
#[test]
fn a_run_is_not_resumed_on_other_words() {
    let shell = trained();
    shell.write("reviews.tsv", reviews().replace("film", "novel"));
    let error = shell.zoo("train --resume run").error().to_string();
    assert!(error.contains("the sentences to train on have other words than when it began"), "{error}");
    shell.write("reviews.tsv", reviews().replace("negative", "neutral"));
    let error = shell.zoo("train --resume run").error().to_string();
    assert!(error.contains("'neutral' is new, 'negative' is gone"), "{error}");
}

#[test]
fn words_and_pictures_are_not_mixed_up() {
    let shell = trained();
    for (line, expected) in [
        ("train --model lenet5 --dataset text --data-dir reviews.tsv --augment none", "use --model textcnn"),
        ("train --model textcnn --dataset shapes", "use --dataset text"),
        ("train --model textcnn --data-dir reviews.tsv --augment standard", "--augment none"),
        ("train --model textcnn --data-dir reviews.tsv --image-size 9", "cannot be resized"),
        ("train --model textcnn", "--data-dir FILE"),
        ("train --model textcnn --data-dir nowhere.tsv", "nowhere.tsv"),
        ("eval run --dataset shapes", "these weights read sentences"),
        ("eval run --tta", "text has sentences"),
        ("train --model textcnn --data-dir reviews.tsv --mean 0,0,0", "not normalised"),
        ("predict run --image-size 5 good", "cannot be changed"),
        ("eval run --mean 0,0,0", "cannot be changed"),
        ("predict --model textcnn --weights run/best.safetensors good", "which numbers words have"),
        ("data show text --data-dir reviews.tsv", "no picture"),
    ] {
        let error = shell.zoo(line);
        assert!(error.error().contains(expected), "{line}: {}", error.stderr);
    }
    shell.zoo("data verify text --data-dir reviews.tsv").ok();
}
