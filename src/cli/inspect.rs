//! `instdisc inspect`.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::progress::Terminal;
use super::{GlobalArgs, write_json, write_stdout};
use crate::commands::inspect;

/// Summarise a dataset, a run, a checkpoint or one of their files.
///
/// Contents decide what a file is, not names: shards, indexes, duplicates.parquet, label subsets, neighbours, feature
/// tables (Arrow, Parquet), weights (safetensors), metrics.jsonl, rejects, reports of knn, linear and finetune,
/// config.toml, state.json and finished.json. The manifest of a dataset or a checkpoint means its folder.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc inspect --verify s3://bucket/in1k\n  instdisc inspect --verify s3://bucket/in1k/train/shard-00007.parquet\n  instdisc inspect --format json runs/r50/metrics.jsonl"
)]
pub(super) struct InspectArgs {
    /// The folder of a dataset, a run or a checkpoint, or one of their files
    #[arg(value_name = "URL")]
    location: String,
    /// Read every byte and compare it with its digest; decode a file that has no digest in a manifest
    #[arg(long)]
    verify: bool,
    /// The format of the summary
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
    let summary = inspect(&global.location(&args.location)?, args.verify, &Terminal::default())?;
    match args.format {
        Format::Json => write_json(&summary),
        Format::Table => {
            let mut text = String::new();
            lines(&mut text, "", &summary);
            write_stdout(text.as_bytes())
        }
    }
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
