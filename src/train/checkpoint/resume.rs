//! Starts a new run or resumes one: the lock, the newest checkpoint, and the values that all processes must agree on.

use std::ops::Range;

use super::{DataIdentity, soundness};
use crate::bank::MemoryBank;
use crate::checkpoint::{
    BANK, Checkpoint, MODEL, OPTIMIZER, TrainState, TrainedOn, checkpoint_name, list_unpublished,
    newest_that, remove_checkpoint,
};
use crate::distributed::ProcessGroup;
use crate::failure::{Failure, chain};
use crate::feature_table::{StoredTable, Table};
use crate::model::{Encoder, NamedTensors};
use crate::run_config::{Difference, TrainConfig};
use crate::storage::{Location, Lock};
use crate::train::TrainError;
use crate::train::optim::Optimizer;

/// Key of the store under which rank 0 publishes the step to resume from.
const FOUND: &str = "found";

/// Bank rows per read: 32 MiB at 128 numbers a row.
const ROWS_OF_A_READ: usize = 1 << 16;

/// State of the run's folder at the start of a call.
#[derive(Debug)]
pub(crate) struct Start {
    /// Lock of the run; rank 0 only.
    pub lock: Option<Lock>,
    /// Checkpoint to resume from.
    pub found: Option<Checkpoint>,
}

impl Start {
    /// Looks for a checkpoint. Rank 0 locks the run, finds the newest complete checkpoint and removes
    /// incomplete ones; the other ranks open the one that rank 0 names.
    ///
    /// # Errors
    /// If another job has the lock, no checkpoint is whole, or the store fails.
    pub(crate) fn of(group: &ProcessGroup, run: &Location) -> Result<Self, TrainError> {
        if group.is_first() {
            let here = Self::alone(run);
            let word = match &here {
                Ok(start) => Ok(start.found.as_ref().map(|found| found.manifest().step)),
                Err(error) => Err((chain(error), error.failure())),
            };
            // Not a collective, which would time out while rank 0 reads a large checkpoint.
            group.store().set(FOUND, &serde_json::to_vec(&word).expect("a word is plain data"))?;
            return here;
        }
        let said = group.store().wait_for(FOUND)?;
        let word = serde_json::from_slice::<Result<Option<u64>, (String, Failure)>>(&said);
        let other_rank = |(reason, failure)| TrainError::OtherRank { rank: 0, reason, failure };
        let word = word.map_err(|error| other_rank((error.to_string(), Failure::Other)))?;
        let open = |step| Checkpoint::open(&run.join("checkpoints").join(&checkpoint_name(step)));
        Ok(Self { lock: None, found: word.map_err(other_rank)?.map(open).transpose()? })
    }

    fn alone(run: &Location) -> Result<Self, TrainError> {
        let lock = Lock::take(&run.join("lock"))?;
        let found = newest(run)?;
        remove_unpublished(run)?;
        Ok(Self { lock: Some(lock), found })
    }
}

/// Checks that all processes run the same program, dataset, kind of device and options.
///
/// # Errors
/// If one differs, with the rank.
pub(crate) fn agree(
    group: &ProcessGroup,
    config: &TrainConfig,
    trained_on: &TrainedOn,
    device: tch::Device,
) -> Result<(), TrainError> {
    if group.world() == 1 {
        return Ok(());
    }
    group.agree("the program", &program())?;
    group.agree("the dataset's digest", &trained_on.dataset_digest)?;
    group.agree("the kind of device", if device.is_cuda() { "cuda" } else { "cpu" })?;
    for (key, value) in config.of_all_ranks() {
        group.agree(&format!("the option {key}"), &value.to_string())?;
    }
    Ok(())
}

/// Returns the program's version, and the digest of its executable if that can be read.
fn program() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let digest = std::env::current_exe().and_then(std::fs::File::open).and_then(|file| {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map(|hasher| hasher.finalize().to_hex())
    });
    digest.map_or_else(|_| version.to_owned(), |digest| format!("{version} ({})", &digest[..16]))
}

/// Returns the state of a checkpoint that this run may resume; `other` returns further differences.
///
/// # Errors
/// If the checkpoint has another dataset or configuration, or is damaged.
pub(crate) fn compatible_state(
    from: &Checkpoint,
    config: &TrainConfig,
    data: &DataIdentity,
    other: impl FnOnce(&TrainState) -> Option<Difference>,
) -> Result<TrainState, TrainError> {
    let (before, now) = (&from.manifest().trained_on, &data.trained_on);
    let checkpoint = from.folder().to_string();
    let state = from.state()?;
    let mut differences = config.incompatibilities(&state.config);
    // With the same dataset, another split counts as an option that differs.
    let is_other_split = before.dataset_digest == now.dataset_digest && !differences.is_empty();
    if before.split_digest != now.split_digest && !is_other_split {
        let (before, now) = (before.dataset_digest.clone(), now.dataset_digest.clone());
        let dataset = data.dataset.clone();
        return Err(TrainError::OtherDataset { checkpoint, before, dataset, now });
    }
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

/// Loads the weights and the optimiser's buffers.
pub(crate) fn load_learned(
    from: &Checkpoint,
    state: &TrainState,
    encoder: &mut Encoder,
    optimizer: &mut Optimizer,
) -> Result<(), TrainError> {
    encoder.load(&NamedTensors::from_bytes(&from.read(MODEL)?)?)?;
    let steps = state.optimizer_steps.unwrap_or(state.cursor.step);
    Ok(optimizer.load(&NamedTensors::from_bytes(&from.read(OPTIMIZER)?)?, steps)?)
}

/// Loads the rows of a checkpoint's bank that this process owns.
///
/// # Errors
/// If the bank has other images, or cannot be read.
pub(crate) fn load_bank(
    from: &Checkpoint,
    data: &DataIdentity,
    owned: Range<usize>,
    device: tch::Device,
) -> Result<MemoryBank, TrainError> {
    let table = StoredTable::open_all(from.bank()?.into_iter().map(|file| (file, None)))?;
    if !(&table as &dyn Table).ids().eq(data.ids.iter().copied()) {
        return Err(from.damaged(BANK).into());
    }
    let dim = table.meta().dim;
    let mut rows = Vec::with_capacity(owned.len() * dim);
    let mut updated_step = Vec::with_capacity(owned.len());
    for range in table.ranges(ROWS_OF_A_READ) {
        let wanted = range.start.max(owned.start)..range.end.min(owned.end);
        if !wanted.is_empty() {
            // Reads the vectors while waiting for the steps.
            let vectors = table.start_read(range);
            updated_step.extend(table.updated_steps(wanted.clone())?);
            rows.extend_from_slice(&vectors.finish()?.rows(wanted)?);
        }
    }
    Ok(MemoryBank::from_rows(&rows, dim, updated_step, device).part_of(owned.start, data.ids.len()))
}

/// Returns the newest checkpoint that is complete and finite. Reports and removes newer ones, else they would
/// outrank the run's next checkpoint. Only for the process that writes to the run.
///
/// # Errors
/// If none is complete, one has a version that this program does not know, or the store fails.
pub(super) fn newest(run: &Location) -> Result<Option<Checkpoint>, TrainError> {
    // With all checkpoints lost, starting over in the same folder is the user's decision.
    let (found, damaged) = newest_that(run, |checkpoint| {
        checkpoint.verify()?;
        soundness::check(&checkpoint).map(|()| checkpoint)
    })?;
    for (folder, error) in damaged {
        tracing::warn!("{error}; it is removed, the checkpoint before it is used");
        remove_checkpoint(&folder)?;
    }
    Ok(found)
}

/// Removes files that killed writers left behind. Only the process that writes to the run may call this.
fn remove_unpublished(run: &Location) -> Result<(), TrainError> {
    for folder in list_unpublished(run)? {
        tracing::info!("{folder}: an unfinished checkpoint, removed");
        remove_checkpoint(&folder)?;
    }
    Ok(())
}
