//! `instdisc train`.

mod estimate;
mod flags;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::HumanDuration;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::estimate::estimate;
pub(super) use flags::{Offer, OptionFlags};

use super::GlobalArgs;
use super::process::stop_on_signals;
use super::progress::{Meter, Terminal, end_of_day, say, say_next};
use super::ranks::{RankFlags, end_as_lost};
use crate::checkpoint::newest_state;
use crate::cli::exit::usage;
use crate::commands::{Monitor, OtherMonitor, all_or_none};
use crate::dataset::{DatasetError, Manifest};
use crate::distributed::Rendezvous;
use crate::model::{cpu_of, has_gpu};
use crate::progress::Progress;
use crate::run_config::{
    DeviceChoice, Given, Images, MOST_OF_SOFTMAX, Machines, MonitorEvery, ObjectiveKind, OptionSpec,
    TrainConfig, read_file, shown,
};
use crate::storage::Location;
use crate::train::{
    Evaluation, Exporter, HookError, Hooks, MetricsLine, Outcome, RunSummary, Scope, StepReport, StopFlag,
    TrainError, TrainJob, train,
};
use crate::units::shell_word;

/// Train an encoder and its memory bank.
///
/// The same command resumes from the newest checkpoint. SIGTERM, SIGUSR1 and Ctrl-C save a checkpoint and end
/// with exit code 75; a second Ctrl-C ends without saving. Most runs need only --epochs, --image-size or
/// --device: the other options depend on the number and size of the images. Every option under the headings
/// from "Data and augmentation" to "Checkpoints and metrics" is also a key of the TOML file of --config:
/// `--batch-size 64` is `batch_size = 64`. A flag wins.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc train --dataset photos --run run --epochs 20    # settings by the images' number and size
  instdisc train --dataset s3://bucket/in1k --run s3://bucket/runs/r50 \\
    --config jobs/runs/imagenet-resnet50-reference.toml")]
pub(super) struct TrainArgs {
    /// Folder of the dataset
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// Folder of the run: configuration, metrics, checkpoints
    #[arg(long, value_name = "URL")]
    run: String,
    /// TOML file with options
    #[arg(long, value_name = "FILE", value_parser = crate::cli::local_path)]
    config: Option<PathBuf>,
    /// Print the memory, disk space and time that the run needs, measured by a few steps on random pixels, and exit
    #[arg(long)]
    estimate: bool,
    /// Serve the run's numbers for Prometheus at this address, such as 0.0.0.0:9400
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    #[command(flatten)]
    options: OptionFlags<OfTraining>,
    #[command(flatten)]
    ranks: RankFlags,
}

/// All options, with the defaults of a run.
#[derive(Debug)]
enum OfTraining {}

impl Offer for OfTraining {
    fn options() -> Vec<(&'static OptionSpec, Option<String>)> {
        let defaults = TrainConfig::default().values();
        let default = |option: &OptionSpec| {
            option.by_images.map_or_else(|| shown(&defaults[option.key]), |text| Some(text.to_owned()))
        };
        TrainConfig::OPTIONS.iter().map(|option| (option, default(option))).collect()
    }
}

/// Set by a signal that asks the run to stop.
static STOP: StopFlag = StopFlag::new(false);

pub(super) fn run(global: &GlobalArgs, args: &TrainArgs) -> anyhow::Result<()> {
    let rendezvous = args.ranks.rendezvous()?;
    let job = job(global, args, &rendezvous);
    if args.estimate {
        return estimate(global, &job?);
    }
    stop_on_signals(&STOP)?;
    let job = args.ranks.told(&rendezvous, &STOP, job)?;
    let is_first = rendezvous.rank() == 0;
    let address = args.metrics_listen.as_deref().filter(|_| is_first);
    let listen =
        |address: &str| Exporter::listen(address).with_context(|| format!("--metrics-listen {address}"));
    let exporter = args.ranks.told(&rendezvous, &STOP, address.map(listen).transpose())?;
    if let Some(exporter) = &exporter {
        tracing::info!("metrics at http://{}/metrics", exporter.address());
    }
    let before = Terminal::beside_steps("bank", &STOP, is_first);
    let others = if job.config.no_monitor { Ok(Vec::new()) } else { other_monitors(global, &job, &before) };
    let others = args.ranks.told(&rendezvous, &STOP, others)?;
    let mut hooks = TerminalHooks {
        job: &job,
        is_first,
        meter: None,
        monitor: None,
        others,
        exporter,
        chance_loss: None,
        untrained: None,
        chance: None,
        before,
        measured_from: None,
        total_steps: 0,
        resumed_within: false,
    };
    let result = train(&job, &mut hooks, &STOP);
    hooks.meter = None;
    match result? {
        _ if !is_first => Ok(()),
        Outcome::AlreadyFinished { step } => {
            let total = hooks.total_steps;
            let more = if step > total {
                format!(", and `--epochs {}` asks for {total}", job.config.epochs)
            } else {
                String::new()
            };
            let run = &job.run;
            let lines = [format!("{run}: finished already, {step} steps{more}; a larger --epochs goes on")];
            global.write_result(&lines, &json!({"run": args.run, "finished": true, "step": step}))
        }
        Outcome::Finished { step, checkpoint } => {
            let checkpoint = checkpoint.to_string();
            let lines = [format!("{}: finished, {step} steps, {checkpoint}", job.run)];
            let result = json!({"run": args.run, "finished": true, "step": step, "checkpoint": checkpoint});
            global.write_result(&lines, &result)
        }
    }?;
    // The training is finished, even if the dataset is no longer readable.
    if let Ok(next) = next_command(args, &job)
        && is_first
    {
        say_next(&next);
    }
    Ok(())
}

/// Builds the job from the command line and the configuration file.
fn job(global: &GlobalArgs, args: &TrainArgs, rendezvous: &Rendezvous) -> anyhow::Result<TrainJob> {
    let file = args.config.as_deref().map(read_file).transpose()?;
    let given = Given::new(file.as_ref(), &args.options.given);
    let (dataset, run) = (global.location(&args.dataset)?, global.folder("--run", &args.run)?);
    let config = resolve(&dataset, &run, rendezvous, &given)?;
    check_monitor(&config, &given)?;
    let init = (!config.init.is_empty()).then(|| global.file("--init", &config.init)).transpose()?;
    let (rendezvous, collective_timeout) = (rendezvous.clone(), args.ranks.timeout());
    Ok(TrainJob { dataset, run, init, config, rendezvous, collective_timeout, on_lost: end_as_lost })
}

/// Checks that monitored datasets and `no_monitor` are not both requested. `--no-monitor` alone wins over the
/// datasets of a file.
fn check_monitor(config: &TrainConfig, given: &Given<'_>) -> anyhow::Result<()> {
    let (keys, flags) = (given.keys()?, given.flags);
    let asks = keys.contains("monitor") && !config.monitor.is_empty();
    let wins = flags.contains_key("no_monitor") && !flags.contains_key("monitor");
    if config.no_monitor && asks && !wins {
        bail!(usage(
            "--monitor asks for scores while the run trains, and --no-monitor, now or when the run was begun, for \
             none: leave out one of the two, or give `no_monitor = false` in the file of --config"
        ));
    }
    Ok(())
}

/// Opens the datasets of `--monitor`, before the first step.
fn other_monitors(
    global: &GlobalArgs,
    job: &TrainJob,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<OtherMonitor>> {
    let mut asked = Vec::new();
    for monitored in &job.config.monitor {
        if let Some(other) = monitored.other_reading()
            && let Ok(location) = global.location(&other)
        {
            match Manifest::read(&location) {
                Err(DatasetError::NotThere { .. }) => {}
                Err(error) => return Err(error).with_context(|| format!("--monitor {monitored}")),
                Ok(_) => {
                    let splits = other.strip_prefix(monitored.dataset.as_str()).unwrap_or_default();
                    bail!(usage(format!(
                        "--monitor {other} has two readings: the dataset `{other}`, which is there and is written \
                         `{other}/`, and splits of `{}`, which are written `{}/{splits}`",
                        monitored.dataset, monitored.dataset
                    )));
                }
            }
        }
        let location =
            global.location(&monitored.dataset).with_context(|| format!("--monitor {monitored}"))?;
        asked.push((location, monitored.clone()));
    }
    let manifest = Manifest::read(&job.dataset)?;
    let images = Images::of(manifest.split(&job.dataset, &job.config.split)?, job.config.limit);
    Ok(OtherMonitor::open_all(&asked, &job.config, images.count, progress)?)
}

/// Returns the command that evaluates a run, by its training images if the dataset has no other split.
fn next_command(args: &TrainArgs, job: &TrainJob) -> anyhow::Result<String> {
    let split = &job.config.split;
    let (run, dataset) = (shell_word(&args.run), shell_word(&args.dataset));
    let manifest = Manifest::read(&job.dataset)?;
    let split = match manifest.first_evaluation_split(split) {
        Some(_) => String::new(),
        None => format!(" --split {} --leave-one-out", shell_word(split)),
    };
    Ok(format!("instdisc knn --run {run} --dataset {dataset}{split}"))
}

/// Resolves the configuration over the defaults for the split's images, or over those that the run started
/// with. Logs those that differ from the general defaults.
fn resolve(
    dataset: &Location,
    run: &Location,
    rendezvous: &Rendezvous,
    given: &Given<'_>,
) -> anyhow::Result<TrainConfig> {
    let asked = given.over(&TrainConfig::default())?;
    let manifest = Manifest::read(dataset)?;
    if !asked.monitor_split.is_empty() {
        manifest.split(dataset, &asked.monitor_split)?;
        if asked.monitor_split == asked.split {
            bail!(usage(format!("--monitor-split {}: that is the split that is trained on", asked.split)));
        }
    }
    let images = Images::of(manifest.split(dataset, &asked.split)?, asked.limit);
    let ranks = rendezvous.world();
    let cpu = cpu_of(asked.device, rendezvous.local_rank(), ranks).map_err(TrainError::from)?;
    let machines = Machines { ranks, are_cpus: cpu.is_some() };
    let mut defaults = images.defaults(machines, &asked, &given.keys()?);
    let begun = newest_state(run)?;
    if let Some(begun) = &begun {
        defaults = defaults.as_begun(&begun.config).context("the run's configuration")?;
    }
    let mut config = given.over(&defaults)?;
    if let Some(init) = begun.as_ref().and_then(|begun| begun.config["init"].as_str())
        && ![init, ""].contains(&config.init.as_str())
    {
        let init = std::mem::replace(&mut config.init, init.to_owned());
        tracing::warn!("--init {init} is for the start of a run: this one has begun, and keeps its weights");
    }
    let [before, now] = [&asked, &config].map(TrainConfig::values);
    let changed = |key: &str| begun.as_ref()?.config.get(key).filter(|value| **value != now[key]);
    // Options that determine the cost are always logged.
    let is_said = |key: &str| before[key] != now[key] || changed(key).is_some() || ALWAYS_SAID.contains(&key);
    let text = |key: &str| match changed(key) {
        Some(value) => format!("{key} = {} (until now {})", in_words(key, &now[key]), in_words(key, value)),
        None => format!("{key} = {}", in_words(key, &now[key])),
    };
    let said: Vec<String> = now.keys().filter(|key| is_said(key)).map(|key| text(key)).collect();
    let whose = if begun.is_some() {
        "of this run".to_owned()
    } else {
        format!(
            "for {} images, {} pixels along the shorter side on average, {}",
            images.count,
            images.shorter_side,
            if machines.are_cpus { "on a CPU" } else { "on a GPU" },
        )
    };
    tracing::info!("settings {whose}: {}", said.join(", "));
    if begun.is_none() && config.objective == ObjectiveKind::Softmax && asked.objective != config.objective {
        tracing::info!(
            "objective softmax, the default up to {MOST_OF_SOFTMAX} images: exact, and cheap there; it needs \
             no estimate of Z (docs/training.md)"
        );
    }
    if let Some(cpu) = cpu.filter(|_| begun.is_none() && config.arch != asked.arch) {
        let said = format!(
            "arch {} for {cpu}: resnet18-cifar, the default on a GPU, takes about ten times as long there; \
             --arch decides",
            <&str>::from(config.arch)
        );
        let is_fallback = asked.device == DeviceChoice::Auto && has_gpu();
        if is_fallback { tracing::warn!("{said}") } else { tracing::info!("{said}") }
    }
    Ok(config)
}

/// Formats an option's value for people, with its unit if the name lacks one.
fn in_words(key: &str, value: &Value) -> String {
    let every = (key == "monitor_every").then(|| MonitorEvery::deserialize(value).ok()).flatten();
    every.map_or_else(|| value.to_string(), MonitorEvery::in_words)
}

/// Formats a run's steps, its number of processes, and the step that it resumes from.
pub(super) fn steps_of(summary: &RunSummary, config: &TrainConfig) -> String {
    let processes =
        if summary.ranks > 1 { format!(" by {} processes", summary.ranks) } else { String::new() };
    let resumed = match summary.resumed_step {
        0 => String::new(),
        step => format!(", going on after step {step}"),
    };
    format!("{} steps of {} images{processes}{resumed}", summary.total_steps, config.batch_size)
}

/// Formats the results of a step, shown beside the progress bar.
pub(super) fn step_line(report: &StepReport, config: &TrainConfig) -> String {
    let StepReport { epoch, loss, lr, images_per_second, .. } = report;
    format!("epoch {}/{} loss {loss:.4} lr {lr} {images_per_second:.0} images/s", epoch + 1, config.epochs)
}

/// Hooks that show a run in the terminal and evaluate the bank after each epoch.
struct TerminalHooks<'a> {
    job: &'a TrainJob,
    /// Whether this is rank 0, the only one that prints.
    is_first: bool,
    meter: Option<Meter>,
    monitor: Option<Monitor>,
    /// Monitors of other datasets.
    others: Vec<OtherMonitor>,
    exporter: Option<Exporter>,
    /// Loss in nats of uninformative features.
    chance_loss: Option<f64>,
    untrained: Option<f64>,
    chance: Option<f64>,
    /// Display of work before the first step.
    before: Terminal<'a>,
    /// Step from which the pace is measured, and the time when it was done.
    measured_from: Option<(u64, Instant)>,
    total_steps: u64,
    /// Whether the next line of an epoch covers only its last steps.
    resumed_within: bool,
}

/// Settings that are logged even with their general defaults.
const ALWAYS_SAID: [&str; 3] = ["arch", "epochs", "image_size"];

/// Remaining seconds above which a run announces its end.
const WORTH_SAYING: f64 = 60.0;

/// Steps measured before a run announces its end.
const MEASURED_STEPS: u64 = 20;

impl TerminalHooks<'_> {
    /// Returns the scores by the bank and on other datasets.
    fn scores(&self, state: Evaluation<'_>, shown: &Terminal<'_>) -> Result<Map<String, Value>, HookError> {
        let evaluate = |monitor: &Monitor| monitor.evaluate(state, shown);
        let mut scores = self.monitor.as_ref().map_or_else(|| Ok(Map::new()), evaluate)?;
        for other in &self.others {
            match other.evaluate(state, shown) {
                Ok(found) => scores.extend(found),
                Err(error) if state.stop.load(Ordering::Relaxed) => return Err(error),
                // The other scores still count.
                Err(error) => tracing::warn!("--monitor: {} has no scores: {error}", other.name()),
            }
        }
        Ok(scores)
    }

    /// Formats the score on another dataset from a line of the metrics, for the largest number of neighbours.
    fn of_other(line: &MetricsLine, name: &str) -> Option<String> {
        let score = |key: &str| line.monitor.get(&format!("{name}/{key}")).and_then(Value::as_f64);
        let neighbours = line.monitor.keys().filter_map(|key| {
            key.strip_prefix(name)?.strip_prefix("/knn")?.strip_suffix("_top1")?.parse::<u32>().ok()
        });
        let k = neighbours.max()?;
        let (share, chance) = (100.0 * score(&format!("knn{k}_top1"))?, 100.0 * score("knn_chance")?);
        Some(format!("{name} {share:.1} % (k = {k}, chance {chance:.1} %)"))
    }

    /// Announces once the time of a step and the end of the run.
    fn say_when_it_ends(&mut self, report: &StepReport) {
        let Some((from, since)) = self.measured_from else {
            self.measured_from = Some((report.step, Instant::now()));
            return;
        };
        if report.step != from + MEASURED_STEPS || !self.is_first {
            return;
        }
        let step = since.elapsed().as_secs_f64() / MEASURED_STEPS as f64;
        let left = step * self.total_steps.saturating_sub(report.step) as f64;
        if left > WORTH_SAYING {
            let left = Duration::from_secs_f64(left);
            say(&format!(
                "{step:.2} s a step, so {} to the end, {}, without evaluations and checkpoints",
                HumanDuration(left),
                end_of_day(left)
            ));
        }
    }
}

impl Hooks for TerminalHooks<'_> {
    fn started(&mut self, summary: &RunSummary) {
        self.chance_loss = summary.chance_loss;
        self.untrained = summary.untrained_top1;
        self.total_steps = summary.total_steps;
        let steps = (summary.total_steps / self.job.config.epochs.max(1)).max(1);
        self.resumed_within = !summary.resumed_step.is_multiple_of(steps);
        if !self.is_first {
            return;
        }
        tracing::info!(
            "{} instances (ln n = {:.2}), {:.1} million parameters, {}",
            summary.instances,
            (summary.instances as f64).ln(),
            summary.parameters as f64 / 1e6,
            steps_of(summary, &self.job.config),
        );
        if summary.resumed_step < summary.total_steps {
            self.meter = Some(Meter::new("train", summary.total_steps, summary.resumed_step));
        }
    }

    fn progress(&self) -> &dyn Progress {
        &self.before
    }

    fn stepped(&mut self, report: &StepReport) {
        if let Some(exporter) = &self.exporter {
            exporter.set([("step".to_owned(), report.step as f64)]);
        }
        if let Some(meter) = &mut self.meter {
            let wait = 100.0 * report.data_wait;
            meter.advance(1, &format!("{} data wait {wait:.0} %", step_line(report, &self.job.config)));
        }
        self.say_when_it_ends(report);
    }

    fn evaluate(&mut self, state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        let opened = match self.monitor {
            Some(_) => Ok(()),
            None => {
                let Self { job, before, .. } = &*self;
                Monitor::open(&job.dataset, &job.config, before).map(|opened| self.monitor = Some(opened))
            }
        };
        all_or_none(state.group, opened, "cannot open the dataset")?;
        let began = Instant::now();
        let shown = Terminal::beside_steps("monitor", state.stop, self.is_first);
        let scores = self.scores(state, &shown);
        if let Some(meter) = &mut self.meter {
            meter.paused(began.elapsed());
        }
        if let Some((_, since)) = &mut self.measured_from {
            *since += began.elapsed();
        }
        scores
    }

    fn measured(&mut self, line: &MetricsLine) {
        if let Some(exporter) = &self.exporter {
            exporter.set(line.scalars());
        }
        let score = |name: &str| line.monitor.get(name).and_then(Value::as_f64);
        let percent = |share: Option<f64>| share.map(|share| format!("{:.1} %", 100.0 * share));
        if line.scope == Scope::Start {
            self.untrained = score("knn_sample_top1");
        }
        self.chance = score("knn_chance").or(self.chance);
        if line.scope == Scope::Interval || !self.is_first {
            return;
        }
        let mut parts = Vec::new();
        if line.scope == Scope::Epoch {
            let chance =
                self.chance_loss.map_or_else(String::new, |chance| format!(" (guessing {chance:.2})"));
            let part =
                if std::mem::take(&mut self.resumed_within) { " of the steps since the resume" } else { "" };
            parts.push(format!("epoch {}: loss {:.4}{part}{chance}", line.epoch + 1, line.loss));
        }
        if line.scope == Scope::Monitor {
            parts.push(format!("step {}", line.step));
        }
        let by_bank = line.monitor.iter().filter_map(|(name, value)| {
            let k: u32 = name.strip_prefix("knn")?.strip_suffix("_top1")?.parse().ok()?;
            percent(value.as_f64()).map(|share| format!("{share} (k = {k})"))
        });
        let by_bank: Vec<String> = by_bank.collect();
        if !by_bank.is_empty() {
            parts.push(format!("kNN by the bank {}", by_bank.join(" and ")));
        }
        if let Some(share) = percent(score("knn_sample_top1")) {
            let than = |name, value| percent(value).map(|share| format!("{name} {share}"));
            let untrained = than("untrained", self.untrained.filter(|_| line.scope == Scope::Epoch));
            let than: Vec<String> = [untrained, than("chance", self.chance)].into_iter().flatten().collect();
            let than = if than.is_empty() { String::new() } else { format!(" ({})", than.join(", ")) };
            let who = if line.scope == Scope::Start { "the untrained encoder: kNN" } else { "kNN" };
            parts.push(format!("{who} among the queries {share}{than}"));
        }
        let of_queries = percent(score("probe_top1")).map(|share| format!("{share} of the queries"));
        let of_steps = line.probe.and_then(|probe| percent(Some(probe.probe_train_top1)));
        let of_steps = of_steps.map(|share| format!("{share} of the training images as they came"));
        let of_probe: Vec<String> = [of_queries, of_steps].into_iter().flatten().collect();
        if !of_probe.is_empty() {
            parts.push(format!("linear probe {}", of_probe.join(" and ")));
        }
        parts.extend(self.others.iter().filter_map(|other| Self::of_other(line, other.name())));
        if let Some(bank) = &line.bank {
            parts.push(format!("effective rank {:.1} of {}", bank.effective_rank, self.job.config.dim));
        }
        say(&parts.join(", "));
    }
}
