//! The recipes that come with the program: `models/recipes/*.toml`, and defaults for whole families.

use crate::Result;
use crate::config::parse_table;

macro_rules! recipe {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../models/recipes/", $name, ".toml")))
    };
}

/// (model-dataset, the recipe of one training run).
const RECIPES: &[(&str, &str)] = &[
    recipe!("lenet5-mnist"),
    recipe!("airbench94-cifar10"),
    recipe!("cifar_resnet20-cifar10"),
    recipe!("resnet18-cifar10"),
];

/// (family, settings in TOML) where the general defaults do not suit. Networks without normalisation need a
/// lower rate than those with it.
const FAMILIES: &[(&str, &str)] = &[
    ("lenet", "batch_size = 64\nlr = 0.02\naugment = \"none\""),
    ("mlp", "batch_size = 64\nlr = 0.02\naugment = \"none\""),
    ("alexnet", "lr = 0.01"),
    ("zfnet", "lr = 0.01"),
    ("vgg", "lr = 0.02"),
    ("nin", "lr = 0.02"),
    ("squeezenet", "lr = 0.02"),
    ("textcnn", "dataset = \"text\"\nbatch_size = 50\naugment = \"none\""),
    ("cifar_resnet", "weight_decay = 1e-4"),
    // Its normalisations have no scale, and its first convolution whitens.
    ("airbench", "freeze = [\"0.weight\", \"*.norm?.weight\"]\nnorm_bias_lr_scale = 64.0"),
];

/// What the general defaults are changed to for a model on a data set.
pub(crate) fn defaults(family: &str, model: &str, dataset: &str) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    let of_family = FAMILIES.iter().find(|(name, _)| *name == family);
    let of_run = RECIPES.iter().find(|(name, _)| *name == format!("{model}-{dataset}"));
    for (name, text) in of_family.into_iter().chain(of_run) {
        table.extend(parse_table(text, name)?);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainConfig;
    use std::path::Path;

    #[test]
    fn every_recipe_of_the_folder_is_in_the_table_and_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/recipes");
        let mut found = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let config = TrainConfig::read(&path).unwrap();
            let run = format!("{}-{}", config.model, config.dataset);
            // Those with a purpose behind their name, such as fine-tuning, apply where `--recipe` asks for them.
            if !name.starts_with(&format!("{run}-")) {
                assert_eq!(run, name);
                assert!(RECIPES.iter().any(|(known, _)| *known == name), "{name} is not in RECIPES");
                found += 1;
            }
        }
        assert_eq!(found, RECIPES.len());
    }

    #[test]
    fn the_families_of_the_table_exist() {
        for (family, text) in FAMILIES {
            assert!(zoo::registry().iter().any(|spec| spec.family == *family), "{family}");
            let model = format!("model = \"{family}\"\n{text}");
            TrainConfig::from_toml(&model, family).unwrap();
        }
    }

    #[test]
    fn a_recipe_beats_its_family_and_a_family_the_defaults() {
        let of_family = defaults("lenet", "lenet5", "shapes").unwrap();
        assert_eq!(of_family["batch_size"].as_integer(), Some(64));
        let of_run = defaults("lenet", "lenet5", "mnist").unwrap();
        assert_eq!(of_run["dataset"].as_str(), Some("mnist"));
        assert!(defaults("resnet", "resnet18", "shapes").unwrap().is_empty());
    }
}
