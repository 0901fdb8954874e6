//! `instdisc finetune`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};

use super::exit::WrongUsage;
use super::process::signals;
use super::progress::{Meter, Terminal, say};
use super::train::{Offer, OptionFlags};
use super::{GlobalArgs, write_json};
use crate::checkpoint::{Checkpoint, checkpoint_name};
use crate::dataset::Manifest;
use crate::distributed::Rendezvous;
use crate::eval::{ClassifierReport, classify, load_encoder};
use crate::loader::Source;
use crate::model::select_device;
use crate::progress::Quiet;
use crate::run_config::{Given, OptionSpec, TrainConfig, shown};
use crate::storage::{Location, PublishMode};
use crate::train::{
    Evaluation, FinetuneJob, HookError, Hooks, LabelOptions, MetricsLine, Outcome, RunSummary, Scope,
    StepReport, StopFlag, TrainJob, finetune, finetune_protocol,
};
use crate::units::Fraction;

/// Images of a batch when the classifier is evaluated.
const BATCH_SIZE: usize = 256;

/// Fine-tune a checkpoint's encoder on few labels, and evaluate the classifier.
///
/// All layers learn; a classifier takes the projection's place. The labels are a share of the split's, the same
/// number for each class; which these are is written to the run's labels.parquet. Defaults are the paper's: 70
/// epochs, learning rate 0.01, a tenth of it after 30 and 60; split, architecture, side and augmentations are those of
/// the checkpoint's run. Running the same command again goes on from the
/// newest checkpoint; SIGTERM, SIGUSR1 and Ctrl-C save one and end with exit code 75.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  instdisc finetune --checkpoint runs/r50/checkpoints/step-01001000 --dataset data/in1k \\\n    --run runs/r50-labels-0.1 --label-fraction 0.1"
)]
pub(super) struct FinetuneArgs {
    /// The checkpoint whose encoder it begins with: its folder, or that of a run for its newest
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// The dataset's folder
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// The folder of this run: configuration, metrics, checkpoints
    #[arg(long, value_name = "URL")]
    run: String,
    /// The share of the labels, the same number for each class
    #[arg(long, value_name = "SHARE", default_value = "0.01")]
    label_fraction: Fraction,
    /// The seed by which labels are chosen
    #[arg(long, value_name = "N", default_value_t = 0)]
    label_seed: u64,
    /// Begin with random weights instead: what the labels teach by themselves
    #[arg(long)]
    from_scratch: bool,
    /// The split that is trained on [default: that of the checkpoint's run]
    #[arg(long, value_name = "NAME")]
    train_split: Option<String>,
    /// The split on which the classifier is evaluated, after each epoch and at the end [default: the first of val,
    /// valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    #[command(flatten)]
    options: OptionFlags<OfFinetuning>,
}

/// The options that have a meaning without a bank, with the paper's defaults.
#[derive(Debug)]
enum OfFinetuning {}

impl Offer for OfFinetuning {
    fn options() -> Vec<(&'static OptionSpec, Option<String>)> {
        let defaults = finetune_protocol(&TrainConfig::default()).values();
        // The recipe is that of the checkpoint's run.
        let default = |key| if key == "recipe" { None } else { shown(&defaults[key]) };
        let options = TrainConfig::OPTIONS.iter().filter(|option| option.finetune);
        options.map(|option| (option, default(option.key))).collect()
    }
}

pub(super) fn run(global: &GlobalArgs, args: &FinetuneArgs) -> anyhow::Result<()> {
    static STOP: StopFlag = StopFlag::new(false);
    let (dataset, run) = (global.location(&args.dataset)?, global.folder("--run", &args.run)?);
    let from = global.checkpoint(&args.checkpoint)?;
    let mut of_run = Checkpoint::open(&from)?.run_config()?;
    if let Some(split) = &args.train_split {
        of_run.split.clone_from(split);
    }
    let config = Given::new(None, &args.options.given).over(&finetune_protocol(&of_run))?;
    let manifest = Manifest::read(&dataset)?;
    let split = manifest.evaluation_split(&dataset, &config.split, args.split.as_deref())?;
    if split == config.split {
        let reason = format!(
            "split `{split}` is trained on and evaluated; another --split or --train-split tells more"
        );
        return Err(WrongUsage(reason).into());
    }
    let evaluated = config.source(&dataset, &manifest, &split, None)?;
    let train = TrainJob {
        dataset,
        run: run.clone(),
        init: None,
        config,
        rendezvous: Rendezvous::alone(),
        collective_timeout: Duration::ZERO,
        on_lost: drop,
    };
    let labels = LabelOptions {
        fraction: args.label_fraction,
        seed: args.label_seed,
        from_scratch: args.from_scratch,
    };
    let job = FinetuneJob { train, from, labels };
    signals::stop_on_signals(&STOP)?;
    let mut hooks = Shown { job: &job, evaluated: Arc::clone(&evaluated), meter: None };
    let outcome = finetune(&job, &mut hooks, &STOP);
    hooks.meter = None;
    let step = match outcome? {
        Outcome::AlreadyFinished { step } => {
            say(&format!("{run}: finished already, {step} steps"));
            step
        }
        Outcome::Finished { step, .. } => step,
    };
    let report = evaluate(&run, step, &split, &job, evaluated)?;
    let mut result = json!({"run": args.run, "finished": true, "step": step});
    if let (Some(result), Value::Object(report)) = (result.as_object_mut(), report) {
        result.extend(report);
    }
    write_json(&result)
}

/// The report of the last checkpoint, which is made and published where there is none.
fn evaluate(
    run: &Location,
    step: u64,
    split: &str,
    job: &FinetuneJob,
    evaluated: Arc<dyn Source>,
) -> anyhow::Result<Value> {
    let place = run.join(&format!("eval/classifier-{split}-step-{step:08}.json"));
    if place.exists()? {
        return serde_json::from_slice(&place.read()?).with_context(|| place.to_string());
    }
    let checkpoint = Checkpoint::open(&run.join("checkpoints").join(&checkpoint_name(step)))?;
    let encoder = load_encoder(&checkpoint, select_device(job.train.config.device)?.device)?;
    let report =
        classify(&encoder, evaluated, BATCH_SIZE, job.train.config.loader_threads, &Terminal::default())?;
    let mut report = serde_json::to_value(report)?;
    report["split"] = json!(split);
    report["labels"] = checkpoint.state()?.config["finetune"].clone();
    place.publish(serde_json::to_string_pretty(&report)? + "\n", PublishMode::Overwrite)?;
    say(&format!("report {place}"));
    Ok(report)
}

/// Shows a run in the terminal and evaluates the classifier after each epoch.
struct Shown<'a> {
    job: &'a FinetuneJob,
    evaluated: Arc<dyn Source>,
    meter: Option<Meter>,
}

impl Hooks for Shown<'_> {
    fn started(&mut self, summary: &RunSummary) {
        tracing::info!("device {}", summary.device);
        let resumed = match summary.resumed_step {
            0 => String::new(),
            step => format!(", going on after step {step}"),
        };
        tracing::info!(
            "{} labels, {} steps of {} images{resumed}",
            summary.instances,
            summary.total_steps,
            self.job.train.config.batch_size
        );
        self.meter = Some(Meter::new("finetune", summary.total_steps, summary.resumed_step));
    }

    fn stepped(&mut self, report: &StepReport) {
        if let Some(meter) = &mut self.meter {
            let epochs = self.job.train.config.epochs;
            let message = format!(
                "epoch {}/{epochs} loss {:.4} lr {} {:.0} images/s",
                report.epoch + 1,
                report.loss,
                report.lr,
                report.images_per_second
            );
            meter.advance(1, &message);
        }
    }

    fn evaluate(&mut self, state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        let threads = self.job.train.config.loader_threads;
        let ClassifierReport { top1, top5, .. } =
            classify(state.encoder, Arc::clone(&self.evaluated), BATCH_SIZE, threads, &Quiet)?;
        Ok(Map::from_iter([("top1".to_owned(), json!(top1)), ("top5".to_owned(), json!(top5))]))
    }

    fn measured(&mut self, line: &MetricsLine) {
        if line.scope == Scope::Epoch {
            let top1 = line.monitor.get("top1").and_then(Value::as_f64);
            let top1 = top1.map_or_else(String::new, |top1| format!(" top-1 {:.2} %", 100.0 * top1));
            say(&format!("epoch {} loss {:.4}{top1}", line.epoch + 1, line.loss));
        }
    }
}
