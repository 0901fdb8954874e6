//! Shared helpers of the tests: running the program, a small dataset, and Python to compare with.

pub(crate) mod bucket;

use std::ffi::OsStr;
use std::io::Write;
#[cfg(feature = "torch")]
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
#[cfg(feature = "torch")]
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use instdisc::feature_table::{FeatureTable, Kind, TableMeta};
use instdisc::ids::{ClassId, InstanceId};
use instdisc::storage::Location;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
#[cfg(feature = "torch")]
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

/// Binary under test.
pub(crate) const INSTDISC: &str = env!("CARGO_BIN_EXE_instdisc");

/// Call of the program; flags and values are separated by spaces, folders are added by `arg`.
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

    /// Starts the call, with nothing of what it prints and says.
    pub(crate) fn start(mut self) -> Child {
        self.0.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts")
    }

    pub(crate) fn output(mut self) -> (String, Output) {
        let shown = format!("{:?}", self.0);
        (shown, self.0.output().expect("the program starts"))
    }

    /// Runs the call, which must succeed: what it prints, and what it says.
    pub(crate) fn run(self) -> (String, String) {
        let (shown, output) = self.output();
        let [printed, said] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text"));
        assert!(output.status.success(), "{shown}: {}\n{said}", output.status);
        (printed, said)
    }

    /// Runs the call, which must succeed; what it prints.
    pub(crate) fn ok(self) -> String {
        self.run().0
    }

    /// Runs the call, which must succeed; what it says on stderr.
    pub(crate) fn said(self) -> String {
        self.run().1
    }

    /// Runs the call, which must succeed and print JSON.
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("JSON on stdout")
    }

    /// Of this run and the usual dataset.
    #[cfg(feature = "torch")]
    pub(crate) fn of_run(self, run: &Path) -> Self {
        self.arg("--run", run).arg("--dataset", dataset())
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs the call, which must fail with this exit code and one error line. Returns that line.
    pub(crate) fn fails(self, code: i32) -> String {
        self.fails_as(code, "error: ")
    }

    /// Works like `fails`, with another beginning of the error line.
    pub(crate) fn fails_as(self, code: i32, beginning: &str) -> String {
        let (shown, output) = self.output();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{shown}\n{stderr}");
        let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with(beginning)).collect();
        assert_eq!(errors.len(), 1, "{shown}\n{stderr}");
        errors[0].to_owned()
    }
}

/// Creates a folder that is removed at the end of the test.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Returns images of `synth`, 10 classes: `train` with 12 and `val` with 4 images each, 32×32.
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

/// One of the [`images`], a JPEG.
pub(crate) fn jpeg() -> Vec<u8> {
    let is_jpeg = |(path, _): &(PathBuf, Vec<u8>)| path.extension().is_some_and(|ending| ending == "jpg");
    contents(images()).into_iter().find(is_jpeg).expect("an image").1
}

/// A call of `ingest`.
pub(crate) fn ingest(words: &str, source: impl AsRef<Path>, dest: impl AsRef<Path>) -> Call {
    instdisc(&format!("ingest {words}")).arg("--source", source).arg("--dest", dest)
}

/// Returns a dataset of [`images`], in several shards and row groups.
pub(crate) fn dataset() -> &'static Path {
    static DATASET: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DATASET.get_or_init(|| {
        let dir = scratch();
        let path = dir.path().join("dataset");
        ingest("--row-group 16", images(), &path).ok();
        (dir, path)
    });
    path
}

/// Creates a training call on a dataset that takes well under a second per epoch.
#[cfg(feature = "torch")]
pub(crate) fn train(dataset: &Path, run: &Path, more: &str) -> Call {
    let base =
        "train --arch resnet20-cifar --image-size 16 --dim 16 --batch-size 16 --negatives 32 --device cpu";
    let objective = if more.contains("--objective") { "" } else { "--objective nce" };
    // With so few images the default is every sixth epoch.
    let monitor = if more.contains("monitor") { "" } else { "--monitor-every 1" };
    instdisc(&format!("{base} {objective} {monitor} {more}")).arg("--dataset", dataset).arg("--run", run)
}

/// The run in this folder, trained with these options.
#[cfg(feature = "torch")]
pub(crate) fn trained(dir: &TempDir, more: &str) -> PathBuf {
    let run = dir.path().join("run");
    train(dataset(), &run, more).ok();
    run
}

/// The folder of a run's checkpoint.
#[cfg(feature = "torch")]
pub(crate) fn checkpoint(run: &Path, step: u32) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// The features of a split under the encoder of a checkpoint, or of a run's newest.
#[cfg(feature = "torch")]
pub(crate) fn embed(split: &str, checkpoint: &Path, output: &Path) -> Call {
    let call = instdisc(&format!("embed --device cpu --split {split}")).arg("--checkpoint", checkpoint);
    call.arg("--dataset", dataset()).arg("--output", output)
}

/// The lines of a run's metrics.
#[cfg(feature = "torch")]
pub(crate) fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Returns the step of the newest published checkpoint.
#[cfg(feature = "torch")]
pub(crate) fn newest_step(run: &Path) -> Option<u32> {
    checkpoint_steps(run).0.last().copied()
}

/// The steps of the published checkpoints, and whether there are others, which are being written or were left.
#[cfg(feature = "torch")]
pub(crate) fn checkpoint_steps(run: &Path) -> (Vec<u32>, bool) {
    let (mut published, mut has_others) = (Vec::new(), false);
    for folder in entries(&run.join("checkpoints")) {
        let name = folder.file_name().and_then(OsStr::to_str).expect("text");
        let step = name.strip_prefix("step-").and_then(|step| step.parse().ok()).expect("a step");
        if folder.join("checkpoint.json").exists() {
            published.push(step);
        } else {
            has_others = true;
        }
    }
    (published, has_others)
}

/// Waits until a look finds what is waited for; the processes are at work until then.
#[cfg(feature = "torch")]
pub(crate) fn wait_until(what: &str, children: &mut [Child], mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let has_ended = children.iter_mut().any(|child| child.try_wait().expect("a look").is_some());
        if look() {
            return;
        }
        assert!(!has_ended && Instant::now() < deadline, "{what}: ended {has_ended}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Starts a call, waits until its run has published a checkpoint of at least this step, and sends the signal.
/// Returns the exit code. The new checkpoint proves that the call is running.
#[cfg(feature = "torch")]
pub(crate) fn signal_at(call: Call, run: &Path, step: u32, signal: &str) -> Option<i32> {
    let step = newest_step(run).map_or(step, |newest| step.max(newest + 1));
    let mut child = call.start();
    let what = format!("a checkpoint at step {step} of {}", run.display());
    wait_until(&what, std::slice::from_mut(&mut child), || newest_step(run) >= Some(step));
    if let Some(status) = child.try_wait().expect("a look") {
        // It ended before the signal.
        return status.code();
    }
    send(signal, &child);
    child.wait().expect("ends").code()
}

/// Sends a signal (`-TERM`) by the shell's built-in `kill`, as a minimal system has no other.
pub(crate) fn send(signal: &str, child: &Child) {
    let sent = Command::new("sh").args(["-c", &format!("kill {signal} {}", child.id())]).status();
    assert!(sent.expect("sh").success());
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    assert!(from.is_dir(), "{from:?}");
    std::fs::create_dir_all(to).expect("a folder");
    for path in entries(from) {
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(path, target).expect("copied");
        }
    }
}

/// What is in a folder, sorted by name; nothing where it is not there.
pub(crate) fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Returns all files below a folder with their contents, sorted by path.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = walkdir::WalkDir::new(folder).sort_by_file_name();
    let files = files.into_iter().filter_map(Result::ok).filter(|entry| entry.file_type().is_file());
    let read = |entry: walkdir::DirEntry| {
        let path = entry.path().strip_prefix(folder).expect("below the folder").to_owned();
        (path, std::fs::read(entry.path()).expect("readable"))
    };
    files.map(read).collect()
}

/// Flips a bit in the middle of a file.
pub(crate) fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(file, bytes).expect("changed");
}

/// Creates a table of these unit rows for a split `train` of a dataset `d`, with ids from 0.
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

/// A path as a location.
pub(crate) fn location(path: &Path) -> Location {
    Location::from_path(path).expect("a location")
}

/// A call of `knn` for two tables.
pub(crate) fn knn(words: &str, bank: &Path, queries: &Path) -> Call {
    instdisc(&format!("knn {words}")).arg("--bank", bank).arg("--queries", queries)
}

/// Writes a table to a file.
pub(crate) fn write_table(table: &FeatureTable, file: &Path) {
    table.write(&location(file)).expect("written");
}

/// The table in a file.
#[cfg(feature = "torch")]
pub(crate) fn read_table(file: &Path) -> FeatureTable {
    FeatureTable::read(&location(file)).expect("a table")
}

/// The tensors of a safetensors file in their order: the name of each, where its bytes are, and its shape.
#[cfg(feature = "torch")]
pub(crate) fn tensors(file: &[u8]) -> Vec<(String, Range<usize>, Vec<usize>)> {
    const LENGTH: usize = 8;
    let (header, metadata) = SafeTensors::read_metadata(file).expect("safetensors");
    let of = |name: String| {
        let info = metadata.info(&name).expect("named");
        let (from, to) = info.data_offsets;
        (name, LENGTH + header + from..LENGTH + header + to, info.shape.clone())
    };
    metadata.offset_keys().into_iter().map(of).collect()
}

/// The JSON in a file.
pub(crate) fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).expect("a file")).expect("JSON")
}

/// A tar of these files.
pub(crate) fn tar(members: impl IntoIterator<Item = (String, impl AsRef<[u8]>)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in members {
        let bytes = bytes.as_ref();
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, bytes).expect("packed");
    }
    builder.into_inner().expect("finished")
}

/// Writes rows to a Parquet file, compressed as those of other programs mostly are.
pub(crate) fn write_parquet(batch: &RecordBatch, file: &Path) {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("a writer");
    writer.write(batch).expect("written");
    std::fs::write(file, writer.into_inner().expect("bytes")).expect("a file");
}

/// The rows of a Parquet file, which are few.
pub(crate) fn read_parquet(file: &Path) -> RecordBatch {
    let file = std::fs::File::open(file).expect("a file");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|reader| reader.build());
    reader.expect("Parquet").next().expect("a batch").expect("rows")
}

/// Returns the repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Prints that a test is skipped, past the test runner's capture.
pub(crate) fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// Runs a script of tests/python with the Python of `make python` (or of INSTDISC_PYTHON). Returns its
/// output, or `None` without such a Python.
pub(crate) fn python(test: &str, script: &str, args: &[&Path]) -> Option<String> {
    let output = run_python(test, script, args)?;
    Some(succeeded(script, output))
}

/// Works like `python`, but the script may exit with code 3 if it lacks something, which skips the test.
#[cfg(feature = "torch")]
pub(crate) fn python_or_skip(test: &str, script: &str, args: &[&Path], needed: &str) -> Option<String> {
    let output = run_python(test, script, args)?;
    if output.status.code() == Some(3) {
        skip(test, &format!("there is no {needed} (make python)"));
        return None;
    }
    Some(succeeded(script, output))
}

/// Works like `python`, but the script must fail with this exit code. Returns its output.
#[cfg(feature = "torch")]
pub(crate) fn python_fails(test: &str, script: &str, args: &[&Path], code: i32) -> Option<String> {
    let output = run_python(test, script, args)?;
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{script}: {stderr}");
    Some(stderr)
}

/// That of `make python`, or of INSTDISC_PYTHON; without one the test is skipped.
pub(crate) fn interpreter(test: &str) -> Option<PathBuf> {
    let interpreter = std::env::var_os("INSTDISC_PYTHON")
        .map_or_else(|| root().join(".venv-python/bin/python"), PathBuf::from);
    if !interpreter.exists() {
        skip(test, "there is no .venv-python (make python)");
        return None;
    }
    Some(interpreter)
}

fn run_python(test: &str, script: &str, args: &[&Path]) -> Option<Output> {
    let mut command = Command::new(interpreter(test)?);
    command.arg(root().join(script)).args(args).env("HF_DATASETS_OFFLINE", "1");
    Some(command.output().expect("Python starts"))
}

fn succeeded(script: &str, output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("text")
}
