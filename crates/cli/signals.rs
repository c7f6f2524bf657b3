//! Ctrl-C and SIGTERM: the first asks for a tidy end, the second ends the process at once.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::IsTerminal as _;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a shell adds to the number of the signal that ended a process.
const EXIT_CODE_BASE: u8 = 128;

/// Hears of the signals that ask the process to end.
#[derive(Debug)]
pub(crate) struct Signals {
    stop: Arc<AtomicBool>,
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the operating system refuses the handlers.
    pub(crate) fn listen() -> Result<Self> {
        let signals = Self { stop: Arc::default(), last: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            let code = i32::from(EXIT_CODE_BASE) + signal;
            // In this order: only a second signal finds the flag set and ends the process.
            flag::register_conditional_shutdown(signal, code, Arc::clone(&signals.stop))
                .and_then(|_| flag::register_usize(signal, Arc::clone(&signals.last), signal as usize))
                .and_then(|_| flag::register(signal, Arc::clone(&signals.stop)))
                .context("cannot listen for Ctrl-C")?;
        }
        Ok(signals)
    }

    /// Set once a signal has come.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// The exit code of a process that a signal ended: 130 after Ctrl-C, 143 after SIGTERM, and where another rank of
    /// the run was told to stop.
    pub(crate) fn exit_code(&self) -> u8 {
        let last = self.last.load(Ordering::SeqCst);
        EXIT_CODE_BASE + u8::try_from(if last == 0 { SIGTERM as usize } else { last }).unwrap_or(0)
    }

    /// Whether a process that has saved its state and stopped as it was told has such an exit code.
    pub(crate) fn is_exit_code(code: i32) -> bool {
        [SIGINT, SIGTERM].contains(&(code - i32::from(EXIT_CODE_BASE)))
    }

    /// Whether the signal was Ctrl-C, which a terminal sends to every process of a command.
    pub(crate) fn is_from_terminal(&self) -> bool {
        self.last.load(Ordering::SeqCst) == SIGINT as usize && std::io::stdin().is_terminal()
    }

    /// Tells another process to come to a tidy end.
    pub(crate) fn forward(child: &Child) {
        #[cfg(unix)]
        if let Some(id) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
    }
}
