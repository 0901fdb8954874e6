//! A split of a dataset as a source: read row by row on this machine, by row groups from an object store.
//! Whole row groups stay in memory, up to a limit.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::split_rows::{SplitRows, StoredImage};
use super::{Encoded, Fetched, Instances, ReadContext, Source};
use crate::dataset::{DatasetError, Manifest, Row};
use crate::ids::BankRow;
use crate::loader::LoaderError;
use crate::storage::{BlobCache, Digest, LocalFile, Location, StorageError};

/// Maximum number of shards that are open at the same time.
const OPEN_FILES: usize = 256;

/// Opens a split, or a uniform sample of `limit` of its instances, a function of `limit` and their number alone.
///
/// # Errors
/// If there is no such split, or its index or a shard is missing or damaged.
pub fn open_split(
    dataset: &Location,
    manifest: &Manifest,
    split: &str,
    limit: Option<usize>,
) -> Result<Arc<dyn Source>, LoaderError> {
    open_split_cached(dataset, manifest, split, limit, None)
}

/// Opens a split like [`open_split`], but keeps row groups from an object store in the cache. A dataset on this machine
/// needs no cache.
///
/// # Errors
/// As [`open_split`].
pub fn open_split_cached(
    dataset: &Location,
    manifest: &Manifest,
    split: &str,
    limit: Option<usize>,
    cache: Option<BlobCache>,
) -> Result<Arc<dyn Source>, LoaderError> {
    let rows = SplitRows::open(dataset, manifest, split, limit)?;
    Ok(if dataset.local_path().is_some() {
        Arc::new(LocalSource::new(rows))
    } else {
        Arc::new(StreamedSource::new(rows, cache))
    })
}

/// A split on this machine.
#[derive(Debug)]
struct LocalSource {
    split: SplitRows,
    /// Open shards by number.
    files: Mutex<HashMap<u32, Arc<LocalFile>>>,
    row_groups: RowGroupCache,
}

impl LocalSource {
    fn new(split: SplitRows) -> Self {
        Self { split, files: Mutex::default(), row_groups: RowGroupCache::new() }
    }

    /// Reads an image and checks it against its digest.
    fn fetch_row(&self, image: &StoredImage, context: &ReadContext) -> Result<Encoded, LoaderError> {
        if context.cancel.is_cancelled() {
            return Err(LoaderError::Stopped);
        }
        let file = self.file(image.group())?;
        let read = |range| {
            let bytes = file.read(range)?;
            context.counters.count_read(&bytes);
            Ok(bytes)
        };
        let fetched = image.fetch(read).map_err(|error: StorageError| DatasetError::from(error))?;
        fetched.ok_or_else(|| self.split.changed(image))
    }

    fn load(&self, group: usize, context: &ReadContext) -> Result<Vec<Row>, LoaderError> {
        let read = || Ok(self.file(group)?.read(self.split.range(group)).map_err(DatasetError::from)?);
        Ok(self.split.read_group(group, context, read)?.1)
    }

    fn file(&self, group: usize) -> Result<Arc<LocalFile>, LoaderError> {
        let shard = self.split.shard_number(group);
        let mut files = lock(&self.files);
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
}

/// A split in an object store.
#[derive(Debug)]
struct StreamedSource {
    split: SplitRows,
    row_groups: RowGroupCache,
    /// Cache of row groups on a local disk.
    cache: Option<BlobCache>,
    /// By digest of a group: time of its next use; empty without a cache.
    next_use: HashMap<Digest, AtomicU64>,
}

impl StreamedSource {
    /// Makes a source that keeps row groups in `cache`, if any.
    fn new(split: SplitRows, cache: Option<BlobCache>) -> Self {
        let cached = if cache.is_some() { 0..split.groups() } else { 0..0 };
        Self {
            row_groups: RowGroupCache::new(),
            next_use: cached.map(|group| (split.digest(group), AtomicU64::new(u64::MAX))).collect(),
            split,
            cache,
        }
    }

    /// Reads the rows of a group, checked against its digest: from the cache, else from the store.
    fn load(&self, group: usize, context: &ReadContext) -> Result<Vec<Row>, LoaderError> {
        let counters = &context.counters;
        let digest = self.split.digest(group);
        if let Some(cache) = &self.cache {
            if let Some(bytes) = cache.get(digest) {
                if let Ok(rows) = self.split.parse(group, &bytes) {
                    counters.cache_hits.add(1);
                    counters.cache_bytes.add(bytes.len() as u64);
                    return Ok(rows);
                }
                cache.remove(digest);
                counters.retries.add(1);
            }
            counters.cache_misses.add(1);
        }
        let (bytes, rows) = self.split.read_group(group, context, || self.read_whole(group, context))?;
        if let Some(cache) = &self.cache {
            cache.put(digest, &bytes, &|digest| Some(self.next_use.get(&digest)?.load(Ordering::Relaxed)));
        }
        Ok(rows)
    }

    fn read_whole(&self, group: usize, context: &ReadContext) -> Result<Bytes, LoaderError> {
        let pending = self.split.shard(group).0.location().start_read_range(self.split.range(group));
        pending.finish_unless(&context.cancel).map_err(DatasetError::from)?.ok_or(LoaderError::Stopped)
    }

    /// Reads an image from the cache, or from its row group in memory.
    fn fetch_row(&self, bank_row: BankRow, context: &ReadContext) -> Fetched {
        if context.cancel.is_cancelled() {
            return Err(Arc::new(LoaderError::Stopped));
        }
        let image = self.split.image(bank_row);
        let group = image.group();
        if let Some(cache) = &self.cache {
            let (digest, first) = (self.split.digest(group), self.split.range(group).start);
            let read =
                |range: Range<u64>| cache.read(digest, range.start - first..range.end - first).ok_or(());
            if let Ok(Some(encoded)) = image.fetch(read) {
                context.counters.cache_bytes.add(encoded.held_bytes());
                return Ok(encoded);
            }
        }
        let rows = self.row_groups.get_or_load(&self.split, group, || self.load(group, context))?;
        Ok(Encoded::of(image.of(&rows)))
    }
}

impl Source for StreamedSource {
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
        bank_rows.iter().map(|&bank_row| self.fetch_row(bank_row, context)).collect()
    }

    fn fetch_group(&self, group: usize, context: &ReadContext) -> Vec<Fetched> {
        self.split.members(group, self.load(group, context))
    }

    fn reads_rows(&self) -> bool {
        false
    }

    fn prepare_rows(&self, memory: u64) -> Result<u64, LoaderError> {
        let layout = &self.split.instances().layout;
        let in_flight = GROUPS_AT_ONCE as u64 * layout.largest_group();
        let total = layout.total_bytes();
        if self.cache.as_ref().is_some_and(|cache| cache.limit() >= total) {
            self.row_groups.set_limit((memory / 8).min(READ_MEMORY));
            for next_use in self.next_use.values() {
                // Every group is needed all the time, so none replaces another.
                next_use.store(0, Ordering::Relaxed);
            }
            return Ok(in_flight);
        }
        let needed = total + in_flight;
        if needed > memory {
            let advice = "give --cache DIR and a --cache-size that holds the split, or --shuffle windowed";
            let what = "the whole split in memory, for the exact order";
            return Err(LoaderError::Memory { what, needed, limit: memory, advice });
        }
        self.row_groups.set_limit(total);
        Ok(needed)
    }

    fn expect(&self, group: usize, next_use: u64) {
        if let Some(known) = self.next_use.get(&self.split.digest(group)) {
            known.store(next_use, Ordering::Relaxed);
        }
    }
}

/// Number of row groups that are read whole at the same time, if rows are requested one by one.
const GROUPS_AT_ONCE: usize = 4;
/// Default limit of the row groups in memory, in bytes.
const READ_MEMORY: u64 = 1 << 30;

/// Whole row groups in memory, up to a limit of bytes; a group that would exceed it replaces all others.
#[derive(Debug)]
struct RowGroupCache {
    limit: AtomicU64,
    groups: Mutex<HashMap<usize, Arc<Vec<Row>>>>,
    /// Locks that let a few groups load at a time, each once.
    turns: [Mutex<()>; GROUPS_AT_ONCE],
}

impl RowGroupCache {
    fn new() -> Self {
        Self { limit: AtomicU64::new(READ_MEMORY), groups: Mutex::default(), turns: Default::default() }
    }

    fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns the rows of a group, and calls `load` if they are not in memory.
    fn get_or_load(
        &self,
        split: &SplitRows,
        group: usize,
        load: impl FnOnce() -> Result<Vec<Row>, LoaderError>,
    ) -> Result<Arc<Vec<Row>>, Arc<LoaderError>> {
        let held = || lock(&self.groups).get(&group).cloned();
        if let Some(rows) = held() {
            return Ok(rows);
        }
        let _few_at_once = lock(&self.turns[group % GROUPS_AT_ONCE]);
        if let Some(rows) = held() {
            return Ok(rows);
        }
        let rows = Arc::new(load()?);
        let layout = &split.instances().layout;
        let mut groups = lock(&self.groups);
        let bytes: u64 = groups.keys().chain([&group]).map(|&group| layout.bytes(group)).sum();
        if bytes > self.limit.load(Ordering::Relaxed) {
            groups.clear();
        }
        groups.insert(group, Arc::clone(&rows));
        Ok(rows)
    }

    /// Returns the rows at these bank rows, in their order.
    fn rows(
        &self,
        split: &SplitRows,
        bank_rows: &[BankRow],
        load: impl Fn(usize) -> Result<Vec<Row>, LoaderError>,
    ) -> Result<Vec<Row>, LoaderError> {
        let read = |&bank_row: &BankRow| {
            let image = split.image(bank_row);
            let rows = self.get_or_load(split, image.group(), || load(image.group()));
            Ok(image.of(&rows.map_err(LoaderError::Shared)?).clone())
        };
        bank_rows.iter().map(read).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
