//! A split of a dataset as a source: on this machine row by row, from an object store by row groups.

use std::sync::Arc;

use super::Source;
use super::local::LocalSource;
use super::split_rows::SplitRows;
use super::streamed::StreamedSource;
use crate::dataset::Manifest;
use crate::loader::error::LoaderError;
use crate::storage::{BlobCache, Location};

/// Opens a split, or a uniform sample of `limit` of its instances, which depends on nothing but the two numbers.
///
/// # Errors
/// If there is no such split, or its index or a shard is missing or damaged.
pub fn open_split(
    dataset: &Location,
    manifest: &Manifest,
    split: &str,
    limit: Option<usize>,
) -> Result<Arc<dyn Source>, LoaderError> {
    open_split_cached(dataset, manifest, split, limit, None)
}

/// Opens a split as [`open_split`]. Row groups from an object store are kept in the cache; a dataset on this machine
/// needs none.
///
/// # Errors
/// As [`open_split`].
pub fn open_split_cached(
    dataset: &Location,
    manifest: &Manifest,
    split: &str,
    limit: Option<usize>,
    cache: Option<BlobCache>,
) -> Result<Arc<dyn Source>, LoaderError> {
    let rows = SplitRows::open(dataset, manifest, split, limit)?;
    Ok(if dataset.local_path().is_some() {
        Arc::new(LocalSource::new(rows))
    } else {
        Arc::new(StreamedSource::new(rows, cache))
    })
}
