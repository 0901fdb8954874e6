//! A split of a dataset as a source: on this machine row by row, from an object store by row groups.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::row_group_cache::RowGroupCache;
use crate::dataset::{DatasetError, Located, Manifest, Row, ShardEntry, ShardReader};
use crate::ids::{InstanceId, Position};
use crate::image::ExifOrientation;
use crate::loader::LoaderError;
use crate::loader::plan::layout::Layout;
use crate::loader::source::{Fetched, Instances, ReadContext, Source};
use crate::rng::{Purpose, Stream};
use crate::storage::{BlobCache, Digest, LocalFile, Location};

/// Row groups that are read whole at the same time, where rows are wanted one by one.
const GROUPS_AT_ONCE: usize = 4;
/// Shards whose footers are read at the same time.
const OPENED_AT_ONCE: usize = 16;
/// Row groups that [`Source::read`] keeps in memory, in bytes.
const READ_MEMORY: u64 = 1 << 30;
/// What an instance takes in the tables of this source, and a row group in the shards' footers, in bytes.
const BYTES_OF_AN_INSTANCE: u64 = 64;
const BYTES_OF_A_GROUP: u64 = 4 << 10;

/// An image of the split.
#[derive(Clone, Copy, Debug)]
pub(in crate::loader) struct Stored {
    /// Its group, and the row within it.
    pub(in crate::loader) group: u32,
    pub(in crate::loader) row: u32,
    /// Where its encoded bytes lie in the shard's file.
    offset: u64,
    bytes: u32,
    pub(in crate::loader) pixels: u32,
    /// Of the digest of its bytes the first half, which no damage leaves unchanged.
    digest: [u8; 16],
}

impl Stored {
    /// The place of its encoded bytes in the shard's file.
    pub(in crate::loader) fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.bytes)
    }

    /// Whether these are its bytes.
    pub(in crate::loader) fn is(&self, bytes: &[u8]) -> bool {
        Digest::of(bytes).0[..16] == self.digest
    }
}

/// A split of a dataset.
///
/// An image reaches the loader only if its bytes have the index's digest, or its row group's bytes have the
/// manifest's.
#[derive(Debug)]
pub struct DatasetSource {
    pub(in crate::loader) shards: Vec<ShardReader>,
    /// By group: the shard, and the row group within it.
    pub(in crate::loader) groups: Vec<(u32, u32)>,
    pub(in crate::loader) instances: Instances,
    /// By position.
    pub(in crate::loader) images: Vec<Stored>,
    pub(in crate::loader) is_local: bool,
    exif_orientation: ExifOrientation,
    pub(in crate::loader) turns: [Mutex<()>; GROUPS_AT_ONCE],
    pub(in crate::loader) files: Mutex<HashMap<u32, Arc<LocalFile>>>,
    pub(in crate::loader) resident: RowGroupCache,
    pub(in crate::loader) cache: Option<BlobCache>,
    pub(in crate::loader) by_digest: HashMap<Digest, u32>,
    /// By group: when it is needed next.
    pub(in crate::loader) next_use: Vec<AtomicU64>,
}

impl DatasetSource {
    /// Opens a split by its index and the footers of its shards; with `limit`, so many instances are taken, a
    /// uniform sample that depends on nothing but the two numbers.
    ///
    /// # Errors
    /// If there is no such split, or its index or a shard is missing or damaged.
    pub fn open(
        dataset: &Location,
        manifest: &Manifest,
        split: &str,
        limit: Option<usize>,
    ) -> Result<Self, LoaderError> {
        let split = manifest.split(dataset, split)?;
        let classes = manifest.classes.len();
        let indexed = split.read_places(dataset)?;
        let shards = open_shards(dataset, &split.shards, classes, split.instances)?;
        let mut groups = Vec::new();
        // By shard: its first group, and the first row of each of its groups.
        let mut first_rows = Vec::with_capacity(shards.len());
        for (shard, reader) in shards.iter().enumerate() {
            let first_group = groups.len();
            let counts = (0..reader.row_groups()).map(|row_group| reader.rows(row_group));
            let first = |end: &mut usize, rows| Some(std::mem::replace(end, *end + rows));
            first_rows.push((first_group, counts.scan(0, first).collect::<Vec<usize>>()));
            groups.extend((0..reader.row_groups()).map(|row_group| (shard as u32, row_group as u32)));
        }
        let ids = sample(indexed.len(), limit.unwrap_or(usize::MAX));
        let mut images = Vec::with_capacity(ids.len());
        let mut labels = Vec::with_capacity(ids.len());
        for &id in &ids {
            let found = &indexed[id.row()];
            let stored = stored(found, &shards, &first_rows);
            let label = found.label.filter(|class| class.index() < classes);
            let Some(stored) = stored.filter(|_| label == found.label) else {
                let reason = format!("its index says of instance {id} what cannot be");
                return Err(DatasetError::Damaged { shard: dataset.to_string(), reason }.into());
            };
            images.push(stored);
            labels.push(label);
        }
        let bytes_of =
            |&(shard, row_group): &(u32, u32)| shards[shard as usize].row_group_bytes(row_group as usize);
        let bytes: Vec<u64> = groups.iter().map(bytes_of).collect();
        Ok(Self {
            instances: Instances { ids, labels, layout: layout(&images, &bytes) },
            next_use: groups.iter().map(|_| AtomicU64::new(u64::MAX)).collect(),
            shards,
            groups,
            images,
            is_local: dataset.local_path().is_some(),
            exif_orientation: ExifOrientation::applied(split.applies_exif_orientation()),
            turns: Default::default(),
            files: Mutex::default(),
            resident: RowGroupCache::new(READ_MEMORY),
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
}

/// Opens the shards, several at the same time: from an object store each takes two requests.
fn open_shards(
    dataset: &Location,
    entries: &[ShardEntry],
    classes: usize,
    instances: u64,
) -> Result<Vec<ShardReader>, LoaderError> {
    let threads = entries.len().clamp(1, OPENED_AT_ONCE);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| LoaderError::Threads(Box::new(error)))?;
    let open = |entry| ShardReader::open(dataset, entry, classes, instances);
    Ok(pool.install(|| entries.par_iter().map(open).collect::<Result<_, _>>())?)
}

/// What an index says, if it can be so.
fn stored(found: &Located, shards: &[ShardReader], first_rows: &[(usize, Vec<usize>)]) -> Option<Stored> {
    let place = found.place;
    let (first_group, first_rows) = first_rows.get(place.shard as usize)?;
    let row_group = first_rows.partition_point(|&first| first <= place.row as usize).checked_sub(1)?;
    let shard = &shards[place.shard as usize];
    let row = place.row as usize - first_rows[row_group];
    let group = shard.row_group_range(row_group);
    let end = place.offset.checked_add(u64::from(place.bytes))?;
    let is_within = row < shard.rows(row_group) && group.start <= place.offset && end <= group.end;
    let pixels = u64::from(place.width) * u64::from(place.height);
    is_within.then(|| Stored {
        group: (first_group + row_group) as u32,
        row: row as u32,
        offset: place.offset,
        bytes: place.bytes,
        pixels: u32::try_from(pixels).unwrap_or(u32::MAX),
        digest: found.image.0[..16].try_into().expect("half a digest"),
    })
}

/// The row groups, each with the positions that lie there in the order of their rows.
fn layout(images: &[Stored], bytes: &[u64]) -> Layout {
    let mut members = vec![Vec::new(); bytes.len()];
    for (position, image) in (0..).zip(images) {
        members[image.group as usize].push((image.row, Position(position)));
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

impl Source for DatasetSource {
    fn instances(&self) -> &Instances {
        &self.instances
    }

    fn place(&self, position: Position) -> String {
        let Stored { group, row, .. } = self.images[position.row()];
        let (shard, row_group) = self.shard(group as usize);
        let place = format!("{} row group {row_group} row {row}", shard.shown());
        match self.read(&[position]) {
            Ok(rows) => format!("{place}, {}", rows[0].path),
            Err(_) => place,
        }
    }

    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError> {
        let read = |position: &Position| {
            let Stored { group, row, .. } = self.images[position.row()];
            let rows = self.resident(group as usize, &ReadContext::default()).map_err(LoaderError::Shared)?;
            Ok(rows[row as usize].clone())
        };
        positions.iter().map(read).collect()
    }

    fn fetch_rows(&self, positions: &[Position], reading: &ReadContext) -> Vec<Fetched> {
        positions.iter().map(|&position| self.fetch_row(position, reading)).collect()
    }

    fn fetch_group(&self, group: usize, reading: &ReadContext) -> Vec<Fetched> {
        self.fetch_members(group, reading)
    }

    fn reads_rows(&self) -> bool {
        self.is_local
    }

    fn prepare_rows(&self, memory: u64) -> Result<u64, LoaderError> {
        if self.is_local {
            return Ok(0);
        }
        let reading = self.turns.len() as u64 * self.layout().largest_group();
        let total = self.layout().total_bytes();
        if self.cache.as_ref().is_some_and(|cache| cache.limit() >= total) {
            self.resident.set_limit((memory / 8).min(READ_MEMORY));
            for next_use in &self.next_use {
                // Everything is needed all the time: nothing goes for anything else.
                next_use.store(0, Ordering::Relaxed);
            }
            return Ok(reading);
        }
        let needed = total + reading;
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

    fn exif_orientation(&self) -> ExifOrientation {
        self.exif_orientation
    }

    fn held_bytes(&self) -> u64 {
        BYTES_OF_AN_INSTANCE * self.images.len() as u64 + BYTES_OF_A_GROUP * self.groups.len() as u64
    }
}
