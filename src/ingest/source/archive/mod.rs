//! Containers of a source's images: folders, tars, compressed tars, and spooled copies.
//!
//! A [`SourceFile`] is one file, local, in an object store, or unpacked into the [`Spool`]. [`read_index`]
//! lists the members of a tar, each with the [`Extent`] of its bytes. [`Containers`] later reads the bytes of any
//! image, in any order and from many threads, without an open file for each container. This module knows no
//! format of datasets: the caller interprets paths and texts.

mod file;
mod spool;
mod tar;

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

pub(super) use file::{Extent, SourceFile, Window};
pub(super) use spool::{Compression, Spool, compression, first_bytes, unpack};
pub(super) use tar::{Index, Member, looks_like_tar, read_index, read_nested};

use crate::storage::{Location, StorageError, read_concurrently};
use file::{changed, missing_or_failed};

/// Makes an error of the local file system that names the file.
pub(super) fn failed(
    operation: &'static str,
    location: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StorageError {
    StorageError::Failed { operation, location: location.into(), local: true, source: source.into() }
}

/// Maximum number of local files that are kept open, well below the usual limit of 1024 for a process.
const MOST_OPEN: usize = 128;

/// A function that converts an entry's bytes to an image file.
pub(crate) type Decode = fn(Bytes) -> Bytes;

/// A read of one entry of a container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// Number of the container from [`Containers`].
    pub container: u32,
    /// Position in the container's file; unused for a folder.
    pub extent: &'a Extent,
    /// Path in a folder; also for errors.
    pub path: &'a str,
    /// Size in bytes, as listed.
    pub bytes: u64,
}

#[derive(Debug)]
enum Container {
    /// A folder, in which an entry's path names its file.
    Folder(Location),
    /// A file; each entry is a part of it, made into an image file.
    File(SourceFile, Decode),
}

/// All containers of a source; reads are thread-safe.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    containers: Vec<Container>,
    handles: Handles,
}

impl Containers {
    /// Adds a folder whose entries are files; returns the number for [`Request`].
    pub(crate) fn add_folder(&mut self, root: Location) -> u32 {
        self.add(Container::Folder(root))
    }

    /// Adds a file whose entries are parts of it.
    pub(crate) fn add_file(&mut self, file: SourceFile) -> u32 {
        self.add(Container::File(file, |bytes| bytes))
    }

    /// Adds a file of records, which `decode` converts to image files.
    pub(crate) fn add_records(&mut self, file: SourceFile, decode: Decode) -> u32 {
        self.add(Container::File(file, decode))
    }

    fn add(&mut self, container: Container) -> u32 {
        self.containers.push(container);
        u32::try_from(self.containers.len() - 1).expect("fewer containers than files")
    }

    /// Reads one entry.
    ///
    /// # Errors
    /// If the entry changed since it was listed, or the store fails.
    pub(crate) fn read(&self, request: Request<'_>) -> Result<Bytes, StorageError> {
        match &self.containers[request.container as usize] {
            Container::Folder(root) => read_file(&root.join(request.path), request.bytes),
            Container::File(file, decode) => {
                let handle = self.handles.of(request.container, file)?;
                file.read_with(handle.as_deref(), request.extent, request.bytes).map(decode)
            }
        }
    }

    /// Reads several entries in their order, those in object stores concurrently.
    ///
    /// # Errors
    /// If any changed since it was listed, or a store fails.
    pub(crate) fn read_all(&self, requests: &[Request<'_>]) -> Result<Vec<Bytes>, StorageError> {
        let remote: Vec<_> = requests.iter().map(|request| self.remote(request)).collect();
        let mut fetched = read_concurrently(remote.iter().flatten().cloned().collect()).into_iter();
        let read = requests.iter().zip(&remote).map(|(request, remote)| {
            let Some((location, range)) = remote else { return self.read(*request) };
            let found = fetched.next().expect("one for each that was wanted")?;
            match (&self.containers[request.container as usize], range) {
                (Container::File(file, decode), Some(range)) => {
                    file.whole(found, range.start, request.bytes).map(decode)
                }
                _ => whole(location, request.bytes, found),
            }
        });
        read.collect()
    }

    /// Returns the location and range of an object that is the whole entry, if there is one.
    fn remote(&self, request: &Request<'_>) -> Option<(Location, Option<std::ops::Range<u64>>)> {
        match &self.containers[request.container as usize] {
            Container::Folder(root) if root.local_path().is_none() => Some((root.join(request.path), None)),
            Container::Folder(_) => None,
            Container::File(file, _) => {
                let (location, range) = file.remote_range(request.extent, request.bytes)?;
                Some((location, Some(range)))
            }
        }
    }
}

/// Reads a file of a folder. Its size was listed, so a local one is read without looking it up again.
fn read_file(location: &Location, bytes: u64) -> Result<Bytes, StorageError> {
    let Some(path) = location.local_path() else { return whole(location, bytes, location.read()?) };
    let name = || path.display().to_string();
    let mut file = File::open(path).map_err(|error| missing_or_failed(&name(), error))?;
    // One byte more reveals that the file has grown.
    let mut buffer = Vec::with_capacity(bytes as usize + 1);
    let read = file.by_ref().take(bytes + 1).read_to_end(&mut buffer);
    read.map_err(|error| failed("read", name(), error))?;
    if buffer.len() as u64 == bytes {
        return Ok(buffer.into());
    }
    let found = file.metadata().map_err(|error| failed("look up", name(), error))?.len();
    Err(changed(&name(), true, bytes, found))
}

fn whole(location: &Location, bytes: u64, found: Bytes) -> Result<Bytes, StorageError> {
    if found.len() as u64 == bytes {
        return Ok(found);
    }
    Err(changed(&location.to_string(), location.local_path().is_some(), bytes, found.len() as u64))
}

/// Open files by container, the last used one last; the first is closed if there would be too many.
#[derive(Debug, Default)]
struct Handles(Mutex<Vec<(u32, Arc<File>)>>);

impl Handles {
    /// Returns the open file of a container; `None` if it needs none.
    fn of(&self, container: u32, file: &SourceFile) -> Result<Option<Arc<File>>, StorageError> {
        let open = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |open: &mut Vec<(u32, Arc<File>)>| {
            let at = open.iter().position(|(number, _)| *number == container)?;
            open[at..].rotate_left(1);
            open.last().map(|(_, handle)| Arc::clone(handle))
        };
        if let Some(handle) = find(&mut open()) {
            return Ok(Some(handle));
        }
        // Opened without the lock: a slow file system must not delay other threads. Two threads may open one file.
        let Some(handle) = file.handle()?.map(Arc::new) else { return Ok(None) };
        let mut open = open();
        if let Some(known) = find(&mut open) {
            return Ok(Some(known));
        }
        if open.len() >= MOST_OPEN {
            open.remove(0);
        }
        open.push((container, Arc::clone(&handle)));
        Ok(Some(handle))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
