//! Rows of a split: their positions in the shards, and the checked reads of row groups.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::{Encoded, Fetched, Instances, Layout, ReadContext};
use crate::dataset::{DatasetError, Located, Manifest, Row, ShardEntry, ShardReader, unsealed};
use crate::ids::{BankRow, InstanceId};
use crate::image::ExifOrientation;
use crate::loader::LoaderError;
use crate::rng::{Purpose, Stream};
use crate::storage::{Digest, Location};

/// Number of shards whose footers are read at the same time.
const OPENED_AT_ONCE: usize = 16;
/// Size of an instance in the tables of a source, and of a row group in the shards' footers, in bytes.
const BYTES_OF_AN_INSTANCE: u64 = 80;
const BYTES_OF_A_GROUP: u64 = 4 << 10;

/// Position of a stored image of the split.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredImage {
    group: u32,
    /// Row within the group.
    row: u32,
    /// Offset of the encoded bytes in the shard's file.
    offset: u64,
    bytes: u32,
    pixels: u32,
    /// Offset of the entry points, and their number of bytes; 0 if there are none.
    entry_points: u64,
    entry_points_bytes: u32,
    /// First half of the digest of the encoded bytes, enough to detect damage.
    digest: [u8; 16],
}

impl StoredImage {
    pub(super) fn group(&self) -> usize {
        self.group as usize
    }

    /// Fetches the image by `read`, which returns ranges of the shard's file; `None` if the bytes differ from those
    /// written. If its entry points cannot be read, the image is decoded without them.
    pub(super) fn fetch<E>(
        &self,
        read: impl Fn(Range<u64>) -> Result<Bytes, E>,
    ) -> Result<Option<Encoded>, E> {
        let bytes = read(self.offset..self.offset + u64::from(self.bytes))?;
        if Digest::of(&bytes).0[..16] != self.digest {
            return Ok(None);
        }
        let mut entry_points = None;
        if self.entry_points_bytes > 0 {
            let range = self.entry_points..self.entry_points + u64::from(self.entry_points_bytes);
            entry_points = read(range).ok().and_then(|stored| unsealed(stored, &bytes));
        }
        Ok(Some(Encoded { bytes, pixels: u64::from(self.pixels), entry_points }))
    }

    /// Returns the image's row, given the rows of its group.
    pub(super) fn of<'a>(&self, rows: &'a [Row]) -> &'a Row {
        &rows[self.row as usize]
    }
}

/// Rows of a split, or a sample of them.
///
/// An image leaves a source only if its bytes have the index's digest, or its row group's bytes have the manifest's.
#[derive(Debug)]
pub(super) struct SplitRows {
    shards: Vec<ShardReader>,
    /// By group: shard, and row group within it.
    groups: Vec<(u32, u32)>,
    instances: Instances,
    /// By bank row: position of the image.
    images: Vec<StoredImage>,
}

impl SplitRows {
    /// Reads a split's index and the footers of its shards. With `limit`, takes a uniform sample of the instances, a
    /// function of `limit` and their number alone.
    ///
    /// # Errors
    /// If there is no such split, or its index or a shard is missing or damaged.
    pub(super) fn open(
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
            let invalid = |reason: String| {
                let reason = format!("invalid index entry for instance {id}: {reason}");
                DatasetError::Damaged { shard: dataset.to_string(), reason }
            };
            if let Some(label) = found.label.filter(|class| class.index() >= classes) {
                return Err(invalid(format!("label {label}, but there are {classes} classes")).into());
            }
            let stored = stored_image(found, &shards, &first_rows);
            images.push(stored.ok_or_else(|| invalid("its shard has no such row or bytes".into()))?);
            labels.push(found.label);
        }
        let bytes_of =
            |&(shard, row_group): &(u32, u32)| shards[shard as usize].row_group_bytes(row_group as usize);
        let bytes: Vec<u64> = groups.iter().map(bytes_of).collect();
        Ok(Self {
            instances: Instances {
                layout: layout(&images, &bytes),
                exif_orientation: ExifOrientation::applied(split.applies_exif_orientation()),
                held_bytes: BYTES_OF_AN_INSTANCE * ids.len() as u64 + BYTES_OF_A_GROUP * groups.len() as u64,
                ids,
                labels,
            },
            shards,
            groups,
            images,
        })
    }

    pub(super) fn instances(&self) -> &Instances {
        &self.instances
    }

    pub(super) fn image(&self, bank_row: BankRow) -> &StoredImage {
        &self.images[bank_row.row()]
    }

    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Returns the shard of a group, and the row group within it.
    pub(super) fn shard(&self, group: usize) -> (&ShardReader, usize) {
        let (shard, row_group) = self.groups[group];
        (&self.shards[shard as usize], row_group as usize)
    }

    pub(super) fn shard_number(&self, group: usize) -> u32 {
        self.groups[group].0
    }

    pub(super) fn digest(&self, group: usize) -> Digest {
        let (shard, row_group) = self.shard(group);
        shard.row_group_digest(row_group)
    }

    /// Returns the range of a group's bytes in its shard's file.
    pub(super) fn range(&self, group: usize) -> Range<u64> {
        let (shard, row_group) = self.shard(group);
        shard.row_group_range(row_group)
    }

    /// Names the record at a bank row, for errors; includes its path, if its row could be read.
    pub(super) fn record(&self, bank_row: BankRow, row: Result<Vec<Row>, LoaderError>) -> String {
        let image = self.image(bank_row);
        let (shard, row_group) = self.shard(image.group());
        let record = format!("{} row group {row_group} row {}", shard.shown(), image.row);
        match row {
            Ok(rows) => format!("{record}, {}", rows[0].path),
            Err(_) => record,
        }
    }

    /// Makes the error of an image whose bytes are not those that were written.
    pub(super) fn changed(&self, image: &StoredImage) -> LoaderError {
        let reason = format!("row {}: its bytes are not those that were written", image.row);
        self.damaged(image.group(), reason)
    }

    fn damaged(&self, group: usize, reason: String) -> LoaderError {
        let (shard, row_group) = self.shard(group);
        DatasetError::RowGroup { shard: shard.shown().to_owned(), row_group, reason }.into()
    }

    /// Reads a group's bytes with `read`, again if they are damaged, and parses the rows.
    pub(super) fn read_group(
        &self,
        group: usize,
        context: &ReadContext,
        read: impl Fn() -> Result<Bytes, LoaderError>,
    ) -> Result<(Bytes, Vec<Row>), LoaderError> {
        let read = || {
            if context.cancel.is_cancelled() {
                return Err(LoaderError::Stopped);
            }
            let bytes = read()?;
            context.counters.count_read(&bytes);
            Ok(bytes)
        };
        let bytes = read()?;
        if let Ok(rows) = self.parse(group, &bytes) {
            return Ok((bytes, rows));
        }
        // Bytes damaged in transit are whole the second time.
        context.counters.retries.add(1);
        let bytes = read()?;
        let rows = self.parse(group, &bytes)?;
        Ok((bytes, rows))
    }

    /// Parses the rows of a group's bytes, which must agree with the index that the split was opened with.
    pub(super) fn parse(&self, group: usize, bytes: &Bytes) -> Result<Vec<Row>, LoaderError> {
        let (shard, row_group) = self.shard(group);
        let rows = shard.parse_row_group(row_group, bytes.clone())?;
        let Instances { ids, labels, layout, .. } = &self.instances;
        for &bank_row in layout.members(group) {
            let row = self.images[bank_row.row()].row;
            // The index stores ids and labels apart from the rows.
            let (id, label) = (ids[bank_row.row()], labels[bank_row.row()]);
            if rows.get(row as usize).is_none_or(|row| row.id != id || row.label != label) {
                return Err(self.damaged(group, format!("row {row} is not what the index says of it")));
            }
        }
        Ok(rows)
    }

    /// Returns the images of a group that was read, each copied so that it can be freed alone.
    pub(super) fn members(&self, group: usize, read: Result<Vec<Row>, LoaderError>) -> Vec<Fetched> {
        let members = self.instances.layout.members(group);
        match read {
            Ok(rows) => {
                let copy = |&bank_row: &BankRow| {
                    let encoded = Encoded::of(self.image(bank_row).of(&rows));
                    Ok(Encoded { bytes: Bytes::copy_from_slice(&encoded.bytes), ..encoded })
                };
                members.iter().map(copy).collect()
            }
            Err(error) => {
                let error = Arc::new(error);
                members.iter().map(|_| Err(Arc::clone(&error))).collect()
            }
        }
    }
}

/// Opens the shards, several at the same time, since a store takes two requests for each.
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

/// Returns the position of an index entry's image; `None` if the shard has no such row or bytes.
fn stored_image(
    found: &Located,
    shards: &[ShardReader],
    first_rows: &[(usize, Vec<usize>)],
) -> Option<StoredImage> {
    let place = found.place;
    let (first_group, first_rows) = first_rows.get(place.shard as usize)?;
    let row_group = first_rows.partition_point(|&first| first <= place.row as usize).checked_sub(1)?;
    let shard = &shards[place.shard as usize];
    let row = place.row as usize - first_rows[row_group];
    let group = shard.row_group_range(row_group);
    let end = place.offset.checked_add(u64::from(place.bytes))?;
    let points_end = place.entry_points_offset.checked_add(u64::from(place.entry_points_bytes))?;
    let has_points = place.entry_points_bytes > 0;
    let is_within = row < shard.rows(row_group)
        && (group.start <= place.offset && end <= group.end)
        && (!has_points || group.start <= place.entry_points_offset && points_end <= group.end);
    let pixels = u64::from(place.width) * u64::from(place.height);
    is_within.then(|| StoredImage {
        group: (first_group + row_group) as u32,
        row: row as u32,
        offset: place.offset,
        bytes: place.bytes,
        pixels: u32::try_from(pixels).unwrap_or(u32::MAX),
        entry_points: place.entry_points_offset,
        entry_points_bytes: place.entry_points_bytes,
        digest: found.image.0[..16].try_into().expect("half a digest"),
    })
}

/// Returns the row groups, each with its bank rows in the order of its rows.
fn layout(images: &[StoredImage], bytes: &[u64]) -> Layout {
    let mut members = vec![Vec::new(); bytes.len()];
    for (bank_row, image) in (0..).zip(images) {
        members[image.group as usize].push((image.row, BankRow(bank_row)));
    }
    let sorted = |mut group: Vec<(u32, BankRow)>| {
        group.sort_unstable();
        group.into_iter().map(|(_, bank_row)| bank_row).collect::<Vec<_>>()
    };
    Layout::new(members.into_iter().map(sorted).zip(bytes.iter().copied()))
}

/// Returns the first `limit` ids of a random order of `0..len`, sorted.
fn sample(len: usize, limit: usize) -> Vec<InstanceId> {
    let mut ids: Vec<_> = (0..len as u32).map(InstanceId).collect();
    if limit < len {
        Stream::new(0, Purpose::Sample, limit as u64, 0).shuffle(&mut ids);
        ids.truncate(limit);
        ids.sort_unstable();
    }
    ids
}
