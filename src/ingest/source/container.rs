//! The files that hold the images of a source or name them, and their versions.

use rayon::prelude::*;

use super::archive::Compression;
use crate::storage::{Digest, Location, Stamp, StorageError};

/// A file that holds images or names them.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) location: Location,
    /// Its name below the source.
    pub(super) name: String,
    /// Of a tar.
    pub(super) compression: Option<Compression>,
}

/// A location from the root of its machine or store.
pub(super) fn whole_path(location: &Location) -> String {
    location.local_path().map_or_else(|| location.to_string(), |path| path.display().to_string())
}

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
        let stamp = |file: &Container| file.location.stamp();
        let found: Vec<Option<Stamp>> = files.par_iter().map(stamp).collect::<Result<_, _>>()?;
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
