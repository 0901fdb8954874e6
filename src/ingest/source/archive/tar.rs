//! Members of a tar: names, sizes and positions of their bytes.
//!
//! Only headers are read; ranged reads fetch contents later. The result equals that of unpacking: a later entry
//! replaces an earlier one of the same name, a hard link is the member that has the target's name at that point,
//! and a sparse member has its holes.
//!
//! Two blocks of zeros end a tar. A header after them begins another tar, as written by `cat a.tar b.tar`, and
//! is read as well; zeros up to the end of the file are padding. Anything else is an error that names the byte: a
//! header with a wrong checksum, a single block of zeros before more data, data after the end that are not a
//! tar, and a file that stops before a block of zeros.

mod reader;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::sync::Arc;

use super::super::records::Fault;
use super::{Extent, SourceFile, Window};
use crate::ingest::IngestError;
use reader::{BLOCK, Header, PaxRecords, SparseFile, TarReader, check_global, until_nul};

pub(crate) use reader::looks_like_tar;

/// Maximum size of a kept text in bytes.
const MOST_TEXT_BYTES: u64 = 1 << 20;
/// Maximum size of an extended header in bytes: a map of a million pieces.
const MOST_EXTENDED_BYTES: u64 = 16 << 20;
/// Maximum total size of a sparse member's holes in bytes: they take memory, but no space in the file.
const MOST_HOLE_BYTES: u64 = 1 << 30;

/// A function that selects, by path, the members whose texts are kept.
pub(crate) type KeepText<'a> = &'a (dyn Fn(&str) -> bool + Sync);

/// A file within a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Path, relative and without `.` or `..`.
    pub path: String,
    /// Size in bytes, including holes.
    pub bytes: u64,
    /// Position of the bytes in the file.
    pub extent: Extent,
    /// Bytes, if the caller selected them; `None` also for a sparse member or one above 1 MiB.
    pub text: Option<Arc<[u8]>>,
}

/// Contents of a tar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// Files, in their order in the tar.
    pub members: Vec<Member>,
    /// Entries that cannot be taken, with the reason; folders are not listed.
    pub faults: Vec<(String, Fault)>,
    /// Files that a later entry of the same name replaces when unpacking.
    pub replaced: Vec<String>,
}

/// Reads the headers of a tar.
///
/// # Errors
/// If the tar is cut, damaged or empty, or the store fails.
pub(crate) fn read_index(file: &SourceFile, keep_text: KeepText<'_>) -> Result<Index, IngestError> {
    read_headers(file.name(), Window::new(file)?, file.len(), keep_text)
}

/// Reads the headers of a tar that is a member of a tar; extents are those of the outer file.
pub(crate) fn read_nested(
    file: &SourceFile,
    member: &Member,
    keep_text: KeepText<'_>,
) -> Result<Index, IngestError> {
    let name = format!("{} in {}", member.path, file.name());
    let window = Window::on_part(file, member.extent.clone(), member.bytes)?;
    let mut index = read_headers(&name, window, member.bytes, keep_text)?;
    for inner in &mut index.members {
        inner.extent = member.extent.within(&inner.extent, inner.bytes);
    }
    Ok(index)
}

/// Reads the headers of `len` bytes of a tar; offsets count from the reader's first byte.
fn read_headers(
    name: &str,
    reader: impl Read + Seek,
    len: u64,
    keep_text: KeepText<'_>,
) -> Result<Index, IngestError> {
    let mut walk = Walk {
        tar: TarReader { name, reader, len },
        keep_text,
        at: 0,
        slots: Vec::new(),
        pending: Pending::default(),
    };
    walk.run()?;
    walk.finish()
}

/// An entry before links are resolved.
struct Slot {
    path: String,
    kind: Kind,
}

enum Kind {
    File { bytes: u64, extent: Extent, text: Option<Arc<[u8]>> },
    HardLink { target: String },
    Folder,
    Other(Fault),
}

/// Extended headers read for the next member.
#[derive(Default)]
struct Pending {
    /// Offset of the first of these headers.
    start: Option<u64>,
    records: Option<PaxRecords>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

struct Walk<'a, R> {
    tar: TarReader<'a, R>,
    keep_text: KeepText<'a>,
    at: u64,
    slots: Vec<Slot>,
    pending: Pending,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn run(&mut self) -> Result<(), IngestError> {
        let mut zeros = 0_u64;
        let mut is_empty = true;
        while self.at < self.tar.len {
            let start = self.at;
            let left = self.tar.len - start;
            if left < BLOCK {
                let rest = self.tar.read_vec(start, left)?;
                return match (zeros, rest.iter().all(|&byte| byte == 0)) {
                    (0, _) => Err(self.tar.cut(start, "in a header", start + BLOCK)),
                    (_, true) if is_empty => break,
                    (_, true) => Ok(()),
                    (_, false) => Err(self.garbage(start)),
                };
            }
            let header = self.tar.block(start)?;
            self.at += BLOCK;
            if header.is_zero() {
                self.check_nothing_pending()?;
                zeros += 1;
                continue;
            }
            let is_header = header.has_right_checksum();
            match (zeros, is_header) {
                (0, false) => {
                    let reason = "a header with a wrong checksum: the tar is damaged here, or the size of the \
                                  member before is wrong; download or copy it again";
                    return Err(self.tar.wrong(start, reason));
                }
                (1, _) => {
                    let reason = "a block of zeros where a header was expected, and more data after it: the tar \
                                  is damaged here; download or copy it again";
                    return Err(self.tar.wrong(start - BLOCK, reason));
                }
                (2.., false) => return Err(self.garbage(start)),
                // A member, or another tar.
                (_, true) => {}
            }
            (zeros, is_empty) = (0, false);
            self.entry(&header, start)?;
        }
        if is_empty {
            return Err(self.tar.wrong(0, "the tar holds no members"));
        }
        self.check_nothing_pending()?;
        if zeros == 0 {
            let reason = "the tar is cut: the blocks of zeros that end a tar are missing; download or copy it \
                          again, or if it is known to be whole, append 1024 zero bytes";
            return Err(self.tar.wrong(self.at, reason));
        }
        Ok(())
    }

    fn garbage(&self, offset: u64) -> IngestError {
        self.tar.wrong(
            offset,
            "data after the end of the tar that are not another tar; cut them off, or \
             download or copy it again",
        )
    }

    /// Checks that no extended header is left without its member.
    fn check_nothing_pending(&self) -> Result<(), IngestError> {
        match self.pending.start {
            Some(start) => {
                Err(self.tar.wrong(start, "an extended header without its member: the tar is damaged"))
            }
            None => Ok(()),
        }
    }

    /// Processes the header at `start`, and its data up to the next header.
    fn entry(&mut self, header: &Header, start: u64) -> Result<(), IngestError> {
        let kind = header.kind();
        if !matches!(kind, b'x' | b'X' | b'g' | b'L' | b'K') {
            let pending = std::mem::take(&mut self.pending);
            return self.member(header, start, pending);
        }
        let size = self.size(header, start)?;
        if size > MOST_EXTENDED_BYTES {
            let reason = format!("an extended header of {size} bytes, more than {MOST_EXTENDED_BYTES}");
            return Err(self.tar.wrong(start, reason));
        }
        let data = self.at;
        self.skip(data, size, || "in an extended header".into())?;
        let bytes = self.tar.read_vec(data, size)?;
        let taken = match kind {
            b'g' => check_global(&bytes),
            b'L' => {
                self.pending.long_name = Some(until_nul(&bytes).to_vec());
                Some(())
            }
            b'K' => {
                self.pending.long_link = Some(until_nul(&bytes).to_vec());
                Some(())
            }
            _ => self.pending.records.get_or_insert_default().take(&bytes),
        };
        if kind != b'g' {
            self.pending.start.get_or_insert(start);
        }
        taken.ok_or_else(|| self.tar.wrong(start, "a malformed extended header: the tar is damaged"))
    }

    fn size(&self, header: &Header, start: u64) -> Result<u64, IngestError> {
        header
            .size()
            .ok_or_else(|| self.tar.wrong(start, "a header without a valid size: the tar is damaged"))
    }

    /// Skips to the block after `bytes` bytes of data.
    fn skip(&mut self, data: u64, bytes: u64, what: impl Fn() -> String) -> Result<(), IngestError> {
        let padded = bytes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        let end = data.saturating_add(padded);
        if end > self.tar.len {
            return Err(self.tar.cut(data, &what(), end));
        }
        self.at = end;
        Ok(())
    }

    /// Processes an entry that is not an extended header.
    fn member(&mut self, header: &Header, start: u64, pending: Pending) -> Result<(), IngestError> {
        let records = pending.records.unwrap_or_default();
        let sparse = records.sparse.as_ref();
        let real_name = sparse.and_then(|sparse| sparse.name.clone());
        let name = real_name.or(records.path).or(pending.long_name).unwrap_or_else(|| header.name());
        let shown = String::from_utf8_lossy(&name).into_owned();
        let path = safe_path(&name);
        let kind = header.kind();
        // These entries have no data, whatever their size field contains; tar and Python's tarfile agree.
        let without_data = match kind {
            b'1' => {
                let target = records.link_path.or(pending.long_link).unwrap_or_else(|| header.link_name());
                Some(match safe_path(&target) {
                    Ok(target) => Kind::HardLink { target },
                    Err(_) => Kind::Other(Fault::DanglingHardLink),
                })
            }
            b'2' => Some(Kind::Other(Fault::SymbolicLink)),
            // Devices and pipes.
            b'3' | b'4' | b'6' => Some(Kind::Other(Fault::NotAFile)),
            b'5' => Some(Kind::Folder),
            _ => None,
        };
        if let Some(found) = without_data {
            return self.push(path, shown, found);
        }
        let is_regular = matches!(kind, b'0' | 0 | b'7');
        let size = match records.size {
            Some(size) => size,
            None => self.size(header, start)?,
        };
        let old_map = if kind == b'S' && header.is_gnu() {
            let map = self.tar.old_sparse_map(header, start)?;
            self.at = map.data;
            Some(map)
        } else {
            None
        };
        let data = self.at;
        self.skip(data, size, || format!("in the member `{shown}`"))?;
        let map = match (old_map, sparse) {
            (Some(map), _) => Some(map),
            (None, Some(sparse)) if is_regular => {
                self.tar.pax_sparse_map(sparse, start, data..data + size)?
            }
            _ => None,
        };
        let found = match (map, kind) {
            (Some(map), _) => self.sparse_file(&map, data + size, start)?,
            _ if is_regular && name.ends_with(b"/") => Kind::Folder,
            // A sparse file in an unsupported format.
            _ if is_regular && (sparse.is_some() || records.is_star_sparse) => Kind::Other(Fault::Sparse),
            _ if is_regular => Kind::File { bytes: size, extent: Extent::Range { offset: data }, text: None },
            (_, b'S') => Kind::Other(Fault::Sparse),
            (_, b'D') => Kind::Folder,
            // The rest of a file from another volume, or an unknown type.
            _ => Kind::Other(Fault::NotAFile),
        };
        self.push(path, shown, found)
    }

    /// Makes a sparse member whose stored bytes end at `end`.
    fn sparse_file(&self, file: &SparseFile, end: u64, start: u64) -> Result<Kind, IngestError> {
        let extent = self.tar.sparse_extent(file, end, start)?;
        let holes = file.bytes - (end - file.data);
        Ok(if holes > MOST_HOLE_BYTES {
            Kind::Other(Fault::Sparse)
        } else {
            Kind::File { bytes: file.bytes, extent, text: None }
        })
    }

    fn push(&mut self, path: Result<String, Fault>, shown: String, kind: Kind) -> Result<(), IngestError> {
        let slot = match (path, kind) {
            (Ok(path), Kind::File { bytes, extent, .. }) => {
                let text = self.text(&path, bytes, &extent)?;
                Slot { path, kind: Kind::File { bytes, extent, text } }
            }
            (Ok(path), kind) => Slot { path, kind },
            // The kind of an entry matters more than its name, unless it is a file.
            (Err(_), kind @ (Kind::Folder | Kind::Other(_))) => Slot { path: shown, kind },
            (Err(fault), _) => Slot { path: shown, kind: Kind::Other(fault) },
        };
        self.slots.push(slot);
        Ok(())
    }

    /// Reads the text of a small member, if the caller selected it.
    fn text(&mut self, path: &str, bytes: u64, extent: &Extent) -> Result<Option<Arc<[u8]>>, IngestError> {
        // A hole is not text, and would take memory that the tar does not have.
        let &Extent::Range { offset } = extent else { return Ok(None) };
        if bytes > MOST_TEXT_BYTES || !(self.keep_text)(path) {
            return Ok(None);
        }
        Ok(Some(self.tar.read_vec(offset, bytes)?.into()))
    }

    /// Resolves hard links, and replaces earlier entries by later ones of the same name.
    fn finish(mut self) -> Result<Index, IngestError> {
        let mut slots = std::mem::take(&mut self.slots);
        let mut last: HashMap<&str, usize> = HashMap::with_capacity(slots.len());
        // By entry: number of its file, if it is a file or a link to one.
        let mut files: Vec<Option<usize>> = Vec::with_capacity(slots.len());
        for (number, slot) in slots.iter().enumerate() {
            files.push(match &slot.kind {
                Kind::File { .. } => Some(number),
                Kind::HardLink { target } => last.get(target.as_str()).and_then(|&target| files[target]),
                Kind::Folder | Kind::Other(_) => None,
            });
            if slot.is_named() {
                last.insert(&slot.path, number);
            }
        }
        let stays = |(number, slot): (usize, &Slot)| !slot.is_named() || last[slot.path.as_str()] == number;
        let stays: Vec<bool> = slots.iter().enumerate().map(stays).collect();
        let mut index = Index::default();
        for (number, (file, stays)) in files.into_iter().zip(stays).enumerate() {
            let path = std::mem::take(&mut slots[number].path);
            match (&slots[number].kind, file) {
                (Kind::File { .. } | Kind::HardLink { .. }, _) if !stays => index.replaced.push(path),
                (&Kind::Other(fault), _) if stays => index.faults.push((path, fault)),
                (Kind::Folder | Kind::Other(_), _) => {}
                (_, None) => index.faults.push((path, Fault::DanglingHardLink)),
                (_, Some(file)) => {
                    let Kind::File { bytes, extent, text } = &mut slots[file].kind else {
                        unreachable!("only files are in the list of files")
                    };
                    // Links to one file share its text, which a member keeps only if its own name is selected.
                    if text.is_none() {
                        *text = self.text(&path, *bytes, extent)?;
                    }
                    let text = text.clone().filter(|_| (self.keep_text)(&path));
                    index.members.push(Member { path, bytes: *bytes, extent: extent.clone(), text });
                }
            }
        }
        Ok(index)
    }
}

impl Slot {
    /// Returns whether the path is a name that unpacking gives; otherwise it is for errors only.
    fn is_named(&self) -> bool {
        !matches!(self.kind, Kind::Other(Fault::NotUtf8 | Fault::LeadsOutside))
    }
}

/// Returns the member's path without `./`, if it is UTF-8 and does not leave the tar.
fn safe_path(bytes: &[u8]) -> Result<String, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|_| Fault::NotUtf8)?;
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if text.starts_with('/') || parts.contains(&"..") || parts.is_empty() || text.contains('\0') {
        return Err(Fault::LeadsOutside);
    }
    Ok(parts.join("/"))
}
