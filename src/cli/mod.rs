//! Shell of the program: command line, logs, progress, exit codes. Only this module uses clap and anyhow.
//!
//! Results for programs go to stdout, logs and progress to stderr. Each subcommand has a file with its
//! arguments and one function that turns them into a job of the library.

mod bench;
#[cfg(feature = "torch")]
mod embed;
mod exit;
mod export;
#[cfg(feature = "torch")]
mod finetune;
mod ingest;
mod inspect;
mod knn;
#[cfg(feature = "torch")]
mod linear;
mod process;
mod progress;
#[cfg(feature = "torch")]
mod ranks;
mod render;
#[cfg(feature = "torch")]
mod replay;
mod synth;
#[cfg(feature = "torch")]
mod train;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;
use strum::{EnumMessage, VariantArray};

use self::exit::usage;
use crate::checkpoint::{self, checkpoint_at};
#[cfg(feature = "torch")]
use crate::commands::Report;
use crate::failure::Failure;
use crate::run_config::{Choice, ConfigError, choices};
use crate::storage::{Location, RetryLimits, StorageOptions, Traffic};
#[cfg(feature = "torch")]
use crate::units::Fraction;

/// Train an image encoder without labels, and score it by its nearest neighbours.
#[derive(Debug, Parser)]
#[command(name = "instdisc", version, max_term_width = 100, long_about = ABOUT, after_long_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// Start of the program's long help.
const ABOUT: &str = "\
Train an image encoder without labels, and score it by its nearest neighbours.

Your own images, in three commands:

    instdisc ingest --source my-images --dest photos --hold-out test=10%
    instdisc train --dataset photos --run run --epochs 20
    instdisc knn --run run --dataset photos

Each command prints the next one. `instdisc synth` draws images to try it with.";
/// End of the program's long help.
const AFTER_HELP: &str = "\
Locations are paths or URLs (s3://, gs://, az://). \
Credentials come from the environment, in the names of the object_store
crate: AWS_ACCESS_KEY_ID, AWS_ENDPOINT, and so on.

Exit codes:
   0  done
  69  a store or another process is unavailable: retry
  75  stopped by a signal, everything is saved: retry
  74  an I/O error, such as a full disk: retry once the cause is removed
   2  wrong usage
  65  wrong or absent data
  78  wrong configuration
 143  ended by SIGTERM, nothing to save
   1  anything else";
/// Heading of the object-store options in the help of each command.
const STORAGE: &str = "Object storage";
/// Heading of the options for printing and logging.
const OUTPUT: &str = "Output";

#[derive(Debug, Args)]
struct GlobalArgs {
    /// Set an option of the object store, such as aws_endpoint=http://localhost:7480; repeatable. KEY=@FILE
    /// takes the value from a file, as secrets must be, and rereads it when the store rejects it
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value, help_heading = STORAGE)]
    storage_option: Vec<(String, String)>,
    /// Give up on a request to an object store after it has failed for this long; no later retry starts
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 180, help_heading = STORAGE)]
    retry_seconds: u64,
    /// Give up on a request to an object store after this many retries
    #[arg(long, global = true, value_name = "N", default_value_t = 100, help_heading = STORAGE)]
    retry_tries: usize,
    /// Assert that no other process writes to the same dataset or run. Needed only for stores and file
    /// systems that cannot lock or create a file atomically; a second writer would corrupt the location
    #[arg(long, global = true, help_heading = STORAGE)]
    single_writer: bool,
    /// Log filter: error, warn, info, debug, or a filter such as instdisc=debug
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "INSTDISC_LOG",
        help_heading = OUTPUT)]
    log: String,
    /// Format of a command's result [default: lines on a terminal, JSON elsewhere]
    #[arg(long, global = true, value_enum, value_name = "HOW", help_heading = OUTPUT)]
    print: Option<Print>,
}

/// Format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Print {
    /// Lines for people
    Lines,
    /// JSON for programs
    Json,
}

impl GlobalArgs {
    /// Returns whether results are printed as lines for people.
    fn prints_lines(&self) -> bool {
        self.print.map_or_else(|| std::io::stdout().is_terminal(), |print| print == Print::Lines)
    }

    /// Writes a result to stdout: as lines for people, or as a whole.
    fn write_result(&self, lines: &[String], whole: &impl serde::Serialize) -> anyhow::Result<()> {
        if self.prints_lines() {
            write_stdout((lines.join("\n") + "\n").as_bytes())
        } else {
            write_json(whole)
        }
    }

    fn location(&self, text: &str) -> anyhow::Result<Location> {
        let mut options = StorageOptions::new(self.storage_option.clone());
        options.retry =
            RetryLimits { time: Duration::from_secs(self.retry_seconds), tries: self.retry_tries };
        options.single_writer = self.single_writer;
        Ok(Location::parse(text, &options)?)
    }

    /// Resolves the folder of an option, which may be new.
    fn folder(&self, option: &'static str, text: &str) -> anyhow::Result<Location> {
        let location = self.location(text)?;
        if location.local_path().is_some_and(|path| path.is_file()) {
            bail!(usage(format!("`{option} {text}`: a file, where a folder is expected")));
        }
        Ok(location)
    }

    /// Resolves the location of an output file; warns if it exists.
    fn output(&self, text: &str) -> anyhow::Result<Location> {
        let location = self.location(text)?;
        if let Some(folder) = location.folder()
            && matches!(folder.join(checkpoint::MANIFEST).exists(), Ok(true))
        {
            bail!(usage(format!("`{text}`: {folder} is a checkpoint, into which nothing else is written")));
        }
        // A store may allow writing without reading.
        if matches!(location.exists(), Ok(true)) {
            tracing::warn!("{location} is there, and will be replaced");
        }
        Ok(location)
    }

    /// Resolves the file of an option, which must exist.
    fn file(&self, option: &'static str, text: &str) -> anyhow::Result<Location> {
        let location = self.location(text)?;
        if location.local_path().is_some_and(Path::is_dir) {
            bail!(usage(format!("`{option} {text}`: a folder, where a file is expected")));
        }
        if !location.exists()? {
            let source = std::io::ErrorKind::NotFound.into();
            bail!(ConfigError::File { option, file: location.to_string(), source });
        }
        Ok(location)
    }

    /// Resolves the checkpoint of an option: its folder, or the folder of a run for its newest.
    fn checkpoint(&self, text: &str) -> anyhow::Result<Location> {
        let place = self.location(text)?;
        let (_, folder) = checkpoint_at(&place)?;
        if folder.to_string() != place.to_string() {
            tracing::info!("{place}: a run, of which {folder} is the newest checkpoint");
        }
        Ok(folder)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Ingest(Box<ingest::IngestArgs>),
    Inspect(inspect::InspectArgs),
    #[cfg(feature = "torch")]
    #[command(flatten)]
    Learning(LearningCommand),
    Knn(Box<knn::KnnArgs>),
    Export(export::ExportArgs),
    Synth(synth::SynthArgs),
    Render(render::RenderArgs),
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
}

/// Commands that need libtorch. Only the program `instdisc-torch` runs them, so that other commands do not load it.
#[cfg(feature = "torch")]
#[derive(Debug, Subcommand)]
enum LearningCommand {
    Train(Box<train::TrainArgs>),
    Embed(Box<embed::EmbedArgs>),
    Query(Box<knn::query::QueryArgs>),
    Linear(Box<linear::LinearArgs>),
    Finetune(Box<finetune::FinetuneArgs>),
    Replay(replay::ReplayArgs),
}

impl Command {
    /// Returns whether the command repeatedly reads parts of tables.
    fn reads_tables(&self) -> bool {
        match self {
            Self::Knn(_) | Self::Export(_) => true,
            #[cfg(feature = "torch")]
            Self::Learning(LearningCommand::Query(_) | LearningCommand::Linear(_)) => true,
            _ => false,
        }
    }

    /// Returns whether the command needs libtorch.
    fn needs_torch(&self) -> anyhow::Result<bool> {
        Ok(match self {
            #[cfg(feature = "torch")]
            Self::Learning(_) => true,
            Self::Knn(args) => args.needs_torch()?,
            Self::Bench(args) => args.needs_torch(),
            _ => false,
        })
    }
}

/// Runs the program `instdisc`, which leaves commands that need libtorch to the program beside it.
pub fn main() -> ExitCode {
    main_with(run)
}

/// Runs the program `instdisc-torch`, which `instdisc` starts and which has only the commands that need libtorch.
#[cfg(feature = "torch")]
pub fn main_with_torch() -> ExitCode {
    process::apply_settings();
    main_with(run_learning)
}

/// Builds the command line. Commands without a location hide the object-store options in their help.
fn command_line() -> clap::Command {
    let command = Cli::command();
    let is_of_stores = |arg: &&Arg| arg.get_help_heading() == Some(STORAGE);
    let hidden: Vec<Arg> =
        command.get_arguments().filter(is_of_stores).map(|arg| arg.clone().hide(true)).collect();
    without_stores(command, &hidden)
}

fn without_stores(command: clap::Command, hidden: &[Arg]) -> clap::Command {
    if takes_location(&command) {
        command.mut_subcommands(|command| without_stores(command, hidden))
    } else {
        command.args(hidden)
    }
}

/// Returns whether a command, or one below it, has an option for a location.
fn takes_location(command: &clap::Command) -> bool {
    let names = |arg: &Arg| arg.get_value_names().unwrap_or_default().iter().any(|name| name.contains("URL"));
    command.get_arguments().any(names) || command.get_subcommands().any(takes_location)
}

fn main_with(run: fn(&Cli) -> anyhow::Result<()>) -> ExitCode {
    let matches = command_line().get_matches();
    let cli = match <Cli as clap::FromArgMatches>::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if cli.command.reads_tables() {
        process::limit_arenas();
    }
    let logs = progress::start_logs(&cli.global.log);
    let result = logs.and_then(|()| run(&cli));
    let traffic = Traffic::of_this_process();
    if traffic.requests() > 0 {
        progress::say(&traffic.to_string());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = exit::failure(&error);
            // Stopping on request is not an error.
            let kind = if failure == Failure::Stopped { "" } else { "error: " };
            progress::say(&format!("{kind}{}", exit::text(&error)));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    if cli.command.needs_torch()? {
        return process::run_beside();
    }
    process::end_on_signals(process::end)?;
    match &cli.command {
        Command::Ingest(args) => ingest::run(&cli.global, args),
        Command::Inspect(args) => inspect::run(&cli.global, args),
        #[cfg(feature = "torch")]
        Command::Learning(_) => process::run_beside(),
        Command::Knn(args) => knn::run(&cli.global, args),
        Command::Export(args) => export::run(&cli.global, args),
        Command::Synth(args) => synth::run(args),
        Command::Render(args) => render::run(&cli.global, args),
        Command::Bench(args) => bench::run(&cli.global, args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command_line(), "instdisc", &mut script);
            write_stdout(&script)
        }
    }
}

/// Runs a command that needs libtorch.
#[cfg(feature = "torch")]
fn run_learning(cli: &Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    let stops_on_purpose =
        matches!(cli.command, Command::Learning(LearningCommand::Train(_) | LearningCommand::Finetune(_)));
    if !stops_on_purpose {
        process::end_on_signals(crate::distributed::end_process)?;
    }
    match &cli.command {
        Command::Learning(LearningCommand::Train(args)) => train::run(global, args),
        Command::Learning(LearningCommand::Embed(args)) => embed::run(global, args),
        Command::Learning(LearningCommand::Query(args)) => knn::query::run(global, args),
        Command::Learning(LearningCommand::Linear(args)) => {
            process::return_large_buffers();
            linear::run(global, args)
        }
        Command::Learning(LearningCommand::Finetune(args)) => finetune::run(global, args),
        Command::Learning(LearningCommand::Replay(args)) => replay::run(args),
        Command::Knn(args) => knn::run_together(global, args),
        Command::Bench(args) if args.needs_torch() => bench::run_learning(args),
        _ => bail!(usage("`instdisc` has this command, `instdisc-torch` those that need libtorch")),
    }
}

/// Writes a result to stdout.
fn write_stdout(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).context("stdout")
}

/// Writes a result to stdout as JSON.
fn write_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("JSON")?;
    write_stdout((text + "\n").as_bytes())
}

/// Parses the fraction of the labels that are used.
#[cfg(feature = "torch")]
fn label_fraction(text: &str) -> Result<Fraction, String> {
    let fraction = text.parse::<Fraction>().map_err(|error| error.to_string())?;
    if fraction.get() > 0.0 {
        Ok(fraction)
    } else {
        Err("no label would be used; give more than 0".to_owned())
    }
}

/// Parses a local path by the rules of locations.
fn local_path(text: &str) -> Result<PathBuf, String> {
    Location::parse_local(text).map_err(|error| error.to_string())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected KEY=VALUE".to_owned())
}

/// Accepts the names of an enum; the help lists them with the docs of the variants.
fn choice<T>() -> impl TypedValueParser<Value = T>
where
    T: VariantArray + EnumMessage + Copy + Send + Sync,
{
    names(choices::<T>()).map(|name| {
        let value = T::VARIANTS.iter().find(|value| value.get_serializations()[0] == name);
        *value.expect("clap accepts these names alone")
    })
}

/// Accepts these names.
fn names(choices: Vec<Choice>) -> PossibleValuesParser {
    let values = choices.into_iter().map(|choice| PossibleValue::new(choice.name).help(choice.help));
    PossibleValuesParser::new(values)
}

/// Prints a report as JSON, or a line for each feature if the report went to a file that the user chose.
fn print_report<T: Serialize>(
    global: &GlobalArgs,
    output: Option<&String>,
    lines: &[String],
    report: &T,
) -> anyhow::Result<()> {
    if output.is_none() {
        return global.write_result(lines, report);
    }
    write_stdout((lines.join("\n") + "\n").as_bytes())
}

/// Prints a report that is new or was kept.
#[cfg(feature = "torch")]
fn print_report_of_run<T: Serialize>(
    global: &GlobalArgs,
    output: Option<&String>,
    lines: impl FnOnce(&T) -> Vec<String>,
    report: &Report<T>,
) -> anyhow::Result<()> {
    let (location, report) = match report {
        Report::New(report) => return print_report(global, output, &lines(report), report),
        Report::Kept { location, report } => (location, report),
    };
    progress::say(&format!("{location}: made before; remove the report to make it again, or give --output"));
    let others = report["other_features"].as_array().into_iter().flatten();
    let lines: Vec<_> = std::iter::once(report).chain(others).map(kept_line).collect();
    global.write_result(&lines, report)
}

/// Formats the scores of a kept report on one line.
#[cfg(feature = "torch")]
fn kept_line(report: &serde_json::Value) -> String {
    let score = |name: &str| report[name].as_f64().map(|share| format!("{:.2} %", 100.0 * share));
    let mut said = vec![score("top1").map_or_else(|| "no score".to_owned(), |top1| format!("top-1 {top1}"))];
    // With at most five neighbours or classes, top-5 covers all.
    if report["k"].as_u64().is_none_or(|k| k >= 5) && report["classes"].as_u64().is_none_or(|n| n > 5) {
        said.extend(score("top5").map(|top5| format!("top-5 {top5}")));
    }
    let known = [
        ("k = ", "k"),
        ("τ = ", "temperature"),
        ("", "feature"),
        ("rows of training: ", "train_rows"),
        ("queries: ", "queries"),
    ];
    if let Ok(retrieval) = serde_json::from_value(report["retrieval"].clone()) {
        said.push(knn::measures(&retrieval));
    }
    let mut of = Vec::new();
    for (words, name) in known {
        let value = &report[name];
        if !value.is_null() {
            of.push(format!("{words}{}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    if report["converged"] == false {
        of.push("not converged".to_owned());
    }
    format!("step {}: {} ({})", report["step"], said.join(", "), of.join(", "))
}

#[cfg(test)]
mod tests;
