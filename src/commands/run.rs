//! The dataset on which a run is evaluated, and which of its rows.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::dataset::{DatasetError, Manifest};
use crate::eval::{EmbedJob, RowChoice};
use crate::model::DeviceChoice;
use crate::storage::Location;

/// Images of a batch when rows are embedded.
const BATCH_SIZE: usize = 256;

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
pub(super) struct Machine {
    pub(super) threads: usize,
    pub(super) device: DeviceChoice,
    pub(super) local_rank: usize,
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
        }
    }
}

/// The rows of a split that vote or are trained on: of the split that the run was trained on its own rows, of others all.
///
/// # Errors
/// If the checkpoint's state cannot be read.
pub(super) fn training_rows(checkpoint: &Checkpoint, split: &str) -> Result<RowChoice, CheckpointError> {
    if split == checkpoint.manifest().trained_on.split {
        RowChoice::trained(checkpoint)
    } else {
        Ok(RowChoice::All)
    }
}
