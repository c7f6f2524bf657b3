//! A folder of images, read as torchvision's `ImageFolder` reads it: `DIR/<split>/<class>/**/*`, classes
//! numbered in the order of their names, files in the order of their paths.

use crate::dataset::{Dataset, Meta, Source, Split};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// File names that count as images (torchvision's list). TIFF is among them although this build cannot decode
/// it, so that such a file is reported and not silently absent.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];

pub(crate) fn open(mut meta: Meta, split: Split, dir: &Path) -> Result<Dataset> {
    let root = split_dir(dir, split)?;
    let found = class_names(&root)?;
    // Held-out images take the numbers of the training classes, even if some class has none.
    let classes = match split {
        Split::Test if dir.join("train").is_dir() => class_names(&dir.join("train"))?,
        _ => found.clone(),
    };
    let (mut paths, mut labels) = (Vec::new(), Vec::new());
    for class in &found {
        let class_dir = root.join(class);
        let Some(label) = classes.iter().position(|known| known == class) else {
            let reason = format!("class '{class}' is not among the {} classes of train", classes.len());
            return Err(Error::Folder { path: class_dir, reason });
        };
        let before = paths.len();
        collect(&class_dir, &mut paths)?;
        if paths.len() == before {
            let reason = format!("no images; expected files that end in {}", EXTENSIONS.join(", "));
            return Err(Error::Folder { path: class_dir, reason });
        }
        labels.resize(paths.len(), label as u32);
    }
    meta.classes = classes;
    Ok(Dataset::new(meta, split, Source::Files { paths }, labels))
}

/// The folder of a split below `dir`.
pub(crate) fn split_dir(dir: &Path, split: Split) -> Result<PathBuf> {
    let names: &[&str] = match split {
        Split::Train => &["train"],
        Split::Test => &["val", "test"],
    };
    let tried: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    tried.iter().find(|path| path.is_dir()).cloned().ok_or_else(|| Error::NotFound {
        what: format!("folder of {} images", split.name()),
        looked_for: tried,
    })
}

/// Names of the sub-folders, sorted.
fn class_names(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for path in entries(root)? {
        if path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| Error::Folder {
                path: path.clone(),
                reason: "the name of this class is not valid Unicode".into(),
            })?;
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        let reason = "no class folders; expected one folder per class".into();
        return Err(Error::Folder { path: root.to_owned(), reason });
    }
    names.sort_unstable();
    Ok(names)
}

/// Appends the image files of a folder in the order of their names, then those of its sub-folders.
fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let (folders, mut files): (Vec<_>, Vec<_>) = entries(dir)?.into_iter().partition(|path| path.is_dir());
    files.retain(|path| is_image_name(path));
    paths.append(&mut files);
    folders.iter().try_for_each(|folder| collect(folder, paths))
}

/// What is in a folder, sorted.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = read().map_err(Error::io(dir))?;
    paths.sort_unstable();
    Ok(paths)
}

fn is_image_name(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}
