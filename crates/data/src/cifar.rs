//! The binary versions of CIFAR-10 and CIFAR-100 (<https://www.cs.toronto.edu/~kriz/cifar.html>): records of
//! one label byte (two in CIFAR-100: coarse, fine) and 3072 pixel bytes, [c, h, w].

use crate::catalog::CatalogEntry;
use crate::dataset::Split;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

pub(crate) const CLASSES_10: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

#[rustfmt::skip]
pub(crate) const CLASSES_100: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
    "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard",
    "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
    "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
];

/// The file `name` in `dir` or in one of the usual sub-folders, and every place that was tried.
pub(crate) fn locate(dir: &Path, subfolders: &[&str], name: &str) -> (Option<PathBuf>, Vec<PathBuf>) {
    let tried: Vec<PathBuf> = std::iter::once(dir.join(name))
        .chain(subfolders.iter().map(|sub| dir.join(sub).join(name)))
        .collect();
    (tried.iter().find(|path| path.is_file()).cloned(), tried)
}

/// Pixels [n, h, w, c] and labels of one split.
pub(crate) fn read(
    entry: &CatalogEntry,
    split: Split,
    dir: &Path,
    label_bytes: usize,
) -> Result<(Vec<u8>, Vec<u32>)> {
    let n = entry.count(split);
    let mut pixels = Vec::with_capacity(n * 3 * PLANE);
    let mut labels = Vec::with_capacity(n);
    for file in entry.files(split) {
        let (path, looked_for) = locate(dir, entry.subfolders, file.name);
        let path = path.ok_or_else(|| Error::NotFound {
            what: format!("{} file {}", entry.name, file.name),
            looked_for,
        })?;
        let found = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        if found != file.bytes {
            return Err(Error::Size { path, expected: file.bytes, found });
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        for (record, bytes) in bytes.chunks_exact(label_bytes + 3 * PLANE).enumerate() {
            let (label, planes) = bytes.split_at(label_bytes);
            let label = u32::from(label[label_bytes - 1]);
            if label as usize >= entry.num_classes {
                return Err(Error::Label { path, record, found: label, classes: entry.num_classes });
            }
            labels.push(label);
            let (r, gb) = planes.split_at(PLANE);
            let (g, b) = gb.split_at(PLANE);
            pixels.extend(r.iter().zip(g).zip(b).flat_map(|((&r, &g), &b)| [r, g, b]));
        }
    }
    Ok((pixels, labels))
}
