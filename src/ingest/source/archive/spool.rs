//! Copies on the local disk, for what can only be read from its beginning.
//!
//! All copies share one file without a name in the folder for temporary files (`TMPDIR`), so that thousands
//! of compressed tars take one open file, and nothing is left when the process ends, however it ends. A copy
//! is a list of pieces of that file. The file is created with the first copy.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::extent::{Piece, read_local};
use super::{Extent, SourceFile, failed};
use crate::storage::StorageError;

/// The length of a copy's first piece of the spool. Space that is reserved and not written takes no disk.
const FIRST_PIECE: u64 = 1 << 20;
/// The length that later pieces grow to.
const LARGEST_PIECE: u64 = 256 << 20;
/// Bytes that one copy writes between two checks of the free space.
const LOOK_EVERY: u64 = 64 << 20;
/// Space on the disk that is left to others.
const RESERVE: u64 = 64 << 20;

/// The file of all copies.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    file: OnceLock<File>,
    creating: Mutex<()>,
    /// Where the next piece begins.
    end: AtomicU64,
}

impl Spool {
    /// A spool in the folder for temporary files.
    pub(crate) fn new() -> Arc<Self> {
        Self::in_folder(&std::env::temp_dir())
    }

    pub(super) fn in_folder(folder: &Path) -> Arc<Self> {
        let (folder, file, creating) = (folder.to_owned(), OnceLock::new(), Mutex::new(()));
        Arc::new(Self { folder, file, creating, end: AtomicU64::new(0) })
    }

    fn file(&self) -> Result<&File, StorageError> {
        let _one = match self.file.get() {
            Some(file) => return Ok(file),
            None => self.creating.lock().unwrap_or_else(PoisonError::into_inner),
        };
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = tempfile::tempfile_in(&self.folder)
            .map_err(|error| failed("create a temporary file", shown(&self.folder), error))?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Checks that `bytes` more bytes fit on the disk.
    ///
    /// # Errors
    /// If they do not.
    pub(crate) fn check_space(&self, bytes: u64) -> Result<(), StorageError> {
        self.check_space_after(0, bytes)
    }

    fn check_space_after(&self, written: u64, bytes: u64) -> Result<(), StorageError> {
        let found = rustix::fs::fstatvfs(self.file()?).map_err(|error| {
            failed("look up the free space", shown(&self.folder), std::io::Error::from(error))
        })?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        // Some network file systems count no blocks at all.
        if found.f_blocks > 0 && free < bytes { Err(self.full(written, bytes, free)) } else { Ok(()) }
    }

    /// Begins a copy.
    pub(crate) fn writer(self: &Arc<Self>) -> SpoolWriter {
        SpoolWriter { spool: Arc::clone(self), pieces: Vec::new(), room: 0, len: 0 }
    }

    /// Reads a part of the spool.
    pub(super) fn read(&self, extent: &Extent, bytes: u64) -> Result<Bytes, StorageError> {
        read_local(self.file()?, extent, bytes).map_err(|error| failed("read", shown(&self.folder), error))
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

    fn write_error(&self, error: std::io::Error, written: u64, needed: u64) -> StorageError {
        let is_full =
            matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        if is_full { self.full(written, needed, 0) } else { failed("write", shown(&self.folder), error) }
    }
}

/// The folder, with the variable that names it.
fn shown(folder: &Path) -> String {
    format!("{} (TMPDIR)", folder.display())
}

/// Writes one copy.
#[derive(Debug)]
pub(crate) struct SpoolWriter {
    spool: Arc<Spool>,
    pieces: Vec<Piece>,
    /// Bytes left in the last piece.
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
            let written = self.spool.file()?.write_all_at(&bytes[..count], piece.physical + piece.bytes);
            written.map_err(|error| self.spool.write_error(error, offset, count as u64))?;
            piece.bytes += count as u64;
            self.room -= count as u64;
            self.len += count as u64;
            bytes = &bytes[count..];
        }
        Ok(offset)
    }

    /// The bytes that were written so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The copy as a file; `name` is for errors.
    pub(crate) fn finish(self, name: &str) -> SourceFile {
        let extent = Extent::of_pieces(self.pieces, self.len);
        SourceFile::spooled(name, self.len, self.spool, extent)
    }
}
