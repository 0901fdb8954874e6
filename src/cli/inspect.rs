//! `instdisc inspect`: what a folder or a single file is.
//!
//! A file is known by its contents, not by its name. Of Parquet files the footer and two small columns are read, unless
//! everything is to be checked.

mod records;
mod tables;
mod weights;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::exit::WrongData;
use super::progress::Terminal;
use super::{GlobalArgs, write_json, write_stdout};
use crate::checkpoint::{
    Checkpoint, CheckpointManifest, FileEntry, MANIFEST, checkpoint_name, finished_step, list_checkpoints,
};
use crate::dataset::{DatasetError, Manifest, summarise, verify};
use crate::feature_table::{ColumnNames, FeatureTable};
use crate::storage::{Digest, Location};

/// Bytes of a file by which its kind is known.
const HEAD_BYTES: u64 = 4096;
/// Class names that are shown; the manifest has all of them.
const FIRST_CLASSES: usize = 10;
/// What else a refusal says.
const KNOWN: &str = "inspect knows datasets, runs, checkpoints, feature tables, shards and other Parquet tables, \
                     metrics, reports, weights, and a run's JSON and TOML files";
/// How a file was checked whose digest is not in a manifest.
const WITHOUT_DIGEST: &str = "reading it whole; no manifest has its digest";

/// Say what a folder or a file is: a dataset, a run, a checkpoint, a feature table, a shard, metrics, a report.
///
/// Files are known by their contents, whatever their names are: shards, indexes, duplicates.parquet, label subsets,
/// neighbours, feature tables (Arrow, Parquet), weights (safetensors), metrics.jsonl, rejects, the reports of knn, linear and finetune,
/// config.toml, state.json and finished.json. The manifest of a dataset or a checkpoint stands for its folder.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc inspect --verify s3://bucket/in1k\n  instdisc inspect --verify s3://bucket/in1k/train/shard-00007.parquet\n  instdisc inspect --format json runs/r50/metrics.jsonl"
)]
pub(super) struct InspectArgs {
    /// The folder of a dataset, a run or a checkpoint, or one of their files
    #[arg(value_name = "URL")]
    location: String,
    /// Read every byte and check it against its digest; a file whose digest is not in a manifest is decoded whole
    #[arg(long)]
    verify: bool,
    /// How to say it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people
    Table,
    /// JSON for programs
    Json,
}

pub(super) fn run(global: &GlobalArgs, args: &InspectArgs) -> anyhow::Result<()> {
    let location = global.location(&args.location)?;
    let mut summary = inspect(&location, args.verify)?;
    if args.verify
        && let Some(object) = summary.as_object_mut()
    {
        object.insert("verified".into(), true.into());
    }
    match args.format {
        Format::Json => write_json(&summary),
        Format::Table => {
            let mut text = String::new();
            lines(&mut text, "", &summary);
            write_stdout(text.as_bytes())
        }
    }
}

fn inspect(location: &Location, check: bool) -> anyhow::Result<Value> {
    if location.join(MANIFEST).exists()? {
        let checkpoint = Checkpoint::open(location)?;
        if check {
            checkpoint.verify()?;
        }
        let part = |entry: &FileEntry| {
            let (name, names) = (checkpoint.folder().join(&entry.name).to_string(), ColumnNames::default());
            let part = FeatureTable::from_bytes(&name, checkpoint.read(&entry.name)?, &names)?;
            anyhow::Ok((name, part))
        };
        let state = checkpoint.state()?;
        let mut summary = serde_json::to_value(checkpoint.manifest())?;
        summary["kind"] = json!("checkpoint");
        // A classifier has none.
        if state.config.get("finetune").is_none() {
            let bank = FeatureTable::join(checkpoint.bank_files()?.into_iter().map(part))?;
            summary["bank"] = serde_json::to_value(bank.summary())?;
            summary["ln_partition"] = json!(state.ln_partition);
        }
        return Ok(summary);
    }
    let is_folder = location.local_path().is_some_and(std::path::Path::is_dir);
    if !is_folder && location.exists()? {
        return inspect_file(location, check);
    }
    let manifest = match Manifest::read(location) {
        Err(error @ DatasetError::NotThere { .. }) => match list_checkpoints(location)? {
            empty if empty.is_empty() => {
                return Err(error).with_context(|| {
                    format!("{location}: neither a dataset, a run, a checkpoint nor a feature table")
                });
            }
            checkpoints => return inspect_run(location, &checkpoints, check),
        },
        other => other?,
    };
    if check {
        verify(location, &manifest, &Terminal::default())?;
    }
    dataset_summary(&manifest)
}

/// What a dataset is, with the first of its classes.
fn dataset_summary(manifest: &Manifest) -> anyhow::Result<Value> {
    let mut summary = serde_json::to_value(summarise(manifest))?;
    summary["first_classes"] = json!(&manifest.classes[..manifest.classes.len().min(FIRST_CLASSES)]);
    Ok(summary)
}

/// What a single file is.
fn inspect_file(location: &Location, check: bool) -> anyhow::Result<Value> {
    let head = location.read_range(0..HEAD_BYTES)?;
    let is_in = |name: &str| location.folder().is_some_and(|folder| own_name(&folder) == name);
    if head.is_empty() && is_in("rejects") {
        return Ok(json!({"kind": "rejects", "lines": 0}));
    }
    if head.starts_with(b"PAR1") {
        return tables::inspect(location, check);
    }
    // An Arrow IPC file, or a stream.
    if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) {
        // Reading a table checks it whole.
        return Ok(serde_json::to_value(FeatureTable::read(location)?.summary())?);
    }
    if let Some(header) = weights::header_bytes(&head) {
        return weights::inspect(location, header, check);
    }
    let found = match head.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => records::inspect_json(location, check)?,
        _ => records::inspect_toml(location, check)?,
    };
    found.ok_or_else(|| unknown(location, &head).into())
}

/// The error of a file that this program does not write.
fn unknown(location: &Location, head: &[u8]) -> WrongData {
    const SHOWN_BYTES: usize = 16;
    let begins = match head.len() {
        0 => "it is empty".to_owned(),
        bytes => format!("it begins with `{}`", head[..bytes.min(SHOWN_BYTES)].escape_ascii()),
    };
    WrongData(format!("{location}: not a file of this program ({begins}); {KNOWN}"))
}

/// The name of a file or folder within its own folder, also where it was given by a relative path.
fn own_name(location: &Location) -> String {
    let local = location.local_path().and_then(std::path::Path::file_name);
    local.map_or_else(|| location.file_name().to_owned(), |name| name.to_string_lossy().into_owned())
}

/// What a run is, by its newest checkpoint, and which checkpoints it has.
fn inspect_run(run: &Location, checkpoints: &[(u64, Location)], check: bool) -> anyhow::Result<Value> {
    let opened = checkpoints.iter().map(|(_, folder)| Checkpoint::open(folder));
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    if check {
        opened.iter().try_for_each(Checkpoint::verify)?;
    }
    let newest = opened.last().context("the list has one at least")?;
    let CheckpointManifest { step, epoch, trained_on, .. } = newest.manifest();
    let config = newest.state()?.config;
    Ok(json!({
        "kind": "run",
        "config_digest": Digest::of(config.to_string().as_bytes()),
        "arch": config["arch"],
        "objective": config["objective"],
        "dataset_digest": trained_on.dataset_digest,
        "split": trained_on.split,
        "split_digest": trained_on.split_digest,
        "finished": finished_step(run)?.is_some(),
        "newest": newest.folder().to_string(),
        "step": step,
        "epoch": epoch,
        "checkpoints": checkpoints.iter().map(|(step, _)| checkpoint_name(*step)).collect::<Vec<_>>(),
    }))
}

/// One line for each value, its path before it.
fn lines(text: &mut String, path: &str, value: &Value) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| lines(text, &below(name), value)),
        Value::Array(items) if items.iter().any(|item| item.is_object()) => {
            (0..)
                .zip(items)
                .for_each(|(index, item): (usize, _)| lines(text, &below(&index.to_string()), item));
        }
        Value::String(value) => *text += &format!("{path:<34} {value}\n"),
        other => *text += &format!("{path:<34} {other}\n"),
    }
}
