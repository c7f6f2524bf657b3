//! Runs the binary the way a person does: in an empty folder, looking at its exit code, stdout and stderr.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// An empty folder to run commands in; removed in the end.
pub(crate) struct Shell {
    dir: TempDir,
}

/// What a command left.
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Shell {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, with the folders it lies in.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// `zoo ARGS`, without what the environment of the tests would add to it.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
        command.args(args).current_dir(self.dir.path());
        for variable in [
            "RANK",
            "WORLD_SIZE",
            "SLURM_STEP_NUM_TASKS",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "TORCHELASTIC_USE_AGENT_STORE",
        ] {
            command.env_remove(variable);
        }
        command.env_remove("RUST_BACKTRACE").env_remove("RAYON_NUM_THREADS").stdin(Stdio::null());
        command
    }

    /// Runs a command line, split at blanks.
    pub(crate) fn zoo(&self, line: &str) -> Done {
        self.command(line.split_whitespace()).output().unwrap().into()
    }

    /// Starts a command line, its output thrown away.
    pub(crate) fn start(&self, line: &str) -> Child {
        let mut command = self.command(line.split_whitespace());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Done {
    /// The only line on stderr of a command that failed, and did so properly.
    #[track_caller]
    pub(crate) fn error(&self) -> &str {
        let Self { code, stdout, stderr } = self;
        assert_eq!(*code, Some(1), "stdout: {stdout}\nstderr: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "more than one line: {stderr}");
        assert!(!stderr.contains("internal error"), "{stderr}");
        stderr.trim_end().strip_prefix("error: ").unwrap_or_else(|| panic!("no error: {stderr}"))
    }

    /// Stdout of a command that succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        let Self { code, stdout, stderr } = self;
        assert_eq!(*code, Some(0), "stdout: {stdout}\nstderr: {stderr}");
        stdout
    }

    /// The JSON value that a command which succeeded printed.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// The names of a JSON object's fields, in their order.
pub(crate) fn fields(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// All bytes of a file.
pub(crate) fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
