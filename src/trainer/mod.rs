//! The training job.
//!
//! [`train`] reads a dataset, moves encoder and memory bank step by step, and publishes checkpoints from
//! which the same command goes on. Everything that changes state is a visible call in `Trainer::step`.
//! The trainer does not know how its progress is shown or how the bank is evaluated: hooks do that.
//!
//! Invariant: after a resume, weights and bank are bit for bit those of an uninterrupted run (on the CPU,
//! with the same number of threads).

mod bench;
mod checkpoint;
mod clock;
mod config;
mod data;
mod divergence;
mod encode;
mod error;
mod estimate;
mod finetune;
mod gather;
mod learner;
mod metrics;
mod opening;
mod optim;
mod session;
mod soundness;
mod state;
mod step;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::{Map, Value};

pub use bench::StepBench;
pub use config::{
    Difference, FEWEST_MONITORED, Images, InvalidConfig, LrSchedule, OnNonFinite, OptimizerKind, Precision,
    RecipeKind, TrainConfig,
};
pub use data::ShuffleKind;
pub use error::{PartError, TrainError};
pub use estimate::Estimate;
pub use finetune::{FinetuneJob, LabelOptions, finetune, finetune_protocol};
pub use metrics::bank_health::BankHealth;
pub use metrics::log::{MetricsLine, Scope};
pub use opening::train;
pub use session::Outcome;

use crate::bank::MemoryBank;
use crate::distributed::{DistributedError, ProcessGroup, Rendezvous};
use crate::model::Encoder;
use crate::progress::{Progress, Quiet};
use crate::storage::Location;

/// What to train on, where to, and how.
#[derive(Clone, Debug)]
pub struct TrainJob {
    /// The dataset's folder.
    pub dataset: Location,
    /// The run's folder.
    pub run: Location,
    /// The file of weights to begin with, where the configuration names one.
    pub init: Option<Location>,
    /// The configuration.
    pub config: TrainConfig,
    /// Which of the run's processes this is.
    pub rendezvous: Rendezvous,
    /// After so long without an answer another process counts as lost.
    pub collective_timeout: Duration,
    /// Called on a thread of its own where others were lost and this process is blocked where no error reaches it;
    /// what it can do is end the process.
    pub on_lost: fn(DistributedError),
}

/// What a run is, once it has been set up.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// Where it computes, and why there.
    pub device: String,
    /// The processes of the run.
    pub ranks: usize,
    /// The number of instances, and of rows in the bank.
    pub instances: usize,
    /// Trainable numbers in the encoder.
    pub parameters: usize,
    /// Steps done before, by an earlier call.
    pub resumed_step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The loss of features that tell nothing, in nats; nothing in a fine-tuning.
    pub chance_loss: Option<f64>,
    /// The score of the untrained encoder among the monitor's images, where the run has measured it.
    pub untrained_top1: Option<f64>,
}

/// How a run stands after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The loss of the step's batch, in nats.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// Images trained on, per second, in this epoch.
    pub images_per_second: f64,
    /// The share of the time in which the trainer waited for data, in this epoch.
    pub data_wait: f64,
}

/// What is evaluated after an epoch.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation<'a> {
    /// The encoder.
    pub encoder: &'a Encoder,
    /// The rows of the bank that are here; a fine-tuning has none.
    pub bank: Option<&'a MemoryBank>,
    /// The processes of the run.
    pub group: &'a ProcessGroup,
    /// Steps done.
    pub step: u64,
    /// Set where the run is to stop: an evaluation then ends early, with an error.
    pub stop: &'a StopFlag,
}

/// What others do while a run goes on.
pub trait Hooks {
    /// Called once, when the run is set up.
    fn started(&mut self, _summary: &RunSummary) {}

    /// Called after each step.
    fn stepped(&mut self, _report: &StepReport) {}

    /// Evaluates the encoder and its bank before the first step and after an epoch; what it returns goes into the metrics. Called in every
    /// process of a run, each of which has some rows of the bank; all must make the same collectives.
    ///
    /// # Errors
    /// Whatever keeps it from evaluating; the run goes on without.
    fn evaluate(&mut self, _state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        Ok(Map::new())
    }

    /// Called with each line of the metrics: every so many steps, and after each epoch.
    fn measured(&mut self, _line: &MetricsLine) {}

    /// Shows what is done before the first step.
    fn progress(&self) -> &dyn Progress {
        &Quiet
    }
}

/// Any error of a hook.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// A flag that asks a run to save a checkpoint and stop after the step under way.
pub type StopFlag = AtomicBool;
