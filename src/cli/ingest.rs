//! `instdisc ingest`.

use clap::Args;

use super::progress::{Terminal, say};
use super::{GlobalArgs, write_json};
use crate::ingest::{IngestOptions, SourceFormat, ingest};
use crate::units::Fraction;

/// Turn pictures into a dataset: Parquet shards with instance ids, and a manifest.
///
/// The source is an ImageFolder (`<class>/<file>` or `<split>/<class>/<file>`), as a directory or inside a tar.
/// Each picture is decoded once as a check; one that cannot be decoded goes to rejects/ with its reason.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc ingest --source /data/ILSVRC2012/train --dest s3://bucket/in1k --split train"
)]
pub(super) struct IngestArgs {
    /// The pictures: a folder or a tar
    #[arg(long, value_name = "PATH|URL")]
    source: String,
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dest: String,
    /// What the source is
    #[arg(long, value_enum, default_value = "auto")]
    format: SourceFormat,
    /// The split's name; of a source with several splits, the one to take [default: train, or all]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// The share of refused pictures above which the job fails
    #[arg(long, value_name = "FRACTION", default_value = "0.01")]
    max_reject_fraction: Fraction,
    /// The size of a shard, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=65536))]
    shard_size: u64,
    /// Rows of a row group
    #[arg(long, value_name = "ROWS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    row_group: u32,
    /// The seed of the rows' order over the shards
    #[arg(long, value_name = "N", default_value_t = 0)]
    shuffle_seed: u64,
    /// A picture with more pixels is refused
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    max_pixels: u64,
    /// Threads that check pictures; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

pub(super) fn run(global: &GlobalArgs, args: &IngestArgs) -> anyhow::Result<()> {
    let options = IngestOptions {
        format: args.format,
        split: args.split.clone(),
        max_reject_fraction: args.max_reject_fraction,
        shard_bytes: args.shard_size << 20,
        row_group: args.row_group as usize,
        shuffle_seed: args.shuffle_seed,
        max_pixels: args.max_pixels,
        threads: args.threads,
        ..IngestOptions::new(global.location(&args.source)?, global.location(&args.dest)?)
    };
    let report = ingest(&options, &Terminal::default())?;
    if report.already_done {
        say(&format!("{}: holds this dataset already", args.dest));
    }
    write_json(&report)
}
