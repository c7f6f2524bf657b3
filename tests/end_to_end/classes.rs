//! Labels go by the names of classes wherever a network meets data again.

use crate::command::{Done, Shell};
use crate::use_model::paint;
use std::collections::BTreeMap;
use std::fs;
use zoo_data::Split;

const ANIMALS: [(&str, [u8; 3]); 3] =
    [("ant", [210, 30, 20]), ("bee", [30, 190, 40]), ("cat", [20, 30, 200])];

/// Options of a run that tells colours apart.
const TRAIN: &str =
    "train --model softmax --dataset folder --image-size 16 --batch-size 6 --threads 1 --seed 1";

/// Pictures of one colour in one class of a folder.
fn paint_class(shell: &Shell, folder: &str, split: &str, class: &str, colour: [u8; 3]) {
    for i in 0..4 {
        paint(&shell.path(&format!("{folder}/{split}/{class}/{i}.png")), colour, i);
    }
}

fn paint_animals(shell: &Shell, folder: &str) {
    for (class, colour) in ANIMALS {
        ["train", "val"].into_iter().for_each(|split| paint_class(shell, folder, split, class, colour));
    }
}

/// A folder of animals, and a run that knows all of them.
fn trained() -> Shell {
    let shell = Shell::new();
    paint_animals(&shell, "base");
    shell.zoo(&format!("{TRAIN} --epochs 3 --data-dir base --out run")).ok();
    assert_eq!(shell.zoo("eval run --json").json()["top1"], 100.0);
    shell
}

#[track_caller]
fn assert_all_right(done: &Done, n: u64) {
    let record = done.json();
    assert_eq!((record["n"].as_u64(), record["top1"].as_f64()), (Some(n), Some(100.0)), "{record}");
}

#[test]
fn some_of_the_classes() {
    let shell = trained();
    for (class, colour) in &ANIMALS[1..] {
        paint_class(&shell, "sub", "val", class, *colour);
    }
    for source in [
        "run",
        "run/last.safetensors",
        "--model softmax --weights run/best.safetensors --image-size 16 --dataset folder",
    ] {
        let done = shell.zoo(&format!("eval {source} --data-dir sub --per-class --json"));
        assert_all_right(&done, 8);
        assert_eq!(done.stderr, "", "{source}");
        let per_class = &done.json()["per_class"];
        let row =
            |i: usize| (per_class[i]["class"].as_str().unwrap().to_string(), per_class[i]["n"].as_u64());
        assert_eq!([row(0), row(1)], [("ant".into(), Some(0)), ("bee".into(), Some(4))], "{per_class}");
    }
    assert_all_right(&shell.zoo("eval run --data-dir sub --tta --json"), 8);
}

#[test]
fn unknown_classes_are_named() {
    let shell = trained();
    paint_class(&shell, "other", "val", "zebra", ANIMALS[0].1);
    let done = shell.zoo("eval run --data-dir other");
    let error = "cannot evaluate on other: the network does not know the class 'zebra'; it knows 'ant', 'bee', 'cat'; no \
                 image is of a class that it knows: rename classes that are the same, or give other data";
    assert_eq!(done.error(), error);
    assert_eq!(shell.zoo("eval run --data-dir other --ignore-unknown").error(), error);
    paint_class(&shell, "other", "val", "cat", ANIMALS[2].1);
    for i in 0..11 {
        paint_class(&shell, "other", "val", &format!("y{i:02}"), [9; 3]);
    }
    let done = shell.zoo("eval run --data-dir other");
    let error = done.error();
    for part in
        ["the classes 'y00', 'y01', ", "'y09' and 2 more; it knows 'ant', 'bee', 'cat'; ", "--ignore-unknown"]
    {
        assert!(error.contains(part), "not '{part}' in {error}");
    }
    let done = shell.zoo("eval run --data-dir other --ignore-unknown --json");
    assert_all_right(&done, 4);
    assert!(
        done.stderr
            .starts_with("warning: left out 48 images of classes that the network does not know: 'y00'")
    );
    // The limit is one of images that count.
    assert_all_right(&shell.zoo("eval run --data-dir other --ignore-unknown --limit-test 3 --json"), 3);
    let error = shell.zoo("eval run --dataset shapes").error().to_string();
    assert!(
        error.starts_with("cannot evaluate on shapes: the network does not know the classes "),
        "{error}"
    );
}

/// A class more moves all that come after it in the folder.
#[test]
fn a_class_in_front() {
    let shell = trained();
    shell.zoo(&format!("{TRAIN} --epochs 3 --data-dir base --num-classes 4 --out run4")).ok();
    assert_all_right(&shell.zoo("eval run4 --json"), 12);
    for split in ["train", "val"] {
        paint_class(&shell, "base", split, "aardvark", ANIMALS[0].1);
    }
    for (run, more) in [("run", ""), ("run4", ", and one output without a name")] {
        let done = shell.zoo(&format!("eval {run}"));
        let part = format!("does not know the class 'aardvark'; it knows 'ant', 'bee', 'cat'{more}; ");
        assert!(done.error().contains(&part), "{}", done.stderr);
        let done = shell.zoo(&format!("eval {run} --ignore-unknown --json"));
        assert_all_right(&done, 12);
        assert!(done.stderr.contains("left out 4 images"), "{}", done.stderr);
    }
    // Where there are no pictures of it, it does not matter.
    fs::remove_dir_all(shell.path("base/val/aardvark")).unwrap();
    assert_all_right(&shell.zoo("eval run --json"), 12);
}

/// In other spellings, which are listed in another order.
#[test]
fn renamed_classes() {
    let shell = trained();
    for (class, name) in [("ant", "ant"), ("bee", "Bee"), ("cat", "CAT")] {
        fs::create_dir_all(shell.path("other/val")).unwrap();
        fs::rename(shell.path(&format!("base/val/{class}")), shell.path(&format!("other/val/{name}")))
            .unwrap();
    }
    let done = shell.zoo("eval run --data-dir other --json");
    assert_all_right(&done, 12);
    assert_eq!(
        done.stderr,
        "classes that are spelt otherwise than the network's: 2, such as 'Bee' for 'bee'\n"
    );
    // An exact name goes before one that is spelt otherwise, which then is another class.
    paint_class(&shell, "other", "val", "Ant", ANIMALS[0].1);
    let done = shell.zoo("eval run --data-dir other");
    assert!(done.error().contains("does not know the class 'Ant';"), "{}", done.stderr);
}

#[test]
fn a_built_in_set_and_a_folder_of_its_pictures() {
    let shell = Shell::new();
    shell.zoo("train --model lenet5 --dataset shapes --limit-train 400 --epochs 1 --lr 0.01 --out run").ok();
    let images = zoo_data::open("shapes", Split::Test, None, 0).unwrap().limit(60, 0);
    for i in 0..images.len() {
        let class = &images.meta().classes[images.label(i) as usize];
        let path = shell.path(&format!("pictures/val/{class}/{i:03}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_raw(32, 32, images.get(i).unwrap().pixels).unwrap().save(path).unwrap();
    }
    let expected = shell.zoo("eval run --limit-test 60 --json").json();
    let found = shell.zoo("eval run --dataset folder --data-dir pictures --json").json();
    assert_eq!((&found["n"], &found["top1"]), (&60.into(), &expected["top1"]));
    let difference = found["loss"].as_f64().unwrap() - expected["loss"].as_f64().unwrap();
    assert!(difference.abs() < 1e-9, "{difference}");
}

/// Two sets in files of one format, of which only one has the classes.
#[test]
fn sets_of_one_format_are_told_apart() {
    let shell = Shell::new();
    for digit in 0..10 {
        for split in ["train", "val"] {
            paint_class(&shell, "digits", split, &digit.to_string(), [digit * 25; 3]);
        }
    }
    shell.zoo(&format!("{TRAIN} --epochs 3 --data-dir digits --in-chans 1 --out run")).ok();
    let head = |magic: u32, sizes: &[u32]| -> Vec<u8> {
        [magic, 10_000].iter().chain(sizes).flat_map(|value| value.to_be_bytes()).collect()
    };
    let labels: Vec<u8> = (0..10_000u32).map(|i| (i % 10) as u8).collect();
    let pixels: Vec<u8> = labels.iter().flat_map(|&label| [label * 25; 784]).collect();
    shell.write("idx/t10k-images-idx3-ubyte", [head(0x803, &[28, 28]), pixels].concat());
    shell.write("idx/t10k-labels-idx1-ubyte", [head(0x801, &[]), labels].concat());
    assert_eq!(shell.zoo("eval run --dataset mnist --data-dir idx --json").json()["n"], 10_000);
    let error = shell.zoo("eval run --dataset fashion-mnist --data-dir idx").error().to_string();
    for part in ["'T-shirt/top', 'Trouser'", "'Ankle boot'; it knows '0', '1'"] {
        assert!(error.contains(part), "not '{part}' in {error}");
    }
}

/// Copies weights without anything that is said of them.
fn strip(shell: &Shell, from: &str, to: &str) {
    let weights = zoo::weights::read(&shell.path(from)).unwrap();
    zoo::weights::write_safetensors(&shell.path(to), &weights.tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn weights_without_names_go_by_number() {
    let shell = trained();
    strip(&shell, "run/best.safetensors", "bare.safetensors");
    let eval = "eval --model softmax --weights bare.safetensors --image-size 16 --dataset folder --data-dir";
    let done = shell.zoo(&format!("{eval} base --per-class --json"));
    assert_all_right(&done, 12);
    assert_eq!(done.json()["per_class"][0]["class"], "ant");
    assert!(
        done.stderr
            .contains("do not name their classes; the classes of the data are taken for them by number")
    );
    paint_class(&shell, "base", "val", "dog", [9; 3]);
    fs::remove_dir_all(shell.path("base/train")).unwrap();
    let error = shell.zoo(&format!("{eval} base")).error().to_string();
    assert!(error.contains("the weights do not name their 3 classes, and the data have 4"), "{error}");
    let error = shell.zoo("predict --model softmax --weights bare.safetensors --image-size 16 --dataset shapes base/val/ant/0.png");
    assert!(
        error.error().contains("shapes has 10 classes, and these weights have outputs for 3"),
        "{}",
        error.stderr
    );
}

/// A network of a thousand outputs without names, which knows red, green and blue pictures as classes of ImageNet.
#[test]
fn classes_of_imagenet_by_name_and_by_wordnet_id() {
    let shell = Shell::new();
    let known = [(0, 0), (281, 1), (999, 2)];
    let mut weight = vec![0f32; 1000 * 3 * 256];
    for (class, channel) in known {
        weight[(class * 3 + channel) * 256..][..256].fill(1.0);
    }
    let device = candle_core::Device::Cpu;
    let tensors = BTreeMap::from([
        ("fc.weight", candle_core::Tensor::from_vec(weight, (1000, 768), &device).unwrap()),
        ("fc.bias", candle_core::Tensor::zeros(1000, candle_core::DType::F32, &device).unwrap()),
    ]);
    let path = shell.path("bare.safetensors");
    zoo::weights::write_safetensors(
        &path,
        tensors.iter().map(|(name, tensor)| (*name, tensor)),
        &BTreeMap::new(),
    )
    .unwrap();
    let eval =
        "eval --model softmax --weights bare.safetensors --image-size 16 --dataset folder --json --data-dir";
    for (folder, names) in [
        ("ids", ["n01440764", "n02123045", "n15075141"]),
        ("names", ["tench", "tabby", "toilet tissue"]),
        ("spelt", ["Tench", "tabby", "Toilet_tissue"]),
        ("both", ["n01440764-tench", "tabby", "n15075141"]),
    ] {
        for (name, (_, colour)) in names.iter().zip(ANIMALS) {
            paint_class(&shell, folder, "val", name, colour);
        }
        let done = shell.zoo(&format!("{eval} {folder}"));
        assert_all_right(&done, 12);
        assert!(
            done.stderr.contains("taken for ImageNet's, as all classes of the data are"),
            "{}",
            done.stderr
        );
    }
    // Other classes than ImageNet's cannot be found in such a network.
    paint_class(&shell, "names", "val", "none of these", [9; 3]);
    let error = shell.zoo(&format!("{eval} names")).error().to_string();
    assert!(error.contains("the weights do not name their 1000 classes, and the data have 4"), "{error}");
}

/// The outputs of the network stay those of the classes that the run began with.
#[test]
fn a_run_is_not_resumed_on_other_classes() {
    let shell = trained();
    shell.zoo(&format!("{TRAIN} --epochs 3 --data-dir base --num-classes 4 --out run4")).ok();
    for split in ["train", "val"] {
        paint_class(&shell, "base", split, "aardvark", ANIMALS[0].1);
    }
    for run in ["run", "run4"] {
        let error = shell.zoo(&format!("train --resume {run}")).error().to_string();
        let start = format!(
            "cannot resume {run}: the classes of its data have changed: 'aardvark' is new; bring back "
        );
        assert!(error.starts_with(&start), "{error}");
    }
    // As many classes and images as there were.
    for split in ["train", "val"] {
        fs::remove_dir_all(shell.path(&format!("base/{split}/bee"))).unwrap();
    }
    let error = shell.zoo("train --resume run").error().to_string();
    assert!(error.contains("'aardvark' is new, 'bee' is gone; "), "{error}");
    // A state of a version that did not say.
    let state = shell.path("run/state.safetensors");
    let mut saved = zoo::weights::read(&state).unwrap();
    let progress = saved.metadata.get_mut("progress").unwrap();
    *progress = progress.lines().filter(|line| !line.starts_with("classes")).collect::<Vec<_>>().join("\n");
    zoo::weights::write_safetensors(&state, &saved.tensors, &saved.metadata).unwrap();
    assert_eq!(shell.zoo("train --resume run").error(), error);
    // The same classes in another folder.
    paint_animals(&shell, "elsewhere");
    shell.zoo("train --resume run --data-dir elsewhere").ok();
}

#[test]
fn fine_tuning_finds_the_classes_of_the_weights() {
    let shell = trained();
    let train = format!("{TRAIN} --epochs 1 --lr 0 --weights run");
    let weights = |line: &str| {
        let text = shell.zoo(line).ok().to_string();
        text.lines().find_map(|line| line.strip_prefix("weights    ")).unwrap().to_string()
    };
    // The same classes, listed in another order: CAT, ant, bee.
    paint_animals(&shell, "other");
    for split in ["train", "val"] {
        fs::rename(shell.path(&format!("other/{split}/cat")), shell.path(&format!("other/{split}/CAT")))
            .unwrap();
    }
    let told = weights(&format!("{train} --data-dir other --out moved"));
    assert_eq!(told, "run: head in the order of these classes, by name");
    assert_all_right(&shell.zoo("eval moved --json"), 12);
    let labels = shell.zoo("predict moved base/val/cat/0.png base/val/ant/0.png --topk 1 --json").json();
    assert_eq!(
        (&labels[0]["predictions"][0]["label"], &labels[1]["predictions"][0]["label"]),
        (&"CAT".into(), &"ant".into())
    );
    assert_all_right(&shell.zoo("eval moved --data-dir base --json"), 12);

    assert_eq!(weights(&format!("{train} --data-dir base --out same")), "run: all weights used as they are");
    assert_all_right(&shell.zoo("eval same --json"), 12);

    for split in ["train", "val"] {
        fs::rename(shell.path(&format!("other/{split}/ant")), shell.path(&format!("other/{split}/elk")))
            .unwrap();
    }
    assert_eq!(weights(&format!("{train} --data-dir other --out new")), "run: new head for 3 other classes");

    strip(&shell, "run/best.safetensors", "bare.safetensors");
    let bare = format!(
        "{TRAIN} --epochs 1 --lr 0 --weights bare.safetensors --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
    );
    let told = weights(&format!("{bare} --data-dir base --out number"));
    assert_eq!(
        told,
        "bare.safetensors: head kept, class by number, as the weights do not name their classes"
    );
}
