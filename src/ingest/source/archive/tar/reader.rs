//! The bytes of a tar, with errors that name it.

use std::io::{self, Read, Seek, SeekFrom};

use super::super::failed;
use super::header::{BLOCK, Header};
use crate::ingest::IngestError;
use crate::storage::StorageError;

/// The bytes of a tar.
pub(super) struct TarReader<'a, R> {
    pub(super) name: &'a str,
    pub(super) reader: R,
    pub(super) len: u64,
}

impl<R: Read + Seek> TarReader<'_, R> {
    pub(super) fn wrong(&self, offset: u64, reason: impl Into<String>) -> IngestError {
        IngestError::Tar { tar: self.name.to_owned(), offset, reason: reason.into() }
    }

    pub(super) fn cut(&self, offset: u64, what: &str, needed: u64) -> IngestError {
        let reason = format!(
            "the tar is cut {what}: it has {} bytes, {needed} are needed; download or copy it again",
            self.len
        );
        self.wrong(offset, reason)
    }

    /// Fills the buffer; the range is inside of the file.
    pub(super) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), IngestError> {
        let mut read = || {
            self.reader.seek(SeekFrom::Start(offset))?;
            self.reader.read_exact(buffer)
        };
        read().map_err(|error: io::Error| match error.downcast::<StorageError>() {
            Ok(error) => error.into(),
            Err(error) => failed("read", self.name, error).into(),
        })
    }

    pub(super) fn read_vec(&mut self, offset: u64, bytes: u64) -> Result<Vec<u8>, IngestError> {
        let mut buffer = vec![0; bytes as usize];
        self.read_at(offset, &mut buffer)?;
        Ok(buffer)
    }

    pub(super) fn block(&mut self, offset: u64) -> Result<Header, IngestError> {
        if offset + BLOCK > self.len {
            return Err(self.cut(offset, "in a header", offset + BLOCK));
        }
        let mut header = Header([0; BLOCK as usize]);
        self.read_at(offset, &mut header.0)?;
        Ok(header)
    }
}
