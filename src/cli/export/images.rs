//! `instdisc export images`.

use clap::Args;

use crate::cli::progress::{Terminal, say};
use crate::cli::{GlobalArgs, write_json};
use crate::ingest::{ExportOptions, export};

/// Write a dataset's images as files again: `<split>/<class>/<file>`.
///
/// Each file has the bytes that the ingest was given. An image that the ingest changed (smaller, baseline) comes as it
/// is stored, and is counted.
///
/// A labelled image is in the folder of its class, and each file has the ending of an image, so that `ingest` reads the
/// files with the same labels. Where several rows have one path, the first keeps it and the others get
/// `-<instance id>` before the extension; so do paths that are folders of others and names over 250 bytes, which are cut.
/// Control characters become %XX. A path that leads outside of the split is an error, and nothing is written.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  instdisc export images --dataset in1k --split val --dest images")]
pub(in crate::cli) struct ImagesArgs {
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The folder to write, outside of the dataset; files that are there with the same bytes are kept
    #[arg(long, value_name = "URL")]
    dest: String,
    /// The split [default: all]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
}

pub(in crate::cli) fn run(global: &GlobalArgs, args: &ImagesArgs) -> anyhow::Result<()> {
    let options = ExportOptions {
        dataset: global.location(&args.dataset)?,
        dest: global.location(&args.dest)?,
        split: args.split.clone(),
    };
    let report = export(&options, &Terminal::default())?;
    for (name, split) in &report.splits {
        if split.not_original > 0 {
            say(&format!("{name}: {} images are not as the ingest was given them", split.not_original));
        }
        if split.renamed > 0 {
            say(&format!("{name}: {} files have other names than the paths of their rows", split.renamed));
        }
    }
    write_json(&report)
}
