//! The `zoo` command: train, evaluate and use convolutional networks.
//!
//! A subcommand is a file with its arguments and a `run` that returns the exit code. Results go to stdout
//! through [`printer::Printer`] and nowhere else; progress, notes and errors go to stderr.

mod bench;
mod convert;
mod data;
mod eval;
mod failure;
mod launch;
mod list;
mod number;
mod options;
mod predict;
mod printer;
mod progress;
mod settings;
mod signals;
mod summary;
mod table;
mod train;
mod trained;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use options::Common;
use printer::Printer;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: zoo_ops::memory::Allocator = zoo_ops::memory::Allocator;

/// Train, evaluate and use the classic convolutional networks.
#[derive(Debug, Parser)]
#[command(name = "zoo", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Start here: zoo train --model lenet5 --dataset shapes")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the models there are
    List(list::Args),
    /// Show a model layer by layer: shapes, parameters, multiply-adds, receptive field
    Summary(summary::Args),
    /// Train a model, or go on with an interrupted run
    Train(Box<train::Args>),
    /// Measure a trained network's accuracy on a data set
    Eval(eval::Args),
    /// Say what a trained network sees in pictures
    Predict(predict::Args),
    /// Measure the speed of a model
    Bench(bench::Args),
    /// Convert weights of PyTorch to safetensors, and check them
    Convert(convert::Args),
    /// List, download, check and look at data sets
    Data(data::Args),
}

fn main() -> ExitCode {
    zoo_ops::memory::keep_freed_memory();
    failure::install_panic_hook();
    let Cli { command, common } = Cli::parse();
    let printer = Printer::new(&common);
    failure::exit_code(&printer, || {
        // A training run knows these when it has read its settings.
        if !matches!(command, Command::Train(_)) {
            common.apply_threads(None)?;
            zoo_ops::set_strict_f32(common.strict_f32());
        }
        match &command {
            Command::List(args) => list::run(args, &printer),
            Command::Summary(args) => summary::run(args, &printer),
            Command::Train(args) => train::run(args, &common, &printer),
            Command::Eval(args) => eval::run(args, &common, &printer),
            Command::Predict(args) => predict::run(args, &common, &printer),
            Command::Bench(args) => bench::run(args, &common, &printer),
            Command::Convert(args) => convert::run(args, &printer),
            Command::Data(args) => data::run(args, &common, &printer),
        }
    })
}

/// Ends the process as wrong usage of a subcommand does, where the parser alone cannot tell.
fn usage_error(subcommand: &str, message: &str) -> ! {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(subcommand).cloned();
    command.unwrap_or(cli).error(ErrorKind::MissingRequiredArgument, message).exit()
}
