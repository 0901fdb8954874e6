//! Errors of commands.

use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::eval::EvalError;
use crate::failure::Failure;
use crate::feature_table::TableError;
use crate::image::ImageError;
use crate::loader::LoaderError;
use crate::storage::StorageError;

/// Error of a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The options contradict each other.
    #[error("{0}")]
    Usage(String),
    /// The data are invalid.
    #[error("{0}")]
    Data(String),
    /// No command reads this folder or file.
    #[error("{location}: neither a dataset, a run, a checkpoint nor a feature table")]
    Unknown {
        /// Name of the folder or file.
        location: String,
        /// Reason why it is not a dataset.
        source: DatasetError,
    },
    /// The checkpoint was trained on another dataset, and no split replaces its training images.
    #[error(
        "the checkpoint {checkpoint} was trained on the dataset {expected:.12}…, not on --dataset {dataset} \
         ({actual:.12}…): give that dataset, or to score this one by its own training images `--train-split \
         NAME`, for `knn` with `--feature projection`"
    )]
    OtherDataset {
        /// Folder of the checkpoint.
        checkpoint: String,
        /// Digest of the dataset that the checkpoint was trained on.
        expected: String,
        /// Location of the given dataset.
        dataset: String,
        /// Digest of that dataset.
        actual: String,
    },
    /// The features could not be evaluated.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The images could not be embedded.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Embed(#[from] crate::eval::EmbedError),
    /// A fine-tuning ended early.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Train(#[from] crate::train::TrainError),
    /// Another process failed.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Distributed(#[from] crate::distributed::DistributedError),
    /// A checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The dataset could not be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Images could not be read.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// A feature table could not be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Threads could not be started.
    #[error(transparent)]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// An image could not be encoded.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A report could not be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl CommandError {
    /// Returns whether another process failed, which itself informs all others.
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

    /// Returns the kind of failure, which selects the exit code.
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
