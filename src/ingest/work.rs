//! What an ingest has done so far, beside the dataset, so that a killed one goes on.
//!
//! `<dest>/.work/` holds the lock, the plan's fingerprint, verdicts and finished shards. It is removed when the
//! manifest is published. Work of another plan is thrown away.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::storage::{Digest, Location, Lock, PublishMode, StorageError};

/// The folder's name within the dataset's.
const FOLDER: &str = ".work";
const PLAN: &str = "plan";

/// The work folder of a destination, locked.
#[derive(Debug)]
pub(super) struct Workshop {
    folder: Location,
    lock: Lock,
}

impl Workshop {
    /// Locks the destination. What was left by an ingest with another plan is removed.
    ///
    /// # Errors
    /// If another process works there, or the store fails.
    pub(super) fn open(dest: &Location) -> Result<Self, StorageError> {
        let folder = dest.join(FOLDER);
        let lock = Lock::take(&folder.join("lock"))?;
        Ok(Self { folder, lock })
    }

    /// Whether what lies here is of this plan; if not, it is removed. `true` where work can go on.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn claim(&self, plan: Digest) -> Result<bool, StorageError> {
        let file = self.folder.join(PLAN);
        match file.read() {
            Ok(text) if text.as_ref() == plan.to_string().as_bytes() => return Ok(true),
            Ok(_) => tracing::warn!("{}: unfinished work of another ingest is thrown away", self.folder),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        self.clear()?;
        file.publish(plan.to_string(), PublishMode::Overwrite)?;
        Ok(false)
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
        let entries = self.folder.list()?;
        let parts: std::collections::BTreeSet<&str> =
            entries.iter().filter_map(|entry| Some(entry.name.split_once('/')?.0)).collect();
        parts.into_iter().try_for_each(|part| self.folder.join(part).delete_folder())?;
        self.folder.delete_unfinished_uploads()
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
            dest.delete_unfinished_uploads()?;
            workshop.clear()
        }
        Err(StorageError::Locked { .. }) => Ok(()),
        Err(error) => Err(error),
    }
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
}
