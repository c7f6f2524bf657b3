//! The classes of ImageNet, which published weights tell apart.

/// Names of the thousand classes of ILSVRC 2012, by number: one word or a few for each, none twice. They are those of
/// torchvision (`torchvision/models/_meta.py`).
#[must_use]
pub fn imagenet_classes() -> Vec<String> {
    include_str!("imagenet_classes.txt").lines().map(String::from).collect()
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
}
