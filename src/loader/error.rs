//! Why a batch cannot be made.

use crate::dataset::DatasetError;
use crate::failure::Failure;
use crate::ids::InstanceId;
use crate::picture::PictureError;

/// A batch cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The dataset cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A picture cannot be decoded, although it could when it was ingested.
    #[error("instance {id} ({path}): the picture cannot be decoded")]
    Picture {
        /// The instance.
        id: InstanceId,
        /// Where it came from.
        path: String,
        /// The cause.
        #[source]
        source: PictureError,
    },
    /// The threads cannot be started.
    #[error("the loader's threads cannot be started")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LoaderError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Dataset(error) => error.failure(),
            Self::Picture { .. } => Failure::Data,
            Self::Threads(_) => Failure::Other,
        }
    }
}
