//! Copies on the local disk, for data that can only be read from the beginning.
//!
//! All copies share one unnamed file in the folder for temporary files (`TMPDIR`). So thousands of compressed tars need
//! only one open file, and nothing is left when the process ends in any way. A copy is a list of pieces of that file.
//!
//! A compressed tar is unpacked once into the spool, since its members can only be read in order.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::file::{Piece, read_local};
use super::{Extent, SourceFile, Window, failed};
use crate::ingest::IngestError;
use crate::storage::StorageError;

/// Length in bytes of a copy's first piece of the spool. Reserved space that is not written takes no disk.
const FIRST_PIECE: u64 = 1 << 20;
/// Maximum length in bytes of later pieces.
const LARGEST_PIECE: u64 = 256 << 20;
/// Number of bytes that one copy writes between two checks of the free space.
const LOOK_EVERY: u64 = 64 << 20;
/// Number of bytes on the disk that are left to other programs.
const RESERVE: u64 = 64 << 20;

/// File of all copies.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    file: File,
    /// Offset of the next piece.
    end: AtomicU64,
}

impl Spool {
    /// Makes a spool in the folder for temporary files.
    ///
    /// # Errors
    /// If the folder is missing, or no file can be created in it.
    pub(crate) fn new() -> Result<Arc<Self>, StorageError> {
        Self::in_folder(&std::env::temp_dir())
    }

    pub(super) fn in_folder(folder: &Path) -> Result<Arc<Self>, StorageError> {
        let file = tempfile::tempfile_in(folder)
            .map_err(|error| failed("create a temporary file", shown(folder), error))?;
        Ok(Arc::new(Self { folder: folder.to_owned(), file, end: AtomicU64::new(0) }))
    }

    /// Checks that `bytes` more bytes fit on the disk.
    pub(crate) fn check_space(&self, bytes: u64) -> Result<(), StorageError> {
        self.check_space_after(0, bytes)
    }

    fn check_space_after(&self, written: u64, bytes: u64) -> Result<(), StorageError> {
        let found = rustix::fs::fstatvfs(&self.file)
            .map_err(|error| failed("look up the free space", shown(&self.folder), io::Error::from(error)))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        // Some network file systems report no blocks at all.
        if found.f_blocks > 0 && free < bytes { Err(self.full(written, bytes, free)) } else { Ok(()) }
    }

    /// Starts a copy.
    pub(crate) fn writer(self: &Arc<Self>) -> SpoolWriter {
        SpoolWriter { spool: Arc::clone(self), pieces: Vec::new(), room: 0, len: 0 }
    }

    /// Reads a part of the spool.
    pub(super) fn read(&self, extent: &Extent, bytes: u64) -> Result<Bytes, StorageError> {
        read_local(&self.file, extent, bytes).map_err(|error| failed("read", shown(&self.folder), error))
    }

    fn full(&self, written: u64, needed: u64, free: u64) -> StorageError {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let reason = format!(
            "no space for temporary data: at least {} MiB needed after {} MiB that were written, {} MiB free; \
             set TMPDIR to a folder on a larger disk",
            mib(needed),
            mib(written),
            free >> 20
        );
        failed("write", shown(&self.folder), reason)
    }

    fn write_error(&self, error: io::Error, written: u64, needed: u64) -> StorageError {
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if is_full { self.full(written, needed, 0) } else { failed("write", shown(&self.folder), error) }
    }
}

/// Formats the folder, with the variable that names it.
fn shown(folder: &Path) -> String {
    format!("{} (TMPDIR)", folder.display())
}

/// Writer of one copy.
#[derive(Debug)]
pub(crate) struct SpoolWriter {
    spool: Arc<Spool>,
    pieces: Vec<Piece>,
    /// Number of bytes left in the last piece.
    room: u64,
    len: u64,
}

impl SpoolWriter {
    /// Adds bytes and returns their offset in the copy.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<u64, StorageError> {
        let offset = self.len;
        if offset / LOOK_EVERY != (offset + bytes.len() as u64) / LOOK_EVERY {
            self.spool.check_space_after(offset, bytes.len() as u64 + RESERVE)?;
        }
        while !bytes.is_empty() {
            if self.room == 0 {
                let size = self.len.clamp(FIRST_PIECE, LARGEST_PIECE);
                let physical = self.spool.end.fetch_add(size, Ordering::Relaxed);
                self.pieces.push(Piece { logical: self.len, physical, bytes: 0 });
                self.room = size;
            }
            let piece = self.pieces.last_mut().expect("there is room in one");
            let count = bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX));
            let written = self.spool.file.write_all_at(&bytes[..count], piece.physical + piece.bytes);
            written.map_err(|error| self.spool.write_error(error, offset, count as u64))?;
            piece.bytes += count as u64;
            self.room -= count as u64;
            self.len += count as u64;
            bytes = &bytes[count..];
        }
        Ok(offset)
    }

    /// Returns the copy as a file; `name` is for errors.
    pub(crate) fn finish(self, name: &str) -> SourceFile {
        let extent = Extent::of_pieces(self.pieces, self.len);
        SourceFile::spooled(name, self.len, self.spool, extent)
    }
}

/// Maximum ratio of a compressed tar's unpacked size to its own: encoded images hardly shrink, and plain pixels
/// rarely to less than a tenth.
const MOST_RATIO: u64 = 16;
/// Number of bytes that are always allowed in addition: a tar of small images is mostly padding.
const ALWAYS_ALLOWED: u64 = 1 << 30;

/// Kinds of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// `.gz`; several streams in a row are one.
    Gzip,
    /// `.zst`; several frames in a row are one.
    Zstd,
}

/// Recognises the compression of a file by its first bytes.
///
/// # Errors
/// The reason, if the compression is not supported.
pub(crate) fn compression(head: &[u8]) -> Result<Option<Compression>, String> {
    let name = match head {
        [0x1F, 0x8B, ..] => return Ok(Some(Compression::Gzip)),
        // The second pattern is a skippable frame, with which pzstd files begin.
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => {
            return Ok(Some(Compression::Zstd));
        }
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => "bzip2",
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [0x04, 0x22, 0x4D, 0x18, ..] => "lz4",
        [b'L', b'Z', b'I', b'P', 0 | 1, ..] => "lzip",
        [0x1F, 0x9D, ..] => "compress",
        _ => return Ok(None),
    };
    Err(format!("{name} is not supported; unpack it, or compress it with zstd or gzip instead"))
}

/// Unpacks the first `count` bytes of a compressed file from its first bytes.
pub(crate) fn first_bytes(head: &[u8], compression: Compression, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // The head is cut, so an error at its end is expected; the bytes before it count.
    let _ = match compression {
        Compression::Gzip => {
            flate2::read::MultiGzDecoder::new(head).take(count as u64).read_to_end(&mut bytes)
        }
        Compression::Zstd => {
            zstd::Decoder::new(head).and_then(|decoder| decoder.take(count as u64).read_to_end(&mut bytes))
        }
    };
    bytes
}

/// Unpacks a file into the spool.
///
/// # Errors
/// If the file is cut or damaged or its unpacked bytes exceed the limit, or the disk is full.
pub(crate) fn unpack(
    file: &SourceFile,
    compression: Compression,
    spool: &Arc<Spool>,
) -> Result<SourceFile, IngestError> {
    let limit = file.len().saturating_mul(MOST_RATIO).saturating_add(ALWAYS_ALLOWED);
    unpack_within(limit, file, compression, spool)
}

/// Does the same with a limit for the unpacked bytes.
pub(super) fn unpack_within(
    limit: u64,
    file: &SourceFile,
    compression: Compression,
    spool: &Arc<Spool>,
) -> Result<SourceFile, IngestError> {
    spool.check_space(file.len())?;
    let mut reader = BufReader::with_capacity(1 << 20, Window::new(file)?.sequential());
    let mut writer = spool.writer();
    let mut buffer = vec![0; 1 << 20];
    let mut copy = |decoder: &mut dyn Read| -> Result<(), Fault> {
        loop {
            let count = match decoder.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Io(error)),
            };
            if writer.len + count as u64 > limit {
                return Err(Fault::Wrong(format!(
                    "unpacks to more than {limit} bytes, {MOST_RATIO} times its size and 1 GiB; \
                     if that is right, unpack it yourself"
                )));
            }
            writer.push(&buffer[..count]).map_err(|error| Fault::Io(io::Error::other(error)))?;
        }
    };
    let copied = match compression {
        Compression::Gzip => unpack_gzip(&mut reader, &mut copy),
        Compression::Zstd => zstd::Decoder::with_buffer(&mut reader)
            .map_err(Fault::Io)
            .and_then(|mut decoder| copy(&mut decoder)),
    };
    let reason = match copied {
        Ok(()) => return Ok(writer.finish(&format!("{} (unpacked)", file.name()))),
        Err(Fault::Wrong(reason)) => reason,
        Err(Fault::Io(error)) => match error.downcast::<StorageError>() {
            Ok(error) => return Err(error.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the compressed stream is cut; download or copy the file again".into()
            }
            Err(error) => {
                format!("the compressed stream is damaged ({error}); download or copy the file again")
            }
        },
    };
    let offset = reader.stream_position().expect("a window knows its position");
    Err(IngestError::Tar { tar: file.name().to_owned(), offset, reason })
}

enum Fault {
    /// A failed read or write, perhaps a [`StorageError`], or damage that the decoder finds.
    Io(io::Error),
    Wrong(String),
}

/// Unpacks one stream after the other. Zeros after the last are padding, as for gzip itself.
fn unpack_gzip(
    reader: &mut impl BufRead,
    copy: &mut impl FnMut(&mut dyn Read) -> Result<(), Fault>,
) -> Result<(), Fault> {
    loop {
        copy(&mut flate2::bufread::GzDecoder::new(&mut *reader))?;
        if reader.fill_buf().map_err(Fault::Io)?.first() != Some(&0x1F) {
            return skip_zeros(reader);
        }
    }
}

fn skip_zeros(reader: &mut impl BufRead) -> Result<(), Fault> {
    loop {
        let next = reader.fill_buf().map_err(Fault::Io)?;
        if next.is_empty() {
            return Ok(());
        }
        let zeros = next.iter().take_while(|&&byte| byte == 0).count();
        let all = zeros == next.len();
        reader.consume(zeros);
        if !all {
            return Err(Fault::Wrong("data after the end of the compressed stream".into()));
        }
    }
}
