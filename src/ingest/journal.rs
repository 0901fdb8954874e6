//! Journal of an ingest, beside the dataset, from which a killed one can continue.
//!
//! `<dest>/.work/` contains the lock, the plan's fingerprint, and for each part its validations, its finished shards
//! and the names of the files that it may write. These names are recorded before the first of the files is written, and
//! files that are not recorded are never removed. The folder is removed when the manifest is published. Work of another
//! plan, or of a source that has changed since, is discarded together with its recorded files. Every function fails if
//! the store does.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::storage::{Digest, Location, Lock, PublishMode, StorageError};

/// Name of the folder within the dataset's.
const FOLDER: &str = ".work";
const PLAN: &str = "plan";
/// Step that records the files of a part.
const FILES: &str = "files";
/// Step that records that some images are rejected, so a first pass has to find them.
pub(super) const ENDED: &str = "two-passes";
/// Step that records which images were accepted when the shards were written.
pub(super) const ACCEPTED: &str = "accepted";
/// All steps of a part; numbered ones are `<step>-<number>`.
const STEPS: [&str; 3] = [FILES, ENDED, ACCEPTED];
const NUMBERED_STEPS: [&str; 3] = ["checked", "whole", "shard"];
/// Manifest, which every ingest writes last; never removed.
const MANIFEST: &str = "manifest.json";

/// Unfinished work of an earlier ingest in a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// No work, or work that belongs to no plan.
    None,
    /// Work of the same plan on the same files.
    Same,
    /// Work of the same plan, but the source's files have changed since.
    ChangedSource,
    /// Work of another plan.
    Other,
}

/// Compares the unfinished work in a destination with a plan and the state of its source's files, without a lock.
pub(super) fn unfinished(dest: &Location, plan: Digest, source: Digest) -> Result<Unfinished, StorageError> {
    let text = match dest.join(FOLDER).join(PLAN).read() {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(Unfinished::None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&text);
    let (found_plan, found_source) = text.split_once('\n').unwrap_or((&text, ""));
    Ok(match (found_plan == plan.to_string(), found_source == source.to_string()) {
        (true, true) => Unfinished::Same,
        (true, false) => Unfinished::ChangedSource,
        (false, _) => Unfinished::Other,
    })
}

/// Returns the files that unfinished work may have written, as paths within the dataset's folder.
pub(super) fn recorded_files(dest: &Location) -> Result<BTreeSet<String>, StorageError> {
    let folder = dest.join(FOLDER);
    let mut files = BTreeSet::new();
    for part in parts(&folder)? {
        files.extend(Work { folder: folder.join(&part) }.files()?);
    }
    Ok(files)
}

/// Returns whether there is anything in the work folder of a destination.
pub(super) fn has_work(dest: &Location) -> Result<bool, StorageError> {
    Ok(!dest.join(FOLDER).list()?.is_empty())
}

/// Returns whether the work in a destination belongs to a plan; without one it is left over.
pub(super) fn has_plan(dest: &Location) -> Result<bool, StorageError> {
    dest.join(FOLDER).join(PLAN).exists()
}

fn parts(folder: &Location) -> Result<BTreeSet<String>, StorageError> {
    let entries = folder.list()?;
    Ok(entries.iter().filter_map(|entry| Some(entry.name.split_once('/')?.0.to_owned())).collect())
}

/// Work folder of a destination, locked.
#[derive(Debug)]
pub(super) struct Journal {
    dest: Location,
    folder: Location,
    lock: Lock,
}

impl Journal {
    /// Opens the journal and locks the destination.
    ///
    /// # Errors
    /// If another process works there, or the store fails.
    pub(super) fn open(dest: &Location) -> Result<Self, StorageError> {
        let folder = dest.join(FOLDER);
        let lock = Lock::take(&folder.join("lock"))?;
        Ok(Self { dest: dest.clone(), folder, lock })
    }

    /// Discards the existing work, with its recorded files except those that are `published`.
    pub(super) fn discard(&self, published: &BTreeSet<String>) -> Result<(), StorageError> {
        self.remove_unfinished()?;
        let recorded = recorded_files(&self.dest)?;
        recorded.difference(published).try_for_each(|file| self.dest.join(file).delete())?;
        self.clear()
    }

    /// Records the plan and the state of the source, to start or continue the work; see [`unfinished`].
    pub(super) fn claim(&self, plan: Digest, source: Digest) -> Result<(), StorageError> {
        self.folder.join(PLAN).publish(format!("{plan}\n{source}"), PublishMode::Overwrite)
    }

    /// Removes the staging files of a killed ingest.
    pub(super) fn remove_unfinished(&self) -> Result<(), StorageError> {
        let mut files = recorded_files(&self.dest)?;
        files.insert(MANIFEST.to_owned());
        let folder_of = |file| str::rsplit_once(file, '/').map_or("", |(folder, _)| folder);
        let folders: BTreeSet<&str> = files.iter().map(|file| folder_of(file)).collect();
        folders.into_iter().try_for_each(|folder| {
            let is_ours = |name: &str| files.contains(format!("{folder}/{name}").trim_start_matches('/'));
            self.dest.join(folder).delete_unfinished_uploads(is_ours)
        })
    }

    /// Returns the work on one part of a split.
    pub(super) fn part(&self, name: &str) -> Work {
        Work { folder: self.folder.join(name) }
    }

    /// Checks that this process may still publish.
    ///
    /// # Errors
    /// If another process took the destination over.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        self.lock.check()
    }

    /// Removes the work on all parts, the plan first, so that leftovers of a kill belong to no plan. Foreign files are
    /// kept.
    pub(super) fn clear(&self) -> Result<(), StorageError> {
        self.folder.join(PLAN).delete()?;
        for part in parts(&self.folder)? {
            let folder = self.folder.join(&part);
            folder.delete_unfinished_uploads(|_| true)?;
            let all: Vec<String> = folder.list()?.into_iter().map(|entry| entry.name).collect();
            let mut ours: Vec<&String> = all.iter().filter(|name| is_step(name)).collect();
            // The list of files comes last, since it identifies the others.
            ours.sort_by_key(|name| name.strip_suffix(".json") == Some(FILES));
            ours.iter().try_for_each(|name| folder.join(name).delete())?;
            if ours.len() == all.len() {
                folder.delete_folder()?;
            }
        }
        self.folder.delete_unfinished_uploads(|_| true)
    }
}

/// Returns whether a file of a part's folder is the record of a step.
fn is_step(name: &str) -> bool {
    let numbered = |step: &str| {
        step.rsplit_once('-').is_some_and(|(kind, number)| {
            NUMBERED_STEPS.contains(&kind) && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    name.strip_suffix(".json").is_some_and(|step| STEPS.contains(&step) || numbered(step))
}

/// Results of finished steps, by name.
#[derive(Clone, Debug)]
pub(super) struct Work {
    folder: Location,
}

impl Work {
    fn record(&self, step: &str) -> Location {
        self.folder.join(&format!("{step}.json"))
    }

    /// Loads the result of a step; `None` if the step is not done, or its record cannot be parsed.
    pub(super) fn load<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, StorageError> {
        match self.record(step).read() {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves the result of a step.
    pub(super) fn save<T: Serialize>(&self, step: &str, result: &T) -> Result<(), StorageError> {
        let text = serde_json::to_vec(result).expect("a result is plain data");
        self.record(step).publish(text, PublishMode::Overwrite)
    }

    /// Removes the result of a step.
    pub(super) fn remove(&self, step: &str) -> Result<(), StorageError> {
        self.record(step).delete()
    }

    /// Records files before they are written, by their paths within the dataset's folder.
    pub(super) fn record_files(&self, files: impl IntoIterator<Item = String>) -> Result<(), StorageError> {
        let before = self.files()?;
        let mut all = before.clone();
        all.extend(files);
        if all == before { Ok(()) } else { self.save(FILES, &all) }
    }

    /// Loads the recorded files.
    pub(super) fn files(&self) -> Result<BTreeSet<String>, StorageError> {
        Ok(self.load(FILES)?.unwrap_or_default())
    }
}
