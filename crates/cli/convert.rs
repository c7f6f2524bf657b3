//! `zoo convert`: weights of PyTorch as safetensors, under the names that the zoo and PyTorch's own models have.

use crate::failure::FAILED;
use crate::number::{bytes, thousands};
use crate::printer::Printer;
use crate::trained::{expected_shapes, read_translated};
use anyhow::{Result, bail};
use candle_core::Tensor;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zoo::weights::{self, Mismatch, Report, StateDict};

/// Arguments of `zoo convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: zoo convert resnet18-f37072fd.pth resnet18.safetensors --model resnet18")]
pub(crate) struct Args {
    /// Weights to read: .pth, .pt or .th of PyTorch, or safetensors
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// File to write, in safetensors
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The model that the weights are for: other names of it are translated, and it is checked that the weights are
    /// all of its own and nothing else
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

/// The result as `--json` shows it.
#[derive(Debug, Serialize)]
struct Conversion {
    model: Option<String>,
    tensors: usize,
    /// Elements of all tensors but running statistics.
    params: usize,
    missing: Vec<String>,
    unexpected: Vec<String>,
    #[serde(skip)]
    mismatched: Vec<Mismatch>,
}

/// Converts, unless the weights are not those of the model.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<ExitCode> {
    let Args { input, output, model } = args;
    if output.extension().is_some_and(|ending| ["pth", "pt", "th"].iter().any(|other| ending == *other)) {
        bail!("zoo writes safetensors only; give {} the ending .safetensors", output.display());
    }
    let spec = model.as_deref().map(zoo::find).transpose()?;
    let found = match spec {
        Some(spec) => read_translated(spec, input, printer)?,
        None => weights::read(input)?,
    };
    let report = match spec {
        Some(spec) => weights::check(&expected_shapes(spec, &found)?, &found),
        None => Report::default(),
    };
    let fits = report.is_match();
    if fits {
        write(output, &found)?;
    }
    let failure = format!(
        "the weights in {} are not those of {}: {report}; nothing was written",
        input.display(),
        model.as_deref().unwrap_or_default()
    );
    let conversion = Conversion {
        model: model.clone(),
        tensors: found.tensors.len(),
        params: parameters(&found),
        missing: report.missing,
        unexpected: report.unexpected,
        mismatched: report.mismatched,
    };
    printer.result(&conversion, |conversion| text(conversion, args))?;
    if !fits {
        printer.error(&failure);
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the weights so that `load_state_dict` of PyTorch takes them in full.
fn write(path: &Path, found: &StateDict) -> Result<()> {
    let batches = found.metadata.get("step").and_then(|step| step.parse().ok()).unwrap_or(0);
    let counters = weights::batch_counters(found.tensors.keys().map(String::as_str), batches)?;
    let tensors = found.tensors.iter();
    let tensors: Vec<(&String, &Tensor)> =
        tensors.chain(counters.iter().map(|(name, tensor)| (name, tensor))).collect();
    Ok(weights::write_safetensors(path, tensors, &found.metadata)?)
}

fn parameters(weights: &StateDict) -> usize {
    let buffer = |name: &str| name.ends_with("running_mean") || name.ends_with("running_var");
    weights.tensors.iter().filter(|(name, _)| !buffer(name)).map(|(_, tensor)| tensor.elem_count()).sum()
}

fn text(c: &Conversion, args: &Args) -> String {
    let differences = c
        .missing
        .iter()
        .map(|name| format!("missing     {name}"))
        .chain(c.unexpected.iter().map(|name| format!("unexpected  {name}")))
        .chain(c.mismatched.iter().map(|mismatch| format!("shape       {mismatch}")));
    let differences: Vec<String> = differences.collect();
    if !differences.is_empty() {
        return differences.join("\n");
    }
    let checked = match &c.model {
        Some(model) => format!(", exactly those of {model}"),
        None => ", not checked against a model (--model NAME does that)".into(),
    };
    let size = std::fs::metadata(&args.output).map_or(0, |file| file.len());
    format!(
        "{}: {} tensors, {} parameters, {}{checked}",
        args.output.display(),
        c.tensors,
        thousands(c.params as u64),
        bytes(size),
    )
}
