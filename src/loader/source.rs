//! Where encoded pictures come from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::LoaderError;
use crate::dataset::{DatasetError, Manifest, Row, ShardReader};
use crate::ids::{ClassId, InstanceId, Position};
use crate::rng::{Purpose, Stream};
use crate::storage::Location;

/// Bytes of encoded pictures that are kept in memory; a smaller split is read once.
const CACHE_BYTES: u64 = 4 << 30;

/// Gives rows by their positions.
pub trait Source: Send + Sync {
    /// The number of instances; their positions are `0..len`.
    fn len(&self) -> usize;

    /// The instance at each position, in ascending order.
    fn ids(&self) -> &[InstanceId];

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label at each position.
    fn labels(&self) -> &[Option<ClassId>];

    /// The rows at these positions, in their order.
    ///
    /// # Errors
    /// If a row cannot be read.
    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError>;
}

/// Rows that are in memory already.
#[derive(Clone, Debug)]
pub struct MemorySource {
    rows: Vec<Row>,
    ids: Vec<InstanceId>,
    labels: Vec<Option<ClassId>>,
}

impl MemorySource {
    /// A source of rows in the order of their ids.
    ///
    /// # Panics
    /// If the ids do not ascend.
    pub fn new(rows: Vec<Row>) -> Self {
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "ids ascend");
        let labels = rows.iter().map(|row| row.label).collect();
        Self { rows, ids, labels }
    }
}

impl Source for MemorySource {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn ids(&self) -> &[InstanceId] {
        &self.ids
    }

    fn labels(&self) -> &[Option<ClassId>] {
        &self.labels
    }

    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError> {
        Ok(positions.iter().map(|position| self.rows[position.row()].clone()).collect())
    }
}

/// Where a row lies in a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Group {
    shard: u32,
    row_group: u32,
}

/// A split of a dataset. Row groups are read whole and kept up to a budget of bytes.
#[derive(Debug)]
pub struct DatasetSource {
    shards: Vec<ShardReader>,
    ids: Vec<InstanceId>,
    /// By position: the row group and the row within it.
    places: Vec<(Group, u32)>,
    labels: Vec<Option<ClassId>>,
    cache: Mutex<Cache>,
}

impl DatasetSource {
    /// Opens a split and reads the ids and labels of all rows; with `limit`, so many of them are taken, a
    /// uniform sample that depends on nothing but the two numbers.
    ///
    /// # Errors
    /// If there is no such split, or a shard is missing or damaged.
    pub fn open(
        dataset: &Location,
        manifest: &Manifest,
        split: &str,
        limit: Option<usize>,
    ) -> Result<Self, LoaderError> {
        let split = manifest.split(dataset, split)?;
        let classes = manifest.classes.len();
        let open = |entry| ShardReader::open(dataset, entry, classes, split.instances);
        let shards = split.shards.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let mut found = vec![None; split.instances as usize];
        for (shard, reader) in shards.iter().enumerate() {
            for row_group in 0..reader.row_groups() {
                let group = Group { shard: shard as u32, row_group: row_group as u32 };
                for (row, (id, label)) in (0..).zip(reader.read_labels(row_group)?) {
                    if found[id.row()].replace((group, row, label)).is_some() {
                        return Err(damaged(
                            &split.shards[shard].path,
                            format!("instance {id} occurs twice"),
                        ));
                    }
                }
            }
        }
        let ids = sample(found.len(), limit.unwrap_or(usize::MAX));
        let mut places = Vec::with_capacity(ids.len());
        let mut labels = Vec::with_capacity(ids.len());
        for &id in &ids {
            let Some((group, row, label)) = found[id.row()] else {
                return Err(damaged(&dataset.to_string(), format!("instance {id} is in no shard")));
            };
            places.push((group, row));
            labels.push(label);
        }
        Ok(Self { shards, ids, places, labels, cache: Mutex::new(Cache::default()) })
    }

    fn group(&self, group: Group) -> Result<Arc<Vec<Row>>, LoaderError> {
        if let Some(rows) = self.cache().get(group) {
            return Ok(rows);
        }
        let rows = Arc::new(self.shards[group.shard as usize].read_row_group(group.row_group as usize)?);
        self.cache().insert(group, Arc::clone(&rows));
        Ok(rows)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `limit` of the ids `0..instances`, ascending.
fn sample(instances: usize, limit: usize) -> Vec<InstanceId> {
    let mut ids: Vec<_> = (0..instances as u32).map(InstanceId).collect();
    if limit < instances {
        Stream::new(0, Purpose::Sample, limit as u64, 0).shuffle(&mut ids);
        ids.truncate(limit);
        ids.sort_unstable();
    }
    ids
}

fn damaged(shard: &str, reason: String) -> LoaderError {
    DatasetError::Damaged { shard: shard.to_owned(), reason }.into()
}

impl Source for DatasetSource {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn ids(&self) -> &[InstanceId] {
        &self.ids
    }

    fn labels(&self) -> &[Option<ClassId>] {
        &self.labels
    }

    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError> {
        let read = |position: &Position| {
            let position = position.row();
            let (group, place) = self.places[position];
            let rows = self.group(group)?;
            // Ids and labels were read apart from the rows, without a check.
            let (id, label) = (self.ids[position], self.labels[position]);
            let row = rows.get(place as usize).filter(|row| row.id == id && row.label == label).cloned();
            row.ok_or_else(|| {
                let reason = format!("row {place} is not what its id and label said");
                let shard = self.shards[group.shard as usize].shown().to_owned();
                DatasetError::RowGroup { shard, row_group: group.row_group as usize, reason }.into()
            })
        };
        positions.iter().map(read).collect()
    }
}

/// Row groups in memory; the one used longest ago goes first.
#[derive(Debug, Default)]
struct Cache {
    groups: HashMap<Group, (Arc<Vec<Row>>, u64)>,
    bytes: u64,
    clock: u64,
}

impl Cache {
    fn get(&mut self, group: Group) -> Option<Arc<Vec<Row>>> {
        self.clock += 1;
        let (rows, used) = self.groups.get_mut(&group)?;
        *used = self.clock;
        Some(Arc::clone(rows))
    }

    fn insert(&mut self, group: Group, rows: Arc<Vec<Row>>) {
        self.bytes += bytes(&rows);
        if let Some((before, _)) = self.groups.insert(group, (rows, self.clock)) {
            self.bytes -= bytes(&before);
        }
        while self.bytes > CACHE_BYTES && self.groups.len() > 1 {
            let oldest = self.groups.iter().min_by_key(|(_, (_, used))| *used).map(|(group, _)| *group);
            if let Some((rows, _)) = oldest.and_then(|group| self.groups.remove(&group)) {
                self.bytes -= bytes(&rows);
            }
        }
    }
}

fn bytes(rows: &[Row]) -> u64 {
    rows.iter().map(|row| row.bytes.len() as u64).sum()
}
