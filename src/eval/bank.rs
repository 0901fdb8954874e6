//! Banks that vote: feature tables, and banks of checkpoints with their digests.

use super::EvalError;
use crate::checkpoint::{Checkpoint, CheckpointError, FileEntry, MANIFEST, checkpoint_at, part_of_bank};
use crate::feature_table::{ColumnNames, Foreign, Kind, StoredTable, Table, open_table};
use crate::storage::Location;

/// Opens a feature table, the bank of a checkpoint, or that of a run's newest checkpoint.
///
/// `names` are the columns in tables of other programs; data that only these have is returned beside the table. A
/// checkpoint's bank, given by folder or file, knows its digest: [`Table::verify`] compares it with the bytes read.
///
/// # Errors
/// If the table or checkpoint does not exist, or is damaged; as [`check_whole`].
pub fn open_bank(
    place: &Location,
    names: &ColumnNames,
) -> Result<(Box<dyn Table>, Option<Foreign>), EvalError> {
    check_whole(place)?;
    let Some(checkpoint) = checkpoint_of_bank(place)? else { return Ok(open_table(place, Some(names))?) };
    if !is_table(place) {
        return Ok((Box::new(checkpoint_bank(&checkpoint)?), None));
    }
    let is_it = |entry: &&FileEntry| entry.name == place.file_name();
    match checkpoint.manifest().files.iter().find(is_it) {
        Some(entry) => Ok((Box::new(open_files(&checkpoint, &[entry])?), None)),
        None => Ok(open_table(place, Some(names))?),
    }
}

/// Checks by its name that a table is not one shard of a bank of several processes.
///
/// # Errors
/// [`CheckpointError::PartOfBank`], which names the whole bank, or if the store fails.
pub fn check_whole(place: &Location) -> Result<(), EvalError> {
    let Some((rank, ranks)) = part_of_bank(place.file_name()) else { return Ok(()) };
    if !StoredTable::open(place).is_ok_and(|table| table.meta().kind == Kind::Bank) {
        return Ok(());
    }
    let folder = place.folder();
    let is_whole = folder.as_ref().map_or(Ok(false), |folder| folder.join(MANIFEST).exists())?;
    let whole = folder.filter(|_| is_whole).map(|folder| folder.to_string());
    Err(CheckpointError::PartOfBank { file: place.to_string(), rank, ranks, whole }.into())
}

/// Returns the checkpoint of a bank given by run, checkpoint or file; `None` for other tables.
///
/// # Errors
/// If the checkpoint is damaged, or the store fails.
pub fn checkpoint_of_bank(place: &Location) -> Result<Option<Checkpoint>, EvalError> {
    if is_table(place) {
        let Some(folder) = place.folder() else { return Ok(None) };
        return Ok(if folder.join(MANIFEST).exists()? { Some(Checkpoint::open(&folder)?) } else { None });
    }
    match checkpoint_at(place) {
        Ok((_, folder)) => Ok(Some(Checkpoint::open(&folder)?)),
        Err(CheckpointError::NotThere { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_table(place: &Location) -> bool {
    place.file_name().ends_with(".arrow")
}

/// Opens the bank of a checkpoint; [`Table::verify`] compares the bytes read with the checkpoint's digests.
///
/// # Errors
/// If the checkpoint has no bank, or it is damaged.
pub fn checkpoint_bank(checkpoint: &Checkpoint) -> Result<StoredTable, EvalError> {
    open_files(checkpoint, &checkpoint.bank_files()?)
}

fn open_files(checkpoint: &Checkpoint, files: &[&FileEntry]) -> Result<StoredTable, EvalError> {
    let with_digest = |entry: &&FileEntry| (checkpoint.folder().join(&entry.name), Some(entry.digest));
    let trained_on = &checkpoint.manifest().trained_on;
    let table = StoredTable::open_all(files.iter().map(with_digest))?;
    // Banks of older versions lack the digest, which their checkpoint has.
    Ok(if table.meta().split == trained_on.split {
        table.with_split_digest(&trained_on.split_digest)
    } else {
        table
    })
}
