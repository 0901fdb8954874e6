//! Where the bytes of a source's images come from: folders, tars, compressed tars, and spooled copies.
//!
//! A [`SourceFile`] is one file, local, in an object store, or unpacked into the [`Spool`]. [`read_index`]
//! lists the members of a tar, each with the [`Extent`] of its bytes. [`Containers`] reads the bytes of any
//! image later, in any order and from many threads, and never holds one open file for each container.
//! Nothing here knows a format of datasets: what a path or a text means, the caller decides.

mod compressed;
mod containers;
mod extent;
mod file;
mod spool;
mod tar;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;

pub(super) use compressed::{Compression, compression, first_bytes, unpack};
pub(super) use containers::{Containers, Request};
pub(super) use extent::Extent;
pub(super) use file::{SourceFile, Window};
pub(super) use spool::Spool;
pub(super) use tar::{Index, Member, Skipped, looks_like_tar, read_index, read_nested};

use crate::storage::StorageError;

/// Names the file in an error of the local file system.
pub(super) fn failed(
    operation: &'static str,
    location: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StorageError {
    StorageError::Failed { operation, location: location.into(), local: true, source: source.into() }
}
