//! `instdisc inspect`.

use clap::Args;
use serde_json::Value;

use super::GlobalArgs;
use super::progress::Terminal;
use crate::commands::inspect;

/// Summarise a dataset, a run, a checkpoint or one of their files.
///
/// The contents decide what a file is, not the name: shards, indexes, duplicates.parquet, label subsets,
/// neighbours, feature tables (Arrow, Parquet), Parquet of other programs, weights (safetensors),
/// metrics.jsonl, rejects, reports of knn, linear and finetune, config.toml, state.json, finished.json, and
/// class names for `ingest --classes`. The manifest of a dataset or checkpoint stands for its folder.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc inspect --verify s3://bucket/in1k
  instdisc inspect --verify s3://bucket/in1k/train/shard-00007.parquet
  instdisc inspect --print json runs/r50/metrics.jsonl")]
pub(super) struct InspectArgs {
    /// Folder of a dataset, a run or a checkpoint, or one of their files
    #[arg(value_name = "URL")]
    location: String,
    /// Read every byte and compare it with its digest; decode files without a digest in a manifest
    #[arg(long)]
    verify: bool,
}

pub(super) fn run(global: &GlobalArgs, args: &InspectArgs) -> anyhow::Result<()> {
    let summary = inspect(&global.location(&args.location)?, args.verify, &Terminal::default())?;
    let mut text = Vec::new();
    lines(&mut text, "", &summary);
    global.write_result(&text, &summary)
}

/// Appends one line for each value, with its path.
fn lines(text: &mut Vec<String>, path: &str, value: &Value) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| lines(text, &below(name), value)),
        Value::Array(items) if items.iter().any(|item| item.is_object()) => {
            (0..)
                .zip(items)
                .for_each(|(index, item): (usize, _)| lines(text, &below(&index.to_string()), item));
        }
        Value::Array(items) => {
            let shown: Vec<_> = items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
                .collect();
            text.push(format!("{path:<34} {}", shown.join(", ")));
        }
        Value::String(value) => text.push(format!("{path:<34} {value}")),
        other => text.push(format!("{path:<34} {other}")),
    }
}
