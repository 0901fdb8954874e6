//! A file of this machine for many reads.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{Location, StorageError};

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
    fn ranges_are_read_and_what_is_missing_is_told() {
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
}
