//! `embed`: the features of a split under a checkpoint's encoder, as feature tables.

use super::CommandError;
use crate::checkpoint::Checkpoint;
use crate::dataset::Manifest;
use crate::distributed::ProcessGroup;
use crate::eval::{self, EmbedJob, Existing, RowChoice};
use crate::model::{DeviceChoice, FeatureLayer};
use crate::progress::Progress;
use crate::storage::{Location, Published};

/// What to embed, and where to.
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// The checkpoint's folder.
    pub checkpoint: Location,
    /// The dataset's folder.
    pub dataset: Location,
    /// The split; by default the dataset's first evaluation split.
    pub split: Option<String>,
    /// The layers, each with its feature table.
    pub outputs: Vec<(FeatureLayer, Location)>,
    /// Rows of the split: all, or a sample.
    pub rows: RowChoice,
    /// Images of a batch.
    pub batch_size: usize,
    /// Threads that decode; 0 for one per core.
    pub threads: usize,
    /// Where to compute.
    pub device: DeviceChoice,
    /// The number of this process among those on this machine; each takes another CUDA device.
    pub local_rank: usize,
}

/// The tables of a split.
#[derive(Clone, Debug)]
pub struct EmbedReport {
    /// Whether the checkpoint was trained on this split.
    pub is_trained_on: bool,
    /// The tables, in the order of the outputs.
    pub tables: Vec<EmbeddedTable>,
}

/// A feature table.
#[derive(Clone, Debug)]
pub struct EmbeddedTable {
    /// The layer.
    pub layer: FeatureLayer,
    /// The file.
    pub output: Location,
    /// What was published; `None` for an equal table that existed and was kept.
    pub published: Option<Published>,
}

/// Embeds a split. Several processes embed a share each, and rank 0 returns the report.
///
/// # Errors
/// If checkpoint or dataset cannot be read or do not fit together, another file occupies an output, or the store fails.
pub fn embed(
    options: &EmbedOptions,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Option<EmbedReport>, CommandError> {
    let EmbedOptions { dataset, rows, batch_size, threads, device, local_rank, .. } = options;
    let manifest = Manifest::read(dataset)?;
    let job = EmbedJob {
        checkpoint: Checkpoint::open(&options.checkpoint)?,
        split: manifest.evaluation_split(dataset, "", options.split.as_deref())?,
        manifest,
        dataset: dataset.clone(),
        rows: *rows,
        batch_size: *batch_size,
        threads: *threads,
        device: *device,
        local_rank: *local_rank,
    };
    let published = eval::embed(&job, &options.outputs, Existing::Refuse, group, progress)?;
    group.leave();
    if !group.is_first() {
        return Ok(None);
    }
    let tables = options.outputs.iter().cloned().zip(published);
    Ok(Some(EmbedReport {
        is_trained_on: job.split == job.checkpoint.manifest().trained_on.split,
        tables: tables
            .map(|((layer, output), published)| EmbeddedTable { layer, output, published })
            .collect(),
    }))
}
