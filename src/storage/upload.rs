//! Writes a large file as a stream, whole or not at all.

use std::{fmt, io};

use object_store::WriteMultipart;

use super::{Digest, Location, StorageError, block_on, handle};

/// Bytes of one part of a multipart upload; S3 allows 10,000 parts, so a file may reach 80 GB.
pub(super) const PART_BYTES: usize = 8 << 20;
/// Parts of one file in flight: with [`PART_BYTES`] this bounds the memory of an upload.
const PARTS_IN_FLIGHT: usize = 4;

/// What an upload published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The file's size in bytes.
    pub bytes: u64,
    /// The digest of its contents.
    pub digest: Digest,
}

/// A file being written. It appears at its location when [`Upload::finish`] succeeds; an upload that is dropped before
/// leaves nothing.
pub struct Upload {
    location: Location,
    writer: Option<WriteMultipart>,
    hasher: blake3::Hasher,
    bytes: u64,
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
        let upload = block_on(location.put_parts())?;
        Ok(Self {
            location: location.clone(),
            writer: Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES)),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        })
    }

    /// Waits until fewer parts than this are in flight.
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

    #[test]
    fn a_dropped_upload_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = Location::from_path(&dir.path().join("shard")).expect("a location");
        let mut upload = Upload::start(&file).expect("started");
        upload.write_all(b"half").expect("written");
        drop(upload);
        assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 0);
    }

    #[test]
    fn an_upload_whose_last_step_fails_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        // A folder that holds something cannot be replaced by the file.
        std::fs::create_dir_all(dir.path().join("shard/full")).expect("a folder");
        let file = Location::from_path(&dir.path().join("shard")).expect("a location");
        let mut upload = Upload::start(&file).expect("started");
        upload.write_all(b"contents").expect("written");
        upload.finish().expect_err("the name belongs to a folder");
        assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 1);
    }
}
