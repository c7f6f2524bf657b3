//! Comparing a state dict with what a model expects.

use super::error::one_line;
use super::{StateDict, is_auxiliary, is_batch_counter};
use std::collections::BTreeMap;
use std::fmt;

/// How many names of each kind a report displays.
const SHOWN: usize = 3;

/// How a state dict differs from what a model expects. Displayed as one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Expected tensors that were not found, in the order of the model.
    pub missing: Vec<String>,
    /// Found tensors that were not expected, sorted.
    pub unexpected: Vec<String>,
    /// Tensors of another shape than expected, in the order of the model.
    pub mismatched: Vec<Mismatch>,
    /// Tensors of auxiliary heads that only one side has. Weights are published with and without them, and
    /// nothing but training uses them, so they are no difference.
    pub auxiliary: Vec<String>,
}

/// A tensor whose shape is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of the tensor.
    pub name: String,
    /// Shape that the model has.
    pub expected: Vec<usize>,
    /// Shape in the state dict.
    pub found: Vec<usize>,
}

/// Compares names and shapes. BatchNorm's `num_batches_tracked` is tolerated on both sides: no computation
/// here uses it. Auxiliary heads may be on one side only, all of them or none.
pub fn check(expected: &[(String, Vec<usize>)], found: &StateDict) -> Report {
    let mut report = Report::default();
    let mut unexpected: BTreeMap<&str, _> =
        found.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    unexpected.retain(|name, _| !is_batch_counter(name));
    for (name, shape) in expected {
        match unexpected.remove(name.as_str()) {
            Some(tensor) if tensor.dims() == shape.as_slice() => {}
            Some(tensor) => report.mismatched.push(Mismatch {
                name: name.clone(),
                expected: shape.clone(),
                found: tensor.dims().to_vec(),
            }),
            None if is_batch_counter(name) => {}
            None => report.missing.push(name.clone()),
        }
    }
    report.unexpected = unexpected.into_keys().map(str::to_string).collect();
    let expects_auxiliary = expected.iter().any(|(name, _)| is_auxiliary(name));
    let finds_auxiliary = found.tensors.keys().any(|name| is_auxiliary(name));
    if expects_auxiliary != finds_auxiliary {
        let Report { missing, unexpected, auxiliary, .. } = &mut report;
        for names in [missing, unexpected] {
            auxiliary.extend(names.extract_if(.., |name| is_auxiliary(name)));
        }
    }
    report
}

impl Report {
    /// Whether names and shapes agree in full.
    pub fn is_match(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_match() {
            return f.write_str("all names and shapes match");
        }
        let mismatched: Vec<String> = self.mismatched.iter().map(ToString::to_string).collect();
        let kinds =
            [(&self.missing, "missing"), (&self.unexpected, "unexpected"), (&mismatched, "of another shape")];
        let mut separator = "";
        for (names, kind) in kinds.into_iter().filter(|(names, _)| !names.is_empty()) {
            let more = if names.len() > SHOWN { ", …" } else { "" };
            // Names out of a file may hold anything.
            let shown: Vec<String> = names.iter().take(SHOWN).map(|name| one_line(name)).collect();
            write!(f, "{separator}{} {kind} ({}{more})", names.len(), shown.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {:?}, found {:?}", self.name, self.expected, self.found)
    }
}
