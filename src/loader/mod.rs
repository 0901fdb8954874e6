//! The loader: from a dataset to batches of pixels.
//!
//! [`Loader`] gives the augmented batches of an epoch, [`evaluation_batches`] every picture once. A batch
//! carries the ids of its instances. The order is a function of (seed, epoch), the pixels of an instance a
//! function of (seed, epoch, instance): neither depends on threads, prefetch or where a run was resumed.
//! This module knows no tensors and no files; bytes come through a [`Source`].
//!
//! Invariants: every instance is in exactly one batch of an epoch; an error in any stage reaches the
//! consumer; dropping a loader ends its threads.

mod apply;
mod colour;
mod error;
mod order;
mod pipeline;
mod recipe;
mod resize;
mod source;

pub use apply::{EvalTransform, Renderer, Stage, augment, evaluate_pixels};
pub use error::LoaderError;
pub use order::EpochOrder;
pub use pipeline::{Batch, Loader, LoaderOptions, evaluation_batches};
pub use recipe::{Augmentation, ColourOperation, CropBox, JitterStrength, Order, Recipe};
pub use source::{DatasetSource, MemorySource, Source};

#[cfg(test)]
mod tests;
