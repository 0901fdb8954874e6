//! Reading, listing and publishing whole files.

use std::io::Write;
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt};

use super::{Digest, Location, StorageError, block_on};
use crate::storage::publish::upload::{PART_BYTES, Upload};

/// A file below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name relative to the folder that was listed, with `/` between its parts.
    pub name: String,
    /// The size in bytes.
    pub bytes: u64,
    /// In an object store what its ETag says; none on this machine.
    pub stamp: Option<Stamp>,
}

/// Tells two versions of a file apart that have one name and one size: by the ETag of an object store, by the
/// modification time of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

impl Stamp {
    fn of_etag(etag: &str) -> Self {
        let digest = blake3::hash(etag.as_bytes());
        Self(u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight bytes")))
    }

    /// By a modification time; `None` for the epoch itself, which file systems without times show.
    pub fn of_time(metadata: &std::fs::Metadata) -> Option<Self> {
        let time = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        (!time.is_zero()).then_some(Self(time.as_nanos() as u64))
    }
}

/// What to do where a file of that name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishMode {
    /// Replace it in one step.
    Overwrite,
    /// Leave it and fail with [`StorageError::AlreadyExists`]; of several writers one wins.
    Create,
}

impl Location {
    /// Reads the whole file.
    ///
    /// # Errors
    /// If nothing is there or the store fails.
    pub fn read(&self) -> Result<Bytes, StorageError> {
        block_on(self.read_part(None))
    }

    /// Reads a range of bytes; fewer where the file ends before.
    ///
    /// # Errors
    /// If nothing is there or the store fails.
    pub fn read_range(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        block_on(self.read_part(Some(range)))
    }

    /// Reads the whole file or a range of bytes: what every read of a store comes to.
    pub(super) async fn read_part(&self, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        let read = || async {
            match &range {
                Some(range) => self.store().get_range(self.key(), range.clone()).await,
                None => self.store().get(self.key()).await?.bytes().await,
            }
        };
        match (self.attempt("read", read).await, &range) {
            // A range that begins at the end of a file, or of an empty one, is refused by some stores; others give
            // nothing.
            (Err(error @ StorageError::Failed { .. }), Some(range)) if !self.is_gone() => {
                match self.attempt("look up", || async { self.store().head(self.key()).await }).await {
                    Ok(meta) if meta.size <= range.start => Ok(Bytes::new()),
                    _ => Err(error),
                }
            }
            (read, _) => read,
        }
    }

    /// Reads bytes and compares them; where they differ, reads them once more, as what was damaged on its
    /// way is whole the second time. `None` where they differ again.
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
                tracing::warn!("{self}: what was read has another digest; it is read once more");
            }
        }
        Ok(None)
    }

    /// The file's size in bytes.
    ///
    /// # Errors
    /// If nothing is there or the store fails.
    pub fn size(&self) -> Result<u64, StorageError> {
        let meta = block_on(self.attempt("look up", || async { self.store().head(self.key()).await }))?;
        Ok(meta.size)
    }

    /// What tells the file from another one of its name and size; `None` where there is nothing to tell it by.
    ///
    /// # Errors
    /// If nothing is there or the store fails.
    pub fn stamp(&self) -> Result<Option<Stamp>, StorageError> {
        if let Some(path) = self.local_path() {
            let metadata = std::fs::metadata(path).map_err(|error| self.failed_locally("look up", error))?;
            return Ok(Stamp::of_time(&metadata));
        }
        let meta = block_on(self.attempt("look up", || async { self.store().head(self.key()).await }))?;
        Ok(meta.e_tag.as_deref().map(Stamp::of_etag))
    }

    /// Whether a file lies there.
    ///
    /// # Errors
    /// If the store fails.
    pub fn exists(&self) -> Result<bool, StorageError> {
        match self.size() {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every file below the folder, sorted by name; none where the folder does not exist.
    ///
    /// # Errors
    /// If the store fails.
    pub fn list(&self) -> Result<Vec<Entry>, StorageError> {
        let list = || async { self.store().list(Some(self.key())).try_collect().await };
        let found: Vec<_> = match block_on(self.attempt("list", list)) {
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

    /// Writes a small file, whole or not at all; durable when this returns.
    ///
    /// # Errors
    /// If the store fails, or on [`PublishMode::Create`] where a file exists.
    pub fn publish(&self, contents: impl Into<Bytes>, mode: PublishMode) -> Result<(), StorageError> {
        let contents = contents.into();
        match mode {
            PublishMode::Create => block_on(self.create(contents)),
            PublishMode::Overwrite if self.remote().is_some() && contents.len() > PART_BYTES => {
                let mut upload = Upload::start(self)?;
                upload.write_all(&contents).map_err(|error| self.failed_upload(error))?;
                upload.finish().map(drop)
            }
            PublishMode::Overwrite => block_on(self.replace(contents)),
        }
    }

    /// The error of a part of an upload.
    fn failed_upload(&self, error: std::io::Error) -> StorageError {
        match error.downcast::<StorageError>() {
            Ok(error) => error,
            Err(error) => self.failed_locally("write", error),
        }
    }

    /// Removes the file; where there is none, that is no error.
    ///
    /// # Errors
    /// If the store fails.
    pub fn delete(&self) -> Result<(), StorageError> {
        match block_on(self.attempt("delete", || async { self.store().delete(self.key()).await })) {
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
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(self.failed_locally("delete", error))
                }
                _ => Ok(()),
            };
        }
        self.list()?.iter().try_for_each(|entry| self.join(&entry.name).delete())
    }

    /// Removes what killed uploads into this folder have left. Stores in the cloud show none; the bucket's
    /// lifecycle rule removes theirs.
    ///
    /// # Errors
    /// If the folder cannot be read or a file not be removed.
    pub fn delete_unfinished_uploads(&self) -> Result<(), StorageError> {
        let Some(path) = self.local_path() else { return Ok(()) };
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| self.failed_locally("list", error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| self.failed_locally("list", error))?;
            // The local store stages a file as `name#number`.
            let name = entry.file_name();
            let staged = name.to_str().and_then(|name| name.rsplit_once('#')).is_some_and(|(_, number)| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            });
            if staged {
                std::fs::remove_file(entry.path()).map_err(|error| self.failed_locally("delete", error))?;
            }
        }
        Ok(())
    }
}

/// Reads that [`read_concurrently`] has on their way at once.
const READS_AT_ONCE: usize = 16;

/// Reads several files or ranges of files, some of them at the same time; the results keep the order.
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
    fn a_missing_file_is_told_from_a_failing_store() {
        let (_dir, folder) = folder();
        assert!(folder.join("nothing").read().expect_err("nothing there").is_not_found());
    }
}
