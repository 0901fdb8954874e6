//! What a run moves, as the loop of its steps and its checkpoints see it.

use super::TrainError;
use super::gather::Requests;
use super::optim::Optimizer;
use super::state::Trainer;
use super::step::StepOutcome;
use crate::bank::MemoryBank;
use crate::checkpoint::{Cursor, TrainState};
use crate::loader::Batch;
use crate::model::Encoder;
use crate::run_config::TrainConfig;
use crate::train::metrics::bank_health::BankHealth;

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

    /// The loss of features that tell nothing, in nats; nothing where there is no bank.
    fn chance_loss(&self) -> Option<f64> {
        None
    }

    /// How its bank is.
    ///
    /// # Errors
    /// If a collective fails.
    fn bank_health(&self) -> Result<Option<BankHealth>, TrainError> {
        Ok(None)
    }
}

/// What every run has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned<'a> {
    pub(super) config: &'a TrainConfig,
    pub(super) encoder: &'a Encoder,
    pub(super) optimizer: &'a Optimizer,
    pub(super) cursor: Cursor,
}

impl Learner for Trainer {
    fn learned(&self) -> Learned<'_> {
        let Self { config, encoder, optimizer, cursor, .. } = self;
        Learned { config, encoder, optimizer, cursor: *cursor }
    }

    fn step(&mut self, batch: &Batch, here: Requests) -> Result<Option<StepOutcome>, TrainError> {
        Self::step(self, batch, here)
    }

    fn finish(&mut self) -> Result<Option<StepOutcome>, TrainError> {
        Self::finish(self)
    }

    fn complete(&self, state: &mut TrainState) {
        state.ln_partition = self.objective.log_z().ln_z();
        state.skipped_steps = self.skipped;
        state.loss_scale = serde_json::to_value(self.loss_scale).expect("it is plain data");
    }

    fn bank(&self) -> Option<&MemoryBank> {
        Some(&self.bank)
    }

    fn chance_loss(&self) -> Option<f64> {
        Some(self.objective.chance_loss(self.bank.instances()))
    }

    fn bank_health(&self) -> Result<Option<BankHealth>, TrainError> {
        let health = BankHealth::of(self)?;
        let drift = health.drift(self.objective.log_z().ln_z(), &self.warned_drift);
        if let Some(warning) = drift.filter(|_| self.group.is_first()) {
            tracing::warn!("{warning}");
        }
        Ok(Some(health))
    }
}
