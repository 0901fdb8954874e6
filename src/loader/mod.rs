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

mod batch;
mod budget;
mod error;
mod options;
mod pipeline;
mod plan;
mod source;
mod stages;
mod stats;

pub use batch::{Batch, GlobalBatch, micro_batch_ranges};
pub use error::LoaderError;
pub use options::LoaderOptions;
pub use pipeline::{Loader, evaluation_batches, evaluation_epoch};
pub use plan::order::{EpochOrder, Shuffle};
pub use source::stored::{open_split, open_split_cached};
pub use source::subset::{Subset, SubsetRecord, balanced_rows};
pub use source::{Encoded, Fetched, Instances, Layout, MemorySource, ReadContext, Source};
pub use stats::{Counter, Counters, LoaderStats};

#[cfg(test)]
mod tests;
