//! The bytes of a tar: header blocks with their fields and checksums, the records of pax's extended headers, and the
//! maps of sparse members. Errors name the tar.
//!
//! The formats are those of POSIX ustar and pax, GNU tar (old and new), star as far as it is ustar, and old Unix V7.
//! Sparse maps are those of GNU tar's old format, and of its formats 0.0, 0.1 and 1.0 in pax.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use super::super::failed;
use super::super::file::{Extent, Piece};
use crate::ingest::IngestError;
use crate::storage::StorageError;

/// Unit of length of a tar, in bytes.
pub(super) const BLOCK: u64 = 512;

/// A block of a tar that may be a header.
pub(super) struct Header([u8; BLOCK as usize]);

/// Returns whether these first bytes belong to a tar: the checksum of a header is right.
pub(crate) fn looks_like_tar(head: &[u8]) -> bool {
    let block = head.get(..BLOCK as usize).and_then(|block| block.try_into().ok());
    block.is_some_and(|block| Header(block).has_right_checksum())
}

impl Header {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }

    /// Returns whether the stored checksum is that of the bytes, with its own field counted as blanks. Some old
    /// programs added signed bytes.
    pub(super) fn has_right_checksum(&self) -> bool {
        let field = 148..156;
        let Some(stored) = octal(&self.0[field.clone()]) else { return false };
        let counted = |at: usize, byte: u8| if field.contains(&at) { b' ' } else { byte };
        let bytes = || self.0.iter().enumerate().map(|(at, &byte)| counted(at, byte));
        let sum: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        stored == sum || i64::try_from(stored) == Ok(signed)
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// Returns the name with its prefix, which only POSIX headers have.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }

    /// Returns the number of bytes of data that follow.
    pub(super) fn size(&self) -> Option<u64> {
        number(&self.0[124..136])
    }

    /// Returns whether the header is GNU tar's, whose sparse headers differ from star's.
    pub(super) fn is_gnu(&self) -> bool {
        &self.0[257..265] == b"ustar  \0"
    }
}

/// Parses offset and length of each stored run in a map of the old GNU format, up to the first empty entry.
fn sparse_entries(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
    let used = bytes.chunks_exact(24).take_while(|entry| entry[12] != 0);
    used.map(|entry| Some((number(&entry[..12])?, number(&entry[12..])?))).collect()
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Parses a number in octal digits, or in GNU's binary form for larger ones.
fn number(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, rest @ ..] => {
            let (high, low) = rest.split_at(rest.len().checked_sub(8)?);
            let low: [u8; 8] = low.try_into().ok()?;
            high.iter().all(|&byte| byte == 0).then(|| u64::from_be_bytes(low))
        }
        _ => octal(field),
    }
}

/// Parses octal digits between blanks, ended by a NUL or a blank.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    u64::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+'))
}

/// Parses a number that consists only of decimal digits.
fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|_| !digits.starts_with(b"+"))
}

/// Relevant records of extended headers.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxRecords {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub sparse: Option<SparseRecords>,
    /// Whether star's own record marks the file as sparse.
    pub is_star_sparse: bool,
}

/// GNU tar's records of a sparse file, in its formats 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub count: Option<u64>,
    pub map: Vec<(u64, u64)>,
    /// Offset whose length has not been read yet.
    pub offset: Option<u64>,
}

impl PaxRecords {
    /// Reads the records of one extended header; `None` if one is malformed.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<()> {
        for (key, value) in pax_records(bytes)? {
            // An empty value cancels an earlier one.
            let text = || (!value.is_empty()).then(|| value.to_vec());
            match key {
                b"path" => self.path = text(),
                b"linkpath" => self.link_path = text(),
                b"size" if value.is_empty() => self.size = None,
                b"size" => self.size = Some(decimal(value)?),
                b"SCHILY.filetype" => self.is_star_sparse = value == b"sparse",
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.get_or_insert_default().take(key, value)?;
                    }
                }
            }
        }
        Some(())
    }
}

impl SparseRecords {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"numblocks" => self.count = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => self.map.push((self.offset.take()?, decimal(value)?)),
            b"map" if value.is_empty() => {}
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|&byte| byte == b',').map(decimal).collect();
                let numbers = numbers?;
                if !numbers.len().is_multiple_of(2) {
                    return None;
                }
                self.map.extend(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => {}
        }
        Some(())
    }
}

/// Checks the header for all members that follow; `None` if it is malformed. Programs write comments and times there.
/// No program writes a name or a size for all members at once.
pub(super) fn check_global(bytes: &[u8]) -> Option<()> {
    let sets_members = |key: &[u8]| {
        matches!(key, b"path" | b"linkpath" | b"size" | b"SCHILY.filetype") || key.starts_with(b"GNU.sparse.")
    };
    pax_records(bytes)?.iter().all(|(key, _)| !sets_members(key)).then_some(())
}

/// Parses the records of an extended header, each `length key=value`; `None` if one is malformed.
fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while bytes.iter().any(|&byte| byte != 0) {
        let blank = bytes.iter().take(20).position(|&byte| byte == b' ')?;
        let length: usize = decimal(&bytes[..blank])?.try_into().ok()?;
        let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length..];
    }
    Some(records)
}

/// Reader of a tar's bytes.
pub(super) struct TarReader<'a, R> {
    pub name: &'a str,
    pub reader: R,
    /// Length in bytes.
    pub len: u64,
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

    /// Fills the buffer from a range inside of the file.
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
        Ok(Header(block))
    }

    /// Reads the map of an old GNU sparse member, in its header and in blocks that follow it.
    pub(super) fn old_sparse_map(&mut self, header: &Header, start: u64) -> Result<SparseFile, IngestError> {
        let Header(block) = header;
        let bytes = number(&block[483..495]).ok_or_else(|| self.malformed_map(start))?;
        let mut map = sparse_entries(&block[386..482]).ok_or_else(|| self.malformed_map(start))?;
        let (mut more, mut data) = (block[482] != 0, start + BLOCK);
        while more {
            let Header(block) = self.block(data)?;
            map.extend(sparse_entries(&block[..504]).ok_or_else(|| self.malformed_map(start))?);
            (more, data) = (block[504] != 0, data + BLOCK);
        }
        Ok(SparseFile { map, bytes, data })
    }

    /// Reads the map of a pax sparse member: in its extended header, or in format 1.0 before its data. `None` for a
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
                let map = numbers.map()?;
                let data = numbers.at;
                let map = map.ok_or_else(|| self.malformed_map(start))?;
                Ok(Some(SparseFile { map, bytes, data }))
            }
            _ => Ok(None),
        }
    }

    /// Returns the extent of a sparse member, whose stored bytes follow each other without gaps and end at `end`.
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

/// Map of a sparse member as offsets and lengths, its size with holes, and the offset of its stored bytes.
#[derive(Debug)]
pub(super) struct SparseFile {
    pub map: Vec<(u64, u64)>,
    pub bytes: u64,
    pub data: u64,
}

/// Reader of the lines of numbers before the data of a sparse member in format 1.0, padded to a block.
struct Numbers<'a, 'b, R> {
    tar: &'a mut TarReader<'b, R>,
    /// Offset of the next block, which is that of the data after the last number.
    at: u64,
    end: u64,
    /// Bytes that were read but not used, in reverse.
    left: Vec<u8>,
}

impl<R: Read + Seek> Numbers<'_, '_, R> {
    /// Reads the number of stored runs, then offset and length of each; `None` if one is missing.
    fn map(&mut self) -> Result<Option<Vec<(u64, u64)>>, IngestError> {
        let Some(count) = self.next()? else { return Ok(None) };
        let mut map = Vec::new();
        for _ in 0..count {
            let (Some(offset), Some(length)) = (self.next()?, self.next()?) else { return Ok(None) };
            map.push((offset, length));
        }
        Ok(Some(map))
    }

    /// Returns the next number; `None` if there is none.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_is_known_by_its_checksum() {
        let mut header = ::tar::Header::new_old();
        header.set_path("a.jpg").expect("a path");
        header.set_size(5);
        header.set_cksum();
        assert!(looks_like_tar(header.as_bytes()));
        assert!(!looks_like_tar(&[0; 512]));
        assert!(!looks_like_tar(&header.as_bytes()[..511]));
        let mut other = *header.as_bytes();
        other[3] ^= 1;
        assert!(!looks_like_tar(&other));
    }

    #[test]
    fn numbers_are_octal_or_binary_and_nothing_else() {
        assert_eq!(number(b"0000000017\0 "), Some(15));
        assert_eq!(number(b"   17 \0\0\0\0\0\0"), Some(15));
        assert_eq!(number(b"77777777777\0"), Some((8 << 30) - 1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some((8 << 30) + 1));
        assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None, "beyond 64 bits");
        for field in
            [&[0xFF; 12][..], b"            ", &[0; 12], b"18         \0", b"-1         \0", b"1 2        \0"]
        {
            assert_eq!(number(field), None, "{field:?}");
        }
    }

    #[test]
    fn pax_records_are_counted_not_split() {
        let records = pax_records(b"12 path=a\nb\n9 size=7\n\0\0").expect("records");
        assert_eq!(records, [(&b"path"[..], &b"a\nb"[..]), (b"size", b"7")]);
        for malformed in [
            &b"12 path=a\n"[..],
            b"6 path\n",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
            b"x",
            b"3 \n",
            b"5 a=b\n",
        ] {
            assert_eq!(pax_records(malformed), None, "{}", malformed.escape_ascii());
        }
    }
}
