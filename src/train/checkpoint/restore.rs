//! A run's state from a checkpoint.

use std::ops::Range;

use crate::bank::{MemoryBank, StoredRows};
use crate::checkpoint::{
    BANK, Checkpoint, CheckpointError, MODEL, OPTIMIZER, STATE, TrainState, list_checkpoints,
    remove_checkpoint,
};
use crate::feature_table::{StoredTable, Table};
use crate::model::{Encoder, NamedTensors};
use crate::objective::{LogZ, Objective};
use crate::storage::Location;

use super::snapshot::DataIdentity;
use crate::run_config::{Difference, TrainConfig};
use crate::train::TrainError;
use crate::train::optim::Optimizer;
use crate::train::soundness;
use crate::train::state::Trainer;

/// Rows of a bank that are read at a time: 32 MiB at 128 numbers a row.
const ROWS_OF_A_READ: usize = 1 << 16;

impl Trainer {
    /// Puts the state of a checkpoint in place.
    ///
    /// # Errors
    /// If the checkpoint is of another dataset or configuration, or damaged.
    pub(in crate::train) fn restore(
        &mut self,
        from: &Checkpoint,
        data: &DataIdentity,
    ) -> Result<(), TrainError> {
        let state = compatible_state(from, &self.config, data, |_| None)?;
        load_learned(from, &state, &mut self.encoder, &mut self.optimizer)?;
        let damaged = |name| CheckpointError::Damaged { file: from.folder().join(name).to_string() };
        let table = StoredTable::open_all(&from.bank()?)?;
        if table.ids() != data.ids {
            return Err(damaged(BANK).into());
        }
        let owned = self.bank.range();
        let rows = read_rows(&table, &owned)?;
        let updated_step = table.updated_steps()[owned.clone()].to_vec();
        let (first_row, instances) = (owned.start, data.ids.len());
        let stored = StoredRows { rows: &rows, updated_step, first_row, instances };
        let bank = MemoryBank::from_stored(stored, table.meta().dim, self.encoder.device());
        self.bank = bank.with_dtype(self.config.bank_dtype);
        let partition = state.ln_partition.map_or(LogZ::Unset, |ln_z| LogZ::Set { ln_z });
        self.objective = Objective::new(self.config.objective(), partition);
        self.loss_scale = serde_json::from_value(state.loss_scale).map_err(|_| damaged(STATE))?;
        self.skipped = state.skipped_steps;
        self.cursor = state.cursor;
        Ok(())
    }
}

/// The state of a checkpoint from which a run can go on; `other` tells what else differs.
///
/// # Errors
/// If it is of another dataset or configuration, or damaged.
pub(in crate::train) fn compatible_state(
    from: &Checkpoint,
    config: &TrainConfig,
    data: &DataIdentity,
    other: impl FnOnce(&TrainState) -> Option<Difference>,
) -> Result<TrainState, TrainError> {
    let (before, now) = (&from.manifest().trained_on, &data.trained_on);
    let checkpoint = from.folder().to_string();
    if before.split_digest != now.split_digest {
        let (before, now) = (before.dataset_digest.clone(), now.dataset_digest.clone());
        return Err(TrainError::OtherDataset { checkpoint, before, now });
    }
    let state = from.state()?;
    let mut differences = config.incompatibilities(&state.config);
    differences.extend(other(&state));
    if state.layout != data.layout {
        let shown = |layout: &Option<String>| layout.clone().unwrap_or_else(|| "any".into());
        let key = "row groups of the dataset, on which a windowed order depends".into();
        differences.push(Difference { key, before: shown(&state.layout), now: shown(&data.layout) });
    }
    if !differences.is_empty() {
        return Err(TrainError::OtherConfig { checkpoint, differences });
    }
    Ok(state)
}

/// Puts the weights and the optimiser's buffers in place.
///
/// # Errors
/// If the checkpoint is damaged.
pub(in crate::train) fn load_learned(
    from: &Checkpoint,
    state: &TrainState,
    encoder: &mut Encoder,
    optimizer: &mut Optimizer,
) -> Result<(), TrainError> {
    encoder.load(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
    let steps = state.optimizer_steps.unwrap_or(state.cursor.step);
    Ok(optimizer.load(&NamedTensors::from_bytes(&from.read(OPTIMIZER)?)?, steps)?)
}

/// Some rows of a table, row after row, without the others.
fn read_rows(table: &StoredTable, rows: &Range<usize>) -> Result<Vec<f32>, TrainError> {
    let mut values = Vec::with_capacity(rows.len() * table.meta().dim);
    for range in table.ranges(ROWS_OF_A_READ) {
        let wanted = range.start.max(rows.start)..range.end.min(rows.end);
        if !wanted.is_empty() {
            values.extend_from_slice(&table.start_read(range).finish()?.rows(wanted)?);
        }
    }
    Ok(values)
}

/// The newest checkpoint that is whole and whose numbers are finite. Newer ones are reported and removed: they would count as
/// newer than what the run saves next. Only for who alone writes to the run.
///
/// # Errors
/// If none is whole, one is of a version that this program does not know, or the store fails.
pub(in crate::train) fn newest(run: &Location) -> Result<Option<Checkpoint>, TrainError> {
    let mut damaged = Vec::new();
    for (_, folder) in list_checkpoints(run)?.into_iter().rev() {
        let whole = |checkpoint: Checkpoint| {
            checkpoint.verify()?;
            soundness::check(&checkpoint).map(|()| checkpoint)
        };
        match Checkpoint::open(&folder).and_then(whole) {
            Ok(checkpoint) => {
                for (folder, error) in damaged {
                    tracing::warn!("{error}; it is removed, the checkpoint before it is used");
                    remove_checkpoint(&folder)?;
                }
                return Ok(Some(checkpoint));
            }
            Err(error @ (CheckpointError::Storage(_) | CheckpointError::Version { .. })) => {
                return Err(error.into());
            }
            Err(error) => damaged.push((folder, error)),
        }
    }
    // With all checkpoints lost, to begin anew in the same place is not for the program to decide.
    damaged.into_iter().next().map_or(Ok(None), |(_, error)| Err(error.into()))
}
