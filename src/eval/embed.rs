//! Features of a split under a checkpoint's encoder.

use std::sync::Arc;

use tch::{Kind as TensorKind, Tensor, no_grad};

use crate::checkpoint::{Checkpoint, CheckpointError, MODEL};
use crate::dataset::{DatasetError, Manifest};
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, Kind, TableError, TableMeta};
use crate::loader::{DatasetSource, EvalTransform, LoaderError, Source, evaluation_batches};
use crate::model::{
    DeviceChoice, DeviceError, Encoder, EncoderConfig, NamedTensors, WeightsError, select_device,
};
use crate::progress::Progress;
use crate::storage::{Location, Published};

/// What to embed with what, and where to.
#[derive(Clone, Debug)]
pub struct EmbedJob {
    /// The checkpoint's folder.
    pub checkpoint: Location,
    /// The dataset's folder.
    pub dataset: Location,
    /// The split.
    pub split: String,
    /// The feature table's place.
    pub output: Location,
    /// Embed so many instances only, a uniform sample; 0 for all.
    pub limit: u64,
    /// Pictures of a batch.
    pub batch_size: usize,
    /// Threads that decode; 0 for one on each core.
    pub threads: usize,
    /// Where to compute.
    pub device: DeviceChoice,
}

/// A split cannot be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The checkpoint is of another dataset.
    #[error("the checkpoint {checkpoint} is of the dataset {expected}, not of {actual}")]
    OtherDataset {
        /// The checkpoint's folder.
        checkpoint: String,
        /// The digest that it names.
        expected: String,
        /// The digest of the dataset given.
        actual: String,
    },
    /// A feature is not a finite number.
    #[error("the encoder of {checkpoint} gives a feature that is not finite (instance {instance})")]
    NotFinite {
        /// The checkpoint's folder.
        checkpoint: String,
        /// The instance.
        instance: u32,
    },
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The dataset cannot be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A picture cannot be loaded.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The table cannot be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl EmbedError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::OtherDataset { .. } | Self::NotFinite { .. } | Self::Weights(_) => Failure::Data,
            Self::Checkpoint(error) => error.failure(),
            Self::Dataset(error) => error.failure(),
            Self::Loader(error) => error.failure(),
            Self::Table(error) => error.failure(),
            Self::Device(_) => Failure::Config,
        }
    }
}

/// Embeds a split and publishes the feature table.
///
/// # Errors
/// See [`EmbedError`]; then no table is published.
pub fn embed(job: &EmbedJob, progress: &dyn Progress) -> Result<Published, EmbedError> {
    let checkpoint = Checkpoint::open(&job.checkpoint)?;
    let manifest = Manifest::read(&job.dataset)?;
    let actual = manifest.dataset_digest.to_string();
    let trained_on = &checkpoint.manifest().trained_on;
    let same_split = manifest.splits.get(&trained_on.split).map(|split| split.digest.to_string());
    if same_split.as_ref() != Some(&trained_on.split_digest) {
        let expected = trained_on.dataset_digest.clone();
        return Err(EmbedError::OtherDataset { checkpoint: job.checkpoint.to_string(), expected, actual });
    }
    let limit = if job.limit == 0 { None } else { Some(job.limit as usize) };
    let source = Arc::new(DatasetSource::open(&job.dataset, &manifest, &job.split, limit)?);
    let selected = select_device(job.device)?;
    tracing::info!("device {:?} ({})", selected.device, selected.reason);
    let encoder = load_encoder(&checkpoint, selected.device)?;
    let about = TableMeta {
        kind: Kind::Embedding,
        layer: "projection".into(),
        dim: encoder.config().dim,
        dataset_digest: actual,
        split: job.split.clone(),
        step: checkpoint.manifest().step,
        unit_length: true,
        classes: manifest.classes.clone(),
    };
    let table = encode(&encoder, source, about, job.batch_size, job.threads, progress)?;
    if let Some(bad) =
        table.features.chunks(table.meta.dim).position(|row| row.iter().any(|x| !x.is_finite()))
    {
        let instance = table.ids[bad].0;
        return Err(EmbedError::NotFinite { checkpoint: job.checkpoint.to_string(), instance });
    }
    Ok(table.write(&job.output)?)
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

/// The features of every picture of a source, each exactly once, in the order of the ids.
///
/// # Errors
/// If a picture cannot be loaded.
pub fn encode(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    meta: TableMeta,
    batch_size: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<FeatureTable, EmbedError> {
    let config = encoder.config();
    let transform =
        EvalTransform::ResizeCenterCrop { resize: config.evaluation_resize, crop: config.image_size };
    let rows = source.len();
    let mut table = FeatureTable {
        features: vec![0.0; rows * meta.dim],
        ids: source.ids().to_vec(),
        labels: source.labels().to_vec(),
        updated_step: vec![None; rows],
        meta,
    };
    progress.begin("embed", rows as u64);
    for batch in evaluation_batches(source, transform, batch_size, threads)? {
        let batch = batch?;
        let side = i64::from(config.image_size);
        let pixels = Tensor::from_slice(&batch.pixels).view([batch.ids.len() as i64, 3, side, side]);
        let features = no_grad(|| encoder.forward(&pixels, false));
        let features = features.to_device(tch::Device::Cpu).to_kind(TensorKind::Float).contiguous();
        let dim = table.meta.dim;
        let mut rows = vec![0.0; batch.ids.len() * dim];
        let count = rows.len();
        features.copy_data(&mut rows, count);
        // Batches come as the pictures lie, not in the order of the ids.
        for (position, row) in batch.positions.iter().zip(rows.chunks_exact(dim)) {
            table.features[position.row() * dim..][..dim].copy_from_slice(row);
        }
        progress.advance(batch.ids.len() as u64);
    }
    progress.finish();
    Ok(table)
}
