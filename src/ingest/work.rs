//! What an ingest has done so far, beside the dataset, so that a killed one goes on.
//!
//! `<dest>/.work/` holds the lock, the plan's fingerprint, and for each part its verdicts, its finished shards and the
//! names of the files that it may write. These names are recorded before the first of the files is written, and nothing
//! that is not recorded is ever removed. The folder is removed when the manifest is published. Work of another
//! plan is thrown away, and the files that it has recorded with it.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::storage::{Digest, Location, Lock, PublishMode, StorageError};

/// The folder's name within the dataset's.
const FOLDER: &str = ".work";
const PLAN: &str = "plan";
/// The step under which the files of a part are recorded.
const FILES: &str = "files";
/// Written by every ingest, last; never removed.
const MANIFEST: &str = "manifest.json";

/// The work folder of a destination, locked.
#[derive(Debug)]
pub(super) struct Workshop {
    dest: Location,
    folder: Location,
    lock: Lock,
}

impl Workshop {
    /// Locks the destination.
    ///
    /// # Errors
    /// If another process works there, or the store fails.
    pub(super) fn open(dest: &Location) -> Result<Self, StorageError> {
        let folder = dest.join(FOLDER);
        let lock = Lock::take(&folder.join("lock"))?;
        Ok(Self { dest: dest.clone(), folder, lock })
    }

    /// Whether the work that is here is of this plan.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn is_of(&self, plan: Digest) -> Result<bool, StorageError> {
        Ok(self.plan()?.is_some_and(|text| text.as_ref() == plan.to_string().as_bytes()))
    }

    fn plan(&self) -> Result<Option<bytes::Bytes>, StorageError> {
        match self.folder.join(PLAN).read() {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Throws away the work that is here, with the files that it has recorded and that are not `published`.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn discard(&self, published: &BTreeSet<String>) -> Result<(), StorageError> {
        if self.plan()?.is_some() {
            tracing::warn!("{}: unfinished work of another ingest is thrown away", self.folder);
        }
        self.remove_unfinished()?;
        for file in self.recorded()?.difference(published) {
            self.dest.join(file).delete()?;
        }
        self.clear()
    }

    /// Starts the work on a plan where there is none.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn claim(&self, plan: Digest) -> Result<(), StorageError> {
        self.folder.join(PLAN).publish(plan.to_string(), PublishMode::Overwrite)
    }

    /// The files that the work here may have written, by their paths within the dataset's folder.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn recorded(&self) -> Result<BTreeSet<String>, StorageError> {
        let mut files = BTreeSet::new();
        for part in self.parts()? {
            files.extend(self.part(&part).files()?);
        }
        Ok(files)
    }

    /// Removes what a kill has left of files that were being written.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn remove_unfinished(&self) -> Result<(), StorageError> {
        let mut files = self.recorded()?;
        files.insert(MANIFEST.to_owned());
        remove_unfinished(&self.dest, &files)
    }

    /// The work on one part of a split.
    pub(super) fn part(&self, name: &str) -> Work {
        Work { folder: self.folder.join(name) }
    }

    /// Whether this process may still publish.
    ///
    /// # Errors
    /// If another process took the destination over.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        self.lock.check()
    }

    /// Removes everything but the lock, the plan first: what a kill leaves then belongs to no plan.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn clear(&self) -> Result<(), StorageError> {
        self.folder.join(PLAN).delete()?;
        self.parts()?.iter().try_for_each(|part| self.folder.join(part).delete_folder())?;
        self.folder.delete_unfinished_uploads()
    }

    fn parts(&self) -> Result<BTreeSet<String>, StorageError> {
        let entries = self.folder.list()?;
        Ok(entries.iter().filter_map(|entry| Some(entry.name.split_once('/')?.0.to_owned())).collect())
    }
}

/// Removes what an ingest that was killed after its last step has left.
///
/// # Errors
/// If the store fails. That another process works there is no error: it removes it itself.
pub(super) fn tidy(dest: &Location) -> Result<(), StorageError> {
    if dest.join(FOLDER).list()?.is_empty() {
        return Ok(());
    }
    match Workshop::open(dest) {
        Ok(workshop) => {
            // The manifest's own staging file, if the kill came between publishing and removing it.
            workshop.remove_unfinished()?;
            workshop.clear()
        }
        Err(StorageError::Locked { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the staging files of these files: `<name>#<number>`, which only a local store shows.
fn remove_unfinished(dest: &Location, files: &BTreeSet<String>) -> Result<(), StorageError> {
    let folder_of = |file: &str| file.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
    let folders: BTreeSet<String> = files.iter().map(|file| folder_of(file)).collect();
    for folder in folders {
        let location = if folder.is_empty() { dest.clone() } else { dest.join(&folder) };
        let Some(path) = location.local_path() else { return Ok(()) };
        let failed = |operation, source: std::io::Error| StorageError::Failed {
            operation,
            location: location.to_string(),
            local: true,
            source: Box::new(source),
        };
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| failed("list", error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed("list", error))?;
            let name = entry.file_name();
            let staged = name.to_str().and_then(|name| name.rsplit_once('#'));
            let is_ours = staged.is_some_and(|(name, number)| {
                let file = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                !number.is_empty()
                    && number.bytes().all(|byte| byte.is_ascii_digit())
                    && files.contains(&file)
            });
            if is_ours {
                std::fs::remove_file(entry.path()).map_err(|error| failed("delete", error))?;
            }
        }
    }
    Ok(())
}

/// Steps that were done, by name.
#[derive(Clone, Debug)]
pub(super) struct Work {
    folder: Location,
}

impl Work {
    /// What a step gave; `None` where it was not done, or its record cannot be read.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn load<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, StorageError> {
        match self.folder.join(&format!("{step}.json")).read() {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves what a step gave.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn save<T: Serialize>(&self, step: &str, result: &T) -> Result<(), StorageError> {
        let text = serde_json::to_vec(result).expect("a result is plain data");
        self.folder.join(&format!("{step}.json")).publish(text, PublishMode::Overwrite)
    }

    /// Records files that are going to be written, by their paths within the dataset's folder.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn record_files(&self, files: impl IntoIterator<Item = String>) -> Result<(), StorageError> {
        let before = self.files()?;
        let mut all = before.clone();
        all.extend(files);
        if all == before { Ok(()) } else { self.save(FILES, &all) }
    }

    /// The files that were recorded.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn files(&self) -> Result<BTreeSet<String>, StorageError> {
        Ok(self.load(FILES)?.unwrap_or_default())
    }
}
