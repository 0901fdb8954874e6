//! An open file of this machine.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use super::{Location, StorageError};

/// An open file of this machine, for reads at any offset by any number of threads.
#[derive(Debug)]
pub struct LocalFile {
    file: File,
    location: Location,
}

impl LocalFile {
    /// Opens the file of a location.
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

fn failed(location: &Location, error: std::io::Error) -> StorageError {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            StorageError::NotFound { location: location.to_string(), local: true }
        }
        _ => {
            location.failed("read", object_store::Error::Generic { store: "local", source: Box::new(error) })
        }
    }
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
}
