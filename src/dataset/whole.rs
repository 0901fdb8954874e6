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
    for is_last in [false, true] {
        let bytes = match location.read() {
            Err(error) if error.is_not_found() => return Err(damaged("it is missing")),
            other => other?,
        };
        if Digest::of(&bytes) == digest {
            return Ok(bytes);
        }
        if !is_last {
            tracing::warn!("{location}: its digest is not that of the manifest; it is read once more");
        }
    }
    Err(damaged("its digest is not that of the manifest"))
}
