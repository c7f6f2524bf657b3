//! The one owner of stdout, and of what is said on stderr.

use crate::options::Common;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Prints results on stdout, everything else on stderr.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
    quiet: bool,
    verbose: bool,
    /// Set when the reader of stdout has gone (`zoo list | head`): nobody is left to print for, but the work,
    /// a training run for instance, goes on.
    reader_gone: AtomicBool,
    /// Which process of a run this is, where it is not the first: that one speaks for all, but for warnings and errors.
    rank: OnceLock<usize>,
}

impl Printer {
    /// As `--json`, `--quiet` and `--verbose` say.
    pub(crate) fn new(common: &Common) -> Self {
        Self {
            json: common.json,
            quiet: common.quiet,
            verbose: common.verbose,
            reader_gone: AtomicBool::new(false),
            rank: OnceLock::new(),
        }
    }

    /// Falls silent, except for warnings and errors, in all processes of a run but the first.
    pub(crate) fn speak_as(&self, rank: usize) {
        if rank > 0 {
            let _ = self.rank.set(rank);
        }
    }

    fn is_silent(&self) -> bool {
        self.rank.get().is_some()
    }

    /// The result of a command: one JSON value with `--json`, else what `text` makes of it.
    ///
    /// # Errors
    /// If stdout cannot be written, for another reason than that its reader has gone.
    pub(crate) fn result<R: Serialize>(&self, result: &R, text: impl FnOnce(&R) -> String) -> Result<()> {
        if self.json { self.write(&serde_json::to_string(result)?) } else { self.write(&text(result)) }
    }

    /// Whether stdout is for a program.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A part of the result that only people read: nothing with `--json`.
    ///
    /// # Errors
    /// If stdout cannot be written, for another reason than that its reader has gone.
    pub(crate) fn text(&self, text: impl Display) -> Result<()> {
        if self.json { Ok(()) } else { self.write(&text.to_string()) }
    }

    fn write(&self, text: &str) -> Result<()> {
        if self.is_silent() || self.reader_gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.reader_gone.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => result.context("cannot write to stdout"),
        }
    }

    /// Something that helps while waiting. Silent with `--quiet`.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.quiet && !self.is_silent() {
            self.stderr(&text.to_string());
        }
    }

    /// Something for the curious, shown with `--verbose`.
    pub(crate) fn detail(&self, text: impl Display) {
        if self.verbose && !self.is_silent() {
            self.stderr(&text.to_string());
        }
    }

    /// Something that may make the result other than expected.
    pub(crate) fn warning(&self, text: impl Display) {
        match self.rank.get() {
            Some(rank) => self.stderr(&format!("warning: rank {rank}: {text}")),
            None => self.stderr(&format!("warning: {text}")),
        }
    }

    /// Why the command fails.
    pub(crate) fn error(&self, text: &str) {
        match self.rank.get() {
            // An error of the exchange names the rank already.
            Some(rank) if !text.starts_with("rank ") => self.stderr(&format!("error: rank {rank}: {text}")),
            _ => self.stderr(&format!("error: {text}")),
        }
    }

    /// A progress bar on stderr; a hidden one with `--quiet` or where stderr is no terminal.
    pub(crate) fn bar(&self, template: &str) -> ProgressBar {
        if self.quiet || self.is_silent() || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(0).with_style(style.progress_chars("━╸ "))
    }

    fn stderr(&self, text: &str) {
        // In one piece: other ranks may write to the same place. If stderr is gone there is nowhere left to say so.
        let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
    }
}
