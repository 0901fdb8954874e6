//! Where pictures are read from: a folder or a tar, here or in an object store.

use bytes::Bytes;

use super::tar_index::{self, Member};
use super::{IngestError, SourceFormat};
use crate::storage::{Location, StorageError};

/// Bytes of a file that tell a tar: its magic number is at 257.
const TAR_HEADER_BYTES: u64 = 512;

/// A file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceFile {
    /// Its path within the source, with `/` between the parts.
    pub(super) path: String,
    /// Its size in bytes.
    pub(super) bytes: u64,
    /// In a tar, where its contents begin.
    offset: u64,
}

impl SourceFile {
    #[cfg(test)]
    pub(super) fn named(path: &str) -> Self {
        Self { path: path.into(), bytes: 1, offset: 0 }
    }
}

/// A source that was listed.
#[derive(Debug)]
pub(super) struct Source {
    location: Location,
    pub(super) format: SourceFormat,
    pub(super) files: Vec<SourceFile>,
    /// Entries that are no files of ours: links, devices, names that lead outside.
    pub(super) ignored: usize,
}

impl Source {
    /// Lists what is there, sorted by path.
    pub(super) fn open(location: &Location, format: SourceFormat) -> Result<Self, IngestError> {
        let format = match format {
            SourceFormat::Auto => recognise(location)?,
            given => given,
        };
        if format == SourceFormat::Tar {
            let (members, ignored) = tar_index::read(location)?;
            let file =
                |member: Member| SourceFile { path: member.path, bytes: member.bytes, offset: member.offset };
            let mut files: Vec<SourceFile> = members.into_iter().map(file).collect();
            // A member that occurs again replaces the earlier one, as unpacking would.
            files.sort_by(|a, b| a.path.cmp(&b.path).then(b.offset.cmp(&a.offset)));
            files.dedup_by(|later, first| later.path == first.path);
            return Ok(Self { location: location.clone(), format, files, ignored });
        }
        let (files, ignored) = match location.local_path() {
            Some(path) => local_files(location, path)?,
            None => (location.list()?.into_iter().map(|entry| (entry.name, entry.bytes)).collect(), 0),
        };
        let files = files.into_iter().map(|(path, bytes)| SourceFile { path, bytes, offset: 0 }).collect();
        Ok(Self { location: location.clone(), format, files, ignored })
    }

    /// Reads one of its files.
    pub(super) fn read(&self, file: &SourceFile) -> Result<Bytes, StorageError> {
        if self.format == SourceFormat::Tar {
            if file.bytes == 0 {
                return Ok(Bytes::new());
            }
            return self.location.read_range(file.offset..file.offset + file.bytes);
        }
        if let Some(root) = self.location.local_path() {
            let path = root.join(&file.path);
            return std::fs::read(&path).map(Bytes::from).map_err(|source| failed("read", &path, source));
        }
        self.location.join(&file.path).read()
    }
}

/// What the source is, by what lies there.
fn recognise(location: &Location) -> Result<SourceFormat, IngestError> {
    if location.local_path().is_some_and(std::path::Path::is_dir) {
        return Ok(SourceFormat::Imagefolder);
    }
    match location.size() {
        Ok(bytes) => {
            let head = location.read_range(0..bytes.min(TAR_HEADER_BYTES))?;
            if tar_index::looks_like_tar(&head) {
                return Ok(SourceFormat::Tar);
            }
            let reason = "it is neither a folder nor a tar".into();
            Err(IngestError::Layout { location: location.to_string(), reason })
        }
        Err(error) if error.is_not_found() && location.local_path().is_none() => {
            Ok(SourceFormat::Imagefolder)
        }
        Err(error) => Err(error.into()),
    }
}

/// (path, bytes) of each file, and how many entries were passed over.
type Listing = (Vec<(String, u64)>, usize);

/// The files below a folder of this machine, links followed as torchvision does.
fn local_files(location: &Location, root: &std::path::Path) -> Result<Listing, IngestError> {
    let (mut files, mut ignored) = (Vec::new(), 0);
    if !root.exists() {
        return Err(StorageError::NotFound { location: location.to_string(), local: true }.into());
    }
    for entry in walkdir::WalkDir::new(root).follow_links(true) {
        let entry = entry.map_err(|error| failed("list", root, error))?;
        if entry.file_type().is_dir() {
            continue;
        }
        let relative = entry.path().strip_prefix(root).ok().and_then(|path| path.to_str());
        match relative {
            Some(path) if entry.file_type().is_file() => {
                let bytes = entry.metadata().map_err(|error| failed("look up", entry.path(), error))?.len();
                files.push((path.to_owned(), bytes));
            }
            _ => ignored += 1,
        }
    }
    files.sort();
    Ok((files, ignored))
}

fn failed(
    operation: &'static str,
    path: &std::path::Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StorageError {
    StorageError::Failed {
        operation,
        location: path.display().to_string(),
        local: true,
        source: source.into(),
    }
}
