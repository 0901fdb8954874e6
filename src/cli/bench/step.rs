//! `instdisc bench step`.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use crate::cli::ranks::RankFlags;
use crate::cli::train::{Offer, OptionFlags};
use crate::cli::write_json;
use crate::run_config::{Given, OptionSpec, TrainConfig, read_file, shown};
use crate::train::StepBench;

/// Measure training steps on random pixels, split into their phases.
///
/// Options and configuration files are those of `instdisc train`; nothing is read or written. Under torchrun
/// or srun this measures several processes.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc bench step --arch resnet50 --batch-size 256 --precision bf16 --channels-last --device cuda:0")]
pub(in crate::cli) struct StepArgs {
    /// Rows of the bank
    #[arg(long, value_name = "N", default_value_t = 1_281_167)]
    instances: usize,
    /// Measured steps
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    /// Warm-up steps before the measured ones
    #[arg(long, value_name = "N", default_value_t = 5)]
    warmup_steps: usize,
    /// TOML file with options
    #[arg(long, value_name = "FILE", value_parser = crate::cli::local_path)]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: OptionFlags<OfSteps>,
    #[command(flatten)]
    ranks: RankFlags,
}

/// All options, with the general defaults, as there are no images to adapt them to.
#[derive(Debug)]
enum OfSteps {}

impl Offer for OfSteps {
    fn options() -> Vec<(&'static OptionSpec, Option<String>)> {
        let defaults = TrainConfig::default().values();
        TrainConfig::OPTIONS.iter().map(|option| (option, shown(&defaults[option.key]))).collect()
    }
}

pub(super) fn run(args: &StepArgs) -> anyhow::Result<()> {
    ensure!(args.steps > 0, "`--steps` must be above 0");
    let file = args.config.as_deref().map(read_file).transpose()?;
    let config = Given::new(file.as_ref(), &args.options.given).over(&TrainConfig::default())?;
    ensure!(config.batch_size <= args.instances, "`--batch-size` must be at most `--instances`");
    let bench = StepBench { instances: args.instances, steps: args.steps, warmup_steps: args.warmup_steps };
    let rendezvous = args.ranks.rendezvous()?;
    let measured = bench.run(config, &rendezvous, args.ranks.timeout())?;
    if rendezvous.rank() == 0 { write_json(&measured) } else { Ok(()) }
}
