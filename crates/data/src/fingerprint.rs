//! Whether two machines have the same images.

use crate::Dataset;
use md5::{Digest, Md5};
use std::fmt::Write;
use std::path::Path;

impl Dataset {
    /// MD5, in 32 lower-case hexadecimal digits, of the classes, and of the label of each image in its order with what
    /// the image is: its pixels where the set is held in memory, or else the name of its file and of the folder that has
    /// it, and the file's length, for reading all files would take as long as an epoch. Sentences have their words in it.
    /// Where the files lie makes no difference.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Md5::new();
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let words = self.vocabulary().map(|vocabulary| vocabulary.words());
        for name in self.meta().classes.iter().chain(words.into_iter().flatten()) {
            part(name.as_bytes());
        }
        for (i, label) in self.labels().enumerate() {
            part(&label.to_le_bytes());
            match (self.packed(i), self.path(i)) {
                (Some((pixels, [h, w, c])), _) => {
                    part(&[h, w, c].map(|n| n as u64).map(u64::to_le_bytes).concat());
                    part(pixels);
                }
                (None, Some(path)) => {
                    part(name_and_folder(path).as_bytes());
                    // A file that is gone is said when it is read.
                    let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
                    part(&bytes.to_le_bytes());
                }
                (None, None) => {}
            }
        }
        hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

fn name_and_folder(path: &Path) -> String {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{}/{}", path.parent().map(name).unwrap_or_default(), name(path))
}

#[cfg(test)]
mod tests {
    use crate::Split;

    #[test]
    fn it_sees_images_labels_and_order() {
        let all = crate::open("shapes", Split::Train, None, 0).unwrap().limit(20, 0);
        let fingerprint = all.fingerprint();
        assert_eq!(fingerprint.len(), 32);
        assert_eq!(fingerprint, all.subset(0..20).fingerprint());
        let others = [all.subset(0..19), all.subset((0..20).rev()), all.limit(20, 1).subset(1..20)];
        for other in others {
            assert_ne!(fingerprint, other.fingerprint());
        }
        let redrawn = crate::open("shapes", Split::Train, None, 1).unwrap().limit(20, 0);
        assert_ne!(fingerprint, redrawn.fingerprint());
    }

    #[test]
    fn files_are_known_by_name_wherever_they_lie() {
        let folder = |names: &[&str]| {
            let root = tempfile::tempdir().unwrap();
            for name in names {
                let path = root.path().join("train").join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            crate::open("folder", Split::Train, Some(root.path()), 0).unwrap().fingerprint()
        };
        let first = folder(&["ant/1.png", "bee/2.png"]);
        assert_eq!(first, folder(&["ant/1.png", "bee/2.png"]));
        assert_ne!(first, folder(&["ant/1.png", "bee/3.png"]));
        assert_ne!(first, folder(&["ant/1.png", "cow/2.png"]));
    }
}
