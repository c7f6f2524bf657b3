//! The data sets there are: one table that drives opening, checking, downloading and listing.

use crate::dataset::{Dataset, Meta, Source, Split};
use crate::{Error, Result, cifar, folder, hub, idx, shapes, text};
use std::path::Path;

/// One official file of a data set.
#[derive(Debug)]
pub(crate) struct FileFact {
    pub(crate) split: Split,
    pub(crate) name: &'static str,
    /// Size, uncompressed.
    pub(crate) bytes: u64,
    /// MD5 of the uncompressed content, where the authors or the common loaders publish one.
    pub(crate) md5: Option<&'static str>,
}

/// How the images of a data set are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Records of `label_bytes` labels, the last of which counts, and 3 × 32 × 32 bytes.
    Cifar {
        label_bytes: usize,
    },
    Idx,
    Folder,
    Drawn,
    Text,
}

/// The Parquet copy of a data set on the Hugging Face hub.
#[derive(Debug)]
#[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "read by the download, which this build lacks"))]
pub(crate) struct HubCopy {
    /// `owner/name`.
    pub(crate) id: &'static str,
    /// The folder of the converted files: `FOLDER/{train,test}/0000.parquet`.
    pub(crate) folder: &'static str,
    /// The column with the encoded images.
    pub(crate) image: &'static str,
    /// The column with the labels.
    pub(crate) label: &'static str,
    /// [`crate::digest::content`] of (train, test), computed from the official files; `None` where only the
    /// number of images is checked.
    pub(crate) digest: Option<[u64; 2]>,
}

/// What is known of a data set before opening it.
#[derive(Debug)]
pub struct CatalogEntry {
    /// The name [`open`] takes.
    pub name: &'static str,
    /// A line for people.
    pub summary: &'static str,
    /// Number of classes; 0 for `folder`, where the folders say.
    pub num_classes: usize,
    /// [c, h, w]; zeros where images differ.
    pub shape: [usize; 3],
    /// Number of images in (train, test); zeros for `folder`.
    pub images: [usize; 2],
    /// Whether files are needed: in `--data-dir`, or downloaded.
    pub needs_files: bool,
    pub(crate) format: Format,
    /// Folders below `--data-dir` where the files usually lie.
    pub(crate) subfolders: &'static [&'static str],
    pub(crate) files: &'static [FileFact],
    pub(crate) hub: Option<HubCopy>,
    mirror: bool,
    mean: &'static [f32],
    std: &'static [f32],
    class_names: &'static [&'static str],
}

const fn file(split: Split, name: &'static str, bytes: u64, md5: &'static str) -> FileFact {
    FileFact { split, name, bytes, md5: Some(md5) }
}

const CIFAR10_FILES: [FileFact; 6] = [
    file(Split::Train, "data_batch_1.bin", 30_730_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
    file(Split::Train, "data_batch_2.bin", 30_730_000, "5ea93a67294ea407fff1d09f752e9692"),
    file(Split::Train, "data_batch_3.bin", 30_730_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
    file(Split::Train, "data_batch_4.bin", 30_730_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
    file(Split::Train, "data_batch_5.bin", 30_730_000, "53f37980c15c3d472c316c40844f3f0d"),
    file(Split::Test, "test_batch.bin", 30_730_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
];

const CIFAR100_FILES: [FileFact; 2] = [
    FileFact { split: Split::Train, name: "train.bin", bytes: 153_700_000, md5: None },
    FileFact { split: Split::Test, name: "test.bin", bytes: 30_740_000, md5: None },
];

const MNIST_FILES: [FileFact; 4] = [
    file(Split::Train, "train-images-idx3-ubyte", 47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    file(Split::Train, "train-labels-idx1-ubyte", 60_008, "a25bea736e30d166cdddb491f175f624"),
    file(Split::Test, "t10k-images-idx3-ubyte", 7_840_016, "2646ac647ad5339dbf082846283269ea"),
    file(Split::Test, "t10k-labels-idx1-ubyte", 10_008, "27ae3e4e09519cfbb04c329615203637"),
];

const FASHION_FILES: [FileFact; 4] = [
    file(Split::Train, "train-images-idx3-ubyte", 47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    file(Split::Train, "train-labels-idx1-ubyte", 60_008, "9018921c3c673c538a1fc5bad174d6f9"),
    file(Split::Test, "t10k-images-idx3-ubyte", 7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
    file(Split::Test, "t10k-labels-idx1-ubyte", 10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
];

/// Every data set, in the order a list shows them. Means and deviations are those of the training images.
pub static CATALOG: &[CatalogEntry] = &[
    CatalogEntry {
        name: "cifar10",
        summary: "CIFAR-10: small colour photographs of animals and vehicles (Krizhevsky 2009)",
        num_classes: 10,
        shape: [3, 32, 32],
        images: [50_000, 10_000],
        needs_files: true,
        format: Format::Cifar { label_bytes: 1 },
        subfolders: &["cifar-10-batches-bin"],
        files: &CIFAR10_FILES,
        hub: Some(HubCopy {
            id: "uoft-cs/cifar10",
            folder: "plain_text",
            image: "img",
            label: "label",
            digest: Some([0xdae3_ac53_9baf_c883, 0x13cf_2b40_48c2_2f2c]),
        }),
        mirror: true,
        mean: &[0.4914, 0.4822, 0.4465],
        std: &[0.2470, 0.2435, 0.2616],
        class_names: &cifar::CLASSES_10,
    },
    CatalogEntry {
        name: "cifar100",
        summary: "CIFAR-100: the same kind of photographs in 100 fine classes (Krizhevsky 2009)",
        num_classes: 100,
        shape: [3, 32, 32],
        images: [50_000, 10_000],
        needs_files: true,
        format: Format::Cifar { label_bytes: 2 },
        subfolders: &["cifar-100-binary"],
        files: &CIFAR100_FILES,
        hub: Some(HubCopy {
            id: "uoft-cs/cifar100",
            folder: "cifar100",
            image: "img",
            label: "fine_label",
            digest: None,
        }),
        mirror: true,
        mean: &[0.5071, 0.4867, 0.4408],
        std: &[0.2675, 0.2565, 0.2761],
        class_names: &cifar::CLASSES_100,
    },
    CatalogEntry {
        name: "mnist",
        summary: "MNIST: handwritten digits (LeCun et al. 1998)",
        num_classes: 10,
        shape: [1, 28, 28],
        images: [60_000, 10_000],
        needs_files: true,
        format: Format::Idx,
        subfolders: &["MNIST/raw", "mnist", "MNIST", "raw"],
        files: &MNIST_FILES,
        hub: Some(HubCopy {
            id: "ylecun/mnist",
            folder: "mnist",
            image: "image",
            label: "label",
            digest: Some([0x22d9_4e58_a347_bca7, 0x16b4_6f11_ec74_f124]),
        }),
        mirror: false,
        mean: &[0.1307],
        std: &[0.3081],
        class_names: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    },
    CatalogEntry {
        name: "fashion-mnist",
        summary: "Fashion-MNIST: articles of clothing in MNIST's format (Xiao et al. 2017)",
        num_classes: 10,
        shape: [1, 28, 28],
        images: [60_000, 10_000],
        needs_files: true,
        format: Format::Idx,
        subfolders: &["FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "FashionMNIST", "raw"],
        files: &FASHION_FILES,
        hub: Some(HubCopy {
            id: "zalando-datasets/fashion_mnist",
            folder: "fashion_mnist",
            image: "image",
            label: "label",
            digest: Some([0x00fb_b707_35d8_fb30, 0x74f9_5c6a_1f23_6ca8]),
        }),
        mirror: true,
        mean: &[0.2860],
        std: &[0.3530],
        class_names: &[
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ],
    },
    CatalogEntry {
        name: "folder",
        summary: "your own images: DIR/{train,val|test}/<class>/*.{jpg,png,...}",
        num_classes: 0,
        shape: [3, 0, 0],
        images: [0, 0],
        needs_files: true,
        format: Format::Folder,
        subfolders: &[],
        files: &[],
        hub: None,
        mirror: true,
        // ImageNet's, because the networks one starts from on one's own photographs were trained with them.
        mean: &[0.485, 0.456, 0.406],
        std: &[0.229, 0.224, 0.225],
        class_names: &[],
    },
    CatalogEntry {
        name: "shapes",
        summary: "ten geometric figures under clutter and noise, drawn from the seed; needs no files",
        num_classes: 10,
        shape: [3, 32, 32],
        images: [10_000, 2_000],
        needs_files: false,
        format: Format::Drawn,
        subfolders: &[],
        files: &[],
        hub: None,
        mirror: true,
        mean: &[0.4490, 0.4575, 0.4492],
        std: &[0.2678, 0.2677, 0.2691],
        class_names: &shapes::CLASSES,
    },
    CatalogEntry {
        name: "text",
        summary: "your own sentences: a file of lines `class<tab>sentence`, or DIR/{train,test}.tsv",
        num_classes: 0,
        shape: [3, 0, 0],
        images: [0, 0],
        needs_files: true,
        format: Format::Text,
        subfolders: &[],
        files: &[],
        hub: None,
        mirror: false,
        mean: &[0.5, 0.5, 0.5],
        std: &[0.5, 0.5, 0.5],
        class_names: &[],
    },
];

impl CatalogEntry {
    /// The entry of that name.
    ///
    /// # Errors
    /// If there is none, with the names there are.
    pub fn find(name: &str) -> Result<&'static Self> {
        CATALOG.iter().find(|entry| entry.name == name).ok_or_else(|| Error::UnknownDataset {
            name: name.to_owned(),
            known: CATALOG.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether a build with the feature `hub` can download it.
    pub fn downloadable(&self) -> bool {
        self.hub.is_some()
    }

    pub(crate) fn count(&self, split: Split) -> usize {
        self.images[split as usize]
    }

    pub(crate) fn files(&self, split: Split) -> impl Iterator<Item = &'static FileFact> {
        self.files.iter().filter(move |file| file.split == split)
    }

    /// Whether its records are sentences rather than images.
    pub fn has_sentences(&self) -> bool {
        self.format == Format::Text
    }

    /// What one of its records is: an image or a sentence.
    pub fn record(&self) -> &'static str {
        if self.has_sentences() { "sentence" } else { "image" }
    }

    /// Classes, shape and statistics, as an opened set has them; for a folder without its classes.
    pub fn meta(&self) -> Meta {
        Meta {
            name: self.name.to_owned(),
            classes: self.class_names.iter().map(|&class| class.to_owned()).collect(),
            shape: if self.format == Format::Folder { [3, 224, 224] } else { self.shape },
            fixed_size: self.format != Format::Folder,
            mirror: self.mirror,
            mean: self.mean.to_vec(),
            std: self.std.to_vec(),
        }
    }
}

/// Opens one split of a data set.
///
/// `data_dir` holds the official files (or has the usual sub-folder that does); without it, `cifar10`,
/// `cifar100`, `mnist` and `fashion-mnist` come through the Hugging Face hub cache. `seed` draws the set `shapes` and
/// divides a single file of `text`, and has no influence on the others.
///
/// # Errors
/// If the name is unknown, files are missing, have the wrong size or hold impossible labels, a folder has no
/// classes or a class no images, or a download fails.
pub fn open(name: &str, split: Split, data_dir: Option<&Path>, seed: u64) -> Result<Dataset> {
    let entry = CatalogEntry::find(name)?;
    let in_folder = entry.needs_files && entry.format != Format::Text;
    if let Some(dir) = data_dir.filter(|dir| in_folder && !dir.is_dir()) {
        return Err(Error::NotFound { what: format!("folder of {name}"), looked_for: vec![dir.to_owned()] });
    }
    let meta = entry.meta();
    let [c, h, w] = entry.shape;
    let (pixels, labels) = match (entry.format, data_dir) {
        (Format::Drawn, _) => shapes::draw(split, seed, entry.count(split)),
        (Format::Folder, Some(dir)) => return folder::open(meta, split, dir),
        (Format::Text, Some(path)) => return text::open_text(path, split, None, seed),
        (Format::Text, None) => {
            let message = "data set text needs --data-dir FILE with lines of a class, a tab and a sentence";
            return Err(Error::Config(message.into()));
        }
        (Format::Folder, None) => {
            let message = "data set folder needs --data-dir DIR with DIR/train/<class>/ and DIR/val/<class>/";
            return Err(Error::Config(message.into()));
        }
        (Format::Cifar { label_bytes }, Some(dir)) => cifar::read(entry, split, dir, label_bytes)?,
        (Format::Idx, Some(dir)) => idx::read(entry, split, dir)?,
        (Format::Cifar { .. } | Format::Idx, None) => hub::fetch(entry, split)?,
    };
    Ok(Dataset::new(meta, split, Source::Packed { pixels, h, w, c }, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_agree_with_themselves() {
        for entry in CATALOG {
            assert_eq!(entry.class_names.len(), entry.num_classes, "{}", entry.name);
            assert_eq!(entry.mean.len(), entry.shape[0], "{}", entry.name);
            assert_eq!(entry.std.len(), entry.shape[0], "{}", entry.name);
            for split in [Split::Train, Split::Test] {
                let bytes: u64 = entry.files(split).map(|file| file.bytes).sum();
                let n = entry.count(split) as u64;
                let expected = match entry.format {
                    Format::Cifar { label_bytes } => n * (label_bytes as u64 + 3072),
                    Format::Idx => 16 + n * 784 + 8 + n,
                    Format::Folder | Format::Drawn | Format::Text => 0,
                };
                assert_eq!(bytes, expected, "{} {}", entry.name, split.name());
            }
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let message = open("cifar", Split::Train, None, 0).unwrap_err().to_string();
        let expected = "unknown data set 'cifar'; there are: cifar10, cifar100, mnist, fashion-mnist, folder, shapes, text";
        assert_eq!(message, expected);
    }
}
