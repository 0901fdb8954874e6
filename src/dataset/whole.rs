//! Reading a file of a dataset whole.

use bytes::Bytes;

use super::DatasetError;
use crate::storage::{Digest, Location};

/// The contents of a file that the manifest gives a digest of. What was damaged on its way is read once more.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
pub(super) fn read_whole(location: &Location, digest: Digest) -> Result<Bytes, DatasetError> {
    let damaged = |reason: &str| DatasetError::Damaged { shard: location.to_string(), reason: reason.into() };
    match location.read_checked(Location::read, digest) {
        Err(error) if error.is_not_found() => Err(damaged("it is missing")),
        other => other?.ok_or_else(|| damaged("its digest is not that of the manifest")),
    }
}
