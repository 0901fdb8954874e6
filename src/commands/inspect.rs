//! `inspect`: summarises a folder or a single file.
//!
//! The contents decide the kind, not the name. For Parquet files, only footer and two small columns are read,
//! unless everything is checked.

mod records;
mod tables;

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::CommandError;
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointManifest, FileEntry, MANIFEST, checkpoint_name, finished_step,
    list_checkpoints,
};
use crate::dataset::{DatasetError, Manifest, Split, verify};
use crate::feature_table::FeatureTable;
use crate::image::entry_points;
use crate::progress::Progress;
use crate::storage::{Digest, Location};

/// Bytes at the start of a file that identify its kind.
const HEAD_BYTES: u64 = 4096;
/// Number of class names shown; the manifest has all of them.
const FIRST_CLASSES: usize = 10;
/// End of the error for an unknown file.
const KNOWN: &str = "inspect knows datasets, runs, checkpoints, feature tables, shards and other Parquet tables, \
                     metrics, reports, weights, class lists, and a run's JSON and TOML files";
/// Description of the check of a file without a digest in a manifest.
const WITHOUT_DIGEST: &str = "reading it whole; no manifest has its digest";

/// Summarises a folder or a file by its contents: dataset, run, checkpoint, feature table, shard or other
/// Parquet table, metrics, report, weights, configuration or class list. The manifest of a dataset or
/// checkpoint stands for its folder. The key `kind` names the kind.
///
/// With `check`, every byte is read and compared with its digest; files without a digest in a manifest are decoded.
///
/// # Errors
/// If the contents are damaged or unknown, or the store fails.
pub fn inspect(location: &Location, check: bool, progress: &dyn Progress) -> Result<Value, CommandError> {
    let mut summary = summarise_any(location, check, progress)?;
    if check && let Some(object) = summary.as_object_mut() {
        object.insert("verified".into(), true.into());
    }
    Ok(summary)
}

fn summarise_any(location: &Location, check: bool, progress: &dyn Progress) -> Result<Value, CommandError> {
    if location.join(MANIFEST).exists()? {
        let checkpoint = Checkpoint::open(location)?;
        if check {
            checkpoint.verify()?;
        }
        let part = |entry: &FileEntry| {
            let name = checkpoint.folder().join(&entry.name).to_string();
            let part = FeatureTable::from_bytes(&name, checkpoint.read(&entry.name)?)?;
            Ok::<_, CommandError>((name, part))
        };
        let state = checkpoint.state()?;
        let mut summary = serde_json::to_value(checkpoint.manifest())?;
        summary["kind"] = json!("checkpoint");
        // A classifier's checkpoint has no bank.
        if state.config.get("finetune").is_none() {
            let bank = FeatureTable::join(checkpoint.bank_files()?.into_iter().map(part))?;
            summary["bank"] = serde_json::to_value(bank.summary())?;
            summary["ln_partition"] = json!(state.ln_partition);
        }
        return Ok(summary);
    }
    let is_folder = location.local_path().is_some_and(std::path::Path::is_dir);
    if !is_folder && location.exists()? {
        return inspect_file(location, check, progress);
    }
    let manifest = match Manifest::read(location) {
        Err(error @ DatasetError::NotThere { .. }) => match list_checkpoints(location)? {
            empty if empty.is_empty() => {
                return Err(CommandError::Unknown { location: location.to_string(), source: error });
            }
            checkpoints => return inspect_run(location, &checkpoints, check),
        },
        other => other?,
    };
    if check {
        verify(location, &manifest, &entry_points, progress)?;
    }
    Ok(dataset_summary(&manifest))
}

/// Summarises a dataset, with its first classes.
fn dataset_summary(manifest: &Manifest) -> Value {
    let split = |split: &Split| {
        json!({
            "instances": split.instances,
            "labelled": split.labelled,
            "rejected": split.rejected,
            "image_bytes": split.image_bytes,
            "shards": split.shards.len(),
            "shard_bytes": split.shards.iter().fold(0, |sum, shard| u64::saturating_add(sum, shard.bytes)),
            "digest": split.digest,
        })
    };
    let splits: BTreeMap<&String, Value> =
        manifest.splits.iter().map(|(name, of)| (name, split(of))).collect();
    json!({
        "kind": "dataset",
        "dataset_digest": manifest.dataset_digest,
        "classes": manifest.classes.len(),
        "splits": splits,
        "first_classes": &manifest.classes[..manifest.classes.len().min(FIRST_CLASSES)],
    })
}

/// Summarises a single file.
fn inspect_file(location: &Location, check: bool, progress: &dyn Progress) -> Result<Value, CommandError> {
    let head = location.read_range(0..HEAD_BYTES)?;
    let is_in = |name: &str| location.folder().is_some_and(|folder| own_name(&folder) == name);
    if head.is_empty() && is_in("rejects") {
        return Ok(json!({"kind": "rejects", "lines": 0}));
    }
    if head.starts_with(b"PAR1") {
        return tables::inspect(location, check);
    }
    // Arrow IPC file or stream.
    if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) {
        // Reading a table checks all of it.
        return Ok(serde_json::to_value(FeatureTable::read(location)?.summary())?);
    }
    if let Some(header) = header_bytes(&head) {
        return inspect_weights(location, header, check);
    }
    let found = match head.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => records::inspect_json(location, check, progress)?,
        _ => records::inspect_text(location, check)?,
    };
    found.ok_or_else(|| unknown(location, &head))
}

/// Returns the error of a file that this program does not write.
fn unknown(location: &Location, head: &[u8]) -> CommandError {
    const SHOWN_BYTES: usize = 16;
    let begins = match head.len() {
        0 => "it is empty".to_owned(),
        bytes => format!("it begins with `{}`", shown(&head[..bytes.min(SHOWN_BYTES)])),
    };
    CommandError::Data(format!("{location}: not a file of this program ({begins}); {KNOWN}"))
}

/// Shows text unchanged, and other bytes escaped.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Returns the name of a file or folder within its parent, also for a relative path.
fn own_name(location: &Location) -> String {
    let local = location.local_path().and_then(std::path::Path::file_name);
    local.map_or_else(|| location.file_name().to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Summarises a run by its newest checkpoint, and names all checkpoints.
fn inspect_run(run: &Location, checkpoints: &[(u64, Location)], check: bool) -> Result<Value, CommandError> {
    let (mut newest, mut wrong) = (None, Vec::new());
    for (_, folder) in checkpoints.iter().rev() {
        let opened = Checkpoint::open(folder);
        match opened.and_then(
            |checkpoint| if check { checkpoint.verify().map(|()| checkpoint) } else { Ok(checkpoint) },
        ) {
            Ok(checkpoint) => newest = newest.or(Some(checkpoint)),
            Err(error @ CheckpointError::Storage(_)) => return Err(error.into()),
            Err(error) => wrong.push((folder.clone(), error)),
        }
    }
    if let Some(error) = CheckpointError::of_run(run, checkpoints.len(), wrong) {
        return Err(error.into());
    }
    let newest = newest.expect("a run has a checkpoint at least");
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

/// Bytes before the header, with its length.
const LENGTH_BYTES: u64 = 8;
/// Maximum length of the header in bytes, according to the format.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// Returns the end of a safetensors file's header, if the bytes look like one.
fn header_bytes(head: &[u8]) -> Option<u64> {
    let (length, rest) = head.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    (rest.first() == Some(&b'{') && (2..=MOST_HEADER_BYTES).contains(&length))
        .then_some(LENGTH_BYTES + length)
}

/// Summarises the tensors of a file; reads only its header, unless everything is to be checked.
///
/// # Errors
/// If the file is damaged, or the store fails.
fn inspect_weights(location: &Location, header_bytes: u64, check: bool) -> Result<Value, CommandError> {
    let damaged =
        |reason: String| CommandError::Data(format!("{location}: not a whole safetensors file: {reason}"));
    let bytes = location.size()?;
    if bytes < header_bytes {
        return Err(damaged(format!("{bytes} bytes of a header of {header_bytes}")));
    }
    let header = location.read_range(0..header_bytes)?;
    let metadata: Metadata = serde_json::from_slice(header.get(LENGTH_BYTES as usize..).unwrap_or_default())
        .map_err(|error| damaged(error.to_string()))?;
    let whole = header_bytes + metadata.data_len() as u64;
    if bytes != whole {
        return Err(damaged(format!("{bytes} bytes, its header tells of {whole}")));
    }
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut shapes = Map::new();
    for name in metadata.offset_keys() {
        let Some(tensor) = metadata.info(&name) else { continue };
        *numbers.entry(format!("{:?}", tensor.dtype).to_lowercase()).or_default() +=
            tensor.shape.iter().product::<usize>();
        shapes.insert(name, json!(tensor.shape));
    }
    let mut summary = json!({
        "kind": "weights",
        "bytes": bytes,
        "tensors": shapes.len(),
        "numbers": numbers,
        "metadata": metadata.metadata().iter().flatten().collect::<BTreeMap<_, _>>(),
        "shapes": shapes,
    });
    if check {
        let text = location.read()?;
        SafeTensors::deserialize(&text).map_err(|error| damaged(error.to_string()))?;
        summary["verified_by"] = json!(WITHOUT_DIGEST);
    }
    Ok(summary)
}
