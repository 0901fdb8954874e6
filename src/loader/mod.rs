//! The loader: from a dataset to batches of pixels.
//!
//! [`Loader`] yields the augmented batches of epochs, one after the other; [`evaluation_batches`] yields every image
//! once. A batch carries the ids of its instances. The order is a function of (seed, epoch) and the shuffle, and the
//! pixels of an instance are a function of (seed, epoch, instance). Neither depends on threads, prefetch, memory,
//! cache, location or resume. The module knows no tensors. Stages know no files; a [`Source`] reads the bytes.
//!
//! Invariants: every instance is in exactly one batch of an epoch; an error in any stage reaches the consumer; dropping
//! a loader ends its threads; encoded images, decoding and batches together stay within the memory limit.

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

/// Error from making a batch.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The dataset cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// An image cannot be decoded, although ingest could decode it.
    #[error("instance {id} ({record}): the image cannot be decoded")]
    Image {
        /// The instance.
        id: InstanceId,
        /// Record of the instance.
        record: String,
        /// The cause.
        #[source]
        source: ImageError,
    },
    /// More images are corrupt than may be left out.
    #[error("{corrupt} images are corrupt, at most {limit} may be left out; the last one")]
    TooManyCorrupt {
        /// Number of corrupt images so far.
        corrupt: u64,
        /// Maximum number of corrupt images.
        limit: u64,
        /// Error of the last corrupt image.
        #[source]
        source: Arc<LoaderError>,
    },
    /// The options need more memory than the limit allows.
    #[error(
        "{what}: needs {:.1} MiB, the limit is {:.1} MiB; raise `--memory-limit` or {advice}",
        mebibytes(.needed), mebibytes(.limit)
    )]
    Memory {
        /// Part of the loader that needs the memory.
        what: &'static str,
        /// Number of bytes that are needed.
        needed: u64,
        /// Number of bytes that are allowed.
        limit: u64,
        /// Alternative to raising the limit.
        advice: &'static str,
    },
    /// The folder of the cache cannot be used.
    #[error("the cache cannot be used")]
    Cache(#[source] StorageError),
    /// The loader was dropped during a read; no caller receives this.
    #[error("the loader was stopped")]
    Stopped,
    /// An error that several rows share.
    #[error(transparent)]
    Shared(Arc<LoaderError>),
    /// The threads cannot be started.
    #[error("the loader's threads cannot be started")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LoaderError {
    /// Returns the kind of failure, for the exit code.
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

    /// Returns whether the data themselves are wrong or missing, so that a retry cannot help.
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
