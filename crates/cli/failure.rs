//! How the command fails: one line on stderr and an exit code.

use crate::printer::Printer;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;

/// The command did not do what was asked. (2 is wrong usage and belongs to clap.)
pub(crate) const FAILED: u8 = 1;

/// Runs a command, reports its error and gives the exit code of the process.
pub(crate) fn exit_code(printer: &Printer, command: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    // The panic hook has already said what there is to say.
    match std::panic::catch_unwind(AssertUnwindSafe(command)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            printer.error(&one_line(&error));
            printer.detail(format!("{error:?}"));
            ExitCode::from(FAILED)
        }
        Err(_) => ExitCode::from(FAILED),
    }
}

/// An error with its causes on one line. A cause that the line has named already is left out, because many
/// error types print their source as part of themselves; so is the backtrace that candle's errors print if
/// `RUST_BACKTRACE` is set.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.split("\n   0: ").next().unwrap_or_default();
        let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            let _ = write!(line, ": {cause}");
        }
    }
    line
}

/// Replaces Rust's panic message by one line, since a panic is a bug here and never the user's. With
/// `RUST_BACKTRACE` set the usual message and backtrace follow.
pub(crate) fn install_panic_hook() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("{}", panic_line(info));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            usual(info);
        }
    }));
}

fn panic_line(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("no message").split_whitespace().collect::<Vec<_>>().join(" ");
    let place =
        info.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
    format!(
        "error: internal error{place}: {message}; this is a bug in zoo, please report it with the command you ran \
         (RUST_BACKTRACE=1 shows more)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn causes_are_joined_once_each() {
        let error = Err::<(), _>(anyhow!("disk\n  full")).context("cannot save").unwrap_err();
        assert_eq!(one_line(&error), "cannot save: disk full");
        let error = Err::<(), _>(anyhow!("disk full")).context("cannot save: disk full").unwrap_err();
        assert_eq!(one_line(&error), "cannot save: disk full");
        assert_eq!(one_line(&anyhow!("no such layer\n   0: std::backtrace\n   1: main")), "no such layer");
    }
}
