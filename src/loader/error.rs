//! Why a batch cannot be made.

use std::sync::Arc;

use crate::dataset::DatasetError;
use crate::failure::Failure;
use crate::ids::InstanceId;
use crate::image::ImageError;
use crate::storage::StorageError;

/// A batch cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The dataset cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// An image cannot be decoded, although it could when it was ingested.
    #[error("instance {id} ({place}): the image cannot be decoded")]
    Image {
        /// The instance.
        id: InstanceId,
        /// Where it lies.
        place: String,
        /// The cause.
        #[source]
        source: ImageError,
    },
    /// More images are corrupt than may be left out.
    #[error("{corrupt} images are corrupt, of which at most {limit} may be left out; the last one")]
    TooManyCorrupt {
        /// How many there are so far.
        corrupt: u64,
        /// How many may be.
        limit: u64,
        /// What is wrong with the last one.
        #[source]
        source: Arc<LoaderError>,
    },
    /// What the options need does not fit into the memory that they allow.
    #[error("the loader needs {needed} bytes of memory and may take {limit}: {what}")]
    Memory {
        /// The bytes that are needed.
        needed: u64,
        /// The limit.
        limit: u64,
        /// What needs them, and what to change.
        what: String,
    },
    /// The cache's folder cannot be used.
    #[error("the cache cannot be used")]
    Cache(#[source] StorageError),
    /// The loader was dropped while it read; nobody sees this.
    #[error("the loader was stopped")]
    Stopped,
    /// The same error is told of several rows.
    #[error(transparent)]
    Shared(Arc<LoaderError>),
    /// The threads cannot be started.
    #[error("the loader's threads cannot be started")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LoaderError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Dataset(error) => error.failure(),
            Self::Image { .. } | Self::TooManyCorrupt { .. } => Failure::Data,
            Self::Memory { .. } => Failure::Config,
            Self::Cache(error) => error.failure(),
            Self::Shared(error) => error.failure(),
            Self::Stopped | Self::Threads(_) => Failure::Other,
        }
    }

    /// Whether the data themselves are wrong or missing, so that another try will not help and the rows can
    /// only be left out.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Dataset(DatasetError::Storage(error)) => error.is_not_found(),
            Self::Dataset(DatasetError::Damaged { .. } | DatasetError::RowGroup { .. }) => true,
            Self::Image { .. } => true,
            Self::Shared(error) => error.is_corruption(),
            _ => false,
        }
    }
}
