//! Reads of parts of a file, many at once: what the loader does.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{Cancel, Location, StorageError, block_on};

/// A file of this machine that is held open, for reads at any place by any number of threads.
#[derive(Debug)]
pub struct LocalFile {
    file: File,
    location: Location,
}

impl LocalFile {
    /// Reads a range of bytes.
    ///
    /// # Errors
    /// If the file is shorter or the disk fails.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        match self.file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes.into()),
            Err(error) => Err(self.location.failed("read", of_this_machine(error, &self.location))),
        }
    }
}

impl Location {
    /// Opens a file of this machine; `None` for one in an object store.
    ///
    /// # Errors
    /// If nothing is there or it cannot be opened.
    pub fn open_local(&self) -> Result<Option<LocalFile>, StorageError> {
        let Some(path) = self.local_path() else { return Ok(None) };
        let file = File::open(path).map_err(|error| self.failed("read", of_this_machine(error, self)))?;
        Ok(Some(LocalFile { file, location: self.clone() }))
    }

    /// Reads a range of bytes, unless it is cancelled: then `None`, at once even where the store hangs.
    ///
    /// # Errors
    /// If nothing is there, the file is shorter, or the store fails.
    pub fn read_range_unless(
        &self,
        range: Range<u64>,
        cancel: &Cancel,
    ) -> Result<Option<Bytes>, StorageError> {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        if let Some(file) = self.open_local()? {
            return file.read(range).map(Some);
        }
        let wanted = range.end.saturating_sub(range.start);
        let read = block_on(async {
            tokio::select! {
                () = cancel.cancelled() => Ok(None),
                read = self.read_part(range) => read.map(Some),
            }
        })?;
        // A store cuts a range at the end of the object.
        if read.as_ref().is_some_and(|bytes| bytes.len() as u64 != wanted) {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(self.failed("read", of_this_machine(short, self)));
        }
        Ok(read)
    }
}

fn of_this_machine(error: std::io::Error, location: &Location) -> object_store::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return object_store::Error::NotFound { path: location.to_string(), source: Box::new(error) };
    }
    object_store::Error::Generic { store: "local", source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::PublishMode;

    #[test]
    fn ranges_of_a_local_file_and_of_an_object_are_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let local = Location::from_path(&dir.path().join("file")).expect("a location");
        for location in [local, Location::in_memory().join("file")] {
            location.publish("0123456789", PublishMode::Create).expect("written");
            let read = location.read_range_unless(2..5, &Cancel::default()).expect("read");
            assert_eq!(read.as_deref(), Some(b"234".as_slice()));
            location.read_range_unless(8..12, &Cancel::default()).expect_err("it is shorter");
            let missing = location.with_file_name("other").expect("a name");
            let error = missing.read_range_unless(0..1, &Cancel::default()).expect_err("nothing there");
            assert!(error.is_not_found());
        }
    }

    #[test]
    fn a_cancelled_read_gives_nothing() {
        let cancel = Cancel::default();
        cancel.cancel();
        let location = Location::in_memory().join("file");
        assert_eq!(location.read_range_unless(0..1, &cancel).expect("no error"), None);
    }
}
