//! A part of a [`SourceFile`] as a reader that seeks.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use ::bytes::Bytes;

use super::{Extent, SourceFile};
use crate::storage::StorageError;

/// Bytes fetched at a time from an object store, where a request costs more than its bytes.
const REMOTE_BYTES: u64 = 1 << 20;
/// Bytes read at a time from a local file: a header and little more.
const LOCAL_BYTES: u64 = 8 << 10;

/// Reads a part of a file through a buffer that moves. A local file is open for as long as the window.
#[derive(Debug)]
pub(in crate::ingest::source) struct Window {
    file: SourceFile,
    handle: Option<File>,
    extent: Extent,
    len: u64,
    position: u64,
    buffered: Range<u64>,
    buffer: Bytes,
    ahead: u64,
}

impl Window {
    /// A window on the whole file, for hops from one header to the next.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(in crate::ingest::source) fn new(file: &SourceFile) -> Result<Self, StorageError> {
        Self::on_part(file, Extent::Range { offset: 0 }, file.len())
    }

    /// A window on a member of `len` bytes; positions count from the member's first byte.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(in crate::ingest::source) fn on_part(
        file: &SourceFile,
        extent: Extent,
        len: u64,
    ) -> Result<Self, StorageError> {
        let handle = file.handle()?;
        let ahead = if file.is_remote() { REMOTE_BYTES } else { LOCAL_BYTES };
        let (file, buffer) = (file.clone(), Bytes::new());
        Ok(Self { file, handle, extent, len, position: 0, buffered: 0..0, buffer, ahead })
    }

    /// The same window, for reading from the beginning to the end.
    #[must_use]
    pub(in crate::ingest::source) fn sequential(mut self) -> Self {
        self.ahead = 8 * REMOTE_BYTES;
        self
    }

    fn fetch(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        let bytes = range.end - range.start;
        self.file.read_with(self.handle.as_ref(), &self.extent.slice(range), bytes)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len || buffer.is_empty() {
            return Ok(0);
        }
        if !self.buffered.contains(&self.position) {
            let range = self.position..(self.position + self.ahead).min(self.len);
            self.buffer = self.fetch(range.clone()).map_err(io::Error::other)?;
            self.buffered = range;
        }
        let from = (self.position - self.buffered.start) as usize;
        let count = buffer.len().min(self.buffer.len() - from);
        buffer[..count].copy_from_slice(&self.buffer[from..from + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| io::Error::other("seek before the start"))?;
        Ok(self.position)
    }
}
