//! What can be done at a location: read, look up, list, publish and delete.

use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::upload::PART_BYTES;
use super::{Digest, LocalFile, Location, PendingRead, StorageError, Upload, block_on, error, store};

/// A file below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name relative to the folder that was listed, with `/` between its parts.
    pub name: String,
    /// The size in bytes.
    pub bytes: u64,
    /// From the ETag of an object store; `None` on this machine.
    pub stamp: Option<Stamp>,
}

/// Tells versions of a file apart that have equal names and sizes: by the ETag in an object store, by the modification
/// time on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

impl Stamp {
    fn of_etag(etag: &str) -> Self {
        let digest = blake3::hash(etag.as_bytes());
        Self(u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight bytes")))
    }

    /// From a modification time; `None` for the epoch itself, which file systems without times show.
    pub fn of_time(metadata: &std::fs::Metadata) -> Option<Self> {
        let time = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        (!time.is_zero()).then_some(Self(time.as_nanos() as u64))
    }
}

/// What to do if the file exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishMode {
    /// Replace it in one step.
    Overwrite,
    /// Keep it and fail with [`StorageError::AlreadyExists`]; of several writers one wins.
    Create,
}

impl Location {
    /// Reads the whole file.
    ///
    /// # Errors
    /// If the file does not exist or the store fails.
    pub fn read(&self) -> Result<Bytes, StorageError> {
        block_on(self.read_part(None))
    }

    /// Reads a range of bytes; fewer where the file ends before.
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
            Some(range) => self.store().get_range(self.key(), range.clone()).await,
            None => match self.store().get(self.key()).await {
                Ok(got) => got.bytes().await,
                Err(error) => Err(error),
            },
        };
        match (read.map_err(|error| self.failed("read", error)), &range) {
            // Some stores refuse a range that begins at the end of a file; others give nothing.
            (Err(error @ StorageError::Failed { .. }), Some(range)) if !self.is_gone() => {
                match self.store().head(self.key()).await {
                    Ok(meta) if meta.size <= range.start => Ok(Bytes::new()),
                    _ => Err(error),
                }
            }
            (read, _) => read,
        }
    }

    /// Reads bytes and compares their digest. Where it differs, reads them once more, in case they were damaged in
    /// transit. `None` where it differs again.
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

    /// The file's size in bytes.
    ///
    /// # Errors
    /// If the file does not exist or the store fails.
    pub fn size(&self) -> Result<u64, StorageError> {
        Ok(self.look_up()?.size)
    }

    /// Tells the file from others of its name and size; `None` where nothing does.
    ///
    /// # Errors
    /// If the file does not exist or the store fails.
    pub fn stamp(&self) -> Result<Option<Stamp>, StorageError> {
        if let Some(path) = self.local_path() {
            let metadata = std::fs::metadata(path).map_err(|error| self.failed_io("look up", error))?;
            return Ok(Stamp::of_time(&metadata));
        }
        Ok(self.look_up()?.e_tag.as_deref().map(Stamp::of_etag))
    }

    /// Whether the file exists.
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
        block_on(self.store().head(self.key())).map_err(|error| self.failed("look up", error))
    }

    /// Every file below the folder, sorted by name; none where the folder does not exist.
    ///
    /// # Errors
    /// If the store fails.
    pub fn list(&self) -> Result<Vec<Entry>, StorageError> {
        let listed: Result<Vec<_>, _> = block_on(self.store().list(Some(self.key())).try_collect());
        let found = match listed.map_err(|error| self.failed("list", error)) {
            // The name belongs to a file of this machine, or is below one.
            Err(StorageError::NotFound { local: true, .. }) => Vec::new(),
            other => other?,
        };
        let mut entries: Vec<Entry> = found
            .into_iter()
            .filter_map(|meta| {
                let parts: Vec<_> = meta.location.prefix_match(self.key())?.collect();
                let name = parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("/");
                let etag = meta.e_tag.as_deref().filter(|_| self.local_path().is_none());
                Some(Entry { name, bytes: meta.size, stamp: etag.map(Stamp::of_etag) })
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The names of the files in the folder itself.
    pub(super) async fn list_names(&self) -> Result<Vec<String>, StorageError> {
        let listed = self.store().list_with_delimiter(Some(self.key())).await;
        let listed = listed.map_err(|error| self.failed("list", error))?.objects;
        Ok(listed.iter().filter_map(|meta| meta.location.filename().map(ToOwned::to_owned)).collect())
    }

    /// Writes a small file, whole or not at all; durable when this returns.
    ///
    /// # Errors
    /// If the store fails, or on [`PublishMode::Create`] where the file exists.
    pub fn publish(&self, contents: impl Into<Bytes>, mode: PublishMode) -> Result<(), StorageError> {
        let contents = contents.into();
        let is_large = self.object_store().is_some() && contents.len() > PART_BYTES;
        if mode == PublishMode::Overwrite && is_large {
            let mut upload = Upload::start(self)?;
            upload.write_all(&contents).map_err(|error| match error.downcast::<StorageError>() {
                Ok(error) => error,
                Err(error) => self.failed_io("write", error),
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
        let put = self.store().put_opts(self.key(), PutPayload::from(contents), PutOptions::from(mode)).await;
        put.map(drop).map_err(|error| self.failed("write", error))
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
        let removed = self.store().delete(self.key()).await;
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
                Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed_io("delete", error)),
                _ => Ok(()),
            };
        }
        self.list()?.iter().try_for_each(|entry| self.join(&entry.name).delete())
    }

    /// Removes what killed uploads into this folder have left. Object stores show none; the bucket's lifecycle rule
    /// removes theirs.
    ///
    /// # Errors
    /// If the folder cannot be read or a file cannot be removed.
    pub fn delete_unfinished_uploads(&self) -> Result<(), StorageError> {
        let Some(path) = self.local_path() else { return Ok(()) };
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| self.failed_io("list", error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| self.failed_io("list", error))?;
            // Files are staged as `name#number`.
            let name = entry.file_name();
            let is_staged =
                name.to_str().and_then(|name| name.rsplit_once('#')).is_some_and(|(_, number)| {
                    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
                });
            if is_staged {
                std::fs::remove_file(entry.path()).map_err(|error| self.failed_io("delete", error))?;
            }
        }
        Ok(())
    }

    /// The store of the location, with all its decorators.
    pub(super) fn store(&self) -> Arc<dyn ObjectStore> {
        self.object_store().map_or_else(store::local, store::Store::chain)
    }

    /// Whether the store was given up a short time ago.
    pub(super) fn is_gone(&self) -> bool {
        self.object_store().is_some_and(|store| store.health().is_gone())
    }

    /// The error of an operation of the location's store.
    pub(super) fn failed(&self, operation: &'static str, error: object_store::Error) -> StorageError {
        match self.object_store() {
            Some(store) => error::of_store(operation, self.to_string(), store.health(), error),
            None => error::of_local_store(operation, self.to_string(), error),
        }
    }

    /// The error of an operation of this machine's file system.
    pub(super) fn failed_io(&self, operation: &'static str, error: std::io::Error) -> StorageError {
        let location = self.to_string();
        StorageError::Failed { operation, location, local: true, source: Box::new(error) }
    }
}

/// Reads that [`read_concurrently`] has in flight.
const READS_AT_ONCE: usize = 16;

/// Reads several files or ranges of files concurrently; the results keep the order.
pub fn read_concurrently(wanted: Vec<(Location, Option<Range<u64>>)>) -> Vec<Result<Bytes, StorageError>> {
    let read =
        |(location, range): (Location, Option<Range<u64>>)| async move { location.read_part(range).await };
    block_on(futures::stream::iter(wanted).map(read).buffered(READS_AT_ONCE).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        file.delete().expect("deleting again is no error");
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
    fn a_missing_file_is_not_found() {
        let (_dir, folder) = folder();
        assert!(folder.join("nothing").read().expect_err("nothing there").is_not_found());
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_file() {
        let failed = |answer: &str| {
            let source = Box::new(std::io::Error::other(answer.to_owned()));
            let error = object_store::Error::NotFound { path: "x".into(), source };
            Location::in_memory().join("x").failed("read", error)
        };
        let error = failed("<Error><Code>NoSuchBucket</Code><Message>No.</Message></Error>");
        assert_eq!(error.failure(), crate::failure::Failure::Config);
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
        assert!(failed("<Error><Code>NoSuchKey</Code><Message>No.</Message></Error>").is_not_found());
    }
}
