//! A split on this machine, read row by row.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::row_group_cache::{READ_MEMORY, RowGroupCache};
use super::split_rows::{SplitRows, StoredImage};
use super::{Encoded, Fetched, Instances, ReadContext, Source};
use crate::dataset::{DatasetError, Row, unsealed};
use crate::ids::BankRow;
use crate::image::ExifOrientation;
use crate::loader::error::LoaderError;
use crate::storage::LocalFile;

/// Shards that are held open.
const OPEN_FILES: usize = 256;

/// A split on this machine.
#[derive(Debug)]
pub(super) struct LocalSource {
    split: SplitRows,
    /// Open shards, by their numbers.
    files: Mutex<HashMap<u32, Arc<LocalFile>>>,
    row_groups: RowGroupCache,
}

impl LocalSource {
    pub(super) fn new(split: SplitRows) -> Self {
        Self { split, files: Mutex::default(), row_groups: RowGroupCache::new(READ_MEMORY) }
    }

    /// An image, checked against its digest.
    fn fetch_row(&self, image: &StoredImage, context: &ReadContext) -> Result<Encoded, LoaderError> {
        if context.cancel.is_cancelled() {
            return Err(LoaderError::Stopped);
        }
        let bytes = self.file(image.group())?.read(image.range()).map_err(DatasetError::from)?;
        context.counters.count_read(&bytes);
        let mut encoded = image.checked(bytes).ok_or_else(|| self.split.changed(image))?;
        if let Some(range) = image.entry_points() {
            let stored = self.file(image.group())?.read(range).map_err(DatasetError::from)?;
            context.counters.count_read(&stored);
            // Without them it is decoded all the same.
            encoded.entry_points = unsealed(stored);
        }
        Ok(encoded)
    }

    fn load(&self, group: usize, context: &ReadContext) -> Result<Vec<Row>, LoaderError> {
        let read = || Ok(self.file(group)?.read(self.split.range(group)).map_err(DatasetError::from)?);
        Ok(self.split.read_group(group, context, read)?.1)
    }

    /// The file of a group's shard.
    fn file(&self, group: usize) -> Result<Arc<LocalFile>, LoaderError> {
        let shard = self.split.shard_number(group);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&shard) {
            return Ok(Arc::clone(file));
        }
        let opened = self.split.shard(group).0.location().open_local().map_err(DatasetError::from)?;
        let file = Arc::new(opened.expect("a local dataset has local shards"));
        if files.len() >= OPEN_FILES {
            files.clear();
        }
        files.insert(shard, Arc::clone(&file));
        Ok(file)
    }
}

impl Source for LocalSource {
    fn instances(&self) -> &Instances {
        self.split.instances()
    }

    fn record(&self, bank_row: BankRow) -> String {
        self.split.record(bank_row, self.read(&[bank_row]))
    }

    fn read(&self, bank_rows: &[BankRow]) -> Result<Vec<Row>, LoaderError> {
        self.row_groups.rows(&self.split, bank_rows, |group| self.load(group, &ReadContext::default()))
    }

    fn fetch_rows(&self, bank_rows: &[BankRow], context: &ReadContext) -> Vec<Fetched> {
        let fetch = |&bank_row| self.fetch_row(self.split.image(bank_row), context).map_err(Arc::new);
        bank_rows.iter().map(fetch).collect()
    }

    fn fetch_group(&self, group: usize, context: &ReadContext) -> Vec<Fetched> {
        self.split.members(group, self.load(group, context))
    }

    fn exif_orientation(&self) -> ExifOrientation {
        self.split.exif_orientation()
    }

    fn held_bytes(&self) -> u64 {
        self.split.held_bytes()
    }
}
