//! Features of a split under a checkpoint's encoder.

use std::sync::Arc;

use tch::{Kind as TensorKind, Tensor};

use crate::augment::EvalTransform;
use crate::checkpoint::{Checkpoint, CheckpointError, MODEL};
use crate::dataset::{DatasetError, Manifest};
use crate::distributed::{DistributedError, ProcessGroup};
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, Kind, StoredTable, Table, TableError, TableMeta};
use crate::ids::InstanceId;
use crate::loader::{LoaderError, Source, Subset, evaluation_batches};
use crate::model::{
    DeviceError, Encoder, EncoderConfig, FeatureLayer, NamedTensors, NoSuchLayer, WeightsError,
    select_device_of,
};
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::storage::{Location, Published};

use super::RowChoice;
use super::distributed::{gather_table, share};

/// What to embed with what, and where to.
#[derive(Clone, Debug)]
pub struct EmbedJob {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The dataset's folder.
    pub dataset: Location,
    /// What the dataset says of itself.
    pub manifest: Manifest,
    /// The split.
    pub split: String,
    /// The layers, each with the place of its feature table; all are made in one pass.
    pub outputs: Vec<(FeatureLayer, Location)>,
    /// Whether a table that is at such a place and differs is replaced.
    pub replaces: bool,
    /// Which rows of the split.
    pub rows: RowChoice,
    /// Images of a batch.
    pub batch_size: usize,
    /// Threads that decode; 0 for one on each core.
    pub threads: usize,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Which of the processes on this machine this is; each takes a CUDA device of its own.
    pub local_rank: usize,
}

/// A split cannot be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The checkpoint is of another dataset.
    #[error(
        "the checkpoint {checkpoint} is of the dataset {expected}, not of {actual}; give the one that it was trained on"
    )]
    OtherDataset {
        /// The checkpoint's folder.
        checkpoint: String,
        /// The digest that it names.
        expected: String,
        /// The digest of the dataset given.
        actual: String,
    },
    /// At a place is something else than what would be made.
    #[error("`{output}` exists and holds something else than {wanted}: remove it or choose another --output")]
    Occupied {
        /// The place.
        output: String,
        /// What would be made.
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
    /// It was told to stop.
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
            Self::OtherDataset { .. } | Self::NotFinite { .. } | Self::Weights(_) => Failure::Data,
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
    /// Whether the table of an output is there already: of the same layer of the same weights, split and rows.
    fn is_made(
        &self,
        (layer, output): &(FeatureLayer, Location),
        ids: &[InstanceId],
    ) -> Result<bool, EmbedError> {
        let table = match StoredTable::open(output) {
            Ok(table) => Some(table),
            Err(TableError::NotThere { .. }) => return Ok(false),
            Err(error) if error.failure() == Failure::Data => None,
            Err(error) => return Err(error.into()),
        };
        let Self { checkpoint, manifest, split, .. } = self;
        let split_digest = manifest.splits.get(split).map(|split| split.digest.to_string());
        let is_same = table.is_some_and(|table| {
            let meta = table.meta();
            meta.weights == Some(checkpoint.weights_digest())
                && (meta.layer == layer.to_string()
                    && meta.split == *split
                    && meta.split_digest == split_digest)
                && (meta.classes == manifest.classes && table.ids() == ids)
        });
        if is_same || self.replaces {
            return Ok(is_same);
        }
        let wanted = format!("{layer} of {} images of split `{split}` by {}", ids.len(), checkpoint.folder());
        Err(EmbedError::Occupied { output: output.to_string(), wanted })
    }
}

/// Embeds a split and publishes the feature tables. Of several processes each embeds a part of the split, and
/// rank 0 publishes and says what; the others say nothing, and return once all is there. Nothing is said of a table that
/// was there before and holds the same: it is kept.
///
/// # Errors
/// See [`EmbedError`]; then no table is published.
pub fn embed(
    job: &EmbedJob,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Vec<Option<Published>>, EmbedError> {
    let EmbedJob { checkpoint, manifest, .. } = job;
    check_dataset(checkpoint, manifest)?;
    let source = job.rows.open(&job.dataset, manifest, &job.split)?;
    // Rank 0 looks: a table that it has just published is not one from before.
    let found: Result<Vec<u8>, EmbedError> = job
        .outputs
        .iter()
        .map(|output| Ok(u8::from(group.is_first() && job.is_made(output, source.ids())?)))
        .collect();
    if let Err(error) = &found {
        group.fail(error.failure());
    }
    let found = group.gather_bytes(&found?)?.swap_remove(0);
    let missing = job.outputs.iter().zip(&found).filter(|(_, found)| **found == 0);
    let missing: Vec<&(FeatureLayer, Location)> = missing.map(|(output, _)| output).collect();
    if missing.is_empty() {
        return Ok(vec![None; job.outputs.len()]);
    }
    let selected = select_device_of(job.device, job.local_rank, group.world())?;
    tracing::info!("device {selected}");
    group.agree("the dataset's digest", &manifest.dataset_digest.to_string())?;
    group.agree("the checkpoint", &format!("{:?}", checkpoint.manifest().files))?;
    let encoder = load_encoder(checkpoint, selected.device)?;
    let about = TableMeta {
        kind: Kind::Embedding,
        layer: String::new(),
        dim: 0,
        dataset_digest: manifest.dataset_digest.to_string(),
        split: job.split.clone(),
        split_digest: manifest.splits.get(&job.split).map(|split| split.digest.to_string()),
        weights: Some(checkpoint.weights_digest()),
        device: None,
        precision: None,
        step: checkpoint.manifest().step,
        unit_length: true,
        classes: manifest.classes.clone(),
    };
    let layers: Vec<FeatureLayer> = missing.iter().map(|(layer, _)| *layer).collect();
    let (ids, labels) = (source.ids().to_vec(), source.labels().to_vec());
    let own = share(ids.len(), group);
    let source = if group.world() == 1 { source } else { Arc::new(Subset::of_range(source, own)) };
    let parts = encode_layers(&encoder, source, about, &layers, (job.batch_size, job.threads), progress)?;
    let whole = |part| gather_table(group, part, (&ids, &labels), false);
    let tables = parts.into_iter().map(whole).collect::<Result<Vec<_>, _>>()?;
    for table in &tables {
        let mut rows = table.features.chunks(table.meta.dim);
        if let Some(bad) = rows.position(|row| row.iter().any(|x| !x.is_finite())) {
            let instance = table.ids[bad].0;
            return Err(EmbedError::NotFinite { checkpoint: checkpoint.folder().to_string(), instance });
        }
    }
    let mut tables = tables.into_iter();
    let mut published = Vec::new();
    for ((layer, output), found) in job.outputs.iter().zip(&found).filter(|_| group.is_first()) {
        let table = if *found == 0 { tables.next() } else { None };
        if let Some(table) = &table {
            // Another job may have written there meanwhile.
            job.is_made(&(*layer, output.clone()), &table.ids)?;
        }
        published.push(table.map(|table| table.write(output)).transpose()?);
    }
    // Rank 0 may write for long: no collective, which would give up.
    let key = format!("embedded/{}", job.outputs.iter().map(|(_, at)| at.to_string()).collect::<String>());
    if group.is_first() {
        group.store().set(&key, b"published")?;
    } else {
        group.store().wait_for(&key)?;
    }
    Ok(published)
}

/// Whether a checkpoint was trained on a split of this dataset.
///
/// # Errors
/// [`EmbedError::OtherDataset`]
pub fn check_dataset(checkpoint: &Checkpoint, manifest: &Manifest) -> Result<(), EmbedError> {
    let trained_on = &checkpoint.manifest().trained_on;
    let same_split = manifest.splits.get(&trained_on.split).map(|split| split.digest.to_string());
    if same_split.as_ref() == Some(&trained_on.split_digest) {
        return Ok(());
    }
    Err(EmbedError::OtherDataset {
        checkpoint: checkpoint.folder().to_string(),
        expected: trained_on.dataset_digest.clone(),
        actual: manifest.dataset_digest.to_string(),
    })
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

/// The embedding of every image of a source, each exactly once, in the order of the ids.
///
/// # Errors
/// If an image cannot be loaded.
pub fn encode(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    meta: TableMeta,
    batch_size: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<FeatureTable, EmbedError> {
    let layers = [FeatureLayer::Projection];
    let mut tables = encode_layers(encoder, source, meta, &layers, (batch_size, threads), progress)?;
    Ok(tables.remove(0))
}

/// Likewise for several layers, a table for each; one pass over the images makes all. `meta` is completed
/// with what depends on the layer.
///
/// # Errors
/// If an image cannot be loaded, or the encoder has no such layer.
pub fn encode_layers(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    meta: TableMeta,
    layers: &[FeatureLayer],
    (batch_size, threads): (usize, usize),
    progress: &dyn Progress,
) -> Result<Vec<FeatureTable>, EmbedError> {
    let rows = source.len();
    let table = |&layer: &FeatureLayer| FeatureTable {
        features: Vec::new(),
        ids: source.ids().to_vec(),
        labels: source.labels().to_vec(),
        updated_step: vec![None; rows],
        meta: TableMeta {
            layer: layer.to_string(),
            dim: encoder.config().dim,
            unit_length: layer == FeatureLayer::Projection,
            device: Some(if encoder.device().is_cuda() { "cuda" } else { "cpu" }.into()),
            precision: Some(encoder.precision().into()),
            ..meta.clone()
        },
    };
    let mut tables: Vec<FeatureTable> = layers.iter().map(table).collect();
    progress.begin("embed", rows as u64);
    let transform = EvalTransform::ResizeCenterCrop {
        resize: encoder.config().evaluation_resize,
        crop: encoder.config().image_size,
    };
    for batch in evaluation_batches(source, transform, batch_size, threads)? {
        let batch = batch?;
        if progress.is_stopped() {
            return Err(EmbedError::Stopped);
        }
        let side = i64::from(encoder.config().image_size);
        let pixels = Tensor::from_slice(&batch.pixels).view([batch.ids.len() as i64, 3, side, side]);
        for (table, features) in tables.iter_mut().zip(encoder.features(&pixels, layers)?) {
            let dim = features.size()[1] as usize;
            table.meta.dim = dim;
            table.features.resize(rows * dim, 0.0);
            let features = to_host(&features);
            // Batches come as the images lie, not in the order of the ids.
            for (position, row) in batch.positions.iter().zip(features.chunks_exact(dim)) {
                table.features[position.row() * dim..][..dim].copy_from_slice(row);
            }
        }
        progress.advance(batch.ids.len() as u64);
    }
    progress.finish();
    Ok(tables)
}

/// The numbers of a tensor, row after row.
fn to_host(features: &Tensor) -> Vec<f32> {
    let features = features.to_device(tch::Device::Cpu).to_kind(TensorKind::Float).contiguous();
    let mut numbers = vec![0.0; features.numel()];
    let count = numbers.len();
    features.copy_data(&mut numbers, count);
    numbers
}
