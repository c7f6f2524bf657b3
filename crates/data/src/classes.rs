//! Which output of a network each class of a data set is.
//!
//! Labels are numbers in the order in which a data set lists its classes: a folder's in the order of its sub-folders.
//! Another data set, or the same folder with a class more, lists them otherwise, so the classes of data and of a network
//! are matched by their names wherever a network meets data again.

use crate::dataset::Dataset;
use crate::imagenet::{imagenet_classes, name_of_synset};
use crate::{CatalogEntry, Error, Result};
use std::collections::HashMap;

/// How the outputs of a network were found for the classes of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchedBy {
    /// By the names that the network has for its outputs.
    Name,
    /// The network has 1,000 outputs without names, and every class of the data is one of ImageNet's.
    ImageNet,
    /// The network has no names: class i of the data is output i.
    Number,
}

/// The outputs of a network for the classes of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMap {
    /// For each class of the data its output, if the network has one for it.
    pub outputs: Vec<Option<usize>>,
    /// How they were found.
    pub by: MatchedBy,
    /// Names of the classes of the data and of the network that differ in case, blanks, hyphens or underscores only.
    pub variants: Vec<(String, String)>,
}

impl ClassMap {
    /// Finds the classes `data` among those of a network with so many `outputs`, of which `network` names the first
    /// ones, or none if it is empty. An output whose name is empty has none.
    ///
    /// Equal names match. What remains matches where names differ in case, blanks, hyphens, underscores and slashes
    /// only, or where a WordNet id (`n01440764`) stands for the name of an ImageNet class (`tench`), and one class of
    /// either side alone has that name. A network without names is matched by number.
    ///
    /// # Errors
    /// If a class of the data is the name of two outputs, or a network without names has not as many outputs as there
    /// are classes.
    pub fn new(data: &[String], network: &[String], outputs: usize) -> Result<Self> {
        if network.len() > outputs {
            let names = network.len();
            return Err(Error::Config(format!(
                "the weights name {names} classes, but have outputs for {outputs}"
            )));
        }
        if network.iter().any(|name| !name.is_empty()) {
            return Self::by_name(data, network);
        }
        let imagenet = imagenet_classes();
        if outputs == imagenet.len() {
            let map = Self::by_name(data, &imagenet)?;
            if map.outputs.iter().all(Option::is_some) {
                return Ok(Self { by: MatchedBy::ImageNet, ..map });
            }
        }
        if data.len() != outputs {
            return Err(Error::Nameless { outputs, classes: data.len() });
        }
        let outputs = (0..outputs).map(Some).collect();
        Ok(Self { outputs, by: MatchedBy::Number, variants: Vec::new() })
    }

    fn by_name(data: &[String], network: &[String]) -> Result<Self> {
        let mut map = Self { outputs: vec![None; data.len()], by: MatchedBy::Name, variants: Vec::new() };
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for (output, name) in network.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            if let Some(first) = numbers.insert(name, output)
                && data.contains(name)
                && data != network
            {
                let message =
                    format!("'{name}' is the name of two outputs of the network, {first} and {output}");
                return Err(Error::Config(message));
            }
        }
        if data == network {
            map.outputs = (0..data.len()).map(Some).collect();
            return Ok(map);
        }
        for (output, name) in map.outputs.iter_mut().zip(data) {
            *output = numbers.get(name.as_str()).copied();
        }
        map.match_rest(data, network, spelling);
        for (class, name) in data.iter().enumerate() {
            if let Some(output) = map.outputs[class].filter(|&output| network[output] != *name) {
                map.variants.push((name.clone(), network[output].clone()));
            }
        }
        map.match_rest(data, network, |name| spelling(name_of_synset(name).unwrap_or(name)));
        Ok(map)
    }

    /// Matches classes that are left on both sides by a `key`, where one of each side alone has it.
    fn match_rest(&mut self, data: &[String], network: &[String], key: impl Fn(&str) -> String) {
        let mut taken = vec![false; network.len()];
        self.outputs.iter().flatten().for_each(|&output| taken[output] = true);
        let of_data = unique(data, |class| self.outputs[class].is_none(), &key);
        let of_network = unique(network, |output| !taken[output], &key);
        for (key, class) in of_data {
            if let (Some(class), Some(&Some(output))) = (class, of_network.get(&key)) {
                self.outputs[class] = Some(output);
            }
        }
    }
}

/// The keys of some names with the number of the only one that has it.
fn unique(
    names: &[String],
    some: impl Fn(usize) -> bool,
    key: impl Fn(&str) -> String,
) -> HashMap<String, Option<usize>> {
    let mut numbers = HashMap::new();
    for (number, name) in names.iter().enumerate().filter(|&(number, _)| some(number)) {
        let key = key(name);
        if !key.is_empty() {
            numbers.entry(key).and_modify(|only| *only = None).or_insert(Some(number));
        }
    }
    numbers
}

/// A name without what spellings of it differ in.
fn spelling(name: &str) -> String {
    let words = name.split(|c: char| c.is_whitespace() || "_-/".contains(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Names of the classes of a data set that is known by its name: one of the catalogue, or `imagenet`.
#[must_use]
pub fn classes_of(dataset: &str) -> Option<Vec<String>> {
    match dataset {
        "imagenet" => Some(imagenet_classes()),
        _ => CatalogEntry::find(dataset)
            .ok()
            .map(|entry| entry.meta().classes)
            .filter(|names| !names.is_empty()),
    }
}

/// A data set whose labels are the outputs of a network.
#[derive(Debug, Clone)]
pub struct Relabelled {
    /// The images. Its classes are those of the network, but where these were found by number.
    pub dataset: Dataset,
    /// How the outputs were found, for all classes of the data.
    pub map: ClassMap,
    /// Classes of the data that the network does not know.
    pub unknown: Vec<String>,
    /// Images of these classes, which are left out.
    pub left_out: usize,
}

impl Dataset {
    /// The same images labelled by the outputs of a network, as [`ClassMap::new`] finds them. Images of classes that the
    /// network does not know are left out if they are to be ignored; classes without images do not matter.
    ///
    /// # Errors
    /// If there are images of unknown classes, which are named, or no image is left; and as [`ClassMap::new`].
    pub fn for_network(
        &self,
        network: &[String],
        outputs: usize,
        ignore_unknown: bool,
    ) -> Result<Relabelled> {
        let names = &self.meta().classes;
        let map = ClassMap::new(names, network, outputs)?;
        let mut images = vec![0; names.len()];
        self.labels().for_each(|label| images[label as usize] += 1);
        let is_unknown = |&class: &usize| map.outputs[class].is_none() && images[class] > 0;
        let unknown: Vec<usize> = (0..names.len()).filter(is_unknown).collect();
        let left_out = unknown.iter().map(|&class| images[class]).sum();
        let unknown: Vec<String> = unknown.into_iter().map(|class| names[class].clone()).collect();
        if !unknown.is_empty() && (!ignore_unknown || left_out == self.len()) {
            let known: Vec<String> = network.iter().filter(|name| !name.is_empty()).cloned().collect();
            let unnamed = outputs - known.len();
            return Err(Error::UnknownClasses { unknown, known, unnamed, all: left_out == self.len() });
        }
        let classes = match map.by {
            MatchedBy::Name => network.to_vec(),
            MatchedBy::ImageNet => imagenet_classes(),
            MatchedBy::Number => names.clone(),
        };
        Ok(Relabelled { dataset: self.relabelled(&map.outputs, classes), map, unknown, left_out })
    }
}

/// Names as an error lists them: the first ten in quotes, then how many there are besides.
pub fn list_names<N: AsRef<str>>(names: &[N]) -> String {
    const SHOWN: usize = 10;
    // A name may hold anything; it is to stay within its line.
    let quoted = |name: &N| {
        let shown: String =
            name.as_ref().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        format!("'{shown}'")
    };
    let shown: Vec<String> = names.iter().take(SHOWN).map(quoted).collect();
    match names.len() {
        n if n > SHOWN => format!("{} and {} more", shown.join(", "), n - SHOWN),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split('|').map(String::from).collect()
    }

    fn outputs(data: &str, network: &str) -> Vec<Option<usize>> {
        let network = names(network);
        ClassMap::new(&names(data), &network, network.len()).unwrap().outputs
    }

    #[test]
    fn equal_names_match() {
        assert_eq!(outputs("bee|cat", "ant|bee|cat"), [Some(1), Some(2)]);
        assert_eq!(outputs("aardvark|ant", "ant|bee|cat"), [None, Some(0)]);
        assert_eq!(outputs("cat|ant|bee", "ant|bee|cat"), [Some(2), Some(0), Some(1)]);
    }

    #[test]
    fn other_spellings_match_where_they_are_no_others_names() {
        let map = |data: &str, network: &str| {
            let network = names(network);
            ClassMap::new(&names(data), &network, network.len()).unwrap()
        };
        let found = map("T-shirt_top|Ankle-Boot|bag", "T-shirt/top|Ankle boot|Bag|Coat");
        assert_eq!(found.outputs, [Some(0), Some(1), Some(2)]);
        assert_eq!(found.variants.len(), 3);
        assert_eq!(found.variants[1], ("Ankle-Boot".into(), "Ankle boot".into()));
        assert!(map("ant|bee", "bee|ant").variants.is_empty());
        // Exact names first; what is left is not another name's.
        assert_eq!(outputs("Ant|ant", "ant|bee"), [None, Some(0)]);
        assert_eq!(outputs("Ant|ant", "ant|ANT"), [Some(1), Some(0)]);
        // Two of one side have it.
        assert_eq!(outputs("ant", "Ant|ANT"), [None]);
        assert_eq!(outputs("Ant|ANT", "ant|bee"), [None, None]);
        assert_eq!(outputs("c", "c++|c#"), [None]);
        assert_eq!(outputs("_|-", "-|+"), [None, Some(0)]);
    }

    #[test]
    fn wordnet_ids_are_names_of_imagenet() {
        assert_eq!(outputs("n01440764|n02979186", "cassette player|tench"), [Some(1), Some(0)]);
        assert_eq!(outputs("Tench|cassette_player", "n02979186|n01440764"), [Some(1), Some(0)]);
        assert_eq!(outputs("n02085620-Chihuahua|n00000000|n0144076", "Chihuahua|x"), [Some(0), None, None]);
        assert!(ClassMap::new(&names("n01440764"), &names("tench"), 1).unwrap().variants.is_empty());
    }

    #[test]
    fn networks_without_names() {
        let map = |data: &str, outputs| ClassMap::new(&names(data), &[], outputs);
        assert_eq!(map("b|a", 2).unwrap().outputs, [Some(0), Some(1)]);
        assert_eq!(map("b|a", 2).unwrap().by, MatchedBy::Number);
        let found = map("n15075141|great_white_shark", 1000).unwrap();
        assert_eq!((found.by, found.outputs), (MatchedBy::ImageNet, vec![Some(999), Some(2)]));
        let message = map("b|a", 1000).unwrap_err().to_string();
        assert!(message.contains("1000") && message.contains('2'), "{message}");
        // A network with names for some outputs is not one without.
        let found = ClassMap::new(&names("ant|3"), &names("ant|bee|cat"), 4).unwrap();
        assert_eq!((found.by, found.outputs), (MatchedBy::Name, vec![Some(0), None]));
    }

    #[test]
    fn names_that_decide_nothing() {
        let twice = names("ant|bee|ant");
        let message = ClassMap::new(&names("ant"), &twice, 3).unwrap_err().to_string();
        assert_eq!(message, "'ant' is the name of two outputs of the network, 0 and 2");
        assert_eq!(ClassMap::new(&names("bee"), &twice, 3).unwrap().outputs, [Some(1)]);
        assert_eq!(ClassMap::new(&names("bee|x"), &names("ant||bee"), 4).unwrap().outputs, [Some(2), None]);
        assert!(ClassMap::new(&names("ant"), &twice, 2).is_err());
    }

    #[test]
    fn lists_have_ten_names() {
        let many: Vec<String> = (0..13).map(|i| format!("c{i}")).collect();
        assert!(list_names(&many).ends_with("'c9' and 3 more"));
        assert_eq!(list_names(&["a\u{1b}[31m\n", "b"]), "'a\u{fffd}[31m\u{fffd}', 'b'");
    }
}
