//! Reads of many ranges: from an open file, in the background, or concurrently.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::{Location, StorageError, block_on, handle};

/// An open file of this machine, for reads at any offset by any number of threads.
#[derive(Debug)]
pub struct LocalFile {
    file: File,
    location: Location,
}

impl LocalFile {
    pub(super) fn open(location: &Location, path: &Path) -> Result<Self, StorageError> {
        let file = File::open(path).map_err(|error| failed(location, error))?;
        Ok(Self { file, location: location.clone() })
    }

    /// Reads a range of bytes.
    ///
    /// # Errors
    /// If the file is shorter or the disk fails.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        match self.file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes.into()),
            Err(error) => Err(failed(&self.location, error)),
        }
    }
}

fn failed(location: &Location, error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::NotFound => StorageError::NotFound { location: location.to_string(), local: true },
        _ => {
            location.failed("read", object_store::Error::Generic { store: "local", source: Box::new(error) })
        }
    }
}

/// Signal that cancels the pending reads that wait with it. All clones share one state.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Cancel {
    /// Makes all reads that wait with this object return at once, now and later.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Returns whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    async fn cancelled(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = receiver.wait_for(|cancelled| *cancelled).await;
    }
}

/// A range of bytes being read; dropping it cancels the read.
#[derive(Debug)]
pub struct PendingRead {
    location: Location,
    bytes: u64,
    task: JoinHandle<Result<Bytes, StorageError>>,
}

impl PendingRead {
    /// Starts to read a range of bytes.
    pub(super) fn start(location: Location, range: Range<u64>) -> Self {
        let bytes = range.end.saturating_sub(range.start);
        let read = location.clone();
        let task = handle().spawn(async move {
            // Stores refuse to read nothing.
            if bytes == 0 { Ok(Bytes::new()) } else { read.read_part(Some(range)).await }
        });
        Self { location, bytes, task }
    }

    /// Waits for the bytes of the range.
    ///
    /// # Errors
    /// As [`Location::read_range`]; also if the file is shorter.
    pub fn finish(mut self) -> Result<Bytes, StorageError> {
        let joined = block_on(&mut self.task);
        self.checked(joined)
    }

    /// Waits for the bytes; returns `None` as soon as `cancel` is set, even if the store hangs.
    ///
    /// # Errors
    /// As [`PendingRead::finish`].
    pub fn finish_unless(mut self, cancel: &Cancel) -> Result<Option<Bytes>, StorageError> {
        let joined = block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => None,
                joined = &mut self.task => Some(joined),
            }
        });
        joined.map(|joined| self.checked(joined)).transpose()
    }

    fn checked(&self, joined: Result<Result<Bytes, StorageError>, JoinError>) -> Result<Bytes, StorageError> {
        let read = joined.map_err(|error| self.location.failed_by("read", error))??;
        if read.len() as u64 == self.bytes {
            return Ok(read);
        }
        // A store cuts a range at the end of the object.
        Err(self.location.failed_by("read", io::Error::from(io::ErrorKind::UnexpectedEof)))
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Number of reads that [`read_concurrently`] has in flight.
const READS_AT_ONCE: usize = 16;

/// Reads several files or ranges of files concurrently; the results keep the order.
pub fn read_concurrently(wanted: Vec<(Location, Option<Range<u64>>)>) -> Vec<Result<Bytes, StorageError>> {
    let read =
        |(location, range): (Location, Option<Range<u64>>)| async move { location.read_part(range).await };
    block_on(stream::iter(wanted).map(read).buffered(READS_AT_ONCE).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::PublishMode;

    #[test]
    fn ranges_are_read_and_missing_bytes_are_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let location = Location::from_path(&dir.path().join("file")).expect("a location");
        location.publish("0123456789", PublishMode::Create).expect("written");
        let file = location.open_local().expect("there").expect("of this machine");
        assert_eq!(file.read(2..5).expect("read"), "234");
        file.read(8..12).expect_err("it is shorter");
        let missing = location.with_file_name("other").expect("a name");
        assert!(missing.open_local().expect_err("nothing there").is_not_found());
        assert!(Location::in_memory().join("file").open_local().expect("no error").is_none());
    }

    #[test]
    fn a_started_read_gives_what_a_plain_read_gives() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = Location::from_path(&dir.path().join("x")).expect("a location");
        file.publish("0123456789", PublishMode::Create).expect("a file");
        assert!(file.start_read_range(4..4).finish().expect("nothing").is_empty());
        let (second, first) = (file.start_read_range(5..10), file.start_read_range(0..5));
        assert_eq!(first.finish().expect("bytes"), "01234");
        assert_eq!(second.finish().expect("bytes"), "56789");
        assert!(file.start_read_range(0..11).finish().is_err());
        drop(file.start_read_range(0..3));
        assert!(
            file.with_file_name("y")
                .expect("a name")
                .start_read_range(0..1)
                .finish()
                .expect_err("none")
                .is_not_found()
        );
    }

    #[test]
    fn a_cancelled_read_gives_nothing_and_others_give_their_bytes() {
        let file = Location::in_memory().join("file");
        file.publish("0123456789", PublishMode::Create).expect("written");
        let cancel = Cancel::default();
        let read = file.start_read_range(2..5).finish_unless(&cancel).expect("read");
        assert_eq!(read.as_deref(), Some(b"234".as_slice()));
        file.start_read_range(8..12).finish_unless(&cancel).expect_err("it is shorter");
        cancel.cancel();
        assert_eq!(file.start_read_range(2..5).finish_unless(&cancel).expect("no error"), None);
    }
}
