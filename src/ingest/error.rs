//! Why an ingest fails.

use std::fmt::Display;

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
        if rejected == total { "so none is left".to_owned() } else { accepting(*rejected, *total, *allowed) }
    )]
    TooManyRejects {
        /// The split.
        split: String,
        /// Images rejected.
        rejected: usize,
        /// Images validated.
        total: usize,
        /// The share that may be rejected.
        allowed: f64,
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
    /// A file that no ingest has recorded is where one would write.
    #[error(
        "{dest}: `{file}` is not a file that an ingest has recorded; move or delete it, or give another destination"
    )]
    NotOurs {
        /// The destination.
        dest: String,
        /// One of the files.
        file: String,
    },
    /// The destination is a folder of images.
    #[error("{dest}: it holds images, such as `{image}`; give --dest a folder that is new or empty")]
    ImagesAtDestination {
        /// The destination.
        dest: String,
        /// One of the images.
        image: String,
    },
    /// Source and destination are the same or one holds the other.
    #[error(
        "the source {source_location} and the destination {dest} overlap; give a destination outside of the source"
    )]
    Overlap {
        /// The source.
        source_location: String,
        /// The destination.
        dest: String,
    },
    /// An image is not the one that the dataset was made of.
    #[error("{source_location}: `{image}` is not as it was when {dest} was made: {reason}")]
    SourceChanged {
        /// The source.
        source_location: String,
        /// The first image that differs.
        image: String,
        /// The dataset.
        dest: String,
        /// How it differs.
        reason: String,
    },
    /// Options that do not fit the source or the destination.
    #[error("{reason}")]
    Options {
        /// Which one, and what to do.
        reason: String,
    },
    /// A dataset cannot be read or written.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The source or the destination failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The threads cannot be started.
    #[error("the threads that check images cannot be started")]
    Threads(#[source] rayon::ThreadPoolBuildError),
}

impl IngestError {
    /// A source at this location that cannot be read as asked for.
    pub(super) fn layout(location: impl Display, reason: impl Into<String>) -> Self {
        Self::Layout { location: location.to_string(), reason: reason.into() }
    }

    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Layout { .. }
            | Self::Tar { .. }
            | Self::TooManyRejects { .. }
            | Self::OtherDataset { .. }
            | Self::NotOurs { .. }
            | Self::ImagesAtDestination { .. }
            | Self::Overlap { .. }
            | Self::SourceChanged { .. } => Failure::Data,
            Self::Options { .. } => Failure::Config,
            Self::Dataset(error) => error.failure(),
            Self::Storage(error) => error.failure(),
            Self::Threads(_) => Failure::Other,
        }
    }
}

/// How many rejects are allowed, and the option that accepts these.
fn accepting(rejected: usize, total: usize, allowed: f64) -> String {
    let share = (100.0 * rejected as f64 / total as f64).ceil() / 100.0;
    format!(
        "more than the share of {allowed} that is allowed; `--max-reject-fraction {share}` leaves them out and ingests \
         the others"
    )
}
