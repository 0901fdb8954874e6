//! Embedding of a split with a checkpoint's encoder, into given files or the run's folder.
//!
//! Images come in the order of the shards, but rows are written in the order of the ids. In between, the
//! vectors are in `Scratch`, so that memory use does not grow with the rows.

mod encoded;

use std::sync::Arc;

use tch::{Kind as TensorKind, Tensor};

use self::encoded::{encode_rows, write_tables};
use super::distributed::share;
use crate::checkpoint::{Checkpoint, CheckpointError, MODEL};
use crate::dataset::{DatasetError, Manifest};
use crate::distributed::{DistributedError, ProcessGroup};
use crate::failure::Failure;
use crate::feature_table::{Dtype, FeatureTable, StoredTable, Table, TableError, TableMeta, TableWriter};
use crate::ids::InstanceId;
use crate::loader::{Batch, LoaderError, Source, Subset, evaluation_batches, open_split};
use crate::model::{
    DeviceError, Encoder, EncoderConfig, FeatureLayer, NamedTensors, NoSuchLayer, WeightsError,
    select_device_of,
};
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::storage::{Location, Published};
use crate::units::{ByteSize, Fraction};

/// Digits of the weights' digest in the file name of a run's table.
const DIGEST_DIGITS: usize = 8;

/// Selection of a split's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RowChoice {
    /// All rows.
    #[default]
    All,
    /// Uniform sample of this many rows, the same as for training's `limit`.
    Sample(usize),
    /// Fraction of the labels, with equal counts for each class.
    Labels {
        /// Fraction of the labels.
        fraction: Fraction,
        /// Seed of the selection.
        seed: u64,
    },
}

impl RowChoice {
    /// Selects a sample of this many rows, as training's `limit` does; 0 for all.
    pub fn limited(limit: u64) -> Self {
        if limit == 0 { Self::All } else { Self::Sample(limit as usize) }
    }

    /// Selects the rows that a checkpoint's run was trained on.
    ///
    /// # Errors
    /// If the checkpoint's state cannot be read.
    pub fn trained(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        Ok(Self::limited(checkpoint.run_config()?.limit))
    }

    /// Opens these rows of a split.
    ///
    /// # Errors
    /// If the split cannot be read.
    pub fn open(
        self,
        dataset: &Location,
        manifest: &Manifest,
        split: &str,
    ) -> Result<Arc<dyn Source>, LoaderError> {
        let limit = if let Self::Sample(rows) = self { Some(rows) } else { None };
        let source = open_split(dataset, manifest, split, limit)?;
        Ok(match self {
            Self::Labels { fraction, seed } => Arc::new(Subset::of_labels(source, fraction, seed)),
            Self::All | Self::Sample(_) => source,
        })
    }

    /// Returns the part of a file name that identifies this selection; empty for all rows.
    fn name(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Sample(rows) => format!("-sample{rows}"),
            Self::Labels { fraction, seed } => format!("-labels{fraction}-seed{seed}"),
        }
    }
}

/// Embedding job: images, encoder and options.
#[derive(Clone, Debug)]
pub struct EmbedJob {
    /// Checkpoint with the encoder.
    pub checkpoint: Checkpoint,
    /// Folder of the dataset.
    pub dataset: Location,
    /// Manifest of the dataset.
    pub manifest: Manifest,
    /// Name of the split.
    pub split: String,
    /// Selected rows of the split.
    pub rows: RowChoice,
    /// Images per batch.
    pub batch_size: usize,
    /// Decoding threads; 0 for one per core.
    pub threads: usize,
    /// Device to compute on.
    pub device: DeviceChoice,
    /// Number of this process on its machine; each process uses another CUDA device.
    pub local_rank: usize,
    /// Number type of the tables; by default [`Dtype::usual`] of each layer.
    pub dtype: Option<Dtype>,
    /// Size of the vectors in bytes above which they are kept in a temporary file until written.
    pub memory_limit: u64,
}

/// Action if another file has the name of a feature table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fail with [`EmbedError::Occupied`].
    Refuse,
    /// Replace the file.
    Replace,
}

/// Error of embedding a split.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// Another file has the name of a table.
    #[error("`{output}` exists and holds something else than {wanted}: remove it or choose another --output")]
    Occupied {
        /// Name of the file.
        output: String,
        /// Description of the table to write.
        wanted: String,
    },
    /// A feature is not finite.
    #[error("the encoder of {checkpoint} gives a feature that is not finite (instance {instance})")]
    NotFinite {
        /// Folder of the checkpoint.
        checkpoint: String,
        /// Instance with this feature.
        instance: u32,
    },
    /// A feature exceeds the range of 16 bits.
    #[error(
        "layer {layer}: a feature of instance {instance} exceeds 65504, the most that f16 holds; give --dtype f32"
    )]
    BeyondF16 {
        /// Layer of the feature.
        layer: FeatureLayer,
        /// Instance with this feature.
        instance: u32,
    },
    /// The temporary file is not usable.
    #[error(
        "cannot keep {} of features in a temporary file in `{folder}`; free space there, set TMPDIR to \
         another folder, or raise --memory-limit", ByteSize(*bytes)
    )]
    Scratch {
        /// Folder for temporary files.
        folder: String,
        /// Size of all vectors of this process, in bytes.
        bytes: u64,
        /// Underlying error.
        source: std::io::Error,
    },
    /// The caller stopped the job.
    #[error("stopped")]
    Stopped,
    /// The encoder lacks a layer.
    #[error(transparent)]
    Layer(#[from] NoSuchLayer),
    /// The checkpoint is not usable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights are not usable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The dataset is not usable.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// An image could not be loaded.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The table could not be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The device is not usable.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Another process failed.
    #[error(transparent)]
    Distributed(#[from] DistributedError),
}

impl EmbedError {
    /// Returns the kind of failure, which selects the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Layer(_) | Self::Occupied { .. } => Failure::Usage,
            Self::Stopped => Failure::Stopped,
            Self::NotFinite { .. } | Self::BeyondF16 { .. } | Self::Weights(_) => Failure::Data,
            Self::Scratch { .. } => Failure::Io,
            Self::Checkpoint(error) => error.failure(),
            Self::Dataset(error) => error.failure(),
            Self::Loader(error) => error.failure(),
            Self::Table(error) => error.failure(),
            Self::Device(_) => Failure::Config,
            Self::Distributed(error) => error.failure(),
        }
    }
}

impl EmbedJob {
    /// Returns the metadata that the tables of all layers share.
    pub(super) fn meta(&self) -> TableMeta {
        let Self { checkpoint, manifest, split, .. } = self;
        TableMeta {
            dataset_digest: manifest.dataset_digest.to_string(),
            split: split.clone(),
            split_digest: manifest.splits.get(split).map(|split| split.digest.to_string()),
            weights: Some(checkpoint.weights_digest()),
            step: checkpoint.manifest().step,
            classes: manifest.classes.clone(),
            ..TableMeta::default()
        }
    }

    /// Returns whether the output already has this table: same layer, weights, split and rows.
    fn is_made(
        &self,
        (layer, output): &(FeatureLayer, Location),
        ids: &[InstanceId],
        existing: Existing,
    ) -> Result<bool, EmbedError> {
        let table = match StoredTable::open(output) {
            Ok(table) => Some(table),
            Err(TableError::NotThere { .. }) => return Ok(false),
            Err(error) if error.failure() == Failure::Data => None,
            Err(error) => return Err(error.into()),
        };
        let wanted = self.meta();
        let is_same = table.is_some_and(|table| {
            let meta = table.meta();
            meta.layer == layer.to_string()
                && meta.weights == wanted.weights
                && (&meta.split, &meta.split_digest) == (&wanted.split, &wanted.split_digest)
                && meta.classes == wanted.classes
                && self.dtype.is_none_or(|dtype| table.dtype() == dtype)
                && (&table as &dyn Table).ids().eq(ids.iter().copied())
        });
        if is_same || existing == Existing::Replace {
            return Ok(is_same);
        }
        let folder = self.checkpoint.folder();
        let dtype = self.dtype.map(|dtype| format!(" as {dtype}")).unwrap_or_default();
        let wanted = format!("{layer} of {} images of split `{}` by {folder}{dtype}", ids.len(), self.split);
        Err(EmbedError::Occupied { output: output.to_string(), wanted })
    }
}

/// Embeds a split and publishes a feature table for each layer, all from one pass. Each of several processes
/// embeds a share of the split, and rank 0 publishes.
///
/// Rank 0 returns its published tables, with `None` for an existing table of the same content. Other ranks
/// return an empty list once all tables exist.
///
/// # Errors
/// See [`EmbedError`]; no table is published then.
pub fn embed(
    job: &EmbedJob,
    outputs: &[(FeatureLayer, Location)],
    existing: Existing,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Vec<Option<Published>>, EmbedError> {
    let EmbedJob { checkpoint, manifest, .. } = job;
    let source = job.rows.open(&job.dataset, manifest, &job.split)?;
    let found = found_by_first(outputs, group, |output| job.is_made(output, source.ids(), existing))?;
    let missing = outputs.iter().zip(&found).filter(|(_, found)| **found == 0);
    let missing: Vec<&(FeatureLayer, Location)> = missing.map(|(output, _)| output).collect();
    let layers: Vec<FeatureLayer> = missing.iter().map(|(layer, _)| *layer).collect();
    if layers.is_empty() {
        return Ok(vec![None; outputs.len()]);
    }
    let device = select(job.device, job.local_rank, group)?;
    group.agree("the dataset's digest", &manifest.dataset_digest.to_string())?;
    group.agree("the checkpoint", &format!("{:?}", checkpoint.manifest().files))?;
    let encoder = load_encoder(checkpoint, device)?;
    let (ids, labels) = (source.ids().to_vec(), source.labels().to_vec());
    let own = share(ids.len(), group);
    let source = if group.world() == 1 { source } else { Arc::new(Subset::of_range(source, own)) };
    let encoded = encode_rows(job, &encoder, source, &layers, progress)?;
    let mut tables =
        write_tables(job, &encoder, &encoded, (&ids, &labels), &missing, group, progress)?.into_iter();
    let mut published = Vec::new();
    for (output, found) in outputs.iter().zip(&found).filter(|_| group.is_first()) {
        let table = if *found == 0 { tables.next() } else { None };
        if table.is_some() {
            // Another job may have written the file meanwhile.
            job.is_made(output, &ids, existing)?;
        }
        published.push(table.map(TableWriter::finish).transpose()?);
    }
    // Not a collective, which would time out while rank 0 writes.
    let key = format!("embedded/{}", outputs.iter().map(|(_, at)| at.to_string()).collect::<String>());
    if group.is_first() {
        group.store().set(&key, b"published")?;
    } else {
        group.store().wait_for(&key)?;
    }
    Ok(published)
}

/// Returns for each output 1 if it exists, otherwise 0. Only rank 0 checks, so that no process mistakes a table
/// published a moment ago for an older one.
fn found_by_first(
    outputs: &[(FeatureLayer, Location)],
    group: &ProcessGroup,
    exists: impl Fn(&(FeatureLayer, Location)) -> Result<bool, EmbedError>,
) -> Result<Vec<u8>, EmbedError> {
    let found: Result<Vec<u8>, EmbedError> =
        outputs.iter().map(|output| Ok(u8::from(group.is_first() && exists(output)?))).collect();
    if let Err(error) = &found {
        group.fail(error.failure());
    }
    Ok(group.gather_bytes(&found?)?.swap_remove(0))
}

/// Returns the metadata of this layer's table, with a provisional length.
fn layer_meta(meta: &TableMeta, encoder: &Encoder, layer: FeatureLayer) -> TableMeta {
    TableMeta {
        layer: layer.to_string(),
        dim: encoder.config().dim,
        unit_length: layer == FeatureLayer::Projection,
        device: Some(if encoder.device().is_cuda() { "cuda" } else { "cpu" }.into()),
        precision: Some(encoder.precision().into()),
        ..meta.clone()
    }
}

/// Returns the tables of these layers in a folder, such as a run's `eval/features`. Embeds missing ones in one pass.
///
/// A table's name has split, rows, layer, step and the digest of the weights. So an existing table with this
/// name equals the one that would be written.
///
/// # Errors
/// See [`EmbedError`].
pub fn run_tables(
    job: &EmbedJob,
    folder: &Location,
    layers: &[FeatureLayer],
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Vec<Location>, EmbedError> {
    let weights = job.checkpoint.weights_digest();
    let weights = &weights[..DIGEST_DIGITS.min(weights.len())];
    let (split, rows, step) = (&job.split, job.rows.name(), job.checkpoint.manifest().step);
    let place = |layer: &FeatureLayer| {
        let name = format!("{split}{rows}-{layer}-step-{step:08}-{weights}.arrow");
        (*layer, folder.join(&name))
    };
    let outputs: Vec<_> = layers.iter().map(place).collect();
    let digest = job.manifest.dataset_digest.to_string();
    let split_digest = job.meta().split_digest.unwrap_or_default();
    let exists = |table: &Location| {
        StoredTable::open(table).is_ok_and(|table| {
            let meta = table.meta();
            meta.is_of(&split_digest, &digest) && meta.classes == job.manifest.classes
        })
    };
    let found = found_by_first(&outputs, group, |(_, table)| Ok(exists(table)))?;
    let mut missing = Vec::new();
    for (output, found) in outputs.iter().zip(found) {
        if found == 1 {
            tracing::info!("{}: exists, nothing to embed", output.1);
        } else {
            missing.push(output.clone());
        }
    }
    if !missing.is_empty() {
        // Another file with this name is damaged, or its dataset has changed.
        embed(job, &missing, Existing::Replace, group, progress)?;
    }
    Ok(outputs.into_iter().map(|(_, location)| location).collect())
}

/// Selects the device of this process.
pub(super) fn select(
    device: DeviceChoice,
    local_rank: usize,
    group: &ProcessGroup,
) -> Result<tch::Device, EmbedError> {
    let selected = select_device_of(device, local_rank, group.world())?;
    tracing::info!("device {selected}");
    Ok(selected.device)
}

/// Loads the encoder of a checkpoint.
///
/// # Errors
/// If the checkpoint is damaged.
pub fn load_encoder(checkpoint: &Checkpoint, device: tch::Device) -> Result<Encoder, EmbedError> {
    let state = checkpoint.state()?;
    let config: EncoderConfig = serde_json::from_value(state.encoder).map_err(|source| {
        let file = checkpoint.folder().join(crate::checkpoint::STATE).to_string();
        CheckpointError::Malformed { file, source }
    })?;
    let mut encoder = Encoder::new(config, 0, device);
    encoder.load(&NamedTensors::from_bytes(&checkpoint.read(MODEL)?)?)?;
    Ok(encoder)
}

/// Computes features of all images of a source in one pass: a table in memory for each layer, each image
/// once, in the order of the ids.
///
/// # Errors
/// If an image cannot be loaded, or the encoder lacks a layer.
pub fn encode(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    layers: &[FeatureLayer],
    meta: &TableMeta,
    sizes: (usize, usize),
    progress: &dyn Progress,
) -> Result<Vec<FeatureTable>, EmbedError> {
    let rows = source.len();
    let table = |&layer: &FeatureLayer| FeatureTable {
        features: Vec::new(),
        ids: source.ids().to_vec(),
        labels: source.labels().to_vec(),
        updated_step: vec![None; rows],
        meta: layer_meta(meta, encoder, layer),
    };
    let mut tables: Vec<FeatureTable> = layers.iter().map(table).collect();
    progress.begin("embed", rows as u64);
    for_each_batch(encoder, source, sizes, progress, |batch, images| {
        for (table, features) in tables.iter_mut().zip(&encoder.features(images, layers)?) {
            let dim = features.size()[1] as usize;
            table.meta.dim = dim;
            table.features.resize(rows * dim, 0.0);
            let features = to_host(features);
            // Batches follow the order of the shards, not of the ids.
            for (position, row) in batch.bank_rows.iter().zip(features.chunks_exact(dim)) {
                table.features[position.row() * dim..][..dim].copy_from_slice(row);
            }
        }
        Ok(())
    })?;
    progress.finish();
    Ok(tables)
}

/// Calls `each` with every batch and its images under the encoder's evaluation transform, each image once.
/// The sizes are images per batch and decoding threads.
///
/// # Shape
/// `[batch, 3, side, side]` u8
///
/// # Errors
/// Those of `each`, or if an image cannot be loaded or `progress` is stopped.
pub(super) fn for_each_batch(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    (batch_size, threads): (usize, usize),
    progress: &dyn Progress,
    mut each: impl FnMut(&Batch, &Tensor) -> Result<(), EmbedError>,
) -> Result<(), EmbedError> {
    let transform = encoder.config().evaluation_transform();
    for batch in evaluation_batches(source, transform, batch_size, threads)? {
        let batch = batch?;
        if progress.is_stopped() {
            return Err(EmbedError::Stopped);
        }
        each(&batch, &encoder.images(&batch.pixels))?;
        progress.advance(batch.ids.len() as u64);
    }
    Ok(())
}

/// Copies a tensor to the host, row after row.
pub(super) fn to_host(features: &Tensor) -> Vec<f32> {
    let features = features.to_device(tch::Device::Cpu).to_kind(TensorKind::Float).contiguous();
    let mut numbers = vec![0.0; features.numel()];
    let count = numbers.len();
    features.copy_data(&mut numbers, count);
    numbers
}
