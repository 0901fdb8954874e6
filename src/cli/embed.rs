//! `instdisc embed`.

use clap::Args;

use super::progress::Terminal;
use super::{GlobalArgs, write_json};
use crate::eval::{EmbedJob, embed};
use crate::model::DeviceChoice;

/// Write the features of a split under a checkpoint's encoder, as a feature table (Arrow IPC).
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc embed --checkpoint runs/r50/checkpoints/step-00005004 --dataset data/in1k \\\n    --split val --output runs/r50/val.arrow"
)]
pub(super) struct EmbedArgs {
    /// The checkpoint's folder
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// The dataset's folder; it must be the one that the checkpoint was trained on
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The split
    #[arg(long, value_name = "NAME", default_value = "val")]
    split: String,
    /// The feature table's place
    #[arg(long, value_name = "URL")]
    output: String,
    /// Embed a uniform sample of N instances, the one that train --limit takes; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: u64,
    /// Pictures of a batch
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Threads that decode; 0 for one on each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
}

pub(super) fn run(global: &GlobalArgs, args: &EmbedArgs) -> anyhow::Result<()> {
    let job = EmbedJob {
        checkpoint: global.location(&args.checkpoint)?,
        dataset: global.location(&args.dataset)?,
        split: args.split.clone(),
        output: global.location(&args.output)?,
        limit: args.limit,
        batch_size: args.batch_size as usize,
        threads: args.threads,
        device: args.device,
    };
    let published = embed(&job, &Terminal::default())?;
    write_json(&serde_json::json!({
        "output": args.output,
        "bytes": published.bytes,
        "blake3": published.digest,
    }))
}
