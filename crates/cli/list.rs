//! `zoo list`: the models there are.

use crate::number::compact;
use crate::printer::Printer;
use crate::summary::{Shape, dims, trace};
use crate::table::Table;
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use zoo::Spec;
use zoo_ops::rng::Noise;

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
    params: usize,
    macs: u64,
    input: [usize; 3],
    num_classes: usize,
}

impl Entry {
    fn new(spec: &'static Spec) -> Result<Self> {
        let rows = trace(spec, &Shape::default().config(spec, Noise::default()))?;
        Ok(Self {
            name: spec.name,
            family: spec.family,
            params: rows.iter().map(|row| row.params).sum(),
            macs: rows.iter().map(|row| row.macs).sum(),
            input: spec.input,
            num_classes: spec.num_classes,
        })
    }
}

/// Prints the models that match.
///
/// # Errors
/// If none does.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<ExitCode> {
    let entries: Vec<Entry> = zoo::list(&args.pattern).into_iter().map(Entry::new).collect::<Result<_>>()?;
    printer.result(&entries, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(entries: &Vec<Entry>) -> String {
    let mut table = Table::new(&["model", "family", ">params", ">MACs", ">input", ">classes"]);
    for entry in entries {
        table.row([
            entry.name.to_string(),
            entry.family.to_string(),
            compact(entry.params as u64),
            compact(entry.macs),
            dims(entry.input),
            entry.num_classes.to_string(),
        ]);
    }
    table.to_string()
}
