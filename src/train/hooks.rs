//! What a run tells others while it goes on.

use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use super::{MetricsLine, Probe};
use crate::bank::MemoryBank;
use crate::distributed::ProcessGroup;
use crate::model::Encoder;
use crate::progress::{Progress, Quiet};

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

/// The state of a run after a step.
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
    /// What learns beside the encoder.
    pub probe: Option<&'a Probe>,
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

    /// Evaluates the encoder and its bank before the first step and after an epoch; what it returns goes into the
    /// metrics. Called in every process of a run, each of which has some rows of the bank; all must make the same
    /// collectives.
    ///
    /// # Errors
    /// Why it cannot evaluate; the run continues without.
    fn evaluate(&mut self, _state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        Ok(Map::new())
    }

    /// Called with each line of the metrics: every `--log-every-steps`, and after each epoch.
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
