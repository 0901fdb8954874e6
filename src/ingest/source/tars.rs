//! Tars: what they hold decides what they are.

use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::archive::{Index, Member, Skipped, SourceFile, Spool, read_index, read_nested, unpack};
use super::collect::{Collector, Place};
use super::layout::{self, Found};
use super::recognise::Packed;
use super::{SourceFormat, cifar, imagenet, names, webdataset, wrong};
use crate::ingest::IngestError;
use crate::storage::Location;

/// A member that holds words, not pixels, is not longer than this.
const MOST_TEXT_BYTES: u64 = 16 << 20;

/// A tar that was listed.
#[derive(Debug)]
pub(super) struct Tar {
    /// Where it came from.
    pub(super) location: Location,
    pub(super) index: Index,
    file: SourceFile,
}

impl Tar {
    pub(super) fn open(packed: &Packed, spool: &Arc<Spool>) -> Result<Self, IngestError> {
        let location = packed.location.clone();
        let mut file = SourceFile::open(&location)?;
        if packed.compression.is_some() {
            file = unpack(&file, packed.compression, spool)?;
        }
        let index = read_index(&file, &webdataset::is_label)?;
        Ok(Self { location, index, file })
    }

    /// Reads a small member.
    pub(super) fn read(&self, member: &Member) -> Result<Bytes, IngestError> {
        if member.bytes > MOST_TEXT_BYTES {
            return Err(wrong(&self.location, format!("its member {} is too long", member.path)));
        }
        Ok(self.file.read(&member.extent, member.bytes)?)
    }

    /// The headers of a tar within this one; extents are those of the outer file.
    pub(super) fn index_of(&self, member: &Member) -> Result<Index, IngestError> {
        read_nested(&self.file, member, &webdataset::is_label)
    }

    /// Adds it to the containers.
    pub(super) fn keep(&self, collector: &mut Collector<'_>) -> u32 {
        collector.containers.add_file(self.file.clone())
    }

    /// The same for a tar of CIFAR's records.
    pub(super) fn keep_records(&self, collector: &mut Collector<'_>) -> Result<u32, IngestError> {
        let mut file = self.file.clone();
        if file.is_remote() {
            file = unpack(&file, None, &Spool::new())?;
        }
        Ok(collector.containers.add_records(file, cifar::png))
    }
}

/// Leaves an entry out; folders are not counted.
pub(super) fn pass_over(collector: &mut Collector<'_>, path: &str, reason: &Skipped) {
    if *reason != Skipped::Directory {
        collector.pass_over(path, reason.to_string());
    }
}

/// Lists the tars and adds their pictures.
pub(super) fn collect(collector: &mut Collector<'_>, packed: &[Packed]) -> Result<SourceFormat, IngestError> {
    let spool = Spool::new();
    let mut tars: Vec<Tar> =
        packed.par_iter().map(|one| Tar::open(one, &spool)).collect::<Result<_, IngestError>>()?;
    for tar in &tars {
        for (path, reason) in &tar.index.others {
            pass_over(collector, path, reason);
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
        let container = tar.keep(collector);
        for Member { path, bytes, extent, .. } in std::mem::take(&mut tar.index.members) {
            found.push(Found { path, place: Place { container, extent, bytes } });
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
    let index = super::archive::read_headers(
        "fuzz",
        std::io::Cursor::new(bytes),
        bytes.len() as u64,
        &webdataset::is_label,
    );
    index.map_or(0, |index| webdataset::samples(&index.members).count() + index.others.len())
}
