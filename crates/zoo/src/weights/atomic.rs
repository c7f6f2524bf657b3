//! Replacing a file so that a reader, a crash or a full disk never meets half of it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells apart the temporary files of the threads of one process.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Creates or replaces `path` with what `write` writes: all of it or, on any failure, nothing.
///
/// The content goes to a temporary file in the same folder, which is synced to the disk and then renamed
/// over `path`; after that the folder is synced. A failure removes the temporary file. What a killed process
/// left behind is removed by the next call for the same path.
///
/// # Errors
/// Those of `write` and of the file system. Only the last step, syncing the folder, can fail after `path` has
/// been replaced.
pub fn replace_file<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file").into());
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".tmp-");
    remove_leftovers(folder, &prefix);

    let (file, temporary) = Temporary::create(folder, &prefix)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write(&mut writer)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    // Closed first, because Windows does not rename an open file.
    drop(writer);
    temporary.rename_to(path)?;
    sync_folder(folder)?;
    Ok(())
}

/// A file that is removed when dropped, unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// A new file that is locked while it is open, which tells it from a leftover.
    fn create(folder: &Path, prefix: &OsString) -> io::Result<(File, Self)> {
        loop {
            let mut name = prefix.clone();
            name.push(format!("{}-{}", process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed)));
            let path = folder.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // Where the file system has no locks, leftovers stay: see `remove_leftovers`.
                    let _ = file.try_lock();
                    return Ok((file, Self { path }));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn rename_to(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The failure that led here is the one to report.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the temporary files of writers that no longer live: those whose lock can be taken. Nothing here
/// may stop the write itself, so every failure leaves the leftover where it is.
fn remove_leftovers(folder: &Path, prefix: &OsString) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        if File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes the rename itself survive a power cut.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot sync a folder.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        result => result,
    }
}
