//! A file that holds images or their container, as it was when it was listed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use ::bytes::Bytes;

use super::extent::read_local;
use super::spool::Spool;
use super::{Extent, failed};
use crate::ingest::IngestError;
use crate::storage::{Location, StorageError};

/// A file, wherever its bytes are. Cheap to clone; holds no file open, but for the one spool of all.
#[derive(Clone, Debug)]
pub(in crate::ingest::source) struct SourceFile {
    name: Arc<str>,
    len: u64,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    /// A local file; the stamp tells whether it changed.
    Local(Location, Stamp),
    /// A file in an object store.
    Remote(Location),
    /// A copy in the spool.
    Spooled(Arc<Spool>, Extent),
}

/// Size and time of a local file: if either changes, so did the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() }
    }
}

impl SourceFile {
    /// Looks at a file.
    ///
    /// # Errors
    /// If it does not exist or is a folder, a pipe or a device, or the store fails.
    pub(in crate::ingest::source) fn open(location: &Location) -> Result<Self, IngestError> {
        let name = location.to_string();
        let Some(path) = location.local_path() else {
            let len = location.size()?;
            return Ok(Self { name: name.into(), len, origin: Origin::Remote(location.clone()) });
        };
        // Opening a pipe would wait for a writer, so its kind is looked up first.
        let metadata = std::fs::metadata(path).map_err(|error| missing_or_failed(&name, error))?;
        if !metadata.is_file() {
            let reason = if metadata.is_dir() {
                "a folder, not a file"
            } else {
                "a pipe or a device, not a regular file; write the data to a file first"
            };
            return Err(IngestError::Layout { location: name, reason: reason.into() });
        }
        let stamp = Stamp::of(&metadata);
        Ok(Self { name: name.into(), len: metadata.len(), origin: Origin::Local(location.clone(), stamp) })
    }

    /// A copy in the spool.
    pub(super) fn spooled(name: &str, len: u64, spool: Arc<Spool>, extent: Extent) -> Self {
        Self { name: name.into(), len, origin: Origin::Spooled(spool, extent) }
    }

    /// Its name for errors.
    pub(in crate::ingest::source) fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes.
    pub(in crate::ingest::source) fn len(&self) -> u64 {
        self.len
    }

    /// Its first bytes, at most `count`.
    ///
    /// # Errors
    /// If the store fails.
    pub(in crate::ingest::source) fn head(&self, count: u64) -> Result<Bytes, StorageError> {
        self.read(&Extent::Range { offset: 0 }, count.min(self.len))
    }

    /// Reads `bytes` bytes of it.
    ///
    /// # Errors
    /// If it changed since it was listed, or the store fails.
    pub(in crate::ingest::source) fn read(&self, extent: &Extent, bytes: u64) -> Result<Bytes, StorageError> {
        let handle = if bytes == 0 { None } else { self.handle()? };
        self.read_with(handle.as_ref(), extent, bytes)
    }

    /// An open file, if it is a local one.
    pub(super) fn handle(&self) -> Result<Option<File>, StorageError> {
        match &self.origin {
            Origin::Local(location, _) => {
                let path = location.local_path().expect("a local file has a path");
                File::open(path).map(Some).map_err(|error| missing_or_failed(&self.name, error))
            }
            Origin::Remote(_) | Origin::Spooled(..) => Ok(None),
        }
    }

    /// The same with a file that [`Self::handle`] opened.
    pub(super) fn read_with(
        &self,
        handle: Option<&File>,
        extent: &Extent,
        bytes: u64,
    ) -> Result<Bytes, StorageError> {
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        match &self.origin {
            Origin::Local(_, stamp) => {
                let file = handle.expect("the caller opened it");
                let read = read_local(file, extent, bytes);
                // Looked up after the read, so that a change before its end is seen.
                let metadata = file.metadata().map_err(|error| failed("look up", self.name(), error))?;
                if Stamp::of(&metadata) != *stamp {
                    return Err(self.changed(metadata.len()));
                }
                read.map_err(|error| failed("read", self.name(), error))
            }
            Origin::Remote(location) => match extent {
                Extent::Range { offset } => self.fetch(location, *offset, bytes),
                Extent::Sparse(_) => extent.read(bytes, |offset, buffer| {
                    buffer.copy_from_slice(&self.fetch(location, offset, buffer.len() as u64)?);
                    Ok(())
                }),
            },
            Origin::Spooled(spool, outer) => spool.read(&outer.within(extent, bytes), bytes),
        }
    }

    fn fetch(&self, location: &Location, offset: u64, bytes: u64) -> Result<Bytes, StorageError> {
        let found = location.read_range(offset..offset + bytes)?;
        self.whole(found, offset, bytes)
    }

    /// The range that a concurrent read is to fetch, if that is all there is to do.
    pub(super) fn remote_range(
        &self,
        extent: &Extent,
        bytes: u64,
    ) -> Option<(Location, std::ops::Range<u64>)> {
        match (&self.origin, extent) {
            (Origin::Remote(location), Extent::Range { offset }) if bytes > 0 => {
                Some((location.clone(), *offset..offset + bytes))
            }
            _ => None,
        }
    }

    /// What a store returned, if it is all of it.
    pub(super) fn whole(&self, found: Bytes, offset: u64, bytes: u64) -> Result<Bytes, StorageError> {
        if found.len() as u64 == bytes { Ok(found) } else { Err(self.changed(offset + found.len() as u64)) }
    }

    /// Whether reads from it wait for the network.
    pub(in crate::ingest::source) fn is_remote(&self) -> bool {
        matches!(self.origin, Origin::Remote(_))
    }

    fn changed(&self, bytes: u64) -> StorageError {
        let local = !self.is_remote();
        changed(self.name(), local, self.len, bytes)
    }
}

/// A file is not what was listed.
pub(super) fn changed(name: &str, local: bool, listed: u64, found: u64) -> StorageError {
    let source = if listed == found {
        "the file was modified after it was listed; run ingest again when nothing writes to it".to_owned()
    } else {
        format!(
            "the file was modified after it was listed ({listed} bytes then, {found} now); \
             run ingest again when nothing writes to it"
        )
    };
    StorageError::Failed { operation: "read", location: name.to_owned(), local, source: source.into() }
}

pub(super) fn missing_or_failed(name: &str, error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::NotFound => StorageError::NotFound { location: name.to_owned(), local: true },
        _ => failed("open", name, error),
    }
}
