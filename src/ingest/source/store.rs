//! The bytes of a source's pictures.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{Entry, cifar};
use crate::storage::{Location, StorageError, read_concurrently};

/// A part of a store.
#[derive(Debug)]
pub(super) enum Part {
    /// A folder; an entry's path leads to its file.
    Folder(Location),
    /// A file; an entry is a range of it.
    Packed(Location),
    /// The same, on this machine.
    Open(File, String),
    /// A file of CIFAR's records; an entry is the pixels of one, which become a PNG.
    CifarRecords(File, String),
}

/// Where a source's pictures lie.
#[derive(Debug, Default)]
pub(super) struct Store {
    parts: Vec<Part>,
}

impl Store {
    /// Adds a part; the number is what entries name it by.
    pub(super) fn add(&mut self, part: Part) -> u32 {
        self.parts.push(part);
        u32::try_from(self.parts.len() - 1).expect("fewer parts than files")
    }

    /// Adds a file whose ranges are pictures; one of this machine is kept open.
    pub(super) fn add_file(&mut self, location: &Location) -> Result<u32, StorageError> {
        let part = match location.local_path() {
            Some(path) => {
                let file = File::open(path).map_err(|error| failed("open", location.to_string(), error))?;
                Part::Open(file, location.to_string())
            }
            None => Part::Packed(location.clone()),
        };
        Ok(self.add(part))
    }

    /// Reads one picture.
    pub(super) fn read(&self, entry: &Entry) -> Result<Bytes, StorageError> {
        match &self.parts[entry.part as usize] {
            Part::Folder(root) => {
                let location = root.join(&entry.path);
                match location.local_path() {
                    Some(path) => std::fs::read(path)
                        .map(Bytes::from)
                        .map_err(|error| failed("read", path.display().to_string(), error)),
                    None => location.read(),
                }
            }
            Part::Packed(_) if entry.bytes == 0 => Ok(Bytes::new()),
            Part::Packed(file) => file.read_range(entry.offset..entry.offset + entry.bytes),
            Part::Open(file, name) => read_at(file, name, entry),
            Part::CifarRecords(file, name) => Ok(cifar::png(&read_at(file, name, entry)?)),
        }
    }

    /// Reads several pictures; what lies in an object store is fetched at the same time.
    pub(super) fn read_all(&self, entries: &[&Entry]) -> Result<Vec<Bytes>, StorageError> {
        let remote = |entry: &&Entry| match &self.parts[entry.part as usize] {
            Part::Packed(file) if entry.bytes > 0 => {
                Some((file.clone(), Some(entry.offset..entry.offset + entry.bytes)))
            }
            Part::Folder(root) if root.local_path().is_none() => Some((root.join(&entry.path), None)),
            _ => None,
        };
        let wanted: Vec<_> = entries.iter().map(remote).collect();
        if wanted.iter().all(Option::is_some) {
            return read_concurrently(wanted.into_iter().flatten().collect()).into_iter().collect();
        }
        entries.iter().map(|entry| self.read(entry)).collect()
    }
}

fn read_at(file: &File, name: &str, entry: &Entry) -> Result<Bytes, StorageError> {
    let mut bytes = vec![0; entry.bytes as usize];
    file.read_exact_at(&mut bytes, entry.offset).map_err(|error| failed("read", name.to_owned(), error))?;
    Ok(bytes.into())
}

/// A file without a name, for what can only be read from its beginning; it is gone with the process.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    written: u64,
}

impl Spool {
    pub(super) fn new() -> Result<Self, StorageError> {
        let file = tempfile::tempfile()
            .map_err(|error| failed("create", std::env::temp_dir().display().to_string(), error))?;
        Ok(Self { file, written: 0 })
    }

    /// Adds bytes and says where they begin.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<u64, StorageError> {
        let offset = self.written;
        self.file
            .write_all(bytes)
            .map_err(|error| failed("write", std::env::temp_dir().display().to_string(), error))?;
        self.written += bytes.len() as u64;
        Ok(offset)
    }

    /// The file and its length.
    pub(super) fn finish(self) -> (File, u64) {
        (self.file, self.written)
    }
}

/// Puts a name to an error of this machine's file system.
pub(super) fn failed(
    operation: &'static str,
    location: String,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StorageError {
    StorageError::Failed { operation, location, local: true, source: source.into() }
}
