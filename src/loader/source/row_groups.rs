//! How a [`DatasetSource`] reads: row groups whole, and rows by themselves.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::dataset::{DatasetSource, Stored};
use crate::dataset::{DatasetError, Row, ShardReader};
use crate::ids::Position;
use crate::loader::source::{Encoded, Fetched, ReadContext, Source};
use crate::loader::{Counters, LoaderError};
use crate::storage::{Digest, LocalFile};

/// Shards that are held open.
const OPEN_FILES: usize = 256;

impl DatasetSource {
    /// The shard of a group, and the row group within it.
    pub(in crate::loader) fn shard(&self, group: usize) -> (&ShardReader, usize) {
        let (shard, row_group) = self.groups[group];
        (&self.shards[shard as usize], row_group as usize)
    }

    pub(in crate::loader) fn digest(&self, group: usize) -> Digest {
        let (shard, row_group) = self.shard(group);
        shard.row_group_digest(row_group)
    }

    /// A row group with its rows, checked against its digest: from the cache, else from where the dataset is.
    pub(in crate::loader) fn load(
        &self,
        group: usize,
        reading: &ReadContext,
    ) -> Result<(Bytes, Vec<Row>), LoaderError> {
        let counters = &reading.counters;
        if let Some(cache) = &self.cache {
            let digest = self.digest(group);
            if let Some(bytes) = cache.get(digest) {
                if let Ok(rows) = self.parse(group, &bytes) {
                    counters.cache_hits.add(1);
                    counters.cache_bytes.add(bytes.len() as u64);
                    return Ok((bytes, rows));
                }
                cache.remove(digest);
                counters.retries.add(1);
            }
            counters.cache_misses.add(1);
        }
        let mut bytes = self.read_whole(group, reading)?;
        let mut rows = self.parse(group, &bytes);
        if rows.is_err() {
            // What was damaged on its way is whole the second time.
            counters.retries.add(1);
            bytes = self.read_whole(group, reading)?;
            rows = self.parse(group, &bytes);
        }
        let rows = rows?;
        if let Some(cache) = &self.cache {
            let use_of = |digest: Digest| {
                let group = *self.by_digest.get(&digest)?;
                Some(self.next_use[group as usize].load(Ordering::Relaxed))
            };
            cache.put(self.digest(group), &bytes, &use_of);
        }
        Ok((bytes, rows))
    }

    fn read_whole(&self, group: usize, reading: &ReadContext) -> Result<Bytes, LoaderError> {
        if reading.cancel.is_cancelled() {
            return Err(LoaderError::Stopped);
        }
        let (shard, row_group) = self.shard(group);
        let range = shard.row_group_range(row_group);
        let read = match shard.location().open_local().map_err(DatasetError::from)? {
            Some(file) => file.read(range).map(Some),
            None => shard.location().start_read_range(range).finish_unless(&reading.cancel),
        };
        let bytes = read.map_err(DatasetError::from)?.ok_or(LoaderError::Stopped)?;
        count(&reading.counters, &bytes);
        Ok(bytes)
    }

    /// The rows of a group's bytes, which must be those that the dataset was opened with.
    fn parse(&self, group: usize, bytes: &Bytes) -> Result<Vec<Row>, LoaderError> {
        let (shard, row_group) = self.shard(group);
        let rows = shard.parse_row_group(row_group, bytes.clone())?;
        for &position in self.layout().members(group) {
            let row = self.images[position.row()].row;
            // The index tells ids and labels apart from the rows.
            let (id, label) = (self.ids()[position.row()], self.labels()[position.row()]);
            if rows.get(row as usize).is_none_or(|row| row.id != id || row.label != label) {
                let reason = format!("row {row} is not what the index says of it");
                return Err(
                    DatasetError::RowGroup { shard: shard.shown().to_owned(), row_group, reason }.into()
                );
            }
        }
        Ok(rows)
    }

    /// A row read by itself.
    pub(in crate::loader) fn fetch_row(&self, position: Position, reading: &ReadContext) -> Fetched {
        if reading.cancel.is_cancelled() {
            return Err(Arc::new(LoaderError::Stopped));
        }
        let stored = self.images[position.row()];
        let group = stored.group as usize;
        let pixels = u64::from(stored.pixels);
        if self.is_local {
            return self.read_row(&stored, reading).map(|bytes| Encoded { bytes, pixels });
        }
        if let Some(cache) = &self.cache {
            let start = self.shard_range(group).start;
            let Range { start: from, end } = stored.range();
            let kept = cache.read(self.digest(group), from - start..end - start);
            if let Some(bytes) = kept.filter(|bytes| stored.is(bytes)) {
                reading.counters.cache_bytes.add(bytes.len() as u64);
                return Ok(Encoded { bytes, pixels });
            }
        }
        let rows = self.resident(group, reading)?;
        Ok(encoded(&rows[stored.row as usize], rows[stored.row as usize].bytes.clone()))
    }

    /// An image of a shard of this machine, checked against its digest.
    fn read_row(&self, stored: &Stored, reading: &ReadContext) -> Result<Bytes, Arc<LoaderError>> {
        let group = stored.group as usize;
        let bytes = self
            .file(group)?
            .read(stored.range())
            .map_err(|error| Arc::new(LoaderError::from(DatasetError::from(error))))?;
        count(&reading.counters, &bytes);
        if stored.is(&bytes) {
            return Ok(bytes);
        }
        let (shard, row_group) = self.shard(group);
        let reason = format!("row {}: its bytes are not those that were written", stored.row);
        Err(Arc::new(DatasetError::RowGroup { shard: shard.shown().to_owned(), row_group, reason }.into()))
    }

    fn shard_range(&self, group: usize) -> Range<u64> {
        let (shard, row_group) = self.shard(group);
        shard.row_group_range(row_group)
    }

    /// All rows of a group, each in memory of its own, so that it can be freed alone.
    pub(in crate::loader) fn fetch_members(&self, group: usize, reading: &ReadContext) -> Vec<Fetched> {
        let members = self.layout().members(group);
        match self.load(group, reading) {
            Ok((_, rows)) => {
                let copy = |&position: &Position| {
                    let row = &rows[self.images[position.row()].row as usize];
                    Ok(encoded(row, Bytes::copy_from_slice(&row.bytes)))
                };
                members.iter().map(copy).collect()
            }
            Err(error) => {
                let error = Arc::new(error);
                members.iter().map(|_| Err(Arc::clone(&error))).collect()
            }
        }
    }

    /// The rows of a group, which stay in memory as long as there is room.
    pub(in crate::loader) fn resident(
        &self,
        group: usize,
        reading: &ReadContext,
    ) -> Result<Arc<Vec<Row>>, Arc<LoaderError>> {
        if let Some(rows) = self.resident.get(group) {
            return Ok(rows);
        }
        let _few_at_once = self.turn(group);
        if let Some(rows) = self.resident.get(group) {
            return Ok(rows);
        }
        let rows = Arc::new(self.load(group, reading)?.1);
        self.resident.insert(group, Arc::clone(&rows), self.layout().bytes(group));
        Ok(rows)
    }

    /// Whole groups are taken into memory a few at a time.
    fn turn(&self, group: usize) -> MutexGuard<'_, ()> {
        lock(&self.turns[group % self.turns.len()])
    }

    fn file(&self, group: usize) -> Result<Arc<LocalFile>, Arc<LoaderError>> {
        let (shard, _) = self.groups[group];
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&shard) {
            return Ok(Arc::clone(file));
        }
        let location = self.shards[shard as usize].location();
        let opened = location.open_local().map_err(|error| LoaderError::from(DatasetError::from(error)))?;
        let file = Arc::new(opened.expect("a local dataset has local shards"));
        if files.len() >= OPEN_FILES {
            files.clear();
        }
        files.insert(shard, Arc::clone(&file));
        Ok(file)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(counters: &Counters, bytes: &Bytes) {
    counters.requests.add(1);
    counters.bytes.add(bytes.len() as u64);
}

fn encoded(row: &Row, bytes: Bytes) -> Encoded {
    Encoded { bytes, pixels: u64::from(row.width) * u64::from(row.height) }
}
