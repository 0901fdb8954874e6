//! `instdisc export pictures`.

use clap::Args;

use crate::cli::progress::{Terminal, say};
use crate::cli::{GlobalArgs, write_json};
use crate::ingest::{ExportOptions, export};

/// Write a dataset's pictures as files again: `<split>/<class>/<file>`.
///
/// Restart markers that `ingest --tile-index` has set are taken out: each file has the bytes that the ingest was
/// given, bit for bit. What the ingest made smaller or baseline comes as it is stored, and is counted.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  instdisc export pictures --dataset in1k --split val --dest pictures")]
pub(in crate::cli) struct PicturesArgs {
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The folder to write; files that are there with the same bytes stay
    #[arg(long, value_name = "URL")]
    dest: String,
    /// The split [default: all]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
}

pub(in crate::cli) fn run(global: &GlobalArgs, args: &PicturesArgs) -> anyhow::Result<()> {
    let options = ExportOptions {
        dataset: global.location(&args.dataset)?,
        dest: global.location(&args.dest)?,
        split: args.split.clone(),
    };
    let report = export(&options, &Terminal::default())?;
    for (name, split) in report.splits.iter().filter(|(_, split)| split.not_original > 0) {
        say(&format!("{name}: {} pictures are not as the ingest was given them", split.not_original));
    }
    write_json(&report)
}
