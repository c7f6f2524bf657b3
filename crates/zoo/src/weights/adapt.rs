//! Weights for another task than the one they were trained for: other classes, other input channels.

use super::{Report, StateDict, check, is_auxiliary};
use crate::registry::Spec;
use crate::{Config, Model, Params};
use candle_core::{Device, Result, Tensor, bail};
use std::fmt;

/// What [`adapt`] did to a state dict. Displayed as one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapted {
    /// Input channels before and after, where they differ.
    pub in_chans: Option<(usize, usize)>,
    /// Numbers of classes before and after, where the head is new.
    pub num_classes: Option<(usize, usize)>,
    /// Parameters that the state dict does not give, in the order of the model: they keep their initial values.
    pub fresh: Vec<String>,
    /// Of a head that is not new, how its rows were matched with the classes.
    pub head: Head,
}

/// How the rows of a head that is kept belong to the classes it is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// As they are, by the names of the classes.
    #[default]
    Kept,
    /// Put into the order of these classes, by their names.
    Reordered,
    /// As they are, by number, because the weights have no names for them.
    ByNumber,
}

/// Names of the tensors that have a row for each class: the head's, and those of auxiliary heads.
///
/// # Errors
/// If there is no such model.
pub fn class_tensors(spec: &Spec, config: &Config) -> Result<Vec<String>> {
    let shapes = |num_classes| {
        let params = Params::zeros();
        let config = Config { num_classes, ..config.clone() };
        Model::new(spec.name, config, params.var_builder(&Device::Cpu))?;
        Ok::<_, candle_core::Error>(params.shapes())
    };
    let (these, others) = (shapes(config.num_classes)?, shapes(config.num_classes + 1)?);
    let differ = these.into_iter().zip(others).filter(|(this, other)| this.1 != other.1);
    Ok(differ.map(|((name, _), _)| name).collect())
}

/// Makes the weights of a model fit the same model with other classes and input channels, as fine-tuning
/// needs them. `expected` has names and shapes of that model ([`crate::Params::shapes`]).
///
/// - The head is taken out if it has another number of classes, as is every other tensor with a row per class
///   (those of auxiliary heads).
/// - The first convolution (c_out, c_in, kh, kw) of `c_in` input channels is adapted to `c` of them: to one by
///   summing over its inputs, which answers to a grey picture as it did to the same picture in grey of three
///   channels; to another number by repeating its inputs in turn, times c_in / c, which keeps the size of what
///   comes out. timm does the same.
/// - Auxiliary heads that the file lacks are left at their initial values; those that the model lacks are dropped.
///
/// ```no_run
/// use candle_core::Device;
/// use zoo::{Config, Model, Params, find, infer_config, weights};
///
/// # fn main() -> candle_core::Result<()> {
/// let spec = find("resnet18")?;
/// let mut state = weights::read(std::path::Path::new("resnet18-f37072fd.pth"))?;
/// // Two classes in grey pictures, with the stem that the weights have.
/// let config = Config { num_classes: 2, in_chans: 1, ..infer_config(spec, &state, (224, 224))? };
/// let params = Params::new(0);
/// let model = Model::new(spec.name, config, params.var_builder(&Device::Cpu))?;
/// let adapted = weights::adapt(spec, &mut state, &params.shapes())?;
/// params.load_except(&state, &adapted.fresh)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If anything else differs: the message names what is missing, unexpected or of another shape. `state` is
/// unchanged then.
pub fn adapt(spec: &Spec, state: &mut StateDict, expected: &[(String, Vec<usize>)]) -> Result<Adapted> {
    let mut adapted = Adapted::default();
    let mut tensors = state.tensors.clone();
    let shape = |name: &str| expected.iter().find(|(expected, _)| expected == name).map(|(_, shape)| shape);

    let stem = format!("{}.weight", spec.stem);
    if let (Some(weight), Some(shape)) = (tensors.get(&stem), shape(&stem))
        && let (&[c_out, c_in, kh, kw], &[to_c_out, c, to_kh, to_kw]) = (weight.dims(), shape.as_slice())
        && c_in != c
        && [c_out, kh, kw] == [to_c_out, to_kh, to_kw]
    {
        tensors.insert(stem, other_channels(weight, c)?);
        adapted.in_chans = Some((c_in, c));
    }

    let head = format!("{}.weight", spec.head);
    if let (Some(&classes), Some(&to_classes)) = (
        tensors.get(&head).and_then(|head| head.dims().first()),
        shape(&head).and_then(|shape| shape.first()),
    ) && classes != to_classes
    {
        adapted.num_classes = Some((classes, to_classes));
        for (name, shape) in expected {
            let [rows, rest @ ..] = shape.as_slice() else { continue };
            let of_classes = |found: &Tensor| {
                *rows == to_classes && found.dims().first() == Some(&classes) && &found.dims()[1..] == rest
            };
            if tensors.get(name).is_some_and(of_classes) {
                tensors.remove(name);
                adapted.fresh.push(name.clone());
            }
        }
    }

    let mut found = StateDict { tensors, metadata: state.metadata.clone() };
    let report = check_except(expected, &found, &adapted.fresh);
    if !report.is_match() {
        bail!("the weights do not fit the model: {report}");
    }
    for name in report.auxiliary {
        if found.tensors.remove(&name).is_none() {
            adapted.fresh.push(name);
        }
    }
    *state = found;
    Ok(adapted)
}

/// Compares names and shapes as [`check`] does; those in `fresh` may be missing.
pub(crate) fn check_except(expected: &[(String, Vec<usize>)], found: &StateDict, fresh: &[String]) -> Report {
    let mut report = check(expected, found);
    report.missing.retain(|name| !fresh.contains(name));
    report
}

/// A convolution's weight (c_out, c_in, kh, kw) for `c` input channels.
fn other_channels(weight: &Tensor, c: usize) -> Result<Tensor> {
    let c_in = weight.dim(1)?;
    if c == 1 {
        return weight.sum_keepdim(1);
    }
    let repeated = weight.repeat((1, c.div_ceil(c_in), 1, 1))?.narrow(1, 0, c)?;
    repeated.affine(c_in as f64 / c as f64, 0.0)?.contiguous()
}

impl fmt::Display for Adapted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut changes = Vec::new();
        if let Some((from, to)) = self.in_chans {
            changes.push(format!("first convolution adapted from {from} to {to} channels"));
        }
        if let Some((from, to)) = self.num_classes {
            changes.push(match from == to {
                true => format!("new head for {to} other classes"),
                false => format!("new head for {to} classes instead of {from}"),
            });
        }
        match self.head {
            Head::Kept => {}
            Head::Reordered => changes.push("head in the order of these classes, by name".into()),
            Head::ByNumber => {
                changes.push("head kept, class by number, as the weights do not name their classes".into());
            }
        }
        if self.fresh.iter().any(|name| is_auxiliary(name)) && self.num_classes.is_none() {
            changes.push("new auxiliary heads, which the weights lack".into());
        }
        if changes.is_empty() {
            changes.push("all weights used as they are".into());
        }
        f.write_str(&changes.join(", "))
    }
}
