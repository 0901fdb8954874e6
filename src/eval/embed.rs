//! Features of a split under a checkpoint's encoder, written to given files or kept in the run's folder.
//!
//! Images come in the order of the shards, rows are written in the order of the ids. Between the two the vectors are in
//! `Scratch`, so that the memory that is needed does not grow with the rows.

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

/// Digits of the weights' digest in the name of a run's table.
const DIGEST_DIGITS: usize = 8;

/// Rows of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RowChoice {
    /// All.
    #[default]
    All,
    /// The uniform sample of this many rows that training's `limit` takes.
    Sample(usize),
    /// A share of the labels, the same number for each class.
    Labels {
        /// The share.
        fraction: Fraction,
        /// The seed by which the rows are chosen.
        seed: u64,
    },
}

impl RowChoice {
    /// The sample of this many rows that training's `limit` takes; 0 for all.
    pub fn limited(limit: u64) -> Self {
        if limit == 0 { Self::All } else { Self::Sample(limit as usize) }
    }

    /// The rows of its split that a checkpoint's run was trained on.
    ///
    /// # Errors
    /// If the checkpoint's state cannot be read.
    pub fn trained(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        Ok(Self::limited(checkpoint.run_config()?.limit))
    }

    /// These rows of a split.
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

    /// The part of a file's name that distinguishes this choice; empty for all rows.
    fn name(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Sample(rows) => format!("-sample{rows}"),
            Self::Labels { fraction, seed } => format!("-labels{fraction}-seed{seed}"),
        }
    }
}

/// Which images to embed with which encoder.
#[derive(Clone, Debug)]
pub struct EmbedJob {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The dataset's folder.
    pub dataset: Location,
    /// Its manifest.
    pub manifest: Manifest,
    /// The split.
    pub split: String,
    /// Which rows of the split.
    pub rows: RowChoice,
    /// Images of a batch.
    pub batch_size: usize,
    /// Threads that decode; 0 for one on each core.
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

/// What to do with another file at the place of a feature table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fail with [`EmbedError::Occupied`].
    Refuse,
    /// Replace it.
    Replace,
}

/// A split cannot be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// Another file occupies the place of a table.
    #[error("`{output}` exists and holds something else than {wanted}: remove it or choose another --output")]
    Occupied {
        /// The file.
        output: String,
        /// The table to write.
        wanted: String,
    },
    /// A feature is not a finite number.
    #[error("the encoder of {checkpoint} gives a feature that is not finite (instance {instance})")]
    NotFinite {
        /// The checkpoint's folder.
        checkpoint: String,
        /// The instance.
        instance: u32,
    },
    /// A feature is beyond the range of 16 bits.
    #[error(
        "layer {layer}: a feature of instance {instance} exceeds 65504, the most that f16 holds; give --dtype f32"
    )]
    BeyondF16 {
        /// The layer.
        layer: FeatureLayer,
        /// The instance.
        instance: u32,
    },
    /// The temporary file cannot be used.
    #[error(
        "cannot keep {} of features in a temporary file in `{folder}`; free space there, set TMPDIR to \
         another folder, or raise --memory-limit", ByteSize(*bytes)
    )]
    Scratch {
        /// The folder for temporary files.
        folder: String,
        /// The bytes of all vectors of this process.
        bytes: u64,
        /// The cause.
        source: std::io::Error,
    },
    /// The caller stopped it.
    #[error("stopped")]
    Stopped,
    /// The encoder has no such layer.
    #[error(transparent)]
    Layer(#[from] NoSuchLayer),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The dataset cannot be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// An image cannot be loaded.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The table cannot be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The other processes failed.
    #[error(transparent)]
    Distributed(#[from] DistributedError),
}

impl EmbedError {
    /// The kind of failure, for the exit code.
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
    /// What every table says of its features, whatever their layer.
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

    /// Whether the table of an output exists: of the same layer of the same weights, split and rows.
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

/// Embeds a split and publishes a feature table for each layer; one pass makes all of them. Several processes embed a
/// share of the split each, and rank 0 publishes.
///
/// Rank 0 returns what it published, with `None` for a table that existed with the same content and was kept. The
/// others return an empty list once all tables exist.
///
/// # Errors
/// See [`EmbedError`]; then no table is published.
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
            // Another job may have written there meanwhile.
            job.is_made(output, &ids, existing)?;
        }
        published.push(table.map(TableWriter::finish).transpose()?);
    }
    // Rank 0 may write for long: no collective, which would give up.
    let key = format!("embedded/{}", outputs.iter().map(|(_, at)| at.to_string()).collect::<String>());
    if group.is_first() {
        group.store().set(&key, b"published")?;
    } else {
        group.store().wait_for(&key)?;
    }
    Ok(published)
}

/// For each output whether it exists, 1 or 0. Rank 0 looks: a table that it has just published is not one from before.
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

/// What a table of this layer says of its features, but for their length.
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

/// The tables of these layers in a folder, such as a run's `eval/features`; those that are missing are made
/// in one pass.
///
/// A table's name holds split, rows, layer, step and the digest of the weights. So a table that is found under its name
/// equals the one that would be made.
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
        // Another file under this name is damaged, or of a dataset that has changed.
        embed(job, &missing, Existing::Replace, group, progress)?;
    }
    Ok(outputs.into_iter().map(|(_, location)| location).collect())
}

/// The device of this process.
pub(super) fn select(
    device: DeviceChoice,
    local_rank: usize,
    group: &ProcessGroup,
) -> Result<tch::Device, EmbedError> {
    let selected = select_device_of(device, local_rank, group.world())?;
    tracing::info!("device {selected}");
    Ok(selected.device)
}

/// The encoder of a checkpoint.
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

/// Features of every image of a source, each exactly once, in the order of the ids, all in memory: for each
/// layer a table, by one pass.
///
/// # Errors
/// If an image cannot be loaded, or the encoder has no such layer.
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

/// Calls `each` with every batch of a source under the encoder's evaluation transform and with its images, each image
/// exactly once. The sizes are images of a batch, and threads that decode.
///
/// # Shape
/// `[batch, 3, side, side]` u8
///
/// # Errors
/// Those of `each`; if an image cannot be loaded, or `progress` is stopped.
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

/// The numbers of a tensor, row after row.
pub(super) fn to_host(features: &Tensor) -> Vec<f32> {
    let features = features.to_device(tch::Device::Cpu).to_kind(TensorKind::Float).contiguous();
    let mut numbers = vec![0.0; features.numel()];
    let count = numbers.len();
    features.copy_data(&mut numbers, count);
    numbers
}
