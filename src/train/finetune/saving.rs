//! The state of a fine-tuning, to a checkpoint and back. Its folder has no bank.

use serde_json::json;

use super::tuner::Tuner;
use crate::checkpoint::{Checkpoint, TrainState};
use crate::loader::Batch;
use crate::run_config::Difference;
use crate::train::checkpoint::restore::{compatible_state, load_learned};
use crate::train::checkpoint::snapshot::DataIdentity;
use crate::train::error::TrainError;
use crate::train::gather::Requests;
use crate::train::learner::{Learned, Learner};
use crate::train::step::StepOutcome;

/// The key of `config` in state.json under which the labels stand.
const LABELS: &str = "finetune";

impl Learner for Tuner {
    fn learned(&self) -> Learned<'_> {
        let Self { config, encoder, optimizer, cursor, .. } = self;
        Learned { config, encoder, optimizer, cursor: *cursor }
    }

    fn step(&mut self, batch: &Batch, _here: Requests) -> Result<Option<StepOutcome>, TrainError> {
        Self::step(self, batch).map(Some)
    }

    fn complete(&self, state: &mut TrainState) {
        state.config[LABELS] = json!(self.labels);
    }
}

impl Tuner {
    /// Puts the state of a checkpoint in place.
    ///
    /// # Errors
    /// If the checkpoint is of other data, labels or configuration, or damaged.
    pub(super) fn restore(&mut self, from: &Checkpoint, data: &DataIdentity) -> Result<(), TrainError> {
        let labels = json!(self.labels);
        let state = compatible_state(from, &self.config, data, |state| {
            let before = &state.config[LABELS];
            let difference = || (before.to_string(), labels.to_string());
            let (before, now) = (*before != labels).then(difference)?;
            Some(Difference { key: LABELS.into(), before, now })
        })?;
        load_learned(from, &state, &mut self.encoder, &mut self.optimizer)?;
        self.cursor = state.cursor;
        Ok(())
    }
}
