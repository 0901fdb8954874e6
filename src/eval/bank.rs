//! The bank that votes: a feature table, or the bank of a checkpoint with its digests.

use super::EvalError;
use crate::checkpoint::{Checkpoint, CheckpointError, FileEntry, MANIFEST, checkpoint_at};
use crate::feature_table::{ColumnNames, Foreign, StoredTable, Table, open_table};
use crate::storage::Location;

/// Opens a feature table, the bank of a checkpoint, or that of a run's newest checkpoint.
///
/// `names` are the columns in tables of other programs; what only these have comes beside the table. A checkpoint's bank, given by its folder or its file, knows its
/// digest: [`Table::verify`] compares it with what was read.
///
/// # Errors
/// If there is no such table or checkpoint, or it is damaged.
pub fn open_bank(
    place: &Location,
    names: &ColumnNames,
) -> Result<(Box<dyn Table>, Option<Foreign>), EvalError> {
    if let Some(folder) = place.folder()
        && place.file_name().ends_with(".arrow")
    {
        if folder.join(MANIFEST).exists()? {
            let checkpoint = Checkpoint::open(&folder)?;
            let is_it = |entry: &&FileEntry| entry.name == place.file_name();
            if let Some(entry) = checkpoint.manifest().files.iter().find(is_it) {
                return Ok((Box::new(open_files(&checkpoint, &[entry])?), None));
            }
        }
        return Ok(open_table(place, Some(names))?);
    }
    match checkpoint_at(place) {
        Ok((_, folder)) => Ok((Box::new(checkpoint_bank(&Checkpoint::open(&folder)?)?), None)),
        Err(CheckpointError::NotThere { .. }) => Ok(open_table(place, Some(names))?),
        Err(error) => Err(error.into()),
    }
}

/// Opens the bank of a checkpoint; [`Table::verify`] compares what was read with the checkpoint's digests.
///
/// # Errors
/// If it has none, or it is damaged.
pub fn checkpoint_bank(checkpoint: &Checkpoint) -> Result<StoredTable, EvalError> {
    open_files(checkpoint, &checkpoint.bank_files()?)
}

fn open_files(checkpoint: &Checkpoint, files: &[&FileEntry]) -> Result<StoredTable, EvalError> {
    let with_digest = |entry: &&FileEntry| (checkpoint.folder().join(&entry.name), Some(entry.digest));
    let files: Vec<_> = files.iter().map(with_digest).collect();
    let trained_on = &checkpoint.manifest().trained_on;
    let table = StoredTable::open_with_digests(&files)?;
    // Banks of older versions do not name the digest, their checkpoint does.
    Ok(if table.meta().split == trained_on.split {
        table.with_split_digest(&trained_on.split_digest)
    } else {
        table
    })
}
