//! Files that hold images or their container, as listed; readers of parts of them, and the positions of members'
//! bytes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::failed;
use super::spool::Spool;
use crate::ingest::IngestError;
use crate::storage::{Location, Stamp, StorageError};

/// Number of bytes fetched at a time from an object store, where a request costs more than its bytes.
const REMOTE_BYTES: u64 = 1 << 20;
/// Number of bytes read at a time from a local file: a header and little more.
const LOCAL_BYTES: u64 = 8 << 10;

/// A file, local, remote or in the spool. It is cheap to clone, and keeps no file open except the common spool.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    name: Arc<str>,
    len: u64,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    /// A local file; a change of its length or stamp reveals that it changed.
    Local(Arc<Path>, Option<Stamp>),
    /// A file in an object store.
    Remote(Location),
    /// A copy in the spool.
    Spooled(Arc<Spool>, Extent),
}

impl SourceFile {
    /// Looks up size and time of a file.
    ///
    /// # Errors
    /// If it does not exist or is a folder, a pipe or a device, or the store fails.
    pub(crate) fn open(location: &Location) -> Result<Self, IngestError> {
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
            return Err(IngestError::layout(name, reason));
        }
        let origin = Origin::Local(path.into(), Stamp::of_time(&metadata));
        Ok(Self { name: name.into(), len: metadata.len(), origin })
    }

    /// Makes a file from a copy in the spool.
    pub(super) fn spooled(name: &str, len: u64, spool: Arc<Spool>, extent: Extent) -> Self {
        Self { name: name.into(), len, origin: Origin::Spooled(spool, extent) }
    }

    /// Returns the name for errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads the first bytes, at most `count`.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn head(&self, count: u64) -> Result<Bytes, StorageError> {
        self.read(&Extent::Range { offset: 0 }, count.min(self.len))
    }

    /// Reads a member of `bytes` bytes.
    ///
    /// # Errors
    /// If the file changed since it was listed, or the store fails.
    pub(crate) fn read(&self, extent: &Extent, bytes: u64) -> Result<Bytes, StorageError> {
        let handle = if bytes == 0 { None } else { self.handle()? };
        self.read_with(handle.as_ref(), extent, bytes)
    }

    /// Opens the file; `None` if it is not a local one.
    pub(super) fn handle(&self) -> Result<Option<File>, StorageError> {
        match &self.origin {
            Origin::Local(path, _) => {
                File::open(path).map(Some).map_err(|error| missing_or_failed(&self.name, error))
            }
            Origin::Remote(_) | Origin::Spooled(..) => Ok(None),
        }
    }

    /// Reads like [`Self::read`], from a file that [`Self::handle`] opened.
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
                // Looked up after the read, to detect changes until its end.
                let metadata = file.metadata().map_err(|error| failed("look up", self.name(), error))?;
                if (metadata.len(), Stamp::of_time(&metadata)) != (self.len, *stamp) {
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

    /// Returns the range for a concurrent read, if one range of an object is the whole member.
    pub(super) fn remote_range(&self, extent: &Extent, bytes: u64) -> Option<(Location, Range<u64>)> {
        match (&self.origin, extent) {
            (Origin::Remote(location), Extent::Range { offset }) if bytes > 0 => {
                Some((location.clone(), *offset..offset + bytes))
            }
            _ => None,
        }
    }

    /// Returns the bytes from a store, if none is missing.
    pub(super) fn whole(&self, found: Bytes, offset: u64, bytes: u64) -> Result<Bytes, StorageError> {
        if found.len() as u64 == bytes { Ok(found) } else { Err(self.changed(offset + found.len() as u64)) }
    }

    /// Returns whether reads wait for the network.
    fn is_remote(&self) -> bool {
        matches!(self.origin, Origin::Remote(_))
    }

    fn changed(&self, bytes: u64) -> StorageError {
        changed(self.name(), !self.is_remote(), self.len, bytes)
    }
}

/// Reader of a part of a file through a moving buffer. A local file is open as long as the window exists.
#[derive(Debug)]
pub(crate) struct Window {
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
    /// Makes a window on the whole file, for hops from one header to the next.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(crate) fn new(file: &SourceFile) -> Result<Self, StorageError> {
        Self::on_part(file, Extent::Range { offset: 0 }, file.len())
    }

    /// Makes a window on a member of `len` bytes; positions count from the member's first byte.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(crate) fn on_part(file: &SourceFile, extent: Extent, len: u64) -> Result<Self, StorageError> {
        let handle = file.handle()?;
        let ahead = if file.is_remote() { REMOTE_BYTES } else { LOCAL_BYTES };
        let (file, buffer) = (file.clone(), Bytes::new());
        Ok(Self { file, handle, extent, len, position: 0, buffered: 0..0, buffer, ahead })
    }

    /// Sets a larger read-ahead, for reading from the beginning to the end.
    #[must_use]
    pub(crate) fn sequential(mut self) -> Self {
        self.ahead = 8 * REMOTE_BYTES;
        self
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len || buffer.is_empty() {
            return Ok(0);
        }
        if !self.buffered.contains(&self.position) {
            let range = self.position..(self.position + self.ahead).min(self.len);
            let (extent, bytes) = (self.extent.slice(range.clone()), range.end - range.start);
            let read = self.file.read_with(self.handle.as_ref(), &extent, bytes);
            self.buffer = read.map_err(io::Error::other)?;
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

/// Makes the error of a file that differs from its listing.
pub(super) fn changed(name: &str, local: bool, listed: u64, found: u64) -> StorageError {
    let sizes = if listed == found { String::new() } else { format!(" ({listed} bytes then, {found} now)") };
    let source = format!(
        "the file was modified after it was listed{sizes}; run ingest again when nothing writes to it"
    );
    StorageError::Failed { operation: "read", location: name.to_owned(), local, source: source.into() }
}

pub(super) fn missing_or_failed(name: &str, error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::NotFound => StorageError::NotFound { location: name.to_owned(), local: true },
        _ => failed("open", name, error),
    }
}

/// Position of a member's bytes in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// One range, from this offset on.
    Range {
        /// Offset of the first byte.
        offset: u64,
    },
    /// Several pieces, ascending and without overlap; holes between them are zeros.
    Sparse(Arc<Box<[Piece]>>),
}

/// A run of stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset in the member.
    pub logical: u64,
    /// Offset in the file.
    pub physical: u64,
    /// Length in bytes; never 0.
    pub bytes: u64,
}

impl Extent {
    /// Makes the extent of a member of `bytes` bytes. The pieces ascend without overlap and end within the member.
    pub(super) fn of_pieces(mut pieces: Vec<Piece>, bytes: u64) -> Self {
        pieces.retain(|piece| piece.bytes > 0);
        // Pieces that adjoin in both the member and the file are merged.
        pieces.dedup_by(|next, piece| {
            let adjoins =
                piece.logical + piece.bytes == next.logical && piece.physical + piece.bytes == next.physical;
            if adjoins {
                piece.bytes += next.bytes;
            }
            adjoins
        });
        match pieces.as_slice() {
            [piece] if piece.logical == 0 && piece.bytes == bytes => Self::Range { offset: piece.physical },
            [] if bytes == 0 => Self::Range { offset: 0 },
            _ => Self::Sparse(Arc::new(pieces.into())),
        }
    }

    /// Returns a part of the extent.
    pub(crate) fn slice(&self, range: Range<u64>) -> Self {
        let pieces = match self {
            Self::Range { offset } => return Self::Range { offset: offset + range.start },
            Self::Sparse(pieces) => pieces,
        };
        let first = pieces.partition_point(|piece| piece.logical + piece.bytes <= range.start);
        let inside = pieces[first..].iter().take_while(|piece| piece.logical < range.end);
        let pieces = inside.map(|piece| {
            let start = piece.logical.max(range.start);
            let end = (piece.logical + piece.bytes).min(range.end);
            Piece {
                logical: start - range.start,
                physical: piece.physical + (start - piece.logical),
                bytes: end - start,
            }
        });
        Self::of_pieces(pieces.collect(), range.end - range.start)
    }

    /// Returns the extent, in this extent's file, of a member of `bytes` bytes that `inner` locates within this extent.
    pub(crate) fn within(&self, inner: &Self, bytes: u64) -> Self {
        let inner = match inner {
            Self::Range { offset } => return self.slice(*offset..offset + bytes),
            Self::Sparse(pieces) => pieces,
        };
        let pieces = inner.iter().flat_map(|inner| {
            let outer = self.slice(inner.physical..inner.physical + inner.bytes).pieces(inner.bytes);
            outer.into_iter().map(|piece| Piece { logical: inner.logical + piece.logical, ..piece })
        });
        Self::of_pieces(pieces.collect(), bytes)
    }

    /// Returns the pieces of a member of `bytes` bytes.
    pub(super) fn pieces(&self, bytes: u64) -> Vec<Piece> {
        match self {
            Self::Range { offset } => vec![Piece { logical: 0, physical: *offset, bytes }],
            Self::Sparse(pieces) => pieces.to_vec(),
        }
    }

    /// Reads the member by calling `read_at` for each piece; holes are zeros.
    pub(super) fn read<E>(
        &self,
        bytes: u64,
        mut read_at: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let mut buffer = vec![0; bytes as usize];
        for Piece { logical, physical, bytes } in self.pieces(bytes) {
            read_at(physical, &mut buffer[logical as usize..][..bytes as usize])?;
        }
        Ok(buffer.into())
    }
}

/// Reads a member of a local file.
pub(super) fn read_local(file: &File, extent: &Extent, bytes: u64) -> io::Result<Bytes> {
    extent.read(bytes, |offset, buffer| file.read_exact_at(buffer, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(pieces: &[(u64, u64, u64)], bytes: u64) -> Extent {
        let piece = |&(logical, physical, bytes): &(u64, u64, u64)| Piece { logical, physical, bytes };
        Extent::of_pieces(pieces.iter().map(piece).collect(), bytes)
    }

    fn read(extent: &Extent, bytes: u64, file: &[u8]) -> Vec<u8> {
        let read = extent.read(bytes, |offset, buffer| {
            buffer.copy_from_slice(&file[offset as usize..offset as usize + buffer.len()]);
            Ok::<_, io::Error>(())
        });
        read.expect("in memory").to_vec()
    }

    #[test]
    fn holes_are_zeros() {
        let extent = sparse(&[(2, 0, 2), (6, 2, 1), (9, 3, 0)], 9);
        assert_eq!(read(&extent, 9, b"abc"), b"\0\0ab\0\0c\0\0");
    }

    #[test]
    fn one_piece_without_holes_is_a_range() {
        assert_eq!(sparse(&[(0, 7, 3), (3, 10, 2)], 5), Extent::Range { offset: 7 });
        assert_eq!(sparse(&[], 0), Extent::Range { offset: 0 });
        assert!(matches!(sparse(&[(0, 7, 3)], 5), Extent::Sparse(_)));
    }

    #[test]
    fn a_slice_reads_what_the_whole_has_there() {
        let file = b"abcdefgh";
        let extent = sparse(&[(1, 4, 3), (4, 0, 2), (9, 7, 1)], 12);
        let whole = read(&extent, 12, file);
        for start in 0..=12 {
            for end in start..=12 {
                let slice = extent.slice(start..end);
                let expected = &whole[start as usize..end as usize];
                assert_eq!(read(&slice, end - start, file), expected, "{start}..{end}");
            }
        }
    }

    #[test]
    fn a_sparse_member_of_a_sparse_file_reads_through_both_maps() {
        let file = b"abcdefgh";
        let outer = sparse(&[(1, 4, 3), (4, 0, 2), (9, 7, 1)], 12);
        let unpacked = read(&outer, 12, file);
        let inner = sparse(&[(0, 2, 3), (5, 8, 3)], 9);
        assert_eq!(read(&outer.within(&inner, 9), 9, file), read(&inner, 9, &unpacked));
        let plain = Extent::Range { offset: 3 };
        assert_eq!(read(&outer.within(&plain, 7), 7, file), &unpacked[3..10]);
    }
}
