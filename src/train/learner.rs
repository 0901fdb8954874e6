//! State that a run trains, as its loop and its checkpoints see it.

use std::time::Duration;

use super::TrainError;
use super::gather::Requests;
use super::metrics::bank_health::BankHealth;
use super::optim::Optimizer;
use super::probe::Probe;
use crate::bank::MemoryBank;
use crate::checkpoint::{Cursor, TrainState};
use crate::loader::Batch;
use crate::model::Encoder;
use crate::run_config::TrainConfig;

/// State of a training or fine-tuning run.
pub(super) trait Learner {
    /// Returns the state that every run has.
    fn learned(&self) -> Learned<'_>;

    /// Trains on one batch, and advances the cursor. May return the measurements and the ranks' requests of
    /// the previous step instead of this one's. `here`: requests of this rank.
    ///
    /// # Errors
    /// If a quantity is not finite and may not be skipped, or a collective fails.
    fn step(&mut self, batch: &Batch, here: Requests) -> Result<Option<StepOutcome>, TrainError>;

    /// Waits for the last step, before its state is saved or evaluated. Returns its measurements unless
    /// already returned.
    ///
    /// # Errors
    /// If a quantity is not finite.
    fn finish(&mut self) -> Result<Option<StepOutcome>, TrainError> {
        Ok(None)
    }

    /// Adds the state that only some runs have to state.json.
    fn complete(&self, state: &mut TrainState);

    /// Returns the memory bank, if the run has one.
    fn bank(&self) -> Option<&MemoryBank> {
        None
    }

    /// Returns the online probe, if enabled.
    fn probe(&self) -> Option<&Probe> {
        None
    }

    /// Returns the loss of uninformative features, in nats; `None` without a bank.
    fn chance_loss(&self) -> Option<f64> {
        None
    }

    /// Returns statistics of the memory bank.
    fn bank_health(&self) -> Result<Option<BankHealth>, TrainError> {
        Ok(None)
    }
}

/// State that every run has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned<'a> {
    pub config: &'a TrainConfig,
    pub encoder: &'a Encoder,
    pub optimizer: &'a Optimizer,
    pub cursor: Cursor,
}

/// Measurements of one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepOutcome {
    /// Steps done, including this one.
    pub step: u64,
    /// Images of the global batch.
    pub images: usize,
    pub loss: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    pub lr: f64,
    /// Mean cosine between updated rows before and after.
    pub row_cosine: f64,
    /// Mean of `‖f - v‖²` over the batch.
    pub alignment: f64,
    /// ln Z that the step assumed, for `nce`.
    pub ln_partition: Option<f64>,
    /// Measurements of the probe, if enabled.
    pub probe: Option<ProbeSums>,
    /// Whether the step changed nothing.
    pub skipped: bool,
    /// Requests of all ranks.
    pub asked: Requests,
}

/// Sums over the images of steps, measured before the probe learns from them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProbeSums {
    /// Loss in nats.
    pub loss: f64,
    /// Images whose own class had the highest score.
    pub hits: f64,
    /// Images with a label.
    pub images: f64,
    /// Time that the host spent on the probe.
    pub time: Duration,
}

impl ProbeSums {
    pub(super) fn add(&mut self, more: Self) {
        self.loss += more.loss;
        self.hits += more.hits;
        self.images += more.images;
        self.time += more.time;
    }
}

/// Advances the cursor by one step. Returns the number of steps done.
pub(super) fn advance(steps_per_epoch: u64, cursor: &mut Cursor) -> u64 {
    cursor.step += 1;
    cursor.step_in_epoch += 1;
    if cursor.step_in_epoch == steps_per_epoch {
        (cursor.epoch, cursor.step_in_epoch) = (cursor.epoch + 1, 0);
    }
    cursor.step
}
