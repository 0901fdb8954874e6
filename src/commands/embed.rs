//! `embed`: the features of a split under a checkpoint's encoder, as feature tables.

use super::CommandError;
use super::run::is_own;
use crate::checkpoint::Checkpoint;
use crate::dataset::Manifest;
use crate::distributed::ProcessGroup;
use crate::eval::{self, EmbedJob, Existing, RowChoice};
use crate::feature_table::Dtype;
use crate::model::FeatureLayer;
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::storage::{Location, Published};

/// What to embed.
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// The checkpoint's folder.
    pub checkpoint: Location,
    /// The dataset's folder.
    pub dataset: Location,
    /// The split; by default the dataset's first evaluation split.
    pub split: Option<String>,
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
    /// The type of the written numbers; by default [`Dtype::usual`] of each layer.
    pub dtype: Option<Dtype>,
    /// Vectors that take more bytes than this are in a temporary file until they are written.
    pub memory_limit: u64,
}

/// The tables of a split.
#[derive(Clone, Debug)]
pub struct EmbedReport {
    /// Whether the checkpoint was trained on this dataset.
    pub is_own_dataset: bool,
    /// Whether the checkpoint was trained on this split.
    pub is_trained_split: bool,
    /// Whether the checkpoint has a bank; that of a fine-tuning has none.
    pub has_bank: bool,
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

impl EmbedOptions {
    /// Opens checkpoint and dataset, before several processes join.
    ///
    /// # Errors
    /// If one of them cannot be read, or the dataset lacks the split.
    pub fn open(&self) -> Result<EmbedJob, CommandError> {
        let (manifest, checkpoint) = (Manifest::read(&self.dataset)?, Checkpoint::open(&self.checkpoint)?);
        if !is_own(&checkpoint, &manifest) {
            let trained_on = &checkpoint.manifest().trained_on.dataset_digest;
            tracing::info!("the checkpoint was trained on another dataset, {trained_on:.12}…");
        }
        Ok(EmbedJob {
            checkpoint,
            split: manifest.evaluation_split(&self.dataset, "", self.split.as_deref())?,
            manifest,
            dataset: self.dataset.clone(),
            rows: self.rows,
            batch_size: self.batch_size,
            threads: self.threads,
            device: self.device,
            local_rank: self.local_rank,
            dtype: self.dtype,
            memory_limit: self.memory_limit,
        })
    }
}

/// Embeds a split to a feature table for each layer. Several processes embed a share each, and rank 0 returns
/// the report.
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
