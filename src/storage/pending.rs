//! A read that goes on while its caller does something else.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use tokio::task::{JoinError, JoinHandle};

use super::{Cancel, Location, StorageError, block_on, handle};

/// A range of bytes on its way; where it is dropped, the read is given up.
#[derive(Debug)]
pub struct PendingRead {
    location: Location,
    bytes: u64,
    task: JoinHandle<Result<Bytes, StorageError>>,
}

/// How the task of a read ended.
type Joined = Result<Result<Bytes, StorageError>, JoinError>;

impl Location {
    /// Starts to read a range of bytes.
    pub fn start_read_range(&self, range: Range<u64>) -> PendingRead {
        let location = self.clone();
        let bytes = range.end.saturating_sub(range.start);
        let task = handle().spawn(async move {
            // Stores refuse to read nothing.
            if bytes == 0 { Ok(Bytes::new()) } else { location.read_part(Some(range)).await }
        });
        PendingRead { location: self.clone(), bytes, task }
    }
}

impl PendingRead {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// As [`Location::read_range`]; also if the file is shorter.
    pub fn finish(mut self) -> Result<Bytes, StorageError> {
        let joined = block_on(&mut self.task);
        self.checked(joined)
    }

    /// Waits for the bytes, unless that is cancelled: then `None`, at once even where the store hangs.
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

    fn checked(&self, joined: Joined) -> Result<Bytes, StorageError> {
        let read = match joined {
            Ok(read) => read?,
            Err(source) => {
                return Err(self.location.failed("read", object_store::Error::JoinError { source }));
            }
        };
        if read.len() as u64 == self.bytes {
            return Ok(read);
        }
        // A store cuts a range at the end of the object.
        Err(StorageError::Failed {
            operation: "read",
            location: self.location.to_string(),
            local: self.location.local_path().is_some(),
            source: Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)),
        })
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::PublishMode;

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
