//! Callbacks of a run, and the reports passed to them.

use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use super::{MetricsLine, Probe};
use crate::bank::MemoryBank;
use crate::distributed::ProcessGroup;
use crate::model::Encoder;
use crate::progress::{Progress, Quiet};

/// Summary of a run, reported once it is set up.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// Device of this process, with the reason for the choice.
    pub device: String,
    /// Number of processes.
    pub ranks: usize,
    /// Number of instances, which is also that of bank rows.
    pub instances: usize,
    /// Trainable parameters of the encoder.
    pub parameters: usize,
    /// Steps done by earlier calls.
    pub resumed_step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Loss of uninformative features, in nats; `None` for fine-tuning.
    pub chance_loss: Option<f64>,
    /// Top-1 of the untrained encoder on the monitored images, if measured.
    pub untrained_top1: Option<f64>,
}

/// Progress of a run after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done.
    pub step: u64,
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Loss of the step's batch, in nats.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Training images per second in this epoch.
    pub images_per_second: f64,
    /// Fraction of this epoch's time that the trainer waited for data.
    pub data_wait: f64,
}

/// State passed to an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation<'a> {
    /// Encoder to evaluate.
    pub encoder: &'a Encoder,
    /// Memory bank with this process's rows; `None` for fine-tuning.
    pub bank: Option<&'a MemoryBank>,
    /// Online linear probe, if enabled.
    pub probe: Option<&'a Probe>,
    /// Processes of the run.
    pub group: &'a ProcessGroup,
    /// Steps done.
    pub step: u64,
    /// Set when the run should stop; the evaluation then ends early, with an error.
    pub stop: &'a StopFlag,
}

/// Callbacks of a run.
pub trait Hooks {
    /// Called once, after the run is set up.
    fn started(&mut self, _summary: &RunSummary) {}

    /// Called after each step.
    fn stepped(&mut self, _report: &StepReport) {}

    /// Evaluates encoder and bank, before the first step and after epochs; the returned numbers go into the metrics.
    /// Called in every process, each of which has some bank rows. All processes must make the same collectives.
    ///
    /// # Errors
    /// If the evaluation fails; the run continues without its numbers.
    fn evaluate(&mut self, _state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        Ok(Map::new())
    }

    /// Called with each line of the metrics: after `--log-every-steps` steps and after each epoch.
    fn measured(&mut self, _line: &MetricsLine) {}

    /// Returns the progress display for the work before the first step.
    fn progress(&self) -> &dyn Progress {
        &Quiet
    }
}

/// Error of a hook.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// Flag that asks a run to finish the current step, save a checkpoint and stop.
pub type StopFlag = AtomicBool;
