//! `instdisc bench`: measurements, as JSON.

mod ingest;
mod knn;
mod loader;
#[cfg(feature = "torch")]
mod objective;
#[cfg(feature = "torch")]
mod scaling;
#[cfg(feature = "torch")]
mod step;

use std::time::Duration;

use clap::{Args, Subcommand};
use rustix::time::{ClockId, clock_gettime};

use super::GlobalArgs;

/// Measure a part of the program on this machine, as JSON.
///
/// Trust only ratios within one run, as machines vary between runs.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  instdisc bench ingest --source imagenet-sample.tar --threads 2")]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Ingest(ingest::BenchIngestArgs),
    Knn(knn::BenchKnnArgs),
    Loader(loader::BenchLoaderArgs),
    #[cfg(feature = "torch")]
    Objective(objective::ObjectiveArgs),
    #[cfg(feature = "torch")]
    Scaling(scaling::ScalingArgs),
    #[cfg(feature = "torch")]
    Step(Box<step::StepArgs>),
}

impl BenchArgs {
    /// Returns whether the benchmark needs libtorch.
    pub(super) fn needs_torch(&self) -> bool {
        !matches!(self.what, Bench::Ingest(_) | Bench::Knn(_) | Bench::Loader(_))
    }
}

/// Runs benchmarks that need libtorch.
#[cfg(feature = "torch")]
pub(super) fn run_learning(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        Bench::Objective(args) => objective::run(args),
        Bench::Scaling(args) => scaling::run(args),
        Bench::Step(args) => step::run(args),
        other => unreachable!("{other:?} needs no libtorch"),
    }
}

/// Runs benchmarks that do not need libtorch.
pub(super) fn run(global: &GlobalArgs, args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        Bench::Ingest(args) => ingest::run(global, args),
        Bench::Knn(args) => knn::run(global, args),
        Bench::Loader(args) => loader::run(global, args),
        #[cfg(feature = "torch")]
        other => unreachable!("{other:?} needs libtorch"),
    }
}

/// Reads a clock, such as that of this process's processor time.
fn time_of(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
