//! The loader: from a dataset to batches of pixels.
//!
//! [`Loader`] gives the augmented batches of epochs, one after the other; [`evaluation_batches`] every image
//! once. A batch carries the ids of its instances. The order is a function of (seed, epoch) and the shuffle,
//! the pixels of an instance a function of (seed, epoch, instance): neither depends on threads, prefetch,
//! memory, cache, location or resume. The module knows no tensors. Stages know no files; a [`Source`] gives the bytes.
//!
//! Invariants: every instance is in exactly one batch of an epoch; an error in any stage reaches the
//! consumer; dropping a loader ends its threads; encoded images, decoding and batches together hold to the
//! memory limit.

mod options;
mod pipeline;
mod plan;
mod source;
mod stages;
mod stats;

use std::sync::Arc;

pub use options::LoaderOptions;
pub use pipeline::{Loader, evaluation_batches, evaluation_epoch};
pub use plan::order::{EpochOrder, Shuffle};
pub use plan::{Batch, GlobalBatch};
pub use source::stored::{open_split, open_split_cached};
pub use source::{Encoded, Fetched, Instances, Layout, MemorySource, ReadContext, Source};
pub use source::{Subset, SubsetRecord, balanced_rows};
pub use stats::{Counter, Counters, LoaderStats};

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
    #[error("instance {id} ({record}): the image cannot be decoded")]
    Image {
        /// The instance.
        id: InstanceId,
        /// Its record.
        record: String,
        /// The cause.
        #[source]
        source: ImageError,
    },
    /// More images are corrupt than may be left out.
    #[error("{corrupt} images are corrupt, at most {limit} may be left out; the last one")]
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
    #[error(
        "{what}: needs {:.1} MiB, the limit is {:.1} MiB; raise `--memory-limit` or {advice}",
        mebibytes(.needed), mebibytes(.limit)
    )]
    Memory {
        /// What needs the memory.
        what: &'static str,
        /// The bytes that it needs.
        needed: u64,
        /// The bytes that are allowed.
        limit: u64,
        /// What else to change.
        advice: &'static str,
    },
    /// The cache's folder cannot be used.
    #[error("the cache cannot be used")]
    Cache(#[source] StorageError),
    /// The loader was dropped while it read; no caller receives this.
    #[error("the loader was stopped")]
    Stopped,
    /// One error of several rows.
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

    /// Whether the data themselves are wrong or missing, so that another try cannot help.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Dataset(DatasetError::Storage(error)) => error.is_not_found(),
            Self::Dataset(
                DatasetError::Missing { .. } | DatasetError::Damaged { .. } | DatasetError::RowGroup { .. },
            ) => true,
            Self::Image { .. } => true,
            Self::Shared(error) => error.is_corruption(),
            _ => false,
        }
    }
}

fn mebibytes(bytes: &u64) -> f64 {
    *bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests;
