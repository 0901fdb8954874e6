//! Why an ingest fails.

use crate::dataset::DatasetError;
use crate::failure::Failure;
use crate::storage::StorageError;

/// An ingest cannot be done; no dataset is published.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The source has no images in a layout that is understood, or can be understood in two ways.
    #[error("{location}: {reason}")]
    Layout {
        /// The source.
        location: String,
        /// What is missing.
        reason: String,
    },
    /// The tar is cut or no tar.
    #[error("{tar}: byte {offset}: {reason}")]
    Tar {
        /// The tar.
        tar: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Too many images were rejected.
    #[error(
        "split `{split}`: {rejected} of {total} images were rejected, {}; the first: {first}",
        if rejected == total { "so none is left" } else { "more than --max-reject-fraction allows" }
    )]
    TooManyRejects {
        /// The split.
        split: String,
        /// Images rejected.
        rejected: usize,
        /// Images validated.
        total: usize,
        /// The first reasons.
        first: String,
    },
    /// The destination holds something else.
    #[error("{dest}: it already holds another dataset: {reason}")]
    OtherDataset {
        /// The destination.
        dest: String,
        /// What differs.
        reason: String,
    },
    /// The folder of a split holds files of somebody else, the source's perhaps.
    #[error("{dest}: {file} is no file of a dataset; the destination must be a folder of its own")]
    NotOurs {
        /// The destination.
        dest: String,
        /// One of the files.
        file: String,
    },
    /// A dataset cannot be read or written.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The source or the destination failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The threads cannot be started.
    #[error("the threads that check pictures cannot be started")]
    Threads(#[source] rayon::ThreadPoolBuildError),
}

impl IngestError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Layout { .. }
            | Self::Tar { .. }
            | Self::TooManyRejects { .. }
            | Self::OtherDataset { .. }
            | Self::NotOurs { .. } => Failure::Data,
            Self::Dataset(error) => error.failure(),
            Self::Storage(error) => error.failure(),
            Self::Threads(_) => Failure::Other,
        }
    }
}
