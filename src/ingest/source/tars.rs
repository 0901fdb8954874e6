//! Tars: what they hold decides what they are.

use std::io::Read;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use rayon::prelude::*;

use super::collect::{Collector, Place};
use super::compressed;
use super::layout::{self, Found};
use super::recognise::Packed;
use super::store::{Part, failed};
use super::tar_index::{self, Index, Member};
use super::window::Window;
use super::{SourceFormat, cifar, imagenet, names, webdataset, wrong};
use crate::ingest::IngestError;
use crate::storage::{Location, StorageError};

/// A member that holds words, not pixels, is not longer than this.
const MOST_TEXT_BYTES: u64 = 16 << 20;

/// A tar that was listed.
#[derive(Debug)]
pub(super) struct Tar {
    /// Where it came from.
    pub(super) location: Location,
    pub(super) index: Index,
    /// Where its bytes lie: in a file of its own, if it was compressed.
    unpacked: Option<std::fs::File>,
}

impl Tar {
    pub(super) fn open(packed: &Packed) -> Result<Self, IngestError> {
        let location = packed.location.clone();
        let name = location.to_string();
        let Some(compression) = packed.compression else {
            let index = tar_index::read(&name, Window::new(&location)?)?;
            return Ok(Self { location, index, unpacked: None });
        };
        let (file, len) = compressed::unpack(&location, Some(compression))?;
        let clone = file.try_clone().map_err(|error| failed("open", name.clone(), error))?;
        let index = tar_index::read_headers(&name, Slice { file: clone, range: 0..len, at: 0 }, len)?;
        Ok(Self { location, index, unpacked: Some(file) })
    }

    /// Reads a small member.
    pub(super) fn read(&self, member: &Member) -> Result<Bytes, IngestError> {
        if member.bytes > MOST_TEXT_BYTES {
            return Err(wrong(&self.location, format!("its member {} is too long", member.path)));
        }
        if member.bytes == 0 {
            return Ok(Bytes::new());
        }
        let Some(file) = &self.unpacked else {
            return Ok(self.location.read_range(member.offset..member.offset + member.bytes)?);
        };
        let mut bytes = vec![0; member.bytes as usize];
        let read = file.read_exact_at(&mut bytes, member.offset);
        read.map_err(|error| failed("read", self.location.to_string(), error))?;
        Ok(bytes.into())
    }

    /// The headers of a tar within this one; offsets are those of the outer file.
    pub(super) fn index_of(&self, member: &Member) -> Result<Index, IngestError> {
        let name = format!("{} in {}", member.path, self.location);
        let range = member.offset..member.offset + member.bytes;
        let mut index = match &self.unpacked {
            None => tar_index::read(&name, Window::on_part(&self.location, range.clone())?)?,
            Some(file) => {
                let file = file.try_clone().map_err(|error| failed("open", name.clone(), error))?;
                tar_index::read_headers(&name, Slice { file, range: range.clone(), at: 0 }, member.bytes)?
            }
        };
        index.members.iter_mut().for_each(|inner| inner.offset += range.start);
        Ok(index)
    }

    /// Hands its bytes to the store.
    pub(super) fn keep(&mut self, collector: &mut Collector<'_>) -> Result<u32, StorageError> {
        match self.unpacked.take() {
            Some(file) => Ok(collector.store.add(Part::Open(file, self.location.to_string()))),
            None => collector.store.add_file(&self.location),
        }
    }

    /// The same for a tar of CIFAR's records.
    pub(super) fn keep_records(&mut self, collector: &mut Collector<'_>) -> Result<u32, IngestError> {
        let file = match (self.unpacked.take(), self.location.local_path()) {
            (Some(file), _) => file,
            (None, Some(path)) => {
                std::fs::File::open(path).map_err(|error| failed("open", self.location.to_string(), error))?
            }
            (None, None) => compressed::unpack(&self.location, None)?.0,
        };
        Ok(collector.store.add(Part::CifarRecords(file, self.location.to_string())))
    }
}

/// A range of a file as a file.
struct Slice {
    file: std::fs::File,
    range: std::ops::Range<u64>,
    at: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = (self.range.end - self.range.start).saturating_sub(self.at);
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..want], self.range.start + self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl std::io::Seek for Slice {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            std::io::SeekFrom::Start(at) => Some(at),
            std::io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            std::io::SeekFrom::End(by) => (self.range.end - self.range.start).checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| std::io::Error::other("a seek to before the start"))?;
        Ok(self.at)
    }
}

/// Lists the tars and adds their pictures.
pub(super) fn collect(collector: &mut Collector<'_>, packed: &[Packed]) -> Result<SourceFormat, IngestError> {
    let mut tars: Vec<Tar> = packed.par_iter().map(Tar::open).collect::<Result<_, IngestError>>()?;
    for tar in &tars {
        for (path, reason) in &tar.index.others {
            collector.pass_over(path, reason);
        }
    }
    let wanted = collector.options.format;
    let is = |format| wanted == format || wanted == SourceFormat::Auto;
    if is(SourceFormat::Cifar) && tars.iter().all(cifar::is_archive) {
        cifar::collect(collector, &mut tars)?;
        return Ok(SourceFormat::Cifar);
    }
    if is(SourceFormat::Imagenet) && tars.iter().any(imagenet::is_archive) {
        imagenet::collect(collector, tars)?;
        return Ok(SourceFormat::Imagenet);
    }
    if !is(SourceFormat::Tar) {
        let reason = format!("--format asks for {wanted:?}, but it holds none of its files");
        return Err(wrong(collector.location(), reason));
    }
    if tars.iter().any(webdataset::is_shard) || collector.options.unlabelled {
        webdataset::collect(collector, &mut tars)?;
        return Ok(SourceFormat::Tar);
    }
    let mut found = Vec::new();
    for tar in &mut tars {
        let part = tar.keep(collector)?;
        for Member { path, bytes, offset, .. } in std::mem::take(&mut tar.index.members) {
            found.push(Found { path, place: Place { part, offset, bytes } });
        }
    }
    let found = without_common_folder(found);
    layout::collect(collector, &found, |_, _| None)?;
    Ok(SourceFormat::Tar)
}

/// A tar of a folder often begins with that folder's name: `imagenet/train/<class>/<file>`.
fn without_common_folder(mut files: Vec<Found>) -> Vec<Found> {
    let pictures = || files.iter().map(|file| file.path.as_str()).filter(|path| names::is_picture(path));
    let deep = pictures().all(|path| path.split('/').count() > 2);
    let first = pictures().next().and_then(|path| path.split_once('/')).map(|(first, _)| format!("{first}/"));
    let Some(first) = first.filter(|first| deep && pictures().all(|path| path.starts_with(first))) else {
        return files;
    };
    if layout::has_splits(pictures()) {
        return files;
    }
    for file in &mut files {
        if let Some(rest) = file.path.strip_prefix(&first) {
            file.path = rest.to_owned();
        }
    }
    files
}

/// The members of a tar in memory, for fuzzing: what matters is that it comes back.
#[cfg(fuzzing)]
pub(in crate::ingest) fn list_bytes(bytes: &[u8]) -> usize {
    let index = tar_index::read_headers("fuzz", std::io::Cursor::new(bytes), bytes.len() as u64);
    index.map_or(0, |index| webdataset::samples(&index.members).count() + index.others.len())
}
