//! `embed`: writes the features of a split under a checkpoint's encoder as feature tables.

use super::CommandError;
use super::run::{Machine, RunDataset, is_own};
use crate::checkpoint::Checkpoint;
use crate::distributed::ProcessGroup;
use crate::eval::{self, EmbedJob, Existing, RowChoice};
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::storage::{Location, Published};

/// Tables of a split.
#[derive(Clone, Debug)]
pub struct EmbedReport {
    /// Whether the checkpoint was trained on this dataset.
    pub is_own_dataset: bool,
    /// Whether the checkpoint was trained on this split.
    pub is_trained_split: bool,
    /// Whether the checkpoint has a bank; one of a fine-tuning has none.
    pub has_bank: bool,
    /// Tables, in the order of the outputs.
    pub tables: Vec<EmbeddedTable>,
}

/// Feature table of one layer.
#[derive(Clone, Debug)]
pub struct EmbeddedTable {
    /// Embedded layer.
    pub layer: FeatureLayer,
    /// File of the table.
    pub output: Location,
    /// Publication; `None` for an equal table that already existed.
    pub published: Option<Published>,
}

/// Opens a checkpoint, and the split to embed with its encoder: by default the dataset's first evaluation split.
/// Called before several processes join.
///
/// # Errors
/// If checkpoint or dataset cannot be read, or the dataset lacks the split.
pub fn open_embedding(
    checkpoint: &Location,
    dataset: &Location,
    split: Option<&str>,
    rows: RowChoice,
    machine: Machine,
) -> Result<EmbedJob, CommandError> {
    let (dataset, checkpoint) = (RunDataset::open(dataset, "", split)?, Checkpoint::open(checkpoint)?);
    if let Some(trained_on) = dataset.other_trained_on(&checkpoint) {
        tracing::info!("the checkpoint was trained on another dataset, {:.12}…", trained_on.dataset_digest);
    }
    Ok(dataset.embedding(&checkpoint, &dataset.split, rows, machine))
}

/// Embeds a split to a feature table for each layer. Each of several processes embeds a share, and rank 0
/// returns the report.
///
/// # Errors
/// If images cannot be read, another file occupies an output, or the store fails.
pub fn embed(
    job: &EmbedJob,
    outputs: &[(FeatureLayer, Location)],
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Option<EmbedReport>, CommandError> {
    let published = eval::embed(job, outputs, Existing::Refuse, group, progress)?;
    group.leave();
    if !group.is_first() {
        return Ok(None);
    }
    let trained_on = &job.checkpoint.manifest().trained_on;
    let is_own_dataset = is_own(&job.checkpoint, &job.manifest);
    let tables = outputs.iter().cloned().zip(published);
    Ok(Some(EmbedReport {
        is_own_dataset,
        has_bank: job.checkpoint.state()?.config.get("finetune").is_none(),
        is_trained_split: is_own_dataset && job.split == trained_on.split,
        tables: tables
            .map(|((layer, output), published)| EmbeddedTable { layer, output, published })
            .collect(),
    }))
}
