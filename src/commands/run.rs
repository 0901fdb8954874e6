//! Dataset that a run is evaluated on, and the selection of its rows.

use super::CommandError;
use super::reports::{OfRun, REPORTS};
use crate::checkpoint::{Checkpoint, CheckpointError, TrainedOn};
use crate::dataset::{DatasetError, Manifest};
use crate::eval::{EmbedJob, RowChoice};
use crate::ingest::machine_memory;
use crate::run_config::DeviceChoice;
use crate::storage::Location;

/// Images per batch of embeddings; [`batch_size`](super::monitor::batch_size) is for scores during training.
pub(super) const BATCH_SIZE: usize = 256;
/// Digits of another dataset's digest in the name of its folder.
const DIGEST_DIGITS: usize = 12;
/// Assumed memory in bytes of a machine that does not report it.
const UNKNOWN_MACHINE: u64 = 4 << 30;

/// Dataset with its evaluated split.
#[derive(Clone, Debug)]
pub(super) struct RunDataset {
    pub(super) location: Location,
    pub(super) manifest: Manifest,
    /// Split to evaluate.
    pub(super) split: String,
}

/// Resources for embedding images.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Threads that decode; 0 for one per core.
    pub threads: usize,
    /// Device to compute on.
    pub device: DeviceChoice,
    /// Number of this process among those on this machine; each takes another CUDA device.
    pub local_rank: usize,
    /// Memory limit of this process in bytes; features beyond it wait in a temporary file.
    pub memory_limit: u64,
}

/// Returns the default memory limit in bytes of one of several processes: its share of half of the machine's memory.
pub fn usual_memory_limit(processes: usize) -> u64 {
    machine_memory().unwrap_or(UNKNOWN_MACHINE) / 2 / processes.max(1) as u64
}

impl RunDataset {
    /// Reads the manifest and chooses the evaluated split: `split`, or by default the first of
    /// [`EVALUATION_SPLITS`](crate::dataset::EVALUATION_SPLITS) that is not `trained_on`.
    ///
    /// # Errors
    /// If the dataset cannot be read or lacks such a split.
    pub(super) fn open(
        location: &Location,
        trained_on: &str,
        split: Option<&str>,
    ) -> Result<Self, DatasetError> {
        let manifest = Manifest::read(location)?;
        let split = manifest.evaluation_split(location, trained_on, split)?;
        Ok(Self { location: location.clone(), manifest, split })
    }

    /// Returns the digest of the whole dataset.
    pub(super) fn digest(&self) -> String {
        self.manifest.dataset_digest.to_string()
    }

    /// Returns the job that embeds rows of a split with a checkpoint's encoder.
    pub(super) fn embedding(
        &self,
        checkpoint: &Checkpoint,
        split: &str,
        rows: RowChoice,
        machine: Machine,
    ) -> EmbedJob {
        EmbedJob {
            checkpoint: checkpoint.clone(),
            dataset: self.location.clone(),
            manifest: self.manifest.clone(),
            split: split.to_owned(),
            rows,
            batch_size: BATCH_SIZE,
            threads: machine.threads,
            device: machine.device,
            local_rank: machine.local_rank,
            dtype: None,
            memory_limit: machine.memory_limit,
        }
    }

    /// Returns the rows of a split that vote or train: those the run was trained on, for its own split, else all.
    ///
    /// # Errors
    /// If the checkpoint's state cannot be read.
    pub(super) fn training_rows(
        &self,
        checkpoint: &Checkpoint,
        split: &str,
    ) -> Result<RowChoice, CheckpointError> {
        if is_own(checkpoint, &self.manifest) && split == checkpoint.manifest().trained_on.split {
            RowChoice::trained(checkpoint)
        } else {
            Ok(RowChoice::All)
        }
    }

    /// Returns the folder in a run for reports and features of this dataset: `eval/`, or `eval/on-DIGEST/`
    /// for a dataset that the run was not trained on.
    ///
    /// # Errors
    /// [`CommandError::OtherDataset`] for such a dataset without a `train_split`.
    pub(super) fn folder(
        &self,
        run: &Location,
        checkpoint: &Checkpoint,
        train_split: Option<&str>,
    ) -> Result<Location, CommandError> {
        let eval = run.join(REPORTS);
        let Some(other) = self.other_folder(checkpoint) else { return Ok(eval) };
        if train_split.is_none() {
            return Err(CommandError::OtherDataset {
                checkpoint: checkpoint.folder().to_string(),
                expected: checkpoint.manifest().trained_on.dataset_digest.clone(),
                dataset: self.location.to_string(),
                actual: self.digest(),
            });
        }
        Ok(eval.join(&other))
    }

    /// Returns the name of that folder in `eval/`; `None` for the dataset that the checkpoint was trained on.
    pub(super) fn other_folder(&self, checkpoint: &Checkpoint) -> Option<String> {
        let name = || format!("on-{}", &self.digest()[..DIGEST_DIGITS]);
        (!is_own(checkpoint, &self.manifest)).then(name)
    }

    /// Returns the fields of a report about the checkpoint and this dataset.
    pub(super) fn of_run(&self, checkpoint: &Checkpoint) -> OfRun {
        let name = self.location.file_name();
        OfRun {
            weights: Some(checkpoint.weights_digest()),
            trained_on: self.other_trained_on(checkpoint).cloned(),
            dataset: (!name.is_empty()).then(|| name.to_owned()),
        }
    }

    /// Returns the checkpoint's training data, unless they are from this dataset.
    pub(super) fn other_trained_on<'a>(&self, checkpoint: &'a Checkpoint) -> Option<&'a TrainedOn> {
        (!is_own(checkpoint, &self.manifest)).then_some(&checkpoint.manifest().trained_on)
    }
}

/// Returns whether a checkpoint was trained on a split of this dataset, by the split's digest.
pub(super) fn is_own(checkpoint: &Checkpoint, manifest: &Manifest) -> bool {
    let trained_on = &checkpoint.manifest().trained_on;
    let split = manifest.splits.get(&trained_on.split);
    split.is_some_and(|split| split.digest.to_string() == trained_on.split_digest)
}
