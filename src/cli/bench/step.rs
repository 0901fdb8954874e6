//! `instdisc bench step`.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use crate::cli::ranks::RankFlags;
use crate::cli::train::TrainFlags;
use crate::cli::write_json;
use crate::config;
use crate::train::{StepBench, TrainConfig};

/// Training steps on drawn pixels, split into their phases.
///
/// Options and run files are those of `instdisc train`; nothing is read or written. Under torchrun or srun it
/// measures several processes.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc bench step --arch resnet50 --batch-size 256 --precision bf16 --channels-last --device cuda:0"
)]
pub(in crate::cli) struct StepArgs {
    /// Rows of the bank
    #[arg(long, value_name = "N", default_value_t = 1_281_167)]
    instances: usize,
    /// Steps that are measured
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    /// Steps before those, which are not
    #[arg(long, value_name = "N", default_value_t = 5)]
    warmup_steps: usize,
    /// A TOML file with options
    #[arg(long, value_name = "FILE", value_parser = crate::cli::local_path)]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: TrainFlags,
    #[command(flatten)]
    ranks: RankFlags,
}

pub(super) fn run(args: &StepArgs) -> anyhow::Result<()> {
    ensure!(args.steps > 0, "`--steps` must be above 0");
    let text = args.config.as_deref().map(config::read).transpose()?;
    let file = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    let config = config::resolve(&TrainConfig::default(), file, &args.options)?;
    ensure!(config.batch_size <= args.instances, "`--batch-size` must be at most `--instances`");
    let bench = StepBench { instances: args.instances, steps: args.steps, warmup_steps: args.warmup_steps };
    let rendezvous = args.ranks.rendezvous()?;
    let measured = bench.run(config, &rendezvous, args.ranks.timeout())?;
    if rendezvous.rank() == 0 { write_json(&measured) } else { Ok(()) }
}
