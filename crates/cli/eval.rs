//! `zoo eval`: the accuracy of a trained network on a data set.

use crate::number::{duration, rate, thousands};
use crate::options::{Common, non_zero};
use crate::printer::Printer;
use crate::table::Table;
use crate::trained::{Foreign, Found, Trained, run_config};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use zoo_data::{
    CatalogEntry, Dataset, Loader, LoaderConfig, MatchedBy, Relabelled, Split, View, list_names, views,
};
use zoo_trainer::{ClassAccuracy, DATA_SEED, evaluate};

/// Skipped images that are named one by one.
const WARNINGS: usize = 10;

/// Arguments of `zoo eval`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "\
zoo eval [OPTIONS] RUN_OR_CHECKPOINT
       zoo eval [OPTIONS] --model NAME --weights FILE --dataset NAME
       zoo eval [OPTIONS] --model NAME --pretrained [TAG] --dataset NAME")]
pub(crate) struct Args {
    /// Folder of a run, of which the best checkpoint is taken, or a checkpoint file
    #[arg(value_name = "RUN_OR_CHECKPOINT", required_unless_present = "source", conflicts_with = "source")]
    checkpoint: Option<PathBuf>,
    /// Data set to evaluate on [default: the one trained on]
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Folder with the files of the data set [default: the one trained from]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Part of the data set
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = ["train", "test"])]
    split: String,
    /// Evaluate on at most N images
    #[arg(long, value_name = "N", value_parser = non_zero)]
    limit_test: Option<usize>,
    /// Images computed at a time
    #[arg(long, value_name = "N", default_value = "128", value_parser = non_zero)]
    batch_size: usize,
    /// Average the answers to six views of each image: as it is and moved by a pixel towards two corners, each also
    /// mirrored (three views of images that must not be, such as digits)
    #[arg(long)]
    tta: bool,
    /// Leave out the images of classes that the network does not know
    #[arg(long)]
    ignore_unknown: bool,
    /// Also show the accuracy of each class
    #[arg(long)]
    per_class: bool,
    #[command(flatten, next_help_heading = "Weights from elsewhere, and preparing pictures")]
    foreign: Foreign,
}

/// The result as `--json` shows it. Accuracies in percent.
#[derive(Debug, Serialize)]
struct Evaluation {
    model: String,
    dataset: String,
    split: &'static str,
    n: u64,
    top1: f64,
    top5: f64,
    loss: f64,
    images_per_second: f64,
    elapsed_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_class: Option<Vec<ClassAccuracy>>,
}

/// Evaluates and prints.
///
/// # Errors
/// If the checkpoint or the data set cannot be read, or they do not fit each other.
pub(crate) fn run(args: &Args, common: &Common, printer: &Printer) -> Result<ExitCode> {
    let device = common.device()?;
    let dtype = common.dtype(&device)?;
    let split = if args.split == "train" { Split::Train } else { Split::Test };
    let found = args.foreign.read(args.checkpoint.as_deref(), printer)?;
    let (name, dataset, place) = open(args, &found, split)?;
    let trained = found.open(&args.foreign, Some(dataset.meta()), &device, printer)?;
    let (meta, input) = (&trained.meta, &trained.meta.input);
    let dataset = labelled(&dataset, &trained, args.ignore_unknown, printer)
        .with_context(|| format!("cannot evaluate on {place}"))?;
    let dataset = args.limit_test.map_or(dataset.clone(), |n| dataset.limit(n, DATA_SEED));
    let config = LoaderConfig {
        image_size: Some(input.image_size),
        resize: Some(input.resize),
        interpolation: input.interpolation,
        in_chans: Some(input.in_chans),
        ..LoaderConfig::new(args.batch_size, 0)
    };
    if args.tta && dataset.vocabulary().is_some() {
        bail!("--tta looks at images from several sides; {name} has sentences");
    }
    let loader = Loader::new(dataset, config)?;
    let bar = printer.bar("evaluating {wide_bar} {pos}/{len}  {per_sec}  {eta} left");
    bar.set_length(loader.dataset().len() as u64);
    let views = if args.tta { views(loader.dataset().meta().mirror) } else { vec![View::PLAIN] };
    let report = evaluate(&trained.model, &loader, input, &views, (dtype, &device), |done| {
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    let skipped = loader.take_warnings();
    skipped.iter().take(WARNINGS).for_each(|warning| printer.warning(warning));
    if skipped.len() > WARNINGS {
        printer.warning(format!("skipped {} more images", skipped.len() - WARNINGS));
    }
    // Nothing above breaks off, so there is a report.
    let Some(report) = report else { bail!("the evaluation was broken off") };
    let evaluation = Evaluation {
        model: meta.model.clone(),
        dataset: name,
        split: split.name(),
        n: report.n,
        top1: report.top1,
        top5: report.top5,
        loss: report.loss,
        images_per_second: report.images_per_second,
        elapsed_s: report.elapsed_s,
        per_class: args.per_class.then_some(report.per_class),
    };
    printer.result(&evaluation, text)?;
    Ok(ExitCode::SUCCESS)
}

/// Opens the data set, whose classes are its own: its name, itself, and where it lies or else its name.
fn open(args: &Args, found: &Found, split: Split) -> Result<(String, Dataset, String)> {
    let name = match (&args.dataset, found.dataset()) {
        (Some(name), _) => name.clone(),
        (None, Some(entry)) => entry.name.to_string(),
        (None, None) => {
            bail!("it is not known what these weights were trained on; name a data set with --dataset")
        }
    };
    let run = args.checkpoint.as_deref().and_then(run_config);
    let data_dir = args
        .data_dir
        .clone()
        .or_else(|| run.filter(|config| config.dataset == name).and_then(|config| config.data_dir));
    let has_sentences = CatalogEntry::find(&name).is_ok_and(CatalogEntry::has_sentences);
    let dataset = match (found.reading()?, &data_dir) {
        // Other sentences than those trained on are read with the same words.
        (Some(reading), Some(path)) if has_sentences => {
            zoo_data::open_text(path, split, Some(&reading), DATA_SEED)?
        }
        (Some(_), _) if !has_sentences => bail!("these weights read sentences; {name} has images"),
        (None, _) if has_sentences => bail!("these weights see images; {name} has sentences"),
        _ => zoo_data::open(&name, split, data_dir.as_deref(), DATA_SEED)?,
    };
    let place = data_dir.map_or_else(|| name.clone(), |dir| dir.display().to_string());
    Ok((name, dataset, place))
}

/// The images labelled by the outputs of the network, and what is to be said of that.
fn labelled(
    dataset: &Dataset,
    trained: &Trained,
    ignore_unknown: bool,
    printer: &Printer,
) -> Result<Dataset> {
    let outputs = trained.model.config().num_classes;
    let Relabelled { dataset, map, unknown, left_out } =
        dataset.for_network(&trained.meta.classes, outputs, ignore_unknown)?;
    match map.by {
        MatchedBy::Name => {}
        MatchedBy::ImageNet => {
            printer.note("these weights do not name their 1,000 classes: taken for ImageNet's, as all classes of the data are");
        }
        MatchedBy::Number => printer.note(
            "these weights do not name their classes; the classes of the data are taken for them by number",
        ),
    }
    if let Some((data, network)) = map.variants.first() {
        let n = thousands(map.variants.len() as u64);
        printer.note(format!(
            "classes that are spelt otherwise than the network's: {n}, such as '{data}' for '{network}'"
        ));
    }
    if left_out > 0 {
        printer.warning(format!(
            "left out {} images of classes that the network does not know: {}",
            thousands(left_out as u64),
            list_names(&unknown)
        ));
    }
    Ok(dataset)
}

fn text(e: &Evaluation) -> String {
    let mut text = format!(
        "{} on the {} {}s of {} ({})\n\n\
         top-1     {:>7.2} %\n\
         top-5     {:>7.2} %\n\
         loss      {:>7.4}\n\
         images/s  {:>7}    ({})",
        e.model,
        thousands(e.n),
        CatalogEntry::find(&e.dataset).map_or("image", CatalogEntry::record),
        e.dataset,
        e.split,
        e.top1,
        e.top5,
        e.loss,
        rate(e.images_per_second),
        duration(e.elapsed_s),
    );
    if let Some(classes) = &e.per_class {
        let mut table = Table::new(&["class", ">images", ">top-1"]);
        for class in classes {
            let top1 = class.top1.map_or("-".into(), |top1| format!("{top1:.2} %"));
            table.row([class.class.clone(), thousands(class.n), top1]);
        }
        text += &format!("\n\n{table}");
    }
    text
}
