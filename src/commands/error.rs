//! Why a command fails.

use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::eval::EvalError;
use crate::failure::Failure;
use crate::feature_table::TableError;
use crate::image::ImageError;
use crate::loader::LoaderError;
use crate::storage::StorageError;

/// A command fails.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The options do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The data are wrong.
    #[error("{0}")]
    Data(String),
    /// A folder or file that no command reads.
    #[error("{location}: neither a dataset, a run, a checkpoint nor a feature table")]
    Unknown {
        /// The folder or file.
        location: String,
        /// Why it is not a dataset.
        source: DatasetError,
    },
    /// The checkpoint was trained on another dataset, and no split takes the place of its training images.
    #[error(
        "the checkpoint {checkpoint} was trained on the dataset {expected:.12}…, not on --dataset {dataset} \
         ({actual:.12}…): give that dataset, or to score this one by its own training images `--train-split \
         NAME`, for `knn` with `--feature projection`"
    )]
    OtherDataset {
        /// The checkpoint's folder.
        checkpoint: String,
        /// The digest of the dataset that it was trained on.
        expected: String,
        /// The dataset given.
        dataset: String,
        /// Its digest.
        actual: String,
    },
    /// Features cannot be evaluated.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// Images cannot be embedded.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Embed(#[from] crate::eval::EmbedError),
    /// A fine-tuning ends early.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Train(#[from] crate::train::TrainError),
    /// Another process failed.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Distributed(#[from] crate::distributed::DistributedError),
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The dataset cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Images cannot be read.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// A feature table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Threads cannot be started.
    #[error(transparent)]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// An image cannot be encoded.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A report cannot be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl CommandError {
    /// Whether another process failed, which tells all others itself.
    #[cfg(feature = "torch")]
    pub fn is_of_another_process(&self) -> bool {
        match self {
            Self::Distributed(_) => true,
            Self::Eval(EvalError::Embed(error)) | Self::Embed(error) => {
                matches!(error, crate::eval::EmbedError::Distributed(_))
            }
            Self::Eval(error) => matches!(error, EvalError::Distributed(_)),
            _ => false,
        }
    }

    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Usage(_) => Failure::Usage,
            Self::Data(_) | Self::OtherDataset { .. } => Failure::Data,
            Self::Unknown { source, .. } | Self::Dataset(source) => source.failure(),
            Self::Eval(error) => error.failure(),
            #[cfg(feature = "torch")]
            Self::Embed(error) => error.failure(),
            #[cfg(feature = "torch")]
            Self::Train(error) => error.failure(),
            #[cfg(feature = "torch")]
            Self::Distributed(error) => error.failure(),
            Self::Checkpoint(error) => error.failure(),
            Self::Loader(error) => error.failure(),
            Self::Table(error) => error.failure(),
            Self::Storage(error) => error.failure(),
            Self::Threads(_) => Failure::Io,
            Self::Image(_) | Self::Json(_) => Failure::Other,
        }
    }
}
