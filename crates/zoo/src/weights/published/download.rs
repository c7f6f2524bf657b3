//! Downloading a file so that an interruption costs nothing: what arrived stays beside the target, the next
//! attempt asks the server for the rest, and nothing has the target's name before its hash was compared.

use super::super::digest::sha256;
use super::super::error::{Reason, one_line};
use super::has_digest;
use crate::facts::WeightFile;
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_RANGE, RANGE};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// How often a connection may break without a byte having arrived before the download is given up.
const ATTEMPTS: u32 = 4;

/// Silence of the server after which a connection counts as broken.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The pause before the second attempt; it doubles with each further one.
const PAUSE: Duration = Duration::from_millis(250);

type Progress<'p> = &'p mut dyn FnMut(u64, Option<u64>);

/// Downloads `file` to `path`, whose folder exists. Processes that want the same file wait for the first.
pub(super) fn download(file: &WeightFile, path: &Path, progress: Progress<'_>) -> Result<(), Reason> {
    let mut partial_name = path.file_name().unwrap_or_default().to_os_string();
    partial_name.push(".partial");
    let partial_path = path.with_file_name(partial_name);
    let mut partial =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial_path)?;
    // Where the file system has no locks, processes that download the same file at the same time disturb each
    // other; the hash tells.
    let _ = partial.lock();
    if path.exists() {
        // Another process was quicker: the open file is that one now, under its new name.
        return Ok(());
    }
    let mut resumed = partial.metadata()?.len() > 0;
    loop {
        transfer(&file.url, &mut partial, progress)?;
        partial.rewind()?;
        let digest = sha256(&partial)?;
        if has_digest(file, &digest) {
            break;
        }
        partial.set_len(0)?;
        if !resumed {
            fs::remove_file(&partial_path)?;
            return Err(Reason::Digest {
                url: file.url.clone(),
                expected: file.sha256.clone(),
                found: digest,
            });
        }
        // The rest may have been continued from a start that was another file's.
        resumed = false;
    }
    partial.sync_all()?;
    // The name changes while the file is locked; Windows allows that for files opened the way Rust does.
    fs::rename(&partial_path, path)?;
    Ok(())
}

/// How a single connection ended.
enum Ended {
    /// With the last byte.
    Complete,
    /// Before that, for this reason.
    Broken(String),
}

/// Appends to `partial` what the server has beyond it, over as many connections as it takes.
fn transfer(url: &str, partial: &mut File, progress: Progress<'_>) -> Result<(), Reason> {
    let failed = |problem: String| Reason::Download { url: url.to_string(), problem: one_line(&problem) };
    let client = Client::builder()
        .user_agent(concat!("zoo/", env!("CARGO_PKG_VERSION")))
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| failed(innermost(&error)))?;
    let mut fruitless = 0;
    loop {
        let before = partial.metadata()?.len();
        match connection(&client, url, partial, progress)? {
            Ended::Complete => return Ok(()),
            Ended::Broken(problem) => {
                fruitless = if partial.metadata()?.len() > before { 0 } else { fruitless + 1 };
                if fruitless == ATTEMPTS {
                    return Err(failed(problem));
                }
                sleep(PAUSE * 2u32.pow(fruitless));
            }
        }
    }
}

/// One request and its answer.
fn connection(
    client: &Client,
    url: &str,
    partial: &mut File,
    progress: Progress<'_>,
) -> Result<Ended, Reason> {
    let have = partial.metadata()?.len();
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let response = match request.send() {
        Ok(response) => response,
        Err(error) => return Ok(Ended::Broken(innermost(&error))),
    };
    let range = content_range(&response);
    let total = match (response.status(), range) {
        (StatusCode::PARTIAL_CONTENT, Some((Some(start), total))) if start == have => total,
        (StatusCode::OK, _) => {
            // The server knows no ranges, or the file is new: all of it comes.
            partial.set_len(0)?;
            response.content_length()
        }
        // Nothing lies beyond what is there: it is complete.
        (StatusCode::RANGE_NOT_SATISFIABLE, Some((_, Some(total)))) if total == have => {
            return Ok(Ended::Complete);
        }
        (StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, _) if have > 0 => {
            partial.set_len(0)?;
            return Ok(Ended::Broken("the server answers with another part than was asked for".into()));
        }
        (status, _) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Ok(Ended::Broken(format!("the server answers {status}")));
        }
        (status, _) => {
            let problem = format!("the server answers {status}");
            return Err(Reason::Download { url: url.to_string(), problem });
        }
    };
    append(response, partial, total, progress)
}

/// Writes the body behind what `partial` holds.
fn append(
    mut body: Response,
    partial: &mut File,
    total: Option<u64>,
    progress: Progress<'_>,
) -> Result<Ended, Reason> {
    let mut have = partial.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; 1 << 17];
    progress(have, total);
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Ended::Broken(innermost(&error))),
        };
        partial.write_all(&buffer[..n])?;
        have += n as u64;
        progress(have, total);
    }
    match total {
        Some(total) if have < total => Ok(Ended::Broken(format!("it ended after {have} of {total} bytes"))),
        _ => Ok(Ended::Complete),
    }
}

/// First byte and total of a `Content-Range`: `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`.
fn content_range(response: &Response) -> Option<(Option<u64>, Option<u64>)> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.parse().ok());
    Some((start, total.parse().ok()))
}

/// The innermost cause, since the outer ones repeat the address.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
