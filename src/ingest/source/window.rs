//! A file, wherever it lies, as something that can be read and sought in.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;

use crate::storage::{Location, StorageError};

/// Bytes fetched at a time from an object store, where a request costs more than its bytes.
const REMOTE_BYTES: u64 = 1 << 20;
/// Bytes read at a time on this machine: a header and little more.
const LOCAL_BYTES: u64 = 8 << 10;

/// Reads a part of a file through a window that moves.
#[derive(Debug)]
pub(super) struct Window {
    location: Location,
    file: Option<std::fs::File>,
    part: Range<u64>,
    position: u64,
    start: u64,
    bytes: Bytes,
    ahead: u64,
}

impl Window {
    /// A window on the whole file, for hops from one header to the next.
    pub(super) fn new(location: &Location) -> Result<Self, StorageError> {
        let len = location.size()?;
        Self::on_part(location, 0..len)
    }

    /// A window on a part of the file; positions count from its beginning.
    pub(super) fn on_part(location: &Location, part: Range<u64>) -> Result<Self, StorageError> {
        let file = match location.local_path() {
            Some(path) => Some(
                std::fs::File::open(path)
                    .map_err(|error| super::store::failed("open", location.to_string(), error))?,
            ),
            None => None,
        };
        let ahead = if file.is_some() { LOCAL_BYTES } else { REMOTE_BYTES };
        let start = part.start;
        Ok(Self {
            location: location.clone(),
            file,
            part,
            position: start,
            start,
            bytes: Bytes::new(),
            ahead,
        })
    }

    /// The same window, for reading from the beginning to the end.
    #[must_use]
    pub(super) fn sequential(mut self) -> Self {
        self.ahead = 8 * REMOTE_BYTES;
        self
    }

    /// The number of bytes.
    pub(super) fn len(&self) -> u64 {
        self.part.end - self.part.start
    }

    fn fetch(&self, range: Range<u64>) -> io::Result<Bytes> {
        use std::os::unix::fs::FileExt;
        let Some(file) = &self.file else {
            return self.location.read_range(range).map_err(io::Error::other);
        };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.part.end || buffer.is_empty() {
            return Ok(0);
        }
        let end = self.start + self.bytes.len() as u64;
        if self.position < self.start || self.position >= end {
            let to = (self.position + self.ahead).min(self.part.end);
            self.bytes = self.fetch(self.position..to)?;
            self.start = self.position;
        }
        let from = (self.position - self.start) as usize;
        let count = buffer.len().min(self.bytes.len() - from);
        buffer[..count].copy_from_slice(&self.bytes[from..from + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => self.part.start.checked_add(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.part.end.checked_add_signed(by),
        };
        let inside = target.filter(|&at| at >= self.part.start);
        self.position = inside.ok_or_else(|| io::Error::other("a seek to before the start"))?;
        Ok(self.position - self.part.start)
    }
}
