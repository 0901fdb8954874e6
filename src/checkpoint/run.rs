//! The checkpoints of a run.

use super::{CheckpointError, MANIFEST};
use crate::storage::Location;

/// The folder's name of the checkpoint after this many steps.
pub fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The published checkpoints of a run, oldest first, as (step, folder).
///
/// # Errors
/// If the store fails.
pub fn list_checkpoints(run: &Location) -> Result<Vec<(u64, Location)>, CheckpointError> {
    let folder = run.join("checkpoints");
    let mut found: Vec<(u64, Location)> = folder
        .list()?
        .into_iter()
        .filter_map(|entry| {
            let (name, file) = entry.name.split_once('/')?;
            let step = name.strip_prefix("step-")?.parse().ok()?;
            (file == MANIFEST).then(|| (step, folder.join(name)))
        })
        .collect();
    found.sort_by_key(|(step, _)| *step);
    Ok(found)
}

/// Removes a checkpoint, its manifest first: what a kill leaves is no checkpoint any more.
///
/// # Errors
/// If the store fails.
pub fn remove_checkpoint(folder: &Location) -> Result<(), CheckpointError> {
    folder.join(MANIFEST).delete()?;
    for entry in folder.list()? {
        folder.join(&entry.name).delete()?;
    }
    if let Some(path) = folder.local_path() {
        // An empty folder that stays behind harms nobody.
        let _ = std::fs::remove_dir(path);
    }
    Ok(())
}
