//! A split of a dataset as a source: on this machine row by row, from an object store by row groups.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::LoaderError;
use super::group_reads::Indexed;
use super::groups::Resident;
use super::layout::Layout;
use super::source::{Fetched, Reading, Source};
use crate::dataset::{DatasetError, Manifest, Row, ShardReader};
use crate::ids::{ClassId, InstanceId, Position};
use crate::rng::{Purpose, Stream};
use crate::storage::{BlobCache, Digest, LocalFile, Location};

/// Row groups that are read whole at the same time to index them, where rows are read by themselves.
const INDEXED_AT_ONCE: usize = 4;
/// Row groups that [`Source::read`] keeps in memory, in bytes.
const READ_MEMORY: u64 = 1 << 30;
/// What an instance takes in the tables of this source, and a row group in the shards' footers, in bytes.
const BYTES_OF_AN_INSTANCE: u64 = 32;
const BYTES_OF_A_GROUP: u64 = 4 << 10;

/// A split of a dataset.
///
/// A picture reaches the loader only from a row group whose bytes were compared with the manifest's digest:
/// at each read of a whole group; before the first read of a row, where rows are read by themselves.
#[derive(Debug)]
pub struct DatasetSource {
    pub(super) shards: Vec<ShardReader>,
    /// By group: the shard, and the row group within it.
    pub(super) groups: Vec<(u32, u32)>,
    pub(super) layout: Layout,
    pub(super) ids: Vec<InstanceId>,
    pub(super) labels: Vec<Option<ClassId>>,
    /// By position: the group, and the row within it.
    pub(super) places: Vec<(u32, u32)>,
    pub(super) is_local: bool,
    /// By group: what the first look at it found.
    pub(super) indexed: Vec<Mutex<Option<Indexed>>>,
    pub(super) turns: [Mutex<()>; INDEXED_AT_ONCE],
    pub(super) files: Mutex<HashMap<u32, Arc<LocalFile>>>,
    pub(super) resident: Resident,
    pub(super) cache: Option<BlobCache>,
    pub(super) by_digest: HashMap<Digest, u32>,
    /// By group: when it is needed next.
    pub(super) next_use: Vec<AtomicU64>,
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
        let mut groups = Vec::new();
        for (shard, reader) in shards.iter().enumerate() {
            for row_group in 0..reader.row_groups() {
                let group = groups.len() as u32;
                groups.push((shard as u32, row_group as u32));
                for (row, (id, label)) in (0_u32..).zip(reader.read_labels(row_group)?) {
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
        let bytes_of =
            |&(shard, row_group): &(u32, u32)| shards[shard as usize].row_group_bytes(row_group as usize);
        let bytes: Vec<u64> = groups.iter().map(bytes_of).collect();
        Ok(Self {
            layout: layout(&places, &bytes),
            indexed: groups.iter().map(|_| Mutex::new(None)).collect(),
            next_use: groups.iter().map(|_| AtomicU64::new(u64::MAX)).collect(),
            shards,
            groups,
            ids,
            labels,
            places,
            is_local: dataset.local_path().is_some(),
            turns: Default::default(),
            files: Mutex::default(),
            resident: Resident::new(READ_MEMORY),
            cache: None,
            by_digest: HashMap::new(),
        })
    }

    /// Keeps row groups that come from an object store on a local disk. A dataset of this machine needs none.
    #[must_use]
    pub fn with_cache(mut self, cache: BlobCache) -> Self {
        if !self.is_local {
            self.by_digest = (0..self.groups.len()).map(|group| (self.digest(group), group as u32)).collect();
            self.cache = Some(cache);
        }
        self
    }

    /// What this source needs of memory, to read rows by themselves, beyond what stays.
    fn indexing_bytes(&self) -> u64 {
        self.turns.len() as u64 * self.layout.largest_group()
    }
}

/// The row groups, each with the positions that lie there in the order of their rows.
fn layout(places: &[(u32, u32)], bytes: &[u64]) -> Layout {
    let mut members = vec![Vec::new(); bytes.len()];
    for (position, &(group, row)) in (0..).zip(places) {
        members[group as usize].push((row, Position(position)));
    }
    let sorted = |mut group: Vec<(u32, Position)>| {
        group.sort_unstable();
        group.into_iter().map(|(_, position)| position).collect::<Vec<_>>()
    };
    Layout::new(members.into_iter().map(sorted).zip(bytes.iter().copied()))
}

/// The first `limit` ids of a random order of `0..len`, ascending.
fn sample(len: usize, limit: usize) -> Vec<InstanceId> {
    let mut ids: Vec<_> = (0..len as u32).map(InstanceId).collect();
    if limit < len {
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

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn place(&self, position: Position) -> String {
        let (group, row) = self.places[position.row()];
        let (shard, row_group) = self.shard(group as usize);
        let place = format!("{} row group {row_group} row {row}", shard.shown());
        match self.read(&[position]) {
            Ok(rows) => format!("{place}, {}", rows[0].path),
            Err(_) => place,
        }
    }

    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError> {
        let read = |position: &Position| {
            let (group, row) = self.places[position.row()];
            let rows = self.resident(group as usize, &Reading::default()).map_err(LoaderError::Shared)?;
            Ok(rows[row as usize].clone())
        };
        positions.iter().map(read).collect()
    }

    fn fetch_rows(&self, positions: &[Position], reading: &Reading) -> Vec<Fetched> {
        positions.iter().map(|&position| self.fetch_row(position, reading)).collect()
    }

    fn fetch_group(&self, group: usize, reading: &Reading) -> Vec<Fetched> {
        self.fetch_members(group, reading)
    }

    fn reads_rows(&self) -> bool {
        self.is_local
    }

    fn prepare_rows(&self, memory: u64) -> Result<u64, LoaderError> {
        let (total, indexing) = (self.layout.total_bytes(), self.indexing_bytes());
        if self.is_local || self.cache.as_ref().is_some_and(|cache| cache.limit() >= total) {
            self.resident.set_limit((memory / 8).min(READ_MEMORY));
            for next_use in &self.next_use {
                // Everything is needed all the time: nothing goes for anything else.
                next_use.store(0, Ordering::Relaxed);
            }
            return Ok(indexing);
        }
        let needed = total + indexing;
        if needed > memory {
            let what = "the exact order on an object store takes the whole split into memory; give --cache DIR \
                        and a --cache-size that holds it, or --shuffle windowed";
            return Err(LoaderError::Memory { needed, limit: memory, what: what.into() });
        }
        self.resident.set_limit(total);
        Ok(needed)
    }

    fn expect(&self, group: usize, next_use: u64) {
        self.next_use[group].store(next_use, Ordering::Relaxed);
    }

    fn held_bytes(&self) -> u64 {
        BYTES_OF_AN_INSTANCE * self.places.len() as u64 + BYTES_OF_A_GROUP * self.groups.len() as u64
    }
}
