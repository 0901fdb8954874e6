//! The dataset on which a run is evaluated, and which of its rows.

use super::CommandError;
use super::reports::{OfRun, REPORTS};
use crate::checkpoint::{Checkpoint, CheckpointError, TrainedOn};
use crate::dataset::{DatasetError, Manifest};
use crate::eval::{EmbedJob, RowChoice};
use crate::ingest::machine_memory;
use crate::run_config::DeviceChoice;
use crate::storage::Location;

/// Images of a batch that is embedded. [`batch_size`](super::monitor::batch_size) is that of a run's scores.
pub(super) const BATCH_SIZE: usize = 256;
/// Digits of another dataset's digest in the name of its folder.
const DIGEST_DIGITS: usize = 12;
/// The memory of a machine that does not tell, in bytes.
const UNKNOWN_MACHINE: u64 = 4 << 30;

/// A dataset and its evaluated split.
#[derive(Clone, Debug)]
pub(super) struct RunDataset {
    pub(super) location: Location,
    pub(super) manifest: Manifest,
    /// The split that is evaluated.
    pub(super) split: String,
}

/// Where images are embedded, and by how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Threads that decode; 0 for one per core.
    pub threads: usize,
    /// Where to compute.
    pub device: DeviceChoice,
    /// The number of this process among those on this machine; each takes another CUDA device.
    pub local_rank: usize,
    /// The bytes that this process may hold.
    pub memory_limit: u64,
}

/// The bytes that one of several processes may hold where no limit is given: its share of half of the machine's memory.
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

    /// The digest of the whole dataset.
    pub(super) fn digest(&self) -> String {
        self.manifest.dataset_digest.to_string()
    }

    /// The job that embeds rows of a split under a checkpoint's encoder.
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

    /// The rows of a split that vote or are trained on: the run's own of the split that it was trained on, else all.
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

    /// The folder in a run for reports and features of this dataset: `eval/`, and `eval/on-DIGEST/` for a dataset that
    /// the run was not trained on.
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

    /// The name of that folder in `eval/`; none for the dataset that the checkpoint was trained on.
    pub(super) fn other_folder(&self, checkpoint: &Checkpoint) -> Option<String> {
        let name = || format!("on-{}", &self.digest()[..DIGEST_DIGITS]);
        (!is_own(checkpoint, &self.manifest)).then(name)
    }

    /// What a report of the checkpoint on this dataset says of both.
    pub(super) fn of_run(&self, checkpoint: &Checkpoint) -> OfRun {
        let name = self.location.file_name();
        OfRun {
            weights: Some(checkpoint.weights_digest()),
            trained_on: self.other_trained_on(checkpoint).cloned(),
            dataset: (!name.is_empty()).then(|| name.to_owned()),
        }
    }

    /// What the checkpoint was trained on, unless it is this dataset.
    pub(super) fn other_trained_on<'a>(&self, checkpoint: &'a Checkpoint) -> Option<&'a TrainedOn> {
        (!is_own(checkpoint, &self.manifest)).then_some(&checkpoint.manifest().trained_on)
    }
}

/// Whether a checkpoint was trained on a split of this dataset, by the split's digest.
pub(super) fn is_own(checkpoint: &Checkpoint, manifest: &Manifest) -> bool {
    let trained_on = &checkpoint.manifest().trained_on;
    let split = manifest.splits.get(&trained_on.split);
    split.is_some_and(|split| split.digest.to_string() == trained_on.split_digest)
}
