//! `instdisc bench ingest`.

use anyhow::Context;
use clap::Args;

use super::super::{GlobalArgs, choice, write_json};
use crate::ingest::{BenchOptions, CheckDepth, bench};
use crate::storage::Location;
use crate::units::ByteSize;

/// Ingest images, repeated to a size, and compare with decoding each of them once on the same threads.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc bench ingest --source imagenet-sample.tar --bytes 2GB --threads 2"
)]
pub(super) struct BenchIngestArgs {
    /// Images, in any form that ingest takes
    #[arg(long, value_name = "PATH|URL")]
    source: String,
    /// Repeat the images until they reach this size
    #[arg(long, value_name = "BYTES", default_value = "2GB")]
    bytes: ByteSize,
    /// Threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Depth of the check of an image
    #[arg(long, value_parser = choice::<CheckDepth>(), default_value = "full")]
    check: CheckDepth,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Folder for copies and datasets during the measurement [default: the temporary folder]
    #[arg(long, value_name = "DIR", value_parser = crate::cli::local_path)]
    scratch: Option<std::path::PathBuf>,
}

pub(super) fn run(global: &GlobalArgs, args: &BenchIngestArgs) -> anyhow::Result<()> {
    let parent = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::tempdir_in(&parent).with_context(|| parent.display().to_string())?;
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let report = bench(&BenchOptions {
        source: global.location(&args.source)?,
        scratch: Location::from_path(scratch.path())?,
        bytes: args.bytes.0,
        threads,
        check: args.check,
        rounds: args.rounds,
    })?;
    write_json(&report)
}
