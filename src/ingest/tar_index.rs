//! The members of a tar: names, sizes and where their contents begin.
//!
//! Only headers are read; contents are fetched later by ranged reads. Links, devices and names that lead
//! outside of the tar are passed over and counted.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;

use super::IngestError;
use crate::storage::Location;

/// Bytes fetched at a time while headers are read.
const WINDOW_BYTES: u64 = 1 << 20;
/// A tar's unit of length.
const BLOCK: u64 = 512;

/// A file within a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) offset: u64,
}

/// Whether these first bytes are those of a tar.
pub(super) fn looks_like_tar(head: &[u8]) -> bool {
    head.len() as u64 >= BLOCK && head[257..262] == *b"ustar"
}

/// Reads all headers; the number is that of the entries passed over.
pub(super) fn read(location: &Location) -> Result<(Vec<Member>, usize), IngestError> {
    let len = location.size()?;
    let wrong = |offset: u64, reason: String| IngestError::Tar { tar: location.to_string(), offset, reason };
    let reader = Window { location, len, position: 0, start: 0, bytes: Bytes::new() };
    let mut archive = tar::Archive::new(reader);
    let entries = archive.entries_with_seek().map_err(|error| wrong(0, error.to_string()))?;
    let (mut members, mut ignored, mut end) = (Vec::new(), 0, 0);
    for entry in entries {
        let entry = entry.map_err(|error| wrong(end, format!("it is cut or damaged ({error})")))?;
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        end = offset.saturating_add(bytes);
        if end > len {
            let name = entry.path_lossy();
            return Err(wrong(
                offset,
                format!("it is cut inside of {name:?}: {len} bytes are there, {end} needed"),
            ));
        }
        match safe_path(&entry) {
            Some(path) if entry.header().entry_type().is_file() => {
                members.push(Member { path, bytes, offset })
            }
            _ if entry.header().entry_type().is_dir() => {}
            _ => ignored += 1,
        }
    }
    if end == 0 && members.is_empty() && len < 2 * BLOCK {
        return Err(wrong(0, "it has no members".into()));
    }
    // Two blocks of zeros end a tar; without them it may have been cut between two members.
    if len < end.next_multiple_of(BLOCK) + BLOCK {
        return Err(wrong(end, "it is cut: its end is missing".into()));
    }
    Ok((members, ignored))
}

trait LossyPath {
    fn path_lossy(&self) -> String;
}

impl<R: Read> LossyPath for tar::Entry<'_, R> {
    fn path_lossy(&self) -> String {
        String::from_utf8_lossy(&self.path_bytes()).into_owned()
    }
}

/// The member's path without `./`, if it is text and stays inside of the tar.
fn safe_path<R: Read>(entry: &tar::Entry<'_, R>) -> Option<String> {
    let bytes = entry.path_bytes();
    let text = std::str::from_utf8(&bytes).ok()?;
    if text.starts_with('/') {
        return None;
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Reads a location through a window that moves.
struct Window<'a> {
    location: &'a Location,
    len: u64,
    position: u64,
    start: u64,
    bytes: Bytes,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len || buffer.is_empty() {
            return Ok(0);
        }
        let end = self.start + self.bytes.len() as u64;
        if self.position < self.start || self.position >= end {
            let to = (self.position + WINDOW_BYTES).min(self.len);
            self.bytes = self.location.read_range(self.position..to).map_err(io::Error::other)?;
            self.start = self.position;
        }
        let from = (self.position - self.start) as usize;
        let count = buffer.len().min(self.bytes.len() - from);
        buffer[..count].copy_from_slice(&self.bytes[from..from + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| io::Error::other("a seek to before the start"))?;
        Ok(self.position)
    }
}
