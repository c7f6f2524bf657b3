//! `zoo list`: the models there are.

use crate::number::compact;
use crate::printer::Printer;
use crate::summary::dims;
use crate::table::Table;
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use zoo::{Facts, Spec};

/// Arguments of `zoo list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: zoo list 'cifar_*'")]
pub(crate) struct Args {
    /// Only models whose name matches; `*` stands for any characters, `?` for one
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
}

/// A model as `--json` shows it.
#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    family: &'static str,
    year: u16,
    #[serde(skip)]
    paper: String,
    params: usize,
    macs: u64,
    input: [usize; 3],
    num_classes: usize,
    weights: Vec<String>,
}

impl Entry {
    fn new(spec: &'static Spec) -> Result<Self> {
        let facts = zoo::facts(spec.name)?;
        Ok(Self {
            name: spec.name,
            family: spec.family,
            year: facts.year,
            paper: paper(&facts),
            params: facts.params,
            macs: facts.macs,
            input: spec.input,
            num_classes: spec.num_classes,
            weights: facts.weights.into_iter().map(|file| file.tag).collect(),
        })
    }
}

/// The arXiv number, or for older papers the first author.
fn paper(facts: &Facts) -> String {
    let first = facts.authors.split(',').next().and_then(|name| name.split_whitespace().last());
    facts.arxiv.clone().unwrap_or_else(|| first.unwrap_or_default().to_string())
}

/// Prints the models that match; none is no error.
///
/// # Errors
/// If stdout cannot be written.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<ExitCode> {
    let entries: Vec<Entry> = zoo::list(&args.pattern).into_iter().map(Entry::new).collect::<Result<_>>()?;
    if entries.is_empty() {
        printer.note(format!(
            "no model matches '{0}'; `zoo list` shows all, `zoo list '*{0}*'` those with it in their name",
            args.pattern
        ));
    }
    if printer.is_json() || !entries.is_empty() {
        printer.result(&entries, |entries| text(entries))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Up to so many models are listed with the tags of their weights.
const MODELS_WITH_TAGS: usize = 8;

fn text(entries: &[Entry]) -> String {
    let headings = ["model", "family", ">year", "paper", ">params", ">MACs", ">input", ">weights"];
    let mut table = Table::new(&headings).shrinking(1);
    for entry in entries {
        table.row([
            entry.name.to_string(),
            entry.family.to_string(),
            entry.year.to_string(),
            entry.paper.clone(),
            compact(entry.params as u64),
            compact(entry.macs),
            dims(entry.input),
            if entry.weights.is_empty() { String::new() } else { entry.weights.len().to_string() },
        ]);
    }
    let tagged = || entries.iter().filter(|entry| !entry.weights.is_empty());
    if entries.len() > MODELS_WITH_TAGS {
        let hint = "`zoo list MODEL` names the weights of a model, for --pretrained";
        return if tagged().next().is_some() { format!("{table}\n{hint}\n") } else { table.to_string() };
    }
    let lines = tagged().map(|entry| format!("\nweights of {}: {}", entry.name, entry.weights.join(", ")));
    let lines: String = lines.collect();
    if lines.is_empty() { table.to_string() } else { format!("{table}\n{lines}") }
}
