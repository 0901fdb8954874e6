//! Maps of sparse members: GNU tar's old format, and its formats 0.0, 0.1 and 1.0 in pax.

use std::io::{Read, Seek};
use std::ops::Range;

use super::super::extent::{Extent, Piece};
use super::header::{BLOCK, Header, decimal};
use super::pax::SparseRecords;
use super::reader::TarReader;
use crate::ingest::IngestError;

impl<R: Read + Seek> TarReader<'_, R> {
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
    pub(super) map: Vec<(u64, u64)>,
    pub(super) bytes: u64,
    pub(super) data: u64,
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
                    self.left = self.tar.block(self.at)?.0.to_vec();
                    self.left.reverse();
                    self.at += BLOCK;
                }
                None => return Ok(None),
            }
        }
    }
}
