//! Names of files and folders, and the operations on them: read, look up, list, publish and delete.
//!
//! A name is a plain path or a URL; parsing it neither reads nor contacts anything.
//! [`Upload`] writes a large file as a stream, whole or not at all.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::{Path, PathPart};
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart,
};

use super::address::{Address, without_credentials, without_dots};
use super::store::{self, OpenError, StorageOptions, Store};
use super::{Digest, LocalFile, PendingRead, StorageError, block_on, handle};
use crate::failure::Failure;

/// A file or a folder, on this machine or in an object store.
#[derive(Clone)]
pub struct Location {
    key: Path,
    shown: String,
    /// Path, for a location on this machine.
    local: Option<PathBuf>,
    /// Object store, for any other location.
    store: Option<Arc<Store>>,
}

/// A file below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name relative to the listed folder, with `/` between its parts.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Stamp from the ETag of an object store; `None` on this machine.
    pub stamp: Option<Stamp>,
}

/// Stamp that distinguishes versions of a file of one name and size: from the ETag in an object store, from the
/// modification time on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

impl Stamp {
    fn of_etag(etag: &str) -> Self {
        let digest = blake3::hash(etag.as_bytes());
        Self(u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight bytes")))
    }

    /// Returns a stamp of the modification time; `None` for the epoch itself, which file systems without times show.
    pub fn of_time(metadata: &std::fs::Metadata) -> Option<Self> {
        let time = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        (!time.is_zero()).then_some(Self(time.as_nanos() as u64))
    }
}

/// Behaviour of a publish if the file exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishMode {
    /// Replace the file in one step.
    Overwrite,
    /// Keep the file and fail with [`StorageError::AlreadyExists`]; of several writers one wins.
    Create,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.shown)
    }
}

impl Location {
    /// Parses `/a/path`, `a/path`, `file:///a/path`, `s3://bucket/key`, `gs://…` or `az://…`.
    ///
    /// A text that is almost a URL, or that only a shell expands, is an error that suggests the likely meaning.
    /// Credentials and endpoint come from the environment in the object_store crate's names, then from
    /// `options`. Nothing is contacted yet.
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] if the text or `options` are wrong, [`StorageError::Refused`] if the environment's
    /// settings of the store are.
    pub fn parse(text: &str, options: &StorageOptions) -> Result<Self, StorageError> {
        let bad = |reason: String| StorageError::BadLocation { text: without_credentials(text), reason };
        let (scheme, bucket, key) = match Address::parse(text).map_err(bad)? {
            Address::Local(path) => return Self::from_path(&path),
            Address::Remote { scheme, bucket, key } => (scheme, bucket, key),
        };
        let key = Path::parse(&key).map_err(|error| bad(error.to_string()))?;
        let store = Store::open(&scheme, &bucket, options).map_err(|error| match error {
            OpenError::Option(reason) => bad(reason),
            OpenError::Settings(reason) => {
                StorageError::Refused { location: text.to_owned(), reason, failure: Failure::Config }
            }
        })?;
        let shown = text.trim_end_matches('/').to_owned();
        Ok(Self { key, shown, local: None, store: Some(Arc::new(store)) })
    }

    /// Parses a path of this machine, by the rules of [`Location::parse`].
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] if the text names an object store or is wrong.
    pub fn parse_local(text: &str) -> Result<PathBuf, StorageError> {
        let path = Address::parse(text).and_then(|address| match address {
            Address::Local(path) => Ok(path),
            Address::Remote { .. } => Err("expected a local path, not an object store".into()),
        });
        path.map_err(|reason| StorageError::BadLocation { text: without_credentials(text), reason })
    }

    /// Returns a location on this machine; a relative path starts at the working directory.
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] if the path cannot be expressed.
    pub fn from_path(path: &LocalPath) -> Result<Self, StorageError> {
        let text = path.to_string_lossy();
        let bad =
            |reason: String| StorageError::BadLocation { text: text.escape_debug().to_string(), reason };
        if text.contains(|c: char| c.is_ascii_control()) {
            return Err(bad(
                "control characters are not supported; rename the folder or use a link to it".into()
            ));
        }
        let absolute = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
        let absolute = without_dots(&absolute);
        let key = Path::from_absolute_path(&absolute).map_err(|error| bad(error.to_string()))?;
        Ok(Self { key, shown: path.display().to_string(), local: Some(absolute), store: None })
    }

    /// Returns the location of `relative` (with `/` between folders) below this folder.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let mut key = self.key.clone();
        let mut local = self.local.clone();
        for part in relative.split('/').filter(|part| !part.is_empty()) {
            // A part that a store listed is legal already; it must not be encoded again.
            key = match PathPart::parse(part) {
                Ok(legal) => key.join(legal),
                Err(_) => key.join(part),
            };
            if let Some(local) = &mut local {
                local.push(part);
            }
        }
        let shown = format!("{}/{relative}", self.shown.trim_end_matches('/'));
        Self { key, shown, local, store: self.store.clone() }
    }

    /// Returns the location of another file in the same folder; `None` for a bucket itself.
    #[must_use]
    pub fn with_file_name(&self, name: &str) -> Option<Self> {
        let parts: Vec<_> = self.key.parts().collect();
        let (_, folder) = parts.split_last()?;
        let shown = match self.shown.trim_end_matches('/').rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{name}"),
            None => name.to_owned(),
        };
        Some(Self {
            key: Path::from_iter(folder.iter().cloned()).join(name),
            shown,
            local: self.local.as_ref().map(|path| path.with_file_name(name)),
            store: self.store.clone(),
        })
    }

    /// Returns the folder that contains this file; `None` for a bucket itself.
    #[must_use]
    pub fn folder(&self) -> Option<Self> {
        let parts: Vec<_> = self.key.parts().collect();
        let (_, folder) = parts.split_last()?;
        let local = self.local.as_ref().and_then(|path| path.parent()).map(LocalPath::to_owned);
        let shown = self.shown.trim_end_matches('/');
        let (above, name) = shown.rsplit_once('/').unwrap_or((".", shown));
        let shown = match &local {
            // The text has no name for the parent of `.` and `..`.
            Some(path) if name == "." || name == ".." => path.display().to_string(),
            _ if above.is_empty() => "/".to_owned(),
            _ => above.to_owned(),
        };
        Some(Self { key: Path::from_iter(folder.iter().cloned()), shown, local, store: self.store.clone() })
    }

    /// Returns the path on this machine, if the location has one.
    pub fn local_path(&self) -> Option<&LocalPath> {
        self.local.as_deref()
    }

    /// Returns the last part of the name; empty for a bucket.
    pub fn file_name(&self) -> &str {
        let local = self.local.as_ref().and_then(|path| path.file_name()?.to_str());
        local.unwrap_or_else(|| self.shown.rsplit('/').find(|part| !part.is_empty()).unwrap_or(""))
    }

    /// Reads the whole file.
    ///
    /// # Errors
    /// If the file does not exist or the store fails.
    pub fn read(&self) -> Result<Bytes, StorageError> {
        block_on(self.read_part(None))
    }

    /// Reads a range of bytes; fewer if the file ends before.
    ///
    /// # Errors
    /// If the file does not exist or the store fails.
    pub fn read_range(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        block_on(self.read_part(Some(range)))
    }

    /// Starts to read a range of bytes.
    pub fn start_read_range(&self, range: Range<u64>) -> PendingRead {
        PendingRead::start(self.clone(), range)
    }

    /// Opens a file of this machine; `None` for one in an object store.
    ///
    /// # Errors
    /// If the file does not exist or cannot be opened.
    pub fn open_local(&self) -> Result<Option<LocalFile>, StorageError> {
        self.local_path().map(|path| LocalFile::open(self, path)).transpose()
    }

    /// Reads the whole file or a range of bytes.
    pub(super) async fn read_part(&self, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        let read = match &range {
            Some(range) => self.store().get_range(&self.key, range.clone()).await,
            None => match self.store().get(&self.key).await {
                Ok(got) => got.bytes().await,
                Err(error) => Err(error),
            },
        };
        match (read.map_err(|error| self.failed("read", error)), &range) {
            // Some stores refuse a range that begins at the end of a file; others give nothing.
            (Err(error @ StorageError::Failed { .. }), Some(range)) if !self.is_gone() => {
                match self.store().head(&self.key).await {
                    Ok(meta) if meta.size <= range.start => Ok(Bytes::new()),
                    _ => Err(error),
                }
            }
            (read, _) => read,
        }
    }

    /// Reads bytes and compares their digest. If it differs, reads them once more, in case they were damaged in
    /// transit. `None` if it differs again.
    ///
    /// # Errors
    /// As the read.
    pub fn read_checked(
        &self,
        read: impl Fn(&Self) -> Result<Bytes, StorageError>,
        digest: Digest,
    ) -> Result<Option<Bytes>, StorageError> {
        for last in [false, true] {
            let bytes = read(self)?;
            if Digest::of(&bytes) == digest {
                return Ok(Some(bytes));
            }
            if !last {
                tracing::warn!("{self}: reading once more, since the digest differs");
            }
        }
        Ok(None)
    }

    /// Looks up the file's size in bytes.
    ///
    /// # Errors
    /// If the file does not exist or the store fails.
    pub fn size(&self) -> Result<u64, StorageError> {
        Ok(self.look_up()?.size)
    }

    /// Looks up the stamp of the file's current version; `None` if the store gives none.
    ///
    /// # Errors
    /// If the file does not exist or the store fails.
    pub fn stamp(&self) -> Result<Option<Stamp>, StorageError> {
        if let Some(path) = self.local_path() {
            let metadata = std::fs::metadata(path).map_err(|error| self.failed_by("look up", error))?;
            return Ok(Stamp::of_time(&metadata));
        }
        Ok(self.look_up()?.e_tag.as_deref().map(Stamp::of_etag))
    }

    /// Looks up whether the file exists.
    ///
    /// # Errors
    /// If the store fails.
    pub fn exists(&self) -> Result<bool, StorageError> {
        match self.look_up() {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn look_up(&self) -> Result<object_store::ObjectMeta, StorageError> {
        block_on(self.store().head(&self.key)).map_err(|error| self.failed("look up", error))
    }

    /// Lists every file below the folder, sorted by name; none if the folder does not exist.
    ///
    /// # Errors
    /// If the store fails.
    pub fn list(&self) -> Result<Vec<Entry>, StorageError> {
        let listed: Result<Vec<_>, _> = block_on(self.store().list(Some(&self.key)).try_collect());
        let found = match listed.map_err(|error| self.failed("list", error)) {
            // The name belongs to a file of this machine, or is below one.
            Err(StorageError::NotFound { local: true, .. }) => Vec::new(),
            other => other?,
        };
        let mut entries: Vec<Entry> = found
            .into_iter()
            .filter_map(|meta| {
                let parts: Vec<_> = meta.location.prefix_match(&self.key)?.collect();
                let name = parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("/");
                let etag = meta.e_tag.as_deref().filter(|_| self.local_path().is_none());
                Some(Entry { name, bytes: meta.size, stamp: etag.map(Stamp::of_etag) })
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Lists the names of the files directly in the folder.
    pub(super) async fn list_names(&self) -> Result<Vec<String>, StorageError> {
        let listed = self.store().list_with_delimiter(Some(&self.key)).await;
        let listed = listed.map_err(|error| self.failed("list", error))?.objects;
        Ok(listed.iter().filter_map(|meta| meta.location.filename().map(ToOwned::to_owned)).collect())
    }

    /// Writes a small file, whole or not at all; durable when this returns.
    ///
    /// # Errors
    /// If the store fails, or on [`PublishMode::Create`] if the file exists.
    pub fn publish(&self, contents: impl Into<Bytes>, mode: PublishMode) -> Result<(), StorageError> {
        let contents = contents.into();
        let is_large = self.store.is_some() && contents.len() > PART_BYTES;
        if mode == PublishMode::Overwrite && is_large {
            let mut upload = Upload::start(self)?;
            upload.write_all(&contents).map_err(|error| match error.downcast::<StorageError>() {
                Ok(error) => error,
                Err(error) => self.failed_by("write", error),
            })?;
            return upload.finish().map(drop);
        }
        block_on(self.put(contents, mode))
    }

    /// Writes a small file by one request.
    pub(super) async fn put(&self, contents: Bytes, mode: PublishMode) -> Result<(), StorageError> {
        let mode = match mode {
            PublishMode::Overwrite => PutMode::Overwrite,
            PublishMode::Create => PutMode::Create,
        };
        let put = self.store().put_opts(&self.key, PutPayload::from(contents), PutOptions::from(mode)).await;
        put.map(drop).map_err(|error| self.failed("write", error))
    }

    async fn put_parts(&self) -> Result<Box<dyn MultipartUpload>, StorageError> {
        self.store().put_multipart(&self.key).await.map_err(|error| self.failed("write", error))
    }

    /// Removes the file, if it exists.
    ///
    /// # Errors
    /// If the store fails.
    pub fn delete(&self) -> Result<(), StorageError> {
        block_on(self.remove())
    }

    /// Removes the file, if it exists.
    pub(super) async fn remove(&self) -> Result<(), StorageError> {
        let removed = self.store().delete(&self.key).await;
        match removed.map_err(|error| self.failed("delete", error)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes every file below the folder, and on this machine the folders too.
    ///
    /// # Errors
    /// If the store fails.
    pub fn delete_folder(&self) -> Result<(), StorageError> {
        if let Some(path) = self.local_path() {
            return match std::fs::remove_dir_all(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed_by("delete", error)),
                _ => Ok(()),
            };
        }
        self.list()?.iter().try_for_each(|entry| self.join(&entry.name).delete())
    }

    /// Removes leftovers of killed uploads into this folder, for files whose names `is_ours` accepts. Object stores do
    /// not list theirs; the bucket's lifecycle rule removes them.
    ///
    /// # Errors
    /// If the folder cannot be read or a file cannot be removed.
    pub fn delete_unfinished_uploads(&self, is_ours: impl Fn(&str) -> bool) -> Result<(), StorageError> {
        let Some(path) = self.local_path() else { return Ok(()) };
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| self.failed_by("list", error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| self.failed_by("list", error))?;
            // Files are staged as `name#number`.
            let name = entry.file_name();
            let staged = name.to_str().and_then(|name| name.rsplit_once('#'));
            let is_staged = staged.is_some_and(|(name, number)| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) && is_ours(name)
            });
            if is_staged {
                std::fs::remove_file(entry.path()).map_err(|error| self.failed_by("delete", error))?;
            }
        }
        Ok(())
    }

    /// Returns whether this is the other location or below it; links of this machine are followed.
    pub fn is_within(&self, other: &Self) -> bool {
        // For a store: scheme, bucket, and the parts of the key.
        let parts = |location: &Self| match location.local_path() {
            Some(path) => canonical(path),
            None => PathBuf::from(location.to_string()),
        };
        parts(self).starts_with(parts(other))
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        match &self.store {
            Some(store) => Arc::clone(store) as Arc<dyn ObjectStore>,
            None => store::local(),
        }
    }

    /// Returns whether the user asserts that no other process writes to the object store.
    pub(super) fn has_single_writer(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.single_writer)
    }

    /// Returns whether the store was given up a short time ago.
    pub(super) fn is_gone(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.health.is_gone())
    }

    /// Converts an error of the location's store, for the operation that failed.
    pub(super) fn failed(&self, operation: &'static str, error: object_store::Error) -> StorageError {
        match &self.store {
            Some(store) => StorageError::of_store(operation, self.to_string(), store, error),
            None => StorageError::of_local_store(operation, self.to_string(), error),
        }
    }

    /// Wraps an error from elsewhere than the location's store, for the operation that failed.
    pub(crate) fn failed_by(
        &self,
        operation: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> StorageError {
        let (location, local) = (self.to_string(), self.local.is_some());
        StorageError::Failed { operation, location, local, source: source.into() }
    }

    /// Returns a location in an object store in memory.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::on_store(Arc::new(object_store::memory::InMemory::new()), &StorageOptions::default())
    }

    #[cfg(test)]
    pub(super) fn on_store(store: Arc<dyn ObjectStore>, options: &StorageOptions) -> Self {
        let store = Arc::new(Store::of_test(store, options));
        Self { key: Path::from("test"), shown: "memory://test".into(), local: None, store: Some(store) }
    }
}

/// Size of one part of a multipart upload, in bytes; S3 allows 10,000 parts, so a file may reach 80 GB.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file in flight to a store; with [`PART_BYTES`] it bounds the memory of an upload.
const PARTS_IN_FLIGHT: usize = 4;
/// Parts in flight to a disk: one is written while the next is filled.
const PARTS_TO_A_DISK: usize = 2;

/// Resolves the links of a path, as far as the path exists.
fn canonical(path: &LocalPath) -> PathBuf {
    let exists = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    exists.map_or_else(
        || path.to_owned(),
        |(above, canonical)| canonical.join(path.strip_prefix(above).expect("an ancestor")),
    )
}

/// Size and digest of a published file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Digest of the contents.
    pub digest: Digest,
}

/// A file being written. It appears at its location when [`Upload::finish`] succeeds; an upload that is dropped earlier
/// leaves nothing.
pub struct Upload {
    location: Location,
    writer: Option<WriteMultipart>,
    hasher: blake3::Hasher,
    bytes: u64,
}

/// Shows no credentials, which the clients of some stores would.
impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({}, {} bytes)", self.location, self.bytes)
    }
}

impl Upload {
    /// Starts to write a file at the location.
    ///
    /// # Errors
    /// If the store refuses.
    pub fn start(location: &Location) -> Result<Self, StorageError> {
        let upload = block_on(location.put_parts())?;
        Ok(Self {
            location: location.clone(),
            writer: Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES)),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        })
    }

    /// Waits until at most `at_most` parts are in flight.
    fn wait_for_parts(&mut self, at_most: usize) -> Result<(), StorageError> {
        let writer = self.writer.as_mut().expect("the writer is taken only by finish and drop");
        block_on(writer.wait_for_capacity(at_most)).map_err(|error| self.location.failed("write", error))
    }

    /// Publishes the file; durable when this returns.
    ///
    /// # Errors
    /// If the store fails; then nothing is published.
    pub fn finish(mut self) -> Result<Published, StorageError> {
        self.wait_for_parts(0)?;
        let writer = self.writer.take().expect("the writer is taken only here and in drop");
        block_on(writer.finish()).map_err(|error| self.location.failed("write", error))?;
        Ok(Published { bytes: self.bytes, digest: self.hasher.finalize().into() })
    }
}

impl io::Write for Upload {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let _inside_the_runtime = handle().enter();
        let in_flight = if self.location.store.is_some() { PARTS_IN_FLIGHT } else { PARTS_TO_A_DISK };
        self.wait_for_parts(in_flight).map_err(io::Error::other)?;
        let writer = self.writer.as_mut().expect("the writer is taken only by finish and drop");
        // The rest of a longer buffer also waits for room.
        let buffer = &buffer[..buffer.len().min(PART_BYTES)];
        writer.write(buffer);
        self.hasher.update(buffer);
        self.bytes += buffer.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        if self.location.is_gone() {
            tracing::warn!("{}: leaving the unfinished upload: the store is gone", self.location);
        } else {
            // A failure is logged by the store.
            let _ = block_on(writer.abort());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn plain_paths_and_file_urls_name_the_same_path() {
        let options = StorageOptions::default();
        let plain = Location::parse("/data/../data/in1k", &options).expect("a path");
        let url = Location::parse("file:///data/in1k", &options).expect("a URL");
        assert_eq!(plain.local_path(), url.local_path());
        assert_eq!(plain.join("train/shard").local_path(), Some(LocalPath::new("/data/in1k/train/shard")));
    }

    #[test]
    fn credentials_never_reach_an_error() {
        let error = Location::parse("s3://key:hunter2@bucket/x", &StorageOptions::default())
            .expect_err("credentials in a URL");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let options = StorageOptions::new(vec![("aws_secret_access_key".into(), "hunter2".into())]);
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn a_path_with_a_control_character_is_rejected_and_shown() {
        let error = Location::parse("/data/tab\there", &StorageOptions::default()).expect_err("a tab");
        assert!(error.to_string().contains("`/data/tab\\there`: control characters"), "{error}");
    }

    #[test]
    fn a_folder_above_a_relative_path_has_its_own_name() {
        let here = std::env::current_dir().expect("a folder");
        let name = here.file_name().and_then(|name| name.to_str()).expect("a name");
        let above = here.parent().expect("a folder above");
        let file = Location::from_path(LocalPath::new("step-1")).expect("a location");
        let folder = file.folder().expect("a folder");
        assert_eq!((folder.file_name(), folder.to_string().as_str()), (name, "."));
        let dot = Location::from_path(LocalPath::new(".")).expect("a location");
        for folder in [folder, dot] {
            assert_eq!(folder.file_name(), name, "{folder}");
            let run = folder.folder().expect("a folder above");
            assert_eq!(run.local_path(), Some(above), "{folder}");
            assert_eq!(run.to_string(), above.display().to_string(), "{folder}");
        }
        let plain = Location::from_path(LocalPath::new("runs/a/step-1")).expect("a location");
        assert_eq!(plain.folder().map(|folder| folder.to_string()).as_deref(), Some("runs/a"));
        let root = Location::from_path(LocalPath::new("/")).expect("a location");
        assert_eq!(root.file_name(), "");
    }

    fn folder() -> (tempfile::TempDir, Location) {
        let dir = tempfile::tempdir().expect("a folder");
        let location = Location::from_path(dir.path()).expect("a location");
        (dir, location)
    }

    #[test]
    fn what_is_published_can_be_read_listed_and_deleted() {
        let (_dir, folder) = folder();
        let file = folder.join("a/b.json");
        assert!(!file.exists().expect("a look"));
        file.publish("hello", PublishMode::Create).expect("a file");
        assert_eq!(file.read().expect("its bytes"), "hello");
        assert_eq!(file.read_range(1..3).expect("a part"), "el");
        let entry = Entry { name: "a/b.json".into(), bytes: 5, stamp: None };
        assert_eq!(folder.list().expect("a list"), [entry]);
        file.delete().expect("deleted");
        file.delete().expect("deleting again succeeds");
        assert!(folder.list().expect("a list").is_empty());
    }

    #[test]
    fn create_leaves_what_is_there() {
        let (_dir, folder) = folder();
        let file = folder.join("x");
        file.publish("first", PublishMode::Create).expect("a file");
        let error = file.publish("second", PublishMode::Create).expect_err("it exists");
        assert!(matches!(error, StorageError::AlreadyExists { .. }));
        file.publish("third", PublishMode::Overwrite).expect("replaced");
        assert_eq!(file.read().expect("its bytes"), "third");
    }

    #[test]
    fn a_range_behind_the_end_of_a_file_is_empty() {
        let (_dir, folder) = folder();
        for (folder, bytes) in [(&folder, ""), (&folder, "abc"), (&Location::in_memory(), "")] {
            let file = folder.join(&format!("file-{}", bytes.len()));
            file.publish(bytes, PublishMode::Create).expect("a file");
            assert_eq!(file.read_range(bytes.len() as u64..9).expect("nothing"), "");
        }
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_file() {
        let failed = |answer: &str| {
            let source = Box::new(std::io::Error::other(answer.to_owned()));
            let error = object_store::Error::NotFound { path: "x".into(), source };
            Location::in_memory().join("x").failed("read", error)
        };
        let error = failed("<Error><Code>NoSuchBucket</Code><Message>No.</Message></Error>");
        assert_eq!(error.failure(), Failure::Config);
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
        assert!(failed("<Error><Code>NoSuchKey</Code><Message>No.</Message></Error>").is_not_found());
    }

    #[test]
    fn an_upload_appears_only_when_finished() {
        let (_dir, folder) = folder();
        let file = folder.join("shard");
        let mut upload = Upload::start(&file).expect("started");
        let contents = vec![7_u8; 20 << 20];
        assert_eq!(upload.write(&contents).expect("written"), PART_BYTES, "the rest waits for room");
        upload.write_all(&contents[PART_BYTES..]).expect("written");
        assert!(!file.exists().expect("a look"));
        let published = upload.finish().expect("published");
        assert_eq!(published, Published { bytes: 20 << 20, digest: Digest::of(&contents) });
        assert_eq!(file.read().expect("its bytes"), contents);
    }

    #[test]
    fn a_dropped_upload_leaves_nothing() {
        let (dir, folder) = folder();
        let file = folder.join("shard");
        let mut upload = Upload::start(&file).expect("started");
        upload.write_all(b"half").expect("written");
        drop(upload);
        assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 0);
    }

    #[test]
    fn an_upload_whose_last_step_fails_leaves_nothing() {
        let (dir, folder) = folder();
        // A non-empty folder cannot be replaced by the file.
        std::fs::create_dir_all(dir.path().join("shard/full")).expect("a folder");
        let file = folder.join("shard");
        let mut upload = Upload::start(&file).expect("started");
        upload.write_all(b"contents").expect("written");
        upload.finish().expect_err("the name belongs to a folder");
        assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 1);
    }
}
