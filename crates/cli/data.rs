//! `zoo data`: what data sets there are, and whether one's files are right.

use crate::failure::FAILED;
use crate::number::thousands;
use crate::options::{Common, non_zero};
use crate::printer::Printer;
use crate::summary::dims;
use crate::table::Table;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use zoo_data::{Augment, CATALOG, CatalogEntry, FileStatus, LoaderConfig, Split};
use zoo_trainer::DATA_SEED;

/// Arguments of `zoo data`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the data sets there are
    List,
    /// Download a data set into the Hugging Face cache, and check it
    Fetch(Which),
    /// Check the files of a data set: sizes and checksums; of a folder of images, that each can be decoded
    Verify(VerifyArgs),
    /// Draw a contact sheet: a row of samples for each class, in a PNG file
    Show(ShowArgs),
}

/// The data set, as a word, or as an option like that of `zoo train`.
#[derive(Debug, clap::Args)]
struct Which {
    /// Name of the data set, one of `zoo data list`
    #[arg(value_name = "DATASET", required_unless_present = "dataset", conflicts_with = "dataset")]
    name: Option<String>,
    /// The same as an option
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
}

impl Which {
    fn entry(&self) -> Result<&'static CatalogEntry> {
        let name = self.name.as_ref().or(self.dataset.as_ref()).map_or("", String::as_str);
        Ok(CatalogEntry::find(name)?)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: zoo data verify cifar10 --data-dir data/cifar-10-batches-bin")]
struct VerifyArgs {
    #[command(flatten)]
    which: Which,
    /// Folder with the files of the data set
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: zoo data show shapes --augment standard --out shapes.png")]
struct ShowArgs {
    #[command(flatten)]
    which: Which,
    /// Folder with the files of the data set; without it they are downloaded
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Part of the data set
    #[arg(long, value_name = "SPLIT", default_value = "train", value_parser = ["train", "test"])]
    split: String,
    /// Picture to write [default: <data set>.png]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Samples of each class
    #[arg(long, value_name = "N", default_value = "10", value_parser = non_zero)]
    per_class: usize,
    /// Show the images as training with these random changes sees them
    #[arg(long, value_name = "KIND", num_args = 0..=1, default_missing_value = "standard")]
    #[arg(value_parser = PossibleValuesParser::new(Augment::ALL.map(Augment::name)))]
    augment: Option<String>,
    /// Side of the images, in pixels [default: that of the data set]
    #[arg(long, value_name = "PIXELS", value_parser = non_zero)]
    image_size: Option<usize>,
}

/// Does what the subcommand says.
///
/// # Errors
/// If a data set is unknown or cannot be read, or a file cannot be written.
pub(crate) fn run(args: &Args, common: &Common, printer: &Printer) -> Result<ExitCode> {
    match &args.command {
        Command::List => list(printer),
        Command::Fetch(which) => fetch(which.entry()?, printer),
        Command::Verify(args) => verify(args, printer),
        Command::Show(args) => show(args, common, printer),
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    summary: &'static str,
    num_classes: usize,
    shape: [usize; 3],
    train: usize,
    test: usize,
    needs_files: bool,
    downloadable: bool,
}

fn list(printer: &Printer) -> Result<ExitCode> {
    let listed = |entry: &CatalogEntry| Listed {
        name: entry.name,
        summary: entry.summary,
        num_classes: entry.num_classes,
        shape: entry.shape,
        train: entry.images[0],
        test: entry.images[1],
        needs_files: entry.needs_files,
        downloadable: entry.downloadable(),
    };
    let sets: Vec<Listed> = CATALOG.iter().map(listed).collect();
    printer.result(&sets, |sets| {
        let mut table = Table::new(&["data set", ">classes", ">images", ">train", ">test", "files"]);
        let count = |n: usize| if n == 0 { "any".into() } else { thousands(n as u64) };
        for set in sets {
            let files = match (set.needs_files, set.downloadable) {
                (false, _) => "none",
                (true, true) => "--data-dir, or downloaded",
                (true, false) => "--data-dir",
            };
            let size = if set.shape[1] == 0 { "any".into() } else { dims(set.shape) };
            table.row([
                set.name.into(),
                count(set.num_classes),
                size,
                count(set.train),
                count(set.test),
                files.into(),
            ]);
        }
        let lines: Vec<String> = sets.iter().map(|set| format!("{:<14} {}", set.name, set.summary)).collect();
        format!("{table}\n\n{}", lines.join("\n"))
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Fetched {
    dataset: &'static str,
    train: usize,
    test: usize,
}

fn fetch(entry: &CatalogEntry, printer: &Printer) -> Result<ExitCode> {
    if !entry.downloadable() {
        let way = if entry.needs_files { "its files are your own" } else { "it is drawn by the program" };
        bail!("{} is not downloaded: {way}", entry.name);
    }
    let count = |split: Split| -> Result<usize> {
        printer.note(format!("fetching {} ({})", entry.name, split.name()));
        Ok(zoo_data::open(entry.name, split, None, DATA_SEED)?.len())
    };
    let fetched = Fetched { dataset: entry.name, train: count(Split::Train)?, test: count(Split::Test)? };
    printer.result(&fetched, |fetched| {
        let [train, test] = [fetched.train, fetched.test].map(|n| thousands(n as u64));
        format!("{}: {train} training and {test} test images, downloaded and checked", fetched.dataset)
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Verified {
    dataset: &'static str,
    ok: bool,
    files: Vec<VerifiedFile>,
}

#[derive(Debug, Serialize)]
struct VerifiedFile {
    name: String,
    path: Option<PathBuf>,
    bytes: u64,
    ok: bool,
    verdict: String,
}

fn verify(args: &VerifyArgs, printer: &Printer) -> Result<ExitCode> {
    let entry = args.which.entry()?;
    let Some(dir) = &args.data_dir else {
        bail!(
            "say with --data-dir where the files are; what zoo downloads itself is checked whenever it is read"
        );
    };
    let files: Vec<VerifiedFile> = zoo_data::verify(entry.name, dir)?
        .into_iter()
        .map(|file| VerifiedFile {
            verdict: verdict(&file.status),
            ok: file.status.is_ok(),
            name: file.name,
            path: file.path,
            bytes: file.bytes,
        })
        .collect();
    let bad = files.iter().filter(|file| !file.ok).count();
    let verified = Verified { dataset: entry.name, ok: bad == 0, files };
    printer.result(&verified, |verified| {
        let mut table = Table::new(&["file", ">bytes", "verdict"]).shrinking(0);
        for file in &verified.files {
            table.row([file.name.clone(), thousands(file.bytes), file.verdict.clone()]);
        }
        table.to_string()
    })?;
    if bad > 0 {
        printer.error(&format!("{bad} of {} files of {} cannot be used", verified.files.len(), entry.name));
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}

fn verdict(status: &FileStatus) -> String {
    match status {
        FileStatus::Ok => "ok".into(),
        FileStatus::SizeOk => "ok by size; no checksum is published".into(),
        FileStatus::Missing => "missing".into(),
        FileStatus::WrongSize { expected } => format!("wrong size, expected {}", thousands(*expected)),
        FileStatus::WrongChecksum { .. } => "wrong checksum".into(),
        FileStatus::Unreadable(reason) => reason.clone(),
        _ => "unknown".into(),
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    dataset: &'static str,
    out: PathBuf,
    width: u32,
    height: u32,
    classes: Vec<String>,
}

fn show(args: &ShowArgs, common: &Common, printer: &Printer) -> Result<ExitCode> {
    let entry = args.which.entry()?;
    let split = if args.split == "train" { Split::Train } else { Split::Test };
    let augment: Augment = args.augment.as_deref().unwrap_or("none").parse()?;
    let dataset = zoo_data::open(entry.name, split, args.data_dir.as_deref(), DATA_SEED)?;
    let config = LoaderConfig { augment, image_size: args.image_size, ..LoaderConfig::new(1, common.seed()) };
    let sheet = zoo_data::contact_sheet(&dataset, args.per_class, &config)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.png", entry.name)));
    sheet
        .save_with_format(&out, image::ImageFormat::Png)
        .with_context(|| format!("cannot write {}", out.display()))?;
    let classes = dataset.meta().classes.clone();
    let shown = Shown { dataset: entry.name, out, width: sheet.width(), height: sheet.height(), classes };
    printer.result(&shown, |shown| {
        let (out, rows) = (shown.out.display(), shown.classes.join(", "));
        format!("{out}: {} × {} pixels; a row for each of {rows}", shown.width, shown.height)
    })?;
    Ok(ExitCode::SUCCESS)
}
