//! What a run moves, as the loop of its steps and its checkpoints see it.

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

/// The state of a training or of a fine-tuning.
pub(super) trait Learner {
    /// What every run has.
    fn learned(&self) -> Learned<'_>;

    /// Trains on one batch, and moves the cursor. It may be the next step that gives back what this one
    /// measured, and what any process asked with it; `here`: what this one asks.
    ///
    /// # Errors
    /// If a quantity is not finite and that is not to be skipped, or a collective fails.
    fn step(&mut self, batch: &Batch, here: Requests) -> Result<Option<StepOutcome>, TrainError>;

    /// Waits for the last step, before anything of it is saved or evaluated; what it measured, if it is not given back
    /// yet.
    ///
    /// # Errors
    /// If a quantity is not finite.
    fn finish(&mut self) -> Result<Option<StepOutcome>, TrainError> {
        Ok(None)
    }

    /// Adds to state.json what not every run has.
    fn complete(&self, state: &mut TrainState);

    /// Its bank.
    fn bank(&self) -> Option<&MemoryBank> {
        None
    }

    /// What learns beside its encoder.
    fn probe(&self) -> Option<&Probe> {
        None
    }

    /// The loss of features that tell nothing, in nats; nothing where there is no bank.
    fn chance_loss(&self) -> Option<f64> {
        None
    }

    /// Statistics of its bank.
    fn bank_health(&self) -> Result<Option<BankHealth>, TrainError> {
        Ok(None)
    }
}

/// What every run has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned<'a> {
    pub config: &'a TrainConfig,
    pub encoder: &'a Encoder,
    pub optimizer: &'a Optimizer,
    pub cursor: Cursor,
}

/// What a step measured.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepOutcome {
    /// Steps done with it.
    pub step: u64,
    /// Images of its global batch.
    pub images: usize,
    pub loss: f64,
    /// Before clipping.
    pub gradient_norm: f64,
    pub lr: f64,
    /// The mean cosine of an updated row before and after.
    pub row_cosine: f64,
    /// The mean of `‖f - v‖²` over the batch.
    pub alignment: f64,
    /// ln Z as the step assumed it, for `nce`.
    pub ln_partition: Option<f64>,
    /// What the probe measured, where there is one.
    pub probe: Option<ProbeSums>,
    /// Nothing moved.
    pub skipped: bool,
    /// What any process asked with it.
    pub asked: Requests,
}

/// Sums over the images of steps, before the probe saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProbeSums {
    /// Nats.
    pub loss: f64,
    /// Images whose class had the highest score.
    pub hits: f64,
    /// Images with a label.
    pub images: f64,
    /// The time that the host spent on it.
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

/// Moves the cursor past a step; the steps done.
pub(super) fn advance(steps_per_epoch: u64, cursor: &mut Cursor) -> u64 {
    cursor.step += 1;
    cursor.step_in_epoch += 1;
    if cursor.step_in_epoch == steps_per_epoch {
        (cursor.epoch, cursor.step_in_epoch) = (cursor.epoch + 1, 0);
    }
    cursor.step
}
