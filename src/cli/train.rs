//! `instdisc train`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::progress::{Meter, say};
use super::{GlobalArgs, signals, write_json};
use crate::bank::MemoryBank;
use crate::config;
use crate::dataset::Manifest;
use crate::eval::{KnnOptions, encode, evaluate};
use crate::feature_table::{FeatureTable, Kind, TableMeta};
use crate::ids::InstanceId;
use crate::loader::{DatasetSource, Source};
use crate::model::{Architecture, DeviceChoice, Encoder};
use crate::objective::ObjectiveKind;
use crate::storage::Location;
use crate::trainer::{
    HookError, Hooks, MetricsLine, Outcome, Precision, RecipeKind, RunSummary, StepReport, StopFlag, TrainConfig,
    TrainJob, train,
};
use crate::units::{BankMomentum, Temperature};

/// The splits that the monitor takes, the first that the dataset has.
const MONITOR_SPLITS: [&str; 4] = ["val", "valid", "validation", "test"];
/// The monitor looks at so many pictures of the split at most.
const MONITOR_PICTURES: usize = 10_000;
/// Pictures of a batch when the monitor embeds.
const MONITOR_BATCH: usize = 256;

/// Train an encoder and its memory bank.
///
/// Running the same command again goes on from the newest checkpoint. SIGTERM and SIGUSR1 save a
/// checkpoint and end with exit code 75. Every option below is also a key of the TOML file, with
/// underscores; a flag wins.
///
/// Example: instdisc train --dataset s3://bucket/in1k --run s3://bucket/runs/r50 --config jobs/runs/imagenet-resnet50.toml
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The run's folder: configuration, metrics, checkpoints
    #[arg(long, value_name = "URL")]
    run: String,
    /// A TOML file with options
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: TrainFlags,
}

/// The keys of [`TrainConfig`] as flags.
#[derive(Debug, Default, Args, Serialize)]
struct TrainFlags {
    /// The split to train on
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// Train on the first N instances only; 0 for all
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// The backbone
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    arch: Option<Architecture>,
    /// The length of the embedding
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dim: Option<usize>,
    /// The side of the square that the encoder sees, in pixels
    #[arg(long, value_name = "PIXELS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    image_size: Option<u32>,
    /// The augmentations: those of the reference for ImageNet or for CIFAR
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<RecipeKind>,
    /// Pictures of one step
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<usize>,
    /// Passes over the split
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,
    /// The objective
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    objective: Option<ObjectiveKind>,
    /// K, noise samples of each picture (nce)
    #[arg(long, value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    negatives: Option<usize>,
    /// τ, by which similarities are divided
    #[arg(long, value_name = "TAU")]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<Temperature>,
    /// The weight of the OLD row when the bank is updated, 0 to below 1
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bank_momentum: Option<BankMomentum>,
    /// Added to the noise's probability (nce); the reference has 1e-7
    #[arg(long, value_name = "EPS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    eps: Option<f64>,
    /// The learning rate of the first epoch
    #[arg(long, value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    /// Epochs at which the learning rate is multiplied by --lr-decay, with commas between
    #[arg(long, value_name = "EPOCHS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_milestones: Option<Vec<u64>>,
    /// The factor at each of --lr-milestones
    #[arg(long, value_name = "FACTOR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_decay: Option<f64>,
    /// The momentum of SGD
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    /// Weight decay on every parameter
    #[arg(long, value_name = "W")]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    /// The seed of every random number of the run
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceChoice>,
    /// In which precision the network computes
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<Precision>,
    /// Threads that decode and augment; 0 for one on each core
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    loader_threads: Option<usize>,
    /// Batches that are made ahead of need
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    prefetch: Option<usize>,
    /// A checkpoint after every N epochs, and always after the last
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_every_epochs: Option<u64>,
    /// A checkpoint after every N steps too; 0 for none
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_every_steps: Option<u64>,
    /// How many of the newest checkpoints are kept, beside the initial one; 0 for all
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<usize>,
    /// Do not judge the bank on the val split after each epoch
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    no_monitor: Option<bool>,
}

/// Writes the defaults into the help texts, from the one place that has them.
pub(super) fn show_defaults(command: clap::Command) -> clap::Command {
    let defaults = serde_json::to_value(TrainConfig::default()).unwrap_or_default();
    command.mut_args(|arg| {
        let key = arg.get_id().as_str().to_owned();
        let default = match defaults.get(&key) {
            None | Some(Value::Bool(_)) => return arg,
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(items)) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
            Some(other) => other.to_string(),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        arg.help(format!("{help} [default: {default}]"))
    })
}

pub(super) fn run(global: &GlobalArgs, args: &TrainArgs) -> anyhow::Result<()> {
    static STOP: StopFlag = StopFlag::new(false);
    let text = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some((path.display().to_string(), text.with_context(|| format!("--config {}", path.display()))?))
        }
        None => None,
    };
    let file = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    let config: TrainConfig = config::resolve(file, &args.options)?;
    let job = TrainJob { dataset: global.location(&args.dataset)?, run: global.location(&args.run)?, config };
    signals::stop_on_signals(&STOP)?;
    let mut hooks = TerminalHooks { job: &job, meter: None, monitor: None, total_epochs: job.config.epochs };
    let result = train(&job, &mut hooks, &STOP);
    hooks.meter = None;
    match result? {
        Outcome::AlreadyFinished { step } => {
            say(&format!("{}: finished already, {step} steps", job.run));
            write_json(&json!({"run": args.run, "finished": true, "step": step}))
        }
        Outcome::Finished { step, checkpoint } => {
            write_json(&json!({"run": args.run, "finished": true, "step": step, "checkpoint": checkpoint.to_string()}))
        }
    }
}

/// Shows a run in the terminal and judges the bank after each epoch.
struct TerminalHooks<'a> {
    job: &'a TrainJob,
    meter: Option<Meter>,
    monitor: Option<Monitor>,
    total_epochs: u64,
}

impl Hooks for TerminalHooks<'_> {
    fn started(&mut self, summary: &RunSummary) {
        tracing::info!("device {}", summary.device);
        let config = &self.job.config;
        tracing::info!(
            "{} instances, {:.1} million parameters, {} steps of {} pictures{}",
            summary.instances,
            summary.parameters as f64 / 1e6,
            summary.total_steps,
            config.batch_size,
            if summary.resumed_step > 0 {
                format!(", going on after step {}", summary.resumed_step)
            } else {
                String::new()
            },
        );
        self.meter = Some(Meter::new("train", summary.total_steps, summary.resumed_step));
    }

    fn stepped(&mut self, report: &StepReport) {
        if let Some(meter) = &mut self.meter {
            let message = format!(
                "epoch {}/{} loss {:.4} lr {} {:.0} pictures/s data wait {:.0} %",
                report.epoch + 1,
                self.total_epochs,
                report.loss,
                report.lr,
                report.images_per_second,
                100.0 * report.data_wait,
            );
            meter.advance(1, &message);
        }
    }

    fn judge(&mut self, encoder: &Encoder, bank: &MemoryBank) -> Result<Map<String, Value>, HookError> {
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::open(&self.job.dataset, &self.job.config)?);
        }
        self.monitor.as_ref().map_or_else(|| Ok(Map::new()), |monitor| monitor.judge(encoder, bank))
    }

    fn epoch_ended(&mut self, line: &MetricsLine) {
        let monitor: Vec<String> =
            line.monitor.iter().map(|(name, value)| format!(" {name} {:.4}", value.as_f64().unwrap_or_default())).collect();
        say(&format!("epoch {} loss {:.4}{}", line.epoch + 1, line.loss, monitor.concat()));
    }
}

/// Scores the bank by the neighbours of a labelled split, as the reference does after each epoch.
struct Monitor {
    split: Option<(Arc<dyn Source>, TableMeta)>,
    labels: Vec<Option<crate::ids::ClassId>>,
    threads: usize,
}

impl Monitor {
    fn open(dataset: &Location, config: &TrainConfig) -> Result<Self, HookError> {
        let manifest = Manifest::read(dataset)?;
        let limit = if config.limit == 0 { None } else { Some(config.limit as usize) };
        let train = DatasetSource::open(dataset, &manifest, &config.split, limit)?;
        let labels = train.labels().to_vec();
        let name = MONITOR_SPLITS.into_iter().find(|name| manifest.splits.contains_key(*name) && *name != config.split);
        let split = match name {
            None => None,
            Some(name) => {
                let source = DatasetSource::open(dataset, &manifest, name, Some(MONITOR_PICTURES))?;
                let meta = TableMeta {
                    kind: Kind::Embedding,
                    layer: "projection".into(),
                    dim: config.dim,
                    dataset_digest: manifest.dataset_digest.to_string(),
                    split: name.into(),
                    step: 0,
                    unit_length: true,
                    classes: manifest.classes.clone(),
                };
                Some((Arc::new(source) as Arc<dyn Source>, meta))
            }
        };
        Ok(Self { split, labels, threads: config.loader_threads })
    }

    fn judge(&self, encoder: &Encoder, bank: &MemoryBank) -> Result<Map<String, Value>, HookError> {
        let mut scores = Map::new();
        let Some((source, meta)) = &self.split else { return Ok(scores) };
        let quiet = crate::progress::Quiet;
        let queries = encode(encoder, Arc::clone(source), meta.clone(), MONITOR_BATCH, self.threads, &quiet)?;
        let table = FeatureTable {
            meta: TableMeta { kind: Kind::Bank, ..meta.clone() },
            ids: (0..bank.len() as u32).map(InstanceId).collect(),
            labels: self.labels.clone(),
            updated_step: bank.updated_step().to_vec(),
            features: bank.to_vec(),
        };
        let k = vec![1, 200.min(bank.len())];
        let report = evaluate(&table, &queries, &KnnOptions { k, ..KnnOptions::default() })?;
        for cell in &report.grid {
            scores.insert(format!("knn{}_top1", cell.k), json!(cell.top1));
        }
        Ok(scores)
    }
}
