//! JSON, JSON lines and TOML files of a dataset or a run, recognised by their keys.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{FIRST_CLASSES, WITHOUT_DIGEST, dataset_summary, own_name};
use crate::checkpoint::MANIFEST;
use crate::commands::CommandError;
use crate::dataset::Manifest;
use crate::ingest::{one_name_twice, parse_class_names};
use crate::progress::Progress;
use crate::storage::{Digest, Location};

/// Fields of a JSON object.
type Fields = Map<String, Value>;

/// Fields of a report to show, if present.
const REPORT_KEYS: &str = "split train_split step feature k temperature solver lr weight_decay label_fraction \
                           label_seed top1 top5 top1_interval top5_interval chance most_frequent_class retrieval \
                           queries unlabelled_queries bank_split bank_rows train_rows classes dataset_digest weights \
                           device precision notes";
/// Fields to show of each further feature of a report.
const FEATURE_KEYS: &str = "feature top1 top5";
/// Fields of a configuration to show, if present.
const CONFIG_KEYS: &str = "split limit arch image_size dim recipe batch_size epochs objective negatives partition \
                           temperature bank_momentum optimizer lr seed precision shuffle";
/// Maximum size of a configuration file in bytes; larger text is not read.
const MOST_CONFIG_BYTES: u64 = 1 << 20;

/// Summarises a file that begins like JSON; `None` if this program does not write such files.
///
/// # Errors
/// If the file is damaged, or the store fails.
pub(super) fn inspect_json(
    location: &Location,
    check: bool,
    progress: &dyn Progress,
) -> Result<Option<Value>, CommandError> {
    let text = location.read()?;
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first: Fields = serde_json::from_slice(first).unwrap_or_default();
    let found = if has(&first, "scope step") {
        let (lines, is_torn) = lines_of(location, &text)?;
        Some(metrics(&lines, is_torn))
    } else if has(&first, "path reason") {
        let (lines, is_torn) = lines_of(location, &text)?;
        let first = chosen(&first, "path reason");
        Some(json!({"kind": "rejects", "lines": lines.len(), "torn_last_line": is_torn, "first": first}))
    } else {
        let fields: Fields = match serde_json::from_slice(&text) {
            Ok(fields) => fields,
            Err(error) => {
                return Err(CommandError::Data(format!(
                    "{location}: begins like JSON and is not whole: {error}"
                )));
            }
        };
        if let Some(folder) = folder_meant(location, &fields) {
            return super::summarise_any(&folder, check, progress).map(Some);
        }
        document(location, &fields, &text)?
    };
    Ok(found.map(|summary| checked(summary, check)))
}

/// Summarises other text: a configuration of this program in TOML, or class names for `ingest --classes`;
/// `None` if it is neither.
///
/// # Errors
/// If the store fails.
pub(super) fn inspect_text(location: &Location, check: bool) -> Result<Option<Value>, CommandError> {
    if location.size()? > MOST_CONFIG_BYTES {
        return Ok(None);
    }
    let bytes = location.read()?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    let names_a_run = |key: &str| table.get(key).is_some_and(toml::Value::is_str);
    if !names_a_run("arch") && !names_a_run("objective") {
        let summary = if table.is_empty() { class_list(&bytes) } else { None };
        return Ok(summary.map(|summary| checked(summary, check)));
    }
    let mut summary = json!({"kind": "config", "keys": table.len()});
    for key in CONFIG_KEYS.split(' ') {
        if let Some(value) = table.get(key) {
            summary[key] = serde_json::to_value(value)?;
        }
    }
    Ok(Some(checked(summary, check)))
}

/// Summarises class names; `None` if `ingest --classes` would reject them. A single line is ambiguous.
fn class_list(bytes: &[u8]) -> Option<Value> {
    let names = parse_class_names(bytes).ok()?;
    (names.len() > 1 && one_name_twice(&names).is_none()).then(|| {
        json!({
            "kind": "class_list",
            "read_as": "the name of a class in each line, as by `ingest --classes`",
            "classes": names.len(),
            "first_classes": &names[..names.len().min(FIRST_CLASSES)],
        })
    })
}

/// Notes in the summary how a file was checked that was read as a whole.
fn checked(mut summary: Value, check: bool) -> Value {
    if check {
        summary["verified_by"] = json!(WITHOUT_DIGEST);
    }
    summary
}

fn has(fields: &Fields, names: &str) -> bool {
    names.split(' ').all(|name| fields.contains_key(name))
}

/// Selects the fields that exist and are not null.
fn chosen(fields: &Fields, names: &str) -> Fields {
    let found = names.split(' ').filter_map(|name| Some((name.to_owned(), fields.get(name)?.clone())));
    found.filter(|(_, value)| !value.is_null()).collect()
}

/// Returns the folder of a dataset or checkpoint, if the file is its manifest.
fn folder_meant(location: &Location, fields: &Fields) -> Option<Location> {
    let name = own_name(location);
    let of_dataset = name == "manifest.json" && has(fields, "splits");
    let of_checkpoint = name == MANIFEST && has(fields, "files");
    if of_dataset || of_checkpoint { location.folder() } else { None }
}

/// Summarises a JSON object by its keys.
fn document(location: &Location, fields: &Fields, text: &[u8]) -> Result<Option<Value>, CommandError> {
    let report_kind = if has(fields, "grid bank_rows temperature") {
        Some("knn_report")
    } else if has(fields, "solver train_rows") {
        Some("linear_report")
    } else if has(fields, "top1 top1_interval queries split") {
        Some("classifier_report")
    } else {
        None
    };
    if let Some(kind) = report_kind {
        return Ok(Some(report(kind, fields)));
    }
    if has(fields, "format_version dataset_digest splits") {
        // The manifest is a copy outside its dataset.
        let manifest =
            Manifest::parse(text).map_err(|reason| CommandError::Data(format!("{location}: {reason}")))?;
        let mut summary = dataset_summary(&manifest);
        summary["kind"] = json!("manifest");
        return Ok(Some(summary));
    }
    if has(fields, "cursor encoder config") {
        return Ok(Some(state(fields)));
    }
    let step = fields.get("step").filter(|step| step.is_u64() && fields.len() == 1);
    Ok(step.map(|step| json!({"kind": "finished", "step": step})))
}

/// Summarises a report.
fn report(kind: &str, fields: &Fields) -> Value {
    let mut summary = Fields::from_iter([("kind".to_owned(), json!(kind))]);
    summary.extend(chosen(fields, REPORT_KEYS));
    if let Some(others) = fields.get("other_features").and_then(Value::as_array) {
        let others = others.iter().filter_map(Value::as_object);
        let others: Vec<Value> = others.map(|other| Value::Object(chosen(other, FEATURE_KEYS))).collect();
        summary.insert("other_features".to_owned(), Value::Array(others));
    }
    Value::Object(summary)
}

/// Summarises the `state.json` of a checkpoint.
fn state(fields: &Fields) -> Value {
    let of = |name: &str| fields.get(name).cloned().unwrap_or_default();
    let (cursor, config) = (of("cursor"), of("config"));
    json!({
        "kind": "state",
        "step": cursor["step"],
        "epoch": cursor["epoch"],
        "step_in_epoch": cursor["step_in_epoch"],
        "ln_partition": of("ln_partition"),
        "optimizer_steps": of("optimizer_steps"),
        "skipped_steps": of("skipped_steps"),
        "instances": of("instances"),
        "arch": config["arch"],
        "objective": config["objective"],
        "config_digest": Digest::of(config.to_string().as_bytes()),
    })
}

/// Parses JSON lines. Returns also whether the last line is incomplete, as after a killed copy.
fn lines_of(location: &Location, text: &[u8]) -> Result<(Vec<Fields>, bool), CommandError> {
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let mut objects = Vec::new();
    for (number, line) in (1..).zip(&lines) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Fields>(line) {
            Ok(object) => objects.push(object),
            Err(_) if number == lines.len() => return Ok((objects, true)),
            Err(error) => return Err(CommandError::Data(format!("{location} line {number}: {error}"))),
        }
    }
    Ok((objects, false))
}

/// Summarises the lines of `metrics.jsonl`.
fn metrics(lines: &[Fields], is_torn: bool) -> Value {
    let losses: Vec<f64> = lines.iter().filter_map(|line| line.get("loss")?.as_f64()).collect();
    let ended = lines.iter().filter(|line| line.get("scope").is_some_and(|scope| scope == "epoch"));
    let epochs: BTreeSet<u64> = ended.filter_map(|line| line.get("epoch")?.as_u64()).collect();
    let mut summary = json!({
        "kind": "metrics",
        "lines": lines.len(),
        "torn_last_line": is_torn,
        "step": newest(lines, "step"),
        "epochs": epochs.len(),
        "first_loss": losses.first(),
        "last_loss": losses.last(),
        "time": newest(lines, "time"),
    });
    for line in lines.iter().rev() {
        let scores = line.iter().filter(|(name, _)| is_score(name));
        let scores: Fields = scores.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !scores.is_empty() {
            summary["monitor_step"] = json!(line.get("step"));
            summary["monitor"] = Value::Object(scores);
            break;
        }
    }
    summary
}

/// Returns the value in the last line that has one.
fn newest<'a>(lines: &'a [Fields], key: &str) -> Option<&'a Value> {
    lines.iter().rev().find_map(|line| line.get(key).filter(|value| !value.is_null()))
}

/// Returns whether a metric is a score of the monitor; names for other datasets have a prefix.
fn is_score(name: &str) -> bool {
    let score = name.rsplit('/').next().unwrap_or(name);
    score.starts_with("knn")
        || name.starts_with("probe_") && name != "probe_seconds"
        || name == "top1"
        || name == "top5"
}
