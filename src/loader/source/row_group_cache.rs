//! Row groups in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dataset::Row;

/// Whole row groups in memory, up to a limit of bytes; the one used longest ago goes first.
#[derive(Debug)]
pub(in crate::loader) struct RowGroupCache {
    limit: AtomicU64,
    groups: Mutex<Groups>,
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
    pub(in crate::loader) fn new(limit: u64) -> Self {
        Self { limit: AtomicU64::new(limit), groups: Mutex::default() }
    }

    /// Allows so many bytes from now on.
    pub(in crate::loader) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(in crate::loader) fn get(&self, group: usize) -> Option<Arc<Vec<Row>>> {
        let mut groups = self.lock();
        groups.clock += 1;
        let clock = groups.clock;
        let entry = groups.by_number.get_mut(&group)?;
        entry.used = clock;
        Some(Arc::clone(&entry.rows))
    }

    pub(in crate::loader) fn insert(&self, group: usize, rows: Arc<Vec<Row>>, bytes: u64) {
        let mut groups = self.lock();
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

    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
