//! Row groups in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::split_rows::SplitRows;
use crate::dataset::Row;
use crate::ids::BankRow;
use crate::loader::error::LoaderError;

/// Row groups that are read whole at the same time, where rows are wanted one by one.
pub(super) const GROUPS_AT_ONCE: usize = 4;
/// Row groups that are kept where no limit was set, in bytes.
pub(super) const READ_MEMORY: u64 = 1 << 30;

/// Whole row groups in memory, up to a limit of bytes; the one used longest ago goes first.
#[derive(Debug)]
pub(super) struct RowGroupCache {
    limit: AtomicU64,
    groups: Mutex<Groups>,
    /// A few groups are loaded at a time, each once.
    turns: [Mutex<()>; GROUPS_AT_ONCE],
}

#[derive(Debug, Default)]
struct Groups {
    by_number: HashMap<usize, Entry>,
    bytes: u64,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    rows: Arc<Vec<Row>>,
    bytes: u64,
    used: u64,
}

impl RowGroupCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit: AtomicU64::new(limit), groups: Mutex::default(), turns: Default::default() }
    }

    /// Keeps at most `limit` bytes from now on.
    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The rows of a group, which `load` brings where they are not here.
    pub(super) fn get_or_load(
        &self,
        split: &SplitRows,
        group: usize,
        load: impl FnOnce() -> Result<Vec<Row>, LoaderError>,
    ) -> Result<Arc<Vec<Row>>, Arc<LoaderError>> {
        if let Some(rows) = self.get(group) {
            return Ok(rows);
        }
        let _few_at_once = lock(&self.turns[group % GROUPS_AT_ONCE]);
        if let Some(rows) = self.get(group) {
            return Ok(rows);
        }
        let rows = Arc::new(load()?);
        self.insert(group, Arc::clone(&rows), split.instances().layout.bytes(group));
        Ok(rows)
    }

    /// The rows at these bank rows, in their order.
    pub(super) fn rows(
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

    fn get(&self, group: usize) -> Option<Arc<Vec<Row>>> {
        let mut groups = lock(&self.groups);
        groups.clock += 1;
        let clock = groups.clock;
        let entry = groups.by_number.get_mut(&group)?;
        entry.used = clock;
        Some(Arc::clone(&entry.rows))
    }

    fn insert(&self, group: usize, rows: Arc<Vec<Row>>, bytes: u64) {
        let mut groups = lock(&self.groups);
        groups.bytes += bytes;
        let used = groups.clock;
        if let Some(before) = groups.by_number.insert(group, Entry { rows, bytes, used }) {
            groups.bytes -= before.bytes;
        }
        while groups.bytes > self.limit.load(Ordering::Relaxed) && groups.by_number.len() > 1 {
            let oldest = groups.by_number.iter().min_by_key(|(_, entry)| entry.used).map(|(group, _)| *group);
            let Some(entry) = oldest.and_then(|group| groups.by_number.remove(&group)) else { return };
            groups.bytes -= entry.bytes;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
