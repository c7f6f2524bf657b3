//! Weights under other names than the zoo's: recognising whose names they are, and translating them.
//!
//! The names are data, in [`tables`]: a table per naming, a line per rule.

mod pattern;
mod tables;

use super::{StateDict, check, one_line};
use crate::model::{Model, infer_config};
use crate::params::Params;
use crate::registry::{Spec, matches};
use candle_core::{Device, Result, Tensor, bail};
use pattern::{made, matched};
use std::collections::BTreeMap;
use tables::NAMINGS;

/// A naming of a model's parameters that is not the zoo's.
struct Naming {
    /// Whose names they are, for people.
    source: &'static str,
    /// The models that are also known under these names; `*` stands for any characters.
    models: &'static [&'static str],
    /// Patterns of names that files with this naming have, all of them, and files with the zoo's never.
    signs: &'static [&'static str],
    /// Blocks in each stage, where the naming counts per stage and the zoo's through all of them.
    depths: &'static [usize],
    /// The first rule that matches a name applies; names without one stay.
    rules: &'static [Rule],
    /// What is added to variances before their root, theirs and the zoo's.
    eps: Option<(f64, f64)>,
    /// What is different about the network besides the names, if anything is.
    differs: Option<&'static str>,
}

/// Names that match the pattern `from` become `to`: see [`pattern`].
struct Rule {
    from: &'static str,
    to: &'static str,
    /// A name that there must be for the rule to apply, made like `to`.
    having: Option<&'static str>,
    /// Whether the tensor becomes a matrix: a convolution over a whole map that is a linear layer in the zoo.
    flatten: bool,
}

/// A naming that was recognised and translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Whose names they were, for people: `timm`.
    pub source: &'static str,
    /// How the network that the weights are from differs from the zoo's, if it does.
    pub differs: Option<&'static str>,
}

/// Renames the tensors of `state` to the zoo's names for the model `spec`, where they are recognised as another
/// naming of it; else leaves them as they are, for a check to say what is wrong with them.
///
/// Recognised are old names of torchvision, and timm's and some others' where they differ from torchvision's. A
/// convolution that is a linear layer in the zoo becomes one, and running variances make up for another
/// epsilon, so that the logits are those of the original network.
///
/// # Errors
/// If the names could be of more than one naming, or two tensors would get the same name.
pub fn translate(spec: &Spec, state: &mut StateDict) -> Result<Option<Translated>> {
    let mut candidates = Vec::new();
    for naming in NAMINGS.iter().filter(|naming| naming.is_for(spec) && naming.has_signs(state)) {
        candidates.push((naming, naming.apply(state)?));
    }
    if candidates.len() > 1 {
        let mut fitting = Vec::new();
        for (naming, renamed) in &candidates {
            fitting.push(fits(spec, renamed).then_some(naming.source));
        }
        if fitting.iter().flatten().count() != 1 {
            let sources: Vec<_> = candidates.iter().map(|(naming, _)| naming.source).collect();
            bail!("the names could be those of {}; rename the tensors to the zoo's", sources.join(" or of "));
        }
        let mut fitting = fitting.into_iter();
        candidates.retain(|_| fitting.next().flatten().is_some());
    }
    let Some((naming, renamed)) = candidates.pop() else { return Ok(None) };
    *state = renamed;
    Ok(Some(Translated { source: naming.source, differs: naming.differs }))
}

/// Whether these are all weights of the model and nothing else, for images of the published size.
fn fits(spec: &Spec, state: &StateDict) -> bool {
    let fits = || -> Result<bool> {
        let config = infer_config(spec, state, (spec.input[1], spec.input[2]))?;
        let params = Params::zeros();
        Model::new(spec.name, config, params.var_builder(&Device::Cpu))?;
        Ok(check(&params.shapes(), state).is_match())
    };
    fits().unwrap_or(false)
}

impl Naming {
    fn is_for(&self, spec: &Spec) -> bool {
        self.models.iter().any(|model| matches(model.as_bytes(), spec.name.as_bytes()))
    }

    fn has_signs(&self, state: &StateDict) -> bool {
        self.signs.iter().all(|sign| state.tensors.keys().any(|name| matched(sign, name).is_some()))
    }

    fn apply(&self, state: &StateDict) -> Result<StateDict> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &state.tensors {
            let (renamed, tensor) = self.renamed(name, tensor, state)?;
            if tensors.insert(renamed.clone(), tensor).is_some() {
                let (name, renamed) = (one_line(name), one_line(&renamed));
                bail!("renaming `{name}` to `{renamed}`, which is the name of another tensor");
            }
        }
        Ok(StateDict { tensors, metadata: state.metadata.clone() })
    }

    /// The zoo's name of a tensor, and its content there.
    fn renamed(&self, name: &str, tensor: &Tensor, state: &StateDict) -> Result<(String, Tensor)> {
        let mut tensor = tensor.clone();
        if let Some((theirs, ours)) = self.eps
            && name.ends_with("running_var")
        {
            tensor = tensor.affine(1.0, theirs - ours)?;
        }
        for rule in self.rules {
            let Some(parts) = matched(rule.from, name) else { continue };
            let make = |template| made(template, &parts, self.depths);
            if let Some(having) = rule.having
                && !make(having).is_some_and(|name| state.tensors.contains_key(&name))
            {
                continue;
            }
            let Some(renamed) = make(rule.to) else { continue };
            if rule.flatten && tensor.rank() > 2 {
                tensor = tensor.flatten_from(1)?;
            }
            return Ok((renamed, tensor));
        }
        Ok((name.to_string(), tensor))
    }
}
