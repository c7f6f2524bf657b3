//! `--devices N`: this command once for each device, as the ranks of one run.

use crate::failure::FAILED;
use crate::printer::Printer;
use crate::signals::Signals;
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the processes are looked at.
const PAUSE: Duration = Duration::from_millis(30);
/// How long the others have to say what is wrong for them, too, after one has failed.
const GRACE: Duration = Duration::from_millis(300);

/// The processes, ended when this goes.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts `n` processes with the arguments of this one and waits for them. The first one's results are this command's.
/// If one fails, it is named and the others are ended.
///
/// # Errors
/// If a process cannot be started or has failed.
pub(crate) fn run(n: usize, printer: &Printer) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    let mut processes = start(n)?;
    let mut told = false;
    let mut codes = vec![None; n];
    while codes.contains(&None) {
        for rank in 0..n {
            let Some(status) = ended(&mut processes, rank, &mut codes)? else { continue };
            if let Some(failure) = failure(status) {
                let grace = Instant::now() + GRACE;
                while Instant::now() < grace && !(0..n).all(|rank| codes[rank].is_some()) {
                    for other in 0..n {
                        ended(&mut processes, other, &mut codes)?;
                    }
                    std::thread::sleep(PAUSE);
                }
                bail!("rank {rank} of {n} {failure}, and the others were ended");
            }
        }
        if signals.stop().load(Ordering::SeqCst) && !told {
            told = true;
            // A terminal tells all processes; anybody else only this one. Twice would be an order to end at once.
            if !signals.is_from_terminal() {
                processes.0.iter().for_each(Signals::forward);
            }
            printer.detail("waiting for the ranks to save what they have");
        }
        std::thread::sleep(PAUSE);
    }
    let code = codes[0].unwrap_or(FAILED);
    let stopped = told && Signals::is_exit_code(code.into());
    Ok(ExitCode::from(if stopped { signals.exit_code() } else { code }))
}

fn start(n: usize) -> Result<Processes> {
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    let port = free_port().context("cannot find a free port for the processes to meet")?.to_string();
    let mut processes = Processes(Vec::new());
    for rank in 0..n {
        let rank_name = rank.to_string();
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1));
        command.env("RANK", &rank_name).env("LOCAL_RANK", &rank_name);
        command.env("WORLD_SIZE", n.to_string()).env("LOCAL_WORLD_SIZE", n.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        // Of a torchrun that has started this process: its store is not at that port.
        command.env_remove("TORCHELASTIC_USE_AGENT_STORE");
        if rank > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        let child = command.spawn().with_context(|| format!("cannot start rank {rank} of {n}"))?;
        processes.0.push(child);
    }
    Ok(processes)
}

/// How a process has just ended, if it has.
fn ended(processes: &mut Processes, rank: usize, codes: &mut [Option<u8>]) -> Result<Option<ExitStatus>> {
    if codes[rank].is_some() {
        return Ok(None);
    }
    let status = processes.0[rank].try_wait().with_context(|| format!("cannot wait for rank {rank}"))?;
    if let Some(status) = status {
        codes[rank] = Some(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED));
    }
    Ok(status)
}

/// What a process has died of. One that a signal has told to stop has saved its state, as have the others.
fn failure(status: ExitStatus) -> Option<String> {
    match status.code() {
        Some(0) => None,
        Some(code) if Signals::is_exit_code(code) => None,
        Some(code) => Some(format!("failed with exit code {code}")),
        None => Some(format!("was ended by {status}")),
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
