//! What the tests share: running the program, a small dataset, the Python to compare with.

pub(crate) mod bucket;

use std::io::Write;
use std::path::{Path, PathBuf};
#[cfg(feature = "torch")]
use std::process::Stdio;
use std::process::{Command, Output};
use std::sync::OnceLock;
#[cfg(feature = "torch")]
use std::time::{Duration, Instant};

use instdisc::feature_table::{FeatureTable, Kind, TableMeta};
use instdisc::ids::{ClassId, InstanceId};
use instdisc::storage::Location;
use serde_json::Value;
use tempfile::TempDir;

/// The binary under test.
pub(crate) const INSTDISC: &str = env!("CARGO_BIN_EXE_instdisc");

/// A call of the program; flags and values are separated by spaces, folders by `arg`.
#[derive(Debug)]
pub(crate) struct Call(Command);

/// Starts a call.
pub(crate) fn instdisc(words: &str) -> Call {
    let mut command = Command::new(INSTDISC);
    command.args(words.split_whitespace()).env_remove("INSTDISC_LOG").env("OMP_NUM_THREADS", "1");
    Call(command)
}

impl From<Command> for Call {
    fn from(command: Command) -> Self {
        Self(command)
    }
}

impl Call {
    pub(crate) fn arg(mut self, flag: &str, value: impl AsRef<Path>) -> Self {
        if !flag.is_empty() {
            self.0.arg(flag);
        }
        self.0.arg(value.as_ref());
        self
    }

    pub(crate) fn word(mut self, word: &str) -> Self {
        self.0.arg(word);
        self
    }

    pub(crate) fn command(self) -> Command {
        self.0
    }

    pub(crate) fn output(mut self) -> (String, Output) {
        let shown = format!("{:?}", self.0);
        (shown, self.0.output().expect("the program starts"))
    }

    /// Runs the call, which must succeed.
    pub(crate) fn ok(self) -> String {
        let (shown, output) = self.output();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{shown}: {}\n{stderr}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs the call, which must succeed and print JSON.
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("JSON on stdout")
    }

    #[cfg(feature = "torch")]
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs the call, which must fail with this exit code and one error line; gives that line.
    pub(crate) fn fails(self, code: i32) -> String {
        self.fails_as(code, "error: ")
    }

    /// Likewise, where error lines begin otherwise.
    pub(crate) fn fails_as(self, code: i32, beginning: &str) -> String {
        let (shown, output) = self.output();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{shown}\n{stderr}");
        let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with(beginning)).collect();
        assert_eq!(errors.len(), 1, "{shown}\n{stderr}");
        errors[0].to_owned()
    }
}

/// A folder that is removed at the end of the test.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Images drawn by `synth`, 10 classes: `train` with 12 and `val` with 4 images each, 32×32.
pub(crate) fn images() -> &'static Path {
    static IMAGES: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGES.get_or_init(|| {
        let dir = scratch();
        let path = dir.path().join("images");
        instdisc("synth --train-per-class 12 --val-per-class 4 --image-size 32").arg("--dest", &path).ok();
        (dir, path)
    });
    path
}

/// The dataset of [`images`], in several shards and row groups.
pub(crate) fn dataset() -> &'static Path {
    static DATASET: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DATASET.get_or_init(|| {
        let dir = scratch();
        let path = dir.path().join("dataset");
        instdisc("ingest --row-group 16").arg("--source", images()).arg("--dest", &path).ok();
        (dir, path)
    });
    path
}

/// A training call on a dataset that takes well under a second an epoch.
#[cfg(feature = "torch")]
pub(crate) fn train(dataset: &Path, run: &Path, more: &str) -> Call {
    let base =
        "train --arch resnet20-cifar --image-size 16 --dim 16 --batch-size 16 --negatives 32 --device cpu";
    let objective = if more.contains("--objective") { "" } else { "--objective nce" };
    // Of so few images the default is every sixth.
    let monitor = if more.contains("monitor") { "" } else { "--monitor-every 1" };
    instdisc(&format!("{base} {objective} {monitor} {more}")).arg("--dataset", dataset).arg("--run", run)
}

/// The newest published checkpoint's step.
#[cfg(feature = "torch")]
pub(crate) fn newest_step(run: &Path) -> Option<u32> {
    let folders = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let published = folders.filter(|folder| folder.path().join("checkpoint.json").exists());
    let names = published.filter_map(|folder| folder.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max()
}

/// Starts a call and waits until its run has published a checkpoint, of this step at least, then sends the signal;
/// the exit code. That the checkpoint is a new one shows that the call is at work.
#[cfg(feature = "torch")]
pub(crate) fn signal_at(call: Call, run: &Path, step: u32, signal: &str) -> Option<i32> {
    let mut command = call.command();
    let shown = format!("{command:?}");
    let step = newest_step(run).map_or(step, |newest| step.max(newest + 1));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let ended = child.try_wait().expect("a look");
        match (newest_step(run) >= Some(step), ended) {
            (true, None) => break,
            (true, Some(status)) => return status.code(),
            (false, ended) => assert_eq!(ended, None, "{shown}: ended before step {step}"),
        }
        assert!(Instant::now() < deadline, "{shown}: no checkpoint at step {step}");
        std::thread::sleep(Duration::from_millis(2));
    }
    send(signal, &child);
    child.wait().expect("ends").code()
}

/// Sends a signal (`-TERM`) by the shell's own `kill`: a minimal system has no other.
pub(crate) fn send(signal: &str, child: &std::process::Child) {
    let sent = Command::new("sh").args(["-c", &format!("kill {signal} {}", child.id())]).status();
    assert!(sent.expect("sh").success());
}

/// A copy of a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// All files below a folder with their contents, sorted by path.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = walkdir::WalkDir::new(folder).sort_by_file_name();
    let files = files.into_iter().filter_map(Result::ok).filter(|entry| entry.file_type().is_file());
    let read = |entry: walkdir::DirEntry| {
        let path = entry.path().strip_prefix(folder).expect("below the folder").to_owned();
        (path, std::fs::read(entry.path()).expect("readable"))
    };
    files.map(read).collect()
}

/// Changes a bit in the middle of a file.
pub(crate) fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(file, bytes).expect("changed");
}

/// A table of these unit rows of a split `train` of a dataset `d`, with ids from 0.
pub(crate) fn feature_table(
    kind: Kind,
    classes: usize,
    labels: Vec<Option<ClassId>>,
    features: Vec<f32>,
) -> FeatureTable {
    FeatureTable {
        meta: TableMeta {
            kind,
            layer: "projection".into(),
            dim: features.len() / labels.len().max(1),
            dataset_digest: "d".into(),
            split: "train".into(),
            split_digest: None,
            weights: None,
            device: None,
            precision: None,
            step: 1,
            unit_length: true,
            classes: (0..classes).map(|class| format!("class {class}")).collect(),
        },
        ids: (0..labels.len() as u32).map(InstanceId).collect(),
        updated_step: vec![None; labels.len()],
        labels,
        features,
    }
}

/// Writes a table to a file.
pub(crate) fn write_table(table: &FeatureTable, file: &Path) {
    table.write(&Location::from_path(file).expect("a location")).expect("written");
}

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Says that a test is skipped, past the test runner's capture.
pub(crate) fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// Runs a script of tests/python with the Python of `make python` (or of INSTDISC_PYTHON); its output, or
/// `None` where there is no such Python.
pub(crate) fn python(test: &str, script: &str, args: &[&Path]) -> Option<String> {
    let output = run_python(test, script, args)?;
    Some(succeeded(script, output))
}

/// Likewise, but the script may end with code 3 to say that it lacks something, which skips the test.
#[cfg(feature = "torch")]
pub(crate) fn python_or_skip(test: &str, script: &str, args: &[&Path], needed: &str) -> Option<String> {
    let output = run_python(test, script, args)?;
    if output.status.code() == Some(3) {
        skip(test, &format!("there is no {needed} (make python)"));
        return None;
    }
    Some(succeeded(script, output))
}

/// Likewise, but the script must fail with this exit code; what it said.
#[cfg(feature = "torch")]
pub(crate) fn python_fails(test: &str, script: &str, args: &[&Path], code: i32) -> Option<String> {
    let output = run_python(test, script, args)?;
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{script}: {stderr}");
    Some(stderr)
}

fn run_python(test: &str, script: &str, args: &[&Path]) -> Option<Output> {
    let interpreter = std::env::var_os("INSTDISC_PYTHON")
        .map_or_else(|| root().join(".venv-python/bin/python"), PathBuf::from);
    if !interpreter.exists() {
        skip(test, "there is no .venv-python (make python)");
        return None;
    }
    let mut command = Command::new(&interpreter);
    command.arg(root().join(script)).args(args).env("HF_DATASETS_OFFLINE", "1");
    Some(command.output().expect("Python starts"))
}

fn succeeded(script: &str, output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("text")
}
