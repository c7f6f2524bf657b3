//! The classes of ImageNet, which published weights tell apart.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Length of a WordNet id, as in `n01440764`.
const ID: usize = 9;

/// Names of the thousand classes of ILSVRC 2012, by number: one word or a few for each, none twice. They are those of
/// torchvision (`torchvision/models/_meta.py`).
#[must_use]
pub fn imagenet_classes() -> Vec<String> {
    include_str!("imagenet_classes.txt").lines().map(String::from).collect()
}

/// WordNet's ids of these classes, by number, as ImageNet names the folders of its images. They are those of timm 1.0.31
/// (`timm/data/_info/imagenet_synsets.txt`), which says with `imagenet_synset_to_lemma.txt` that they belong to the names.
static SYNSETS: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    include_str!("imagenet_synsets.txt").lines().zip(include_str!("imagenet_classes.txt").lines()).collect()
});

/// The name of the class with a WordNet id. Something may follow the id, as in `n02085620-Chihuahua`.
pub(crate) fn name_of_synset(text: &str) -> Option<&'static str> {
    let (id, rest) = text.split_at_checked(ID)?;
    let end = rest.chars().next().is_none_or(|c| !c.is_alphanumeric());
    end.then(|| SYNSETS.get(id).copied()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn classes_have_names_of_their_own() {
        let names = imagenet_classes();
        assert_eq!(names.len(), 1000);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 1000);
        assert!(names.iter().all(|name| !name.is_empty() && name.trim() == name));
        for (class, name) in
            [(0, "tench"), (281, "tabby"), (310, "ant"), (309, "bee"), (999, "toilet tissue")]
        {
            assert_eq!(names[class], name);
        }
    }

    #[test]
    fn classes_have_wordnet_ids() {
        assert_eq!(SYNSETS.len(), 1000);
        for (id, name) in [("n01440764", "tench"), ("n02219486", "ant"), ("n15075141", "toilet tissue")] {
            assert_eq!(name_of_synset(id), Some(name));
        }
        assert_eq!(name_of_synset("n02085620-Chihuahua"), Some("Chihuahua"));
        for text in ["n00000000", "n014407641", "n0144076", "tench", "", "ééééé"] {
            assert_eq!(name_of_synset(text), None, "{text}");
        }
    }
}
