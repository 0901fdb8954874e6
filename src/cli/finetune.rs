//! `instdisc finetune`.

use clap::Args;
use serde_json::{Map, Value, json};

use super::process::stop_on_signals;
use super::progress::{Meter, Terminal, say};
use super::ranks::{RankFlags, end_as_lost};
use super::train::{Offer, OptionFlags, step_line, steps_of};
use super::{GlobalArgs, write_json};
use crate::commands::{FinetuneRun, Finetuned, Finetuning};
use crate::run_config::{OptionSpec, TrainConfig, shown};
use crate::train::{
    Evaluation, HookError, Hooks, LabelOptions, MetricsLine, Outcome, RunSummary, Scope, StepReport,
    StopFlag, finetune_protocol,
};
use crate::units::Fraction;

/// Fine-tune a checkpoint's encoder on few labels, and evaluate the classifier.
///
/// All layers learn; a classifier replaces the projection. The labels are a fraction of the split's, with
/// equal counts for each class; the run's labels.parquet lists them. Defaults are the paper's: 70 epochs,
/// learning rate 0.01, a tenth of it after 30 and 60; split, architecture, side and augmentations are those
/// of the checkpoint's run. The same command resumes from the newest checkpoint, with the run's own values
/// for options that are not given. SIGTERM, SIGUSR1 and Ctrl-C save a checkpoint and end with exit code 75.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  instdisc finetune --checkpoint runs/r50/checkpoints/step-01001000 --dataset data/in1k \\
    --run runs/r50-labels-0.1 --label-fraction 0.1")]
pub(super) struct FinetuneArgs {
    /// Folder of the checkpoint with the initial encoder, or of a run for its newest
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// Folder of the dataset
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// Folder of this run: configuration, metrics, checkpoints
    #[arg(long, value_name = "URL")]
    run: String,
    /// Fraction of the labels, with equal counts for each class
    #[arg(long, value_name = "SHARE", default_value = "0.01", value_parser = super::label_fraction)]
    label_fraction: Fraction,
    /// Seed of the label selection
    #[arg(long, value_name = "N", default_value_t = 0)]
    label_seed: u64,
    /// Start from random weights, as a baseline of what the labels alone teach
    #[arg(long)]
    from_scratch: bool,
    /// Split to train on [default: that of the checkpoint's run]
    #[arg(long, value_name = "NAME")]
    train_split: Option<String>,
    /// Split that evaluates the classifier, after each epoch and at the end [default: the first of val,
    /// valid, validation, dev, test and testing]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    #[command(flatten)]
    options: OptionFlags<OfFinetuning>,
    #[command(flatten)]
    ranks: RankFlags,
}

/// Options that make sense without a bank, with the paper's defaults.
#[derive(Debug)]
enum OfFinetuning {}

impl Offer for OfFinetuning {
    fn options() -> Vec<(&'static OptionSpec, Option<String>)> {
        let defaults = finetune_protocol(&TrainConfig::default()).values();
        // The default recipe is that of the checkpoint's run.
        let default = |key| if key == "recipe" { None } else { shown(&defaults[key]) };
        let options = TrainConfig::OPTIONS.iter().filter(|option| option.finetune);
        options.map(|option| (option, default(option.key))).collect()
    }
}

pub(super) fn run(global: &GlobalArgs, args: &FinetuneArgs) -> anyhow::Result<()> {
    static STOP: StopFlag = StopFlag::new(false);
    let labels = LabelOptions {
        fraction: args.label_fraction,
        seed: args.label_seed,
        from_scratch: args.from_scratch,
    };
    let rendezvous = args.ranks.rendezvous()?;
    let is_first = rendezvous.rank() == 0;
    let terminal = Terminal::of_rank(is_first);
    let open = || {
        let of = FinetuneRun {
            checkpoint: global.checkpoint(&args.checkpoint)?,
            dataset: global.location(&args.dataset)?,
            run: global.folder("--run", &args.run)?,
            labels,
            train_split: args.train_split.clone(),
            split: args.split.clone(),
            rendezvous: rendezvous.clone(),
            collective_timeout: args.ranks.timeout(),
            on_lost: end_as_lost,
        };
        Ok(Finetuning::open(of, &args.options.given, &terminal)?)
    };
    stop_on_signals(&STOP)?;
    let finetuning = args.ranks.told(&rendezvous, &STOP, open())?;
    let mut hooks = Shown { finetuning: &finetuning, is_first, meter: None };
    let outcome = finetuning.train(&mut hooks, &STOP);
    hooks.meter = None;
    let outcome = outcome?;
    if !is_first {
        return Ok(());
    }
    let step = match outcome {
        Outcome::AlreadyFinished { step } => {
            say(&format!("{}: finished already, {step} steps; a larger --epochs goes on", args.run));
            step
        }
        Outcome::Finished { step, .. } => step,
    };
    let Finetuned { location, report, is_kept } = finetuning.report(step, &terminal)?;
    if !is_kept {
        say(&format!("report {location}"));
    }
    let mut result = json!({"run": args.run, "finished": true, "step": step});
    if let (Some(result), Value::Object(report)) = (result.as_object_mut(), report) {
        result.extend(report);
    }
    write_json(&result)
}

/// Terminal output of a run.
struct Shown<'a> {
    finetuning: &'a Finetuning,
    /// Whether this is rank 0, the only one that prints.
    is_first: bool,
    meter: Option<Meter>,
}

impl Hooks for Shown<'_> {
    fn started(&mut self, summary: &RunSummary) {
        if !self.is_first {
            return;
        }
        tracing::info!("{} labels, {}", summary.instances, steps_of(summary, self.finetuning.config()));
        self.meter = Some(Meter::new("finetune", summary.total_steps, summary.resumed_step));
    }

    fn stepped(&mut self, report: &StepReport) {
        if let Some(meter) = &mut self.meter {
            meter.advance(1, &step_line(report, self.finetuning.config()));
        }
    }

    fn evaluate(&mut self, state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        self.finetuning.evaluate(&state)
    }

    fn measured(&mut self, line: &MetricsLine) {
        if line.scope == Scope::Epoch && self.is_first {
            let top1 = line.monitor.get("top1").and_then(Value::as_f64);
            let top1 = top1.map_or_else(String::new, |top1| format!(" top-1 {:.2} %", 100.0 * top1));
            say(&format!("epoch {} loss {:.4}{top1}", line.epoch + 1, line.loss));
        }
    }
}
