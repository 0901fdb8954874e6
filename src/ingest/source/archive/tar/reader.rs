//! The bytes of a tar, with errors that name it, and the maps of its sparse members.
//!
//! These are GNU tar's old format, and its formats 0.0, 0.1 and 1.0 in pax.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use super::super::extent::{Extent, Piece};
use super::super::failed;
use super::header::{BLOCK, Header, SparseRecords, decimal};
use crate::ingest::IngestError;
use crate::storage::StorageError;

/// The bytes of a tar.
pub(super) struct TarReader<'a, R> {
    name: &'a str,
    reader: R,
    len: u64,
}

impl<'a, R: Read + Seek> TarReader<'a, R> {
    pub(super) fn new(name: &'a str, reader: R, len: u64) -> Self {
        Self { name, reader, len }
    }

    /// The tar's length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

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
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), IngestError> {
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
        let mut block = [0; BLOCK as usize];
        self.read_at(offset, &mut block)?;
        Ok(Header::new(block))
    }

    /// The map of an old GNU sparse member: in its header, and in blocks that follow it.
    pub(super) fn old_sparse_map(&mut self, header: &Header, start: u64) -> Result<SparseFile, IngestError> {
        let bytes = header.sparse_size().ok_or_else(|| self.malformed_map(start))?;
        let (entries, mut more) = header.sparse_entries();
        let mut map = entries.ok_or_else(|| self.malformed_map(start))?;
        let mut data = start + BLOCK;
        while more {
            let block = self.block(data)?;
            data += BLOCK;
            let (entries, goes_on) = block.more_sparse_entries();
            map.extend(entries.ok_or_else(|| self.malformed_map(start))?);
            more = goes_on;
        }
        Ok(SparseFile { map, bytes, data })
    }

    /// The map of a pax sparse member: in its extended header, or in format 1.0 before its data. `None` for a
    /// later format.
    pub(super) fn pax_sparse_map(
        &mut self,
        records: &SparseRecords,
        start: u64,
        data: Range<u64>,
    ) -> Result<Option<SparseFile>, IngestError> {
        let bytes = records.size.ok_or_else(|| self.malformed_map(start))?;
        match (records.major, records.minor) {
            (None, None) | (Some(0), Some(0 | 1)) => {
                let count = records.map.len() as u64;
                if records.offset.is_some() || records.count.is_some_and(|expected| expected != count) {
                    return Err(self.malformed_map(start));
                }
                Ok(Some(SparseFile { map: records.map.clone(), bytes, data: data.start }))
            }
            (Some(1), Some(0)) => {
                let mut numbers = Numbers { tar: self, at: data.start, end: data.end, left: Vec::new() };
                let mut map = Vec::new();
                if let Some(count) = numbers.next()? {
                    for _ in 0..count {
                        let (Some(offset), Some(length)) = (numbers.next()?, numbers.next()?) else {
                            return Err(self.malformed_map(start));
                        };
                        map.push((offset, length));
                    }
                    let data = numbers.at;
                    return Ok(Some(SparseFile { map, bytes, data }));
                }
                Err(self.malformed_map(start))
            }
            _ => Ok(None),
        }
    }

    /// The extent of a sparse member whose stored bytes end at `end`; they follow each other without gaps.
    pub(super) fn sparse_extent(
        &self,
        file: &SparseFile,
        end: u64,
        start: u64,
    ) -> Result<Extent, IngestError> {
        let malformed = || self.malformed_map(start);
        let mut physical = file.data;
        let mut logical = 0;
        let mut pieces = Vec::new();
        for &(offset, bytes) in &file.map {
            let after = offset.checked_add(bytes).filter(|_| offset >= logical).ok_or_else(malformed)?;
            pieces.push(Piece { logical: offset, physical, bytes });
            physical = physical.checked_add(bytes).filter(|&at| at <= end).ok_or_else(malformed)?;
            logical = after;
        }
        if logical > file.bytes || physical != end {
            return Err(malformed());
        }
        Ok(Extent::of_pieces(pieces, file.bytes))
    }

    fn malformed_map(&self, start: u64) -> IngestError {
        self.wrong(
            start,
            "a sparse member with a malformed map: the tar is damaged; download or copy it again",
        )
    }
}

/// A sparse member's map of offsets and lengths, its size with holes, and where its stored bytes begin.
#[derive(Debug)]
pub(super) struct SparseFile {
    pub map: Vec<(u64, u64)>,
    pub bytes: u64,
    pub data: u64,
}

/// The lines of numbers before the data of a sparse member in format 1.0, padded to a block.
struct Numbers<'a, 'b, R> {
    tar: &'a mut TarReader<'b, R>,
    /// The next block, which is that of the data after the last number.
    at: u64,
    end: u64,
    /// What was read and not used, in reverse.
    left: Vec<u8>,
}

impl<R: Read + Seek> Numbers<'_, '_, R> {
    /// The next number; `None` if there is none.
    fn next(&mut self) -> Result<Option<u64>, IngestError> {
        let mut digits = Vec::new();
        loop {
            match self.left.pop() {
                Some(b'\n') if digits.is_empty() => return Ok(None),
                Some(b'\n') => return Ok(decimal(&digits)),
                // 2⁶⁴ has 20 digits.
                Some(_) if digits.len() == 20 => return Ok(None),
                Some(digit) => digits.push(digit),
                None if self.at + BLOCK <= self.end => {
                    self.left = self.tar.read_vec(self.at, BLOCK)?;
                    self.left.reverse();
                    self.at += BLOCK;
                }
                None => return Ok(None),
            }
        }
    }
}
