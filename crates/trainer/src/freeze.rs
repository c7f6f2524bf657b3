//! Choosing the parameters that stay as they are.

use crate::{Error, Result, TrainConfig};
use std::collections::BTreeSet;
use zoo::matches;

/// The parameters, of those with the given names, that stay as they are: those that a pattern covers. A pattern
/// covers a parameter if it matches its name or a module that it is in; [`TrainConfig::BACKBONE`] covers all that
/// are not in `head`.
///
/// # Errors
/// Names a pattern that covers nothing.
pub(crate) fn frozen(names: &[String], patterns: &[String], head: &str) -> Result<BTreeSet<String>> {
    let covers = |pattern: &String, name: &str| match pattern == TrainConfig::BACKBONE {
        true => !is_in(name, head),
        false => covers(pattern, name),
    };
    if let Some(idle) = patterns.iter().find(|pattern| !names.iter().any(|name| covers(pattern, name))) {
        let first = names.first().map_or("", String::as_str);
        let problem = format!("'{idle}' matches no parameter; their names are like {first}");
        return Err(Error::config("freeze", problem));
    }
    let is_frozen = |name: &&String| patterns.iter().any(|pattern| covers(pattern, name));
    let frozen: BTreeSet<String> = names.iter().filter(is_frozen).cloned().collect();
    if frozen.len() == names.len() && !names.is_empty() {
        return Err(Error::config("freeze", "leaves nothing to train"));
    }
    Ok(frozen)
}

/// Whether a variable never changes: a frozen parameter, or a running statistic of a normalisation whose
/// parameters are frozen.
pub(crate) fn is_constant(name: &str, frozen: &BTreeSet<String>) -> bool {
    let parameter = |layer: &str, name: &str| frozen.contains(&format!("{layer}.{name}"));
    match name.rsplit_once('.') {
        Some((layer, "running_mean" | "running_var")) => {
            parameter(layer, "weight") && parameter(layer, "bias")
        }
        _ => frozen.contains(name),
    }
}

/// Whether a parameter belongs to a module.
pub(crate) fn is_in(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

fn covers(pattern: &str, name: &str) -> bool {
    let ends = name.match_indices('.').map(|(end, _)| end).chain([name.len()]);
    ends.into_iter().any(|end| matches(pattern.as_bytes(), &name.as_bytes()[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_names_and_modules() {
        for (pattern, name) in [
            ("conv1.weight", "conv1.weight"),
            ("layer1", "layer1.0.conv1.weight"),
            ("layer?.0", "layer2.0.bn1.bias"),
            ("*.bias", "layer2.0.bn1.bias"),
            ("*bn*", "layer2.0.bn1.bias"),
            ("*", "fc.weight"),
        ] {
            assert!(covers(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("layer1", "layer10.conv.weight"),
            ("conv", "conv1.weight"),
            ("", "fc.weight"),
            ("?c", "fcc.weight"),
        ] {
            assert!(!covers(pattern, name), "{pattern} {name}");
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pattern_without_effect_is_an_error() {
        let all = names(&["fc.weight", "fc.bias"]);
        assert_eq!(
            frozen(&all, &names(&["*.bias"]), "fc").unwrap(),
            names(&["fc.bias"]).into_iter().collect()
        );
        assert!(frozen(&all, &[], "fc").unwrap().is_empty());
        let message = |pattern| frozen(&all, &names(&[pattern]), "fc").unwrap_err().to_string();
        assert_eq!(message("conv*"), "freeze: 'conv*' matches no parameter; their names are like fc.weight");
        assert_eq!(
            message("backbone"),
            "freeze: 'backbone' matches no parameter; their names are like fc.weight"
        );
        assert_eq!(message("fc"), "freeze: leaves nothing to train");
    }

    #[test]
    fn the_backbone_is_all_but_the_head() {
        let all = names(&["bn.weight", "classifier.1.weight", "classifier.10.weight", "conv.weight"]);
        let found = frozen(&all, &names(&["backbone"]), "classifier.1").unwrap();
        let expected = names(&["bn.weight", "classifier.10.weight", "conv.weight"]);
        assert_eq!(found, expected.into_iter().collect());
    }

    #[test]
    fn statistics_are_constant_with_all_parameters_of_their_layer() {
        let frozen = names(&["bn1.bias", "bn1.weight", "bn2.weight"]).into_iter().collect();
        for (name, constant) in [
            ("bn1.weight", true),
            ("bn1.running_mean", true),
            ("bn2.running_var", false),
            ("bn2.bias", false),
            ("bn10.running_var", false),
        ] {
            assert_eq!(is_constant(name, &frozen), constant, "{name}");
        }
    }
}
