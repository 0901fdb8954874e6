//! Writing a large file as a stream, whole or not at all.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::{
    MultipartUpload, ObjectStore, PutMultipartOptions, PutPayload, PutResult, UploadPart, WriteMultipart,
};
use serde::{Deserialize, Serialize};

use super::create::{attributes, writer_id};
use crate::storage::store::LAST_PATIENCE;
use crate::storage::store::retried::{PartPatience, is_lost};
use crate::storage::{Location, StorageError, block_on, handle};

/// Bytes of one part of a multipart upload; S3 allows 10,000 parts, so a file may reach 80 GB.
pub(in crate::storage) const PART_BYTES: usize = 8 << 20;
/// Parts of one file on their way at once: with [`PART_BYTES`] this bounds the memory of an upload.
const PARTS_IN_FLIGHT: usize = 4;

/// A blake3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = blake3::HexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        blake3::Hash::from_hex(text).map(Self::from)
    }
}

/// What an upload published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The file's size in bytes.
    pub bytes: u64,
    /// The digest of its contents.
    pub digest: Digest,
}

/// A file that is being written; it appears at its location when [`Upload::finish`] succeeds, and leaves
/// nothing where it is dropped before.
pub struct Upload {
    location: Location,
    writer: Option<WriteMultipart>,
    hasher: blake3::Hasher,
    bytes: u64,
    /// Tells this file from another writer's, where the store keeps attributes.
    id: String,
}

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
        let id = writer_id();
        let options = || {
            let of_stores = || PutMultipartOptions { attributes: attributes(&id), ..Default::default() };
            let options = location.remote().map(|_| of_stores()).unwrap_or_default();
            options.with_retry_policy(Arc::new(PartPatience(location.retry_limits())))
        };
        let start = || async { location.store().put_multipart_opts(location.key(), options()).await };
        let upload = block_on(location.attempt("write", start))?;
        let upload = Box::new(Tidied { upload, location: location.clone() });
        Ok(Self {
            location: location.clone(),
            writer: Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES)),
            hasher: blake3::Hasher::new(),
            bytes: 0,
            id,
        })
    }

    /// Waits until fewer parts than this are on their way.
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
        if let Err(error) = block_on(writer.finish()) {
            // The answer to the last request can be lost after the store acted.
            let there = self.location.remote().is_some() && block_on(self.location.is_of(&self.id))?;
            if !there {
                return Err(self.location.failed("write", error));
            }
            let told = self.location.told(&error);
            tracing::info!("{}: the answer was lost, the file is there: {told}", self.location);
        }
        Ok(Published { bytes: self.bytes, digest: self.hasher.finalize().into() })
    }
}

impl io::Write for Upload {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let _inside_the_runtime = handle().enter();
        self.wait_for_parts(PARTS_IN_FLIGHT).map_err(io::Error::other)?;
        let writer = self.writer.as_mut().expect("the writer is taken only by finish and drop");
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
            tracing::warn!("{}: the unfinished upload is left there: the store is gone", self.location);
        } else {
            // What goes wrong is told there.
            let _ = block_on(writer.abort());
        }
    }
}

/// An upload whose removal, after it failed, neither hides why it failed nor takes the time of all retries again.
#[derive(Debug)]
struct Tidied {
    upload: Box<dyn MultipartUpload>,
    location: Location,
}

#[async_trait]
impl MultipartUpload for Tidied {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, location) = (self.upload.put_part(data), self.location.clone());
        Box::pin(async move {
            let put = part.await;
            // Parts are tried again for all the time that there is.
            if put.as_ref().is_err_and(is_lost) {
                location.note_answers(false);
            }
            put
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let began = Instant::now();
        let completed = self.upload.complete().await;
        if completed.as_ref().is_err_and(is_lost) && began.elapsed() >= self.location.retry_limits().time {
            self.location.note_answers(false);
        }
        completed
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        let location = &self.location;
        let more = if location.is_gone() { Duration::ZERO } else { location.retry_limits().time };
        let left = match tokio::time::timeout(LAST_PATIENCE + more, self.upload.abort()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => location.told(&error),
            Err(_) => "no answer".to_owned(),
        };
        tracing::warn!("{location}: the unfinished upload could not be removed: {left}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use object_store::client::{HttpError, HttpErrorKind};

    use super::*;
    use crate::storage::RetryLimits;

    #[test]
    fn an_upload_appears_only_when_finished() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = Location::from_path(&dir.path().join("shard")).expect("a location");
        let mut upload = Upload::start(&file).expect("started");
        let contents = vec![7_u8; 20 << 20];
        upload.write_all(&contents).expect("written");
        assert!(!file.exists().expect("a look"));
        let published = upload.finish().expect("published");
        assert_eq!(published, Published { bytes: 20 << 20, digest: Digest::of(&contents) });
        assert_eq!(file.read().expect("its bytes"), contents);
    }

    /// An upload to a store that is gone: what is asked last is never answered.
    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl MultipartUpload for Silent {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            Box::pin(async { Err(lost()) })
        }

        async fn complete(&mut self) -> object_store::Result<PutResult> {
            Err(lost())
        }

        async fn abort(&mut self) -> object_store::Result<()> {
            std::future::pending().await
        }
    }

    fn lost() -> object_store::Error {
        let error = HttpError::new(HttpErrorKind::Interrupted, io::Error::other("the cause"));
        object_store::Error::Generic { store: "test", source: Box::new(error) }
    }

    #[test]
    fn an_upload_to_a_store_that_is_gone_ends_soon_and_with_its_cause() {
        for bytes in [0, 1] {
            let limits = RetryLimits { time: Duration::from_millis(0), tries: 0 };
            let location = Location::in_memory_within(limits).join("file");
            let mut upload = Upload::start(&location).expect("started");
            let silent = Box::new(Tidied { upload: Box::new(Silent), location: location.clone() });
            upload.writer = Some(WriteMultipart::new_with_chunk_size(silent, PART_BYTES));
            upload.write_all(&vec![7; bytes]).expect("kept for a part");
            let began = Instant::now();
            let error = upload.finish().expect_err("the store is gone");
            assert!(began.elapsed() < LAST_PATIENCE * 10, "{:?}", began.elapsed());
            let cause = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(cause.contains("the cause"), "{cause}");
        }
    }

    #[test]
    fn a_dropped_upload_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = Location::from_path(&dir.path().join("shard")).expect("a location");
        let mut upload = Upload::start(&file).expect("started");
        upload.write_all(b"half").expect("written");
        drop(upload);
        assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 0);
    }
}
