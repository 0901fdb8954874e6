//! Why features cannot be evaluated.

use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::failure::Failure;
use crate::feature_table::TableError;
use crate::loader::LoaderError;
use crate::storage::StorageError;

/// Features cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// An option makes no sense for these tables.
    #[error("{reason}")]
    Options {
        /// What is wrong.
        reason: String,
    },
    /// More neighbours were asked for than there are.
    #[error("k = {k} is larger than the bank, which has {rows} rows to vote; give --k {rows} or less")]
    KTooLarge {
        /// Neighbours asked for.
        k: usize,
        /// Rows that can be neighbours.
        rows: usize,
    },
    /// The tables do not belong together.
    #[error("the bank and the queries do not fit: {reason}")]
    Mismatch {
        /// What differs.
        reason: String,
    },
    /// A table cannot be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The dataset cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The images for the page cannot be loaded.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The other processes failed.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Distributed(#[from] crate::distributed::DistributedError),
}

impl EvalError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Options { .. } | Self::KTooLarge { .. } => Failure::Usage,
            Self::Mismatch { .. } => Failure::Data,
            Self::Table(error) => error.failure(),
            Self::Checkpoint(error) => error.failure(),
            Self::Dataset(error) => error.failure(),
            Self::Loader(error) => error.failure(),
            Self::Storage(error) => error.failure(),
            #[cfg(feature = "torch")]
            Self::Distributed(error) => error.failure(),
        }
    }
}
