//! Checkpoints of a run.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Checkpoint, CheckpointError, MANIFEST, TrainState};
use crate::storage::{Location, PublishMode};

/// Folder of a run's checkpoints.
const CHECKPOINTS: &str = "checkpoints";

/// Returns the folder name of the checkpoint after this many steps.
pub fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Lists the published checkpoints of a run, oldest first, as (step, folder).
///
/// # Errors
/// If the store fails.
pub fn list_checkpoints(run: &Location) -> Result<Vec<(u64, Location)>, CheckpointError> {
    let folder = run.join(CHECKPOINTS);
    let mut found: Vec<(u64, Location)> = folder
        .list()?
        .into_iter()
        .filter_map(|entry| {
            let (name, file) = entry.name.split_once('/')?;
            let step = step_of(name)?;
            (file == MANIFEST).then(|| (step, folder.join(name)))
        })
        .collect();
    found.sort_by_key(|(step, _)| *step);
    Ok(found)
}

/// Reads the state from which a run would continue: that of its newest checkpoint whose files exist in their sizes.
/// `None` for a run without checkpoints.
///
/// # Errors
/// As [`newest_that`].
pub fn newest_state(run: &Location) -> Result<Option<TrainState>, CheckpointError> {
    // Newer checkpoints are unusable; the resume names and removes them.
    Ok(newest_that(run, |checkpoint| checkpoint.state())?.0)
}

/// Checkpoints that cannot be used, the newest first, with their errors.
type Unusable = Vec<(Location, CheckpointError)>;

/// Applies `accept` to the checkpoints of a run, the newest first, until it accepts one. Returns its result, `None` for
/// a run without checkpoints, and the newer checkpoints with their errors.
///
/// # Errors
/// If `accept` rejects all checkpoints, one has a version unknown to this program, or the store fails.
pub fn newest_that<T>(
    run: &Location,
    accept: impl Fn(Checkpoint) -> Result<T, CheckpointError>,
) -> Result<(Option<T>, Unusable), CheckpointError> {
    let all = list_checkpoints(run)?;
    let (total, mut wrong) = (all.len(), Vec::new());
    for (_, folder) in all.into_iter().rev() {
        match Checkpoint::open(&folder).and_then(&accept) {
            Ok(found) => return Ok((Some(found), wrong)),
            Err(error @ (CheckpointError::Storage(_) | CheckpointError::Version { .. })) => {
                return Err(error);
            }
            Err(error) => wrong.push((folder, error)),
        }
    }
    CheckpointError::of_run(run, total, wrong).map_or(Ok((None, Vec::new())), Err)
}

/// Resolves a location to a checkpoint as (step, folder): the location itself, or the newest one of a run.
///
/// # Errors
/// If the location is neither, or the store fails.
pub fn checkpoint_at(place: &Location) -> Result<(u64, Location), CheckpointError> {
    if place.join(MANIFEST).exists()? {
        return Ok((Checkpoint::open(place)?.manifest().step, place.clone()));
    }
    list_checkpoints(place)?.pop().ok_or_else(|| CheckpointError::NotThere { folder: place.to_string() })
}

/// Resolves a location to a run: the location itself, or the run of a checkpoint.
///
/// # Errors
/// [`CheckpointError::OutsideRun`] for a checkpoint elsewhere, or if the store fails.
pub fn run_of(place: &Location) -> Result<Location, CheckpointError> {
    if !place.join(MANIFEST).exists()? {
        return Ok(place.clone());
    }
    let folder = place.folder().filter(|folder| folder.file_name() == CHECKPOINTS);
    folder
        .and_then(|folder| folder.folder())
        .ok_or_else(|| CheckpointError::OutsideRun { folder: place.to_string() })
}

/// Lists folders of checkpoints that are not fully written, or not fully removed.
///
/// # Errors
/// If the store fails.
pub fn list_unpublished(run: &Location) -> Result<Vec<Location>, CheckpointError> {
    let folder = run.join(CHECKPOINTS);
    let published: BTreeSet<u64> = list_checkpoints(run)?.into_iter().map(|(step, _)| step).collect();
    let mut found = BTreeSet::new();
    for entry in folder.list()? {
        found.extend(entry.name.split_once('/').and_then(|(name, _)| step_of(name)));
    }
    if let Some(path) = folder.local_path() {
        // A listing of the store skips files that are being written, and so folders that have only those.
        let names = std::fs::read_dir(path).into_iter().flatten().flatten();
        found.extend(names.filter_map(|entry| step_of(entry.file_name().to_str()?)));
    }
    Ok(found.difference(&published).map(|&step| folder.join(&checkpoint_name(step))).collect())
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// Removes a checkpoint, its manifest first, so that no broken checkpoint remains after a kill.
///
/// # Errors
/// If the store fails.
pub fn remove_checkpoint(folder: &Location) -> Result<(), CheckpointError> {
    folder.join(MANIFEST).delete()?;
    for entry in folder.list()? {
        folder.join(&entry.name).delete()?;
    }
    if let Some(path) = folder.local_path() {
        // Also removes unfinished files of a killed writer. If this fails, the folder is harmless.
        let _ = std::fs::remove_dir_all(path);
    }
    Ok(())
}

/// File that marks a run as finished.
const FINISHED: &str = "finished.json";

/// Contents of `finished.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    /// Steps of the whole run.
    step: u64,
}

/// Marks the run as finished: its last checkpoint is published.
///
/// # Errors
/// If the store fails.
pub fn mark_finished(run: &Location, step: u64) -> Result<(), CheckpointError> {
    let text = serde_json::to_string(&Finished { step }).expect("a number is plain data");
    Ok(run.join(FINISHED).publish(text + "\n", PublishMode::Overwrite)?)
}

/// Removes the mark, for a run that is resumed with more epochs.
///
/// # Errors
/// If the store fails.
pub fn unmark_finished(run: &Location) -> Result<(), CheckpointError> {
    Ok(run.join(FINISHED).delete()?)
}

/// Returns the number of steps of a run that is marked as finished.
///
/// # Errors
/// If the store fails or the mark is damaged.
pub fn finished_step(run: &Location) -> Result<Option<u64>, CheckpointError> {
    let file = run.join(FINISHED);
    match file.read() {
        Ok(text) => match serde_json::from_slice::<Finished>(&text) {
            Ok(finished) => Ok(Some(finished.step)),
            Err(source) => Err(CheckpointError::Malformed { file: file.to_string(), source }),
        },
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
