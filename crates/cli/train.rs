//! `zoo train`: trains a model, or goes on with a run.

use crate::launch;
use crate::number::{duration, thousands};
use crate::options::{Common, check_dtype, non_zero};
use crate::printer::Printer;
use crate::progress::{OtherRank, Progress};
use crate::settings::Settings;
use crate::signals::Signals;
use crate::trained::downloading;
use anyhow::{Context, Result, bail};
use candle_core::Device;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;
use zoo_data::Dataset;
use zoo_trainer::{
    Error, Membership, Outcome, Place, RunDir, RunSummary, Start, TrainConfig, TrainData, Trainer,
};

/// Where runs go that are given no folder.
const RUNS: &str = "runs";

/// Arguments of `zoo train`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  zoo train --model lenet5 --dataset shapes
  zoo train --model resnet18 --dataset cifar10 --epochs 30 --out runs/my-resnet
  zoo train --model squeezenet1_0 --pretrained --dataset folder --data-dir photos
  zoo train --resume runs/my-resnet

What is not given comes from the model's recipe for the data set, then from the defaults.
How a run is optimised that starts from --weights or --pretrained, and does not say, is
decided by the weights and the data. The run prints all of it, and saves it as config.toml.")]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Settings from a TOML file, such as the config.toml of a run; options given here win
    #[arg(long, value_name = "FILE", help_heading = "The run")]
    recipe: Option<PathBuf>,
    /// Folder of the run [default: runs/<model>-<dataset>-<n>]
    #[arg(long, value_name = "DIR", help_heading = "The run")]
    out: Option<PathBuf>,
    /// Go on with an interrupted run; without DIR, with the latest in runs/
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with_all = ["out", "recipe"])]
    #[arg(help_heading = "The run")]
    resume: Option<Option<PathBuf>>,
    /// Train in N processes on this machine, each with a device of its own (on the CPU its share of the threads) and
    /// --batch-size images of every batch; torchrun, srun and, with the feature mpi, mpirun can start them, too
    #[arg(long, value_name = "N", value_parser = non_zero, default_value = "1", hide_default_value = true)]
    #[arg(help_heading = "Several devices")]
    devices: usize,
}

/// A run that is ready to train.
struct Ready {
    trainer: Trainer,
    /// What there is to predict, as a word of a command.
    example: String,
}

/// Trains to the end or to the first signal.
///
/// # Errors
/// If the settings make no sense, data or folder cannot be used, or training fails.
pub(crate) fn run(args: &Args, common: &Common, printer: &Printer) -> Result<ExitCode> {
    if args.devices > 1 && Membership::from_env()?.is_none() {
        return launch::run(args.devices, printer);
    }
    let place = Place::join(&common.device()?)?;
    printer.speak_as(place.ranks.rank());
    let flags = args.settings.flags(common)?;
    let Ready { mut trainer, example } = match &args.resume {
        Some(dir) => resumed(dir.as_deref(), flags, common, &place)?,
        None => new(args, &flags, common, &place, printer)?,
    };
    let signals = Signals::listen()?;
    let compute = common.compute(&place.device, trainer.config().threads, place.ranks.size());
    let mut progress = Progress::new(printer, compute);
    let outcome = match place.is_first() {
        true => trainer.run(signals.stop(), &mut progress),
        false => trainer.run(signals.stop(), &mut OtherRank(printer)),
    };
    if outcome.is_ok() {
        place.ranks.leave();
    }
    let printed = progress.finish();
    match outcome? {
        Outcome::Finished(summary) => {
            printer.result(&summary, |summary| closing(summary, &example))?;
            printed?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted { summary, step } => {
            if printer.is_json() {
                printer.result(&summary, |_| String::new())?;
            }
            let devices =
                if args.devices > 1 { format!(" --devices {}", args.devices) } else { String::new() };
            printer.note(format!(
                "interrupted after step {}; everything is saved. To go on: {} train --resume {}{devices}",
                thousands(step),
                program(),
                shell_word(&summary.dir),
            ));
            Ok(ExitCode::from(signals.exit_code()))
        }
    }
}

/// A run in a folder of its own.
fn new(args: &Args, flags: &toml::Table, common: &Common, place: &Place, printer: &Printer) -> Result<Ready> {
    let mut config = TrainConfig::resolve(args.recipe.as_deref(), flags)?;
    apply(&config, common, &place.device)?;
    place.compare_settings(&config, false)?;
    // Before the data, whose download may take minutes.
    let dir = match &args.out {
        out if !place.is_first() => RunDir::of_first_rank(out.as_deref().unwrap_or(Path::new(RUNS))),
        Some(path) => RunDir::create(path).map_err(|error| match error {
            Error::RunExists(path) => anyhow::anyhow!(
                "{0} holds a run already; go on with it by --resume {0}, or give --out another folder",
                path.display()
            ),
            error => anyhow::Error::new(error).context("cannot create the folder of the run"),
        })?,
        None => RunDir::create_numbered(Path::new(RUNS), &config.model, &config.dataset)
            .context("cannot create a folder for the run; --out DIR chooses another place")?,
    };
    let path = dir.path().to_path_buf();
    let start = downloading(printer, |progress| Start::read(&mut config, progress));
    let ready = start.and_then(|start| {
        let data = TrainData::open(&config)?;
        let example = example(&data.val);
        Ok(Ready { trainer: Trainer::from_start(config, start, &data, dir, place.clone())?, example })
    });
    if ready.is_err() && place.is_first() {
        remove_unused(&path);
    }
    Ok(ready?)
}

/// A run that goes on, with options that may be changed changed.
fn resumed(dir: Option<&Path>, flags: toml::Table, common: &Common, place: &Place) -> Result<Ready> {
    let dir = RunDir::open(&dir.map_or_else(latest_run, |dir| Ok(dir.to_path_buf()))?)?;
    let mut settings: toml::Table =
        dir.config()?.to_toml().parse().context("cannot read the settings of the run")?;
    settings.extend(flags);
    let config = TrainConfig::from_toml(&settings.to_string(), "the command line")?;
    apply(&config, common, &place.device)?;
    place.compare_settings(&config, true)?;
    let data = TrainData::open(&config)?;
    let example = example(&data.val);
    Ok(Ready { trainer: Trainer::resume(config, &data, dir, place.clone())?, example })
}

/// Applies what holds for the whole process: as many threads as a recipe asks for if the command line does not say,
/// and how exact convolutions are. Says if the device does not compute in what a recipe or the command line asks for.
fn apply(config: &TrainConfig, common: &Common, device: &Device) -> Result<()> {
    check_dtype(config.dtype.dtype(), device)?;
    common.apply_threads(config.threads)?;
    zoo_ops::set_strict_f32(config.strict_f32);
    Ok(())
}

/// Removes the folder of a run that failed before it had anything to save.
fn remove_unused(dir: &Path) {
    let log = dir.join(RunDir::METRICS);
    if fs::metadata(&log).is_ok_and(|log| log.len() == 0) {
        // Best effort: a folder that stays does no harm, and one with other files in it is not removed.
        let _ = fs::remove_file(&log);
    }
    let _ = fs::remove_dir(dir);
}

/// The run in `runs/` that was saved last.
fn latest_run() -> Result<PathBuf> {
    let saved = |dir: &Path| -> Option<SystemTime> {
        let modified = |name| fs::metadata(dir.join(name)).and_then(|file| file.modified()).ok();
        modified(RunDir::STATE).max(modified(RunDir::CONFIG))
    };
    let runs = fs::read_dir(RUNS).into_iter().flatten().flatten().map(|entry| entry.path());
    let latest = runs.filter_map(|dir| saved(&dir).map(|time| (time, dir))).max();
    match latest {
        Some((_, dir)) => Ok(dir),
        None => {
            bail!("there is no run in {RUNS}/ to go on with; --resume DIR takes a run from another place")
        }
    }
}

/// A validation image where images are files, else what stands for one, or for a sentence.
fn example(val: &Dataset) -> String {
    match (val.path(0), val.vocabulary()) {
        (Some(path), _) => shell_word(path),
        (None, Some(_)) => "'a sentence'".into(),
        (None, None) => "IMAGE.png".into(),
    }
}

/// What came out, and what to do with it.
fn closing(summary: &RunSummary, example: &str) -> String {
    let RunSummary { dir, best_epoch, best_val_top1, last, .. } = summary;
    let (Some(epoch), Some(top1), Some(last)) = (best_epoch, best_val_top1, last) else {
        return String::new();
    };
    let (program, run) = (program(), shell_word(dir));
    format!(
        "\nbest top-1 {top1:.2} % after epoch {epoch} of {}, in {}\n\
         checkpoints in {}: {} and {}\n\n\
         evaluate  {program} eval {run}\n\
         predict   {program} predict {run} {example}",
        last.epoch,
        duration(last.elapsed_s),
        dir.display(),
        RunDir::BEST,
        RunDir::LAST,
    )
}

/// This program as it was called.
fn program() -> String {
    std::env::args_os().next().map_or("zoo".into(), |program| shell_word(Path::new(&program)))
}

/// A path as a shell takes it.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(shell_word(Path::new("runs/lenet5-shapes-1")), "runs/lenet5-shapes-1");
        assert_eq!(shell_word(Path::new("my runs/it's")), "'my runs/it'\\''s'");
        assert_eq!(shell_word(Path::new("")), "''");
    }
}
