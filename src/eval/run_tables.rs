//! The feature tables of a run's checkpoint, made once and kept in the run's folder.

use super::embed::{EmbedError, EmbedJob, embed};
use super::row_choice::RowChoice;
use crate::checkpoint::Checkpoint;
use crate::dataset::Manifest;
use crate::distributed::ProcessGroup;
use crate::feature_table::{StoredTable, Table};
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::storage::Location;

/// Digits of the weights' digest in a table's name.
const DIGEST_DIGITS: usize = 8;

/// Which tables.
#[derive(Clone, Debug)]
pub struct RunTables {
    /// The run's folder.
    pub run: Location,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The dataset's folder.
    pub dataset: Location,
    /// What the dataset says of itself.
    pub manifest: Manifest,
    /// The split.
    pub split: String,
    /// Which rows of it.
    pub rows: RowChoice,
    /// The layers, a table for each.
    pub layers: Vec<FeatureLayer>,
    /// Images of a batch.
    pub batch_size: usize,
    /// Threads that decode; 0 for one on each core.
    pub threads: usize,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Which of the processes on this machine this is; each takes a CUDA device of its own.
    pub local_rank: usize,
}

/// Makes the tables that are not there yet, all in one pass, and gives the places of all.
///
/// A table's name holds split, rows, layer, step and the digest of the weights, so what is found is what
/// would be made again.
///
/// # Errors
/// If a table cannot be made.
pub fn run_tables(
    job: &RunTables,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Vec<Location>, EmbedError> {
    let of_checkpoint = job.checkpoint.manifest();
    let weights = job.checkpoint.weights_digest();
    let weights = &weights[..DIGEST_DIGITS.min(weights.len())];
    let (rows, step) = (job.rows.name(), of_checkpoint.step);
    let place = |layer: &FeatureLayer| {
        let name = format!("{}{rows}-{layer}-step-{step:08}-{weights}.arrow", job.split);
        job.run.join("eval/features").join(&name)
    };
    let digest = job.manifest.dataset_digest.to_string();
    let split_digest =
        job.manifest.splits.get(&job.split).map_or_else(String::new, |split| split.digest.to_string());
    let outputs: Vec<_> = job.layers.iter().map(|layer| (*layer, place(layer))).collect();
    let is_there = |table: &Location| {
        StoredTable::open(table).is_ok_and(|table| {
            let meta = table.meta();
            meta.is_of(&split_digest, &digest) && meta.classes == job.manifest.classes
        })
    };
    // Rank 0 looks: a table that another process of this job has just published is not one from before.
    let found: Vec<u8> =
        outputs.iter().map(|(_, table)| u8::from(group.is_first() && is_there(table))).collect();
    let found = group.gather_bytes(&found)?.swap_remove(0);
    let mut found = found.into_iter().map(|flag| flag == 1);
    let (kept, missing): (Vec<_>, Vec<_>) =
        outputs.iter().cloned().partition(|_| found.next().unwrap_or(false));
    for (_, location) in &kept {
        tracing::info!("{location}: is there, so nothing is embedded");
    }
    if !missing.is_empty() {
        let job = EmbedJob {
            checkpoint: job.checkpoint.clone(),
            dataset: job.dataset.clone(),
            manifest: job.manifest.clone(),
            split: job.split.clone(),
            outputs: missing,
            // What is there under this name is damaged, or of a dataset that has changed.
            replaces: true,
            rows: job.rows,
            batch_size: job.batch_size,
            threads: job.threads,
            device: job.device,
            local_rank: job.local_rank,
        };
        embed(&job, group, progress)?;
    }
    Ok(outputs.into_iter().map(|(_, location)| location).collect())
}
