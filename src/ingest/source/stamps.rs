//! Whether the files of a source are those of an earlier ingest, beyond their names and sizes.

use rayon::prelude::*;

use super::discover::Container;
use crate::storage::{Digest, Stamp, StorageError};

/// What tells one version of a source's files from another: modification times on this machine, ETags in an object store.
///
/// It decides whether interrupted work may go on, and never what a dataset holds.
#[derive(Clone, Debug, Default)]
pub(in crate::ingest) struct Stamps {
    hasher: blake3::Hasher,
    without: u64,
}

impl Stamps {
    /// Adds a file. The order counts.
    pub(super) fn add(&mut self, path: &str, stamp: Option<Stamp>) {
        self.hasher.update(&(path.len() as u64).to_le_bytes());
        self.hasher.update(path.as_bytes());
        self.hasher.update(&stamp.map_or(0, |stamp| stamp.0).to_le_bytes());
        self.without += u64::from(stamp.is_none());
    }

    /// Adds files that hold images or name them.
    ///
    /// # Errors
    /// If a store fails.
    pub(super) fn add_containers(&mut self, files: &[Container]) -> Result<(), StorageError> {
        let look = |file: &Container| file.location.stamp();
        let found: Vec<Option<Stamp>> = files.par_iter().map(look).collect::<Result<_, _>>()?;
        files.iter().zip(found).for_each(|(file, stamp)| self.add(&file.name, stamp));
        Ok(())
    }

    /// The digest over all files: equal for the same files at the same times.
    pub(in crate::ingest) fn digest(&self) -> Digest {
        self.hasher.finalize().into()
    }

    /// How many files have neither a time nor an ETag, so that their names and sizes alone count.
    pub(in crate::ingest) fn without(&self) -> u64 {
        self.without
    }
}
