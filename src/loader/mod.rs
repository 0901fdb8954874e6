//! The loader: from a dataset to batches of pixels.
//!
//! [`Loader`] gives the augmented batches of epochs, one after the other; [`evaluation_batches`] every image
//! once. A batch carries the ids of its instances. The order is a function of (seed, epoch) and the shuffle,
//! the pixels of an instance a function of (seed, epoch, instance): neither depends on threads, prefetch,
//! memory, cache, place or where a run was resumed. This module knows no tensors and no files; bytes come
//! through a [`Source`].
//!
//! Invariants: every instance is in exactly one batch of an epoch; an error in any stage reaches the
//! consumer; dropping a loader ends its threads; encoded images, decoding and batches together hold to the
//! memory limit.

mod budget;
mod dataset_source;
mod ending;
mod error;
mod evaluation;
mod global_batch;
mod group_reads;
mod groups;
mod label_subset;
mod layout;
mod options;
mod order;
mod pipeline;
mod plan;
mod source;
mod stages;
mod stats;
mod subset;
mod windowed;

pub use dataset_source::DatasetSource;
pub use error::LoaderError;
pub use evaluation::{evaluation_batches, evaluation_epoch};
pub use global_batch::{GlobalBatch, Part, in_parts};
pub use label_subset::{SubsetRecord, balanced_rows};
pub use layout::Layout;
pub use options::{LoaderOptions, OnCorrupt};
pub use order::{EpochOrder, Shuffle};
pub use pipeline::{Batch, Loader};
pub use source::{Encoded, Fetched, Instances, MemorySource, Reading, Source};
pub use stats::{Counter, Counters, LoaderStats};
pub use subset::Subset;

#[cfg(test)]
mod tests;
