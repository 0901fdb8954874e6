//! The commands that need libtorch. Only the program `instdisc-torch` runs them, so that no other loads it.

use super::signals;
use clap::Subcommand;

use crate::cli::exit::WrongUsage;
use crate::cli::{Cli, Command, bench, embed, finetune, knn, linear, replay, train};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum LearningCommand {
    Train(Box<train::TrainArgs>),
    Embed(Box<embed::EmbedArgs>),
    Query(Box<knn::query::QueryArgs>),
    Linear(Box<linear::LinearArgs>),
    Finetune(Box<finetune::FinetuneArgs>),
    Replay(replay::ReplayArgs),
}

impl LearningCommand {
    /// Whether it reads the vectors of tables again and again, in parts.
    pub(in crate::cli) fn reads_tables(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Linear(_))
    }
}

/// Runs a command that needs libtorch.
///
/// # Errors
/// Those of the command.
pub(in crate::cli) fn run(cli: &Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    let stops_on_purpose =
        matches!(cli.command, Command::Learning(LearningCommand::Train(_) | LearningCommand::Finetune(_)));
    if !stops_on_purpose {
        signals::end_on_signals(crate::distributed::end_process)?;
    }
    match &cli.command {
        Command::Learning(LearningCommand::Train(args)) => train::run(global, args),
        Command::Learning(LearningCommand::Embed(args)) => embed::run(global, args),
        Command::Learning(LearningCommand::Query(args)) => knn::query::run(global, args),
        Command::Learning(LearningCommand::Linear(args)) => {
            super::return_large_buffers();
            linear::run(global, args)
        }
        Command::Learning(LearningCommand::Finetune(args)) => finetune::run(global, args),
        Command::Learning(LearningCommand::Replay(args)) => replay::run(args),
        Command::Knn(args) => knn::run_together(global, args),
        Command::Bench(args) if args.needs_torch() => bench::run_learning(args),
        _ => Err(WrongUsage("`instdisc` has this command, `instdisc-torch` those that need libtorch".into())
            .into()),
    }
}
