//! Choosing the parameters that stay as they are.

use crate::{Error, Result};
use candle_core::Var;

/// The parameters that no pattern covers, and the number of those that one does. A pattern covers a parameter
/// if it matches its name or a module that it is in.
///
/// # Errors
/// Names a pattern that covers nothing.
pub(crate) fn unfrozen(
    parameters: Vec<(String, Var)>,
    patterns: &[String],
) -> Result<(Vec<(String, Var)>, usize)> {
    if let Some(idle) = patterns.iter().find(|p| !parameters.iter().any(|(name, _)| covers(p, name))) {
        let names = parameters.first().map_or("", |(name, _)| name);
        let problem = format!("'{idle}' matches no parameter; their names are like {names}");
        return Err(Error::config("freeze", problem));
    }
    let all = parameters.len();
    let kept: Vec<_> =
        parameters.into_iter().filter(|(name, _)| !patterns.iter().any(|p| covers(p, name))).collect();
    if kept.is_empty() {
        return Err(Error::config("freeze", "leaves nothing to train"));
    }
    let frozen = all - kept.len();
    Ok((kept, frozen))
}

fn covers(pattern: &str, name: &str) -> bool {
    let ends = name.match_indices('.').map(|(end, _)| end).chain([name.len()]);
    ends.into_iter().any(|end| matches(pattern.as_bytes(), &name.as_bytes()[..end]))
}

/// Whether `*` for any bytes and `?` for one make the pattern equal to the text.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on after the last star, should its first guess be wrong.
    let (mut p, mut t, mut retry) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((after, from)) => {
                    (p, t) = (after, from + 1);
                    retry = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
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

    #[test]
    fn a_pattern_without_effect_is_an_error() {
        let var = || Var::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let all = || vec![("fc.weight".to_string(), var()), ("fc.bias".to_string(), var())];
        let (kept, frozen) = unfrozen(all(), &["*.bias".into()]).unwrap();
        assert_eq!((kept.len(), kept[0].0.as_str(), frozen), (1, "fc.weight", 1));
        let message = unfrozen(all(), &["conv*".into()]).unwrap_err().to_string();
        assert_eq!(message, "freeze: 'conv*' matches no parameter; their names are like fc.weight");
        assert_eq!(
            unfrozen(all(), &["fc".into()]).unwrap_err().to_string(),
            "freeze: leaves nothing to train"
        );
    }
}
