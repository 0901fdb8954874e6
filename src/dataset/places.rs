//! Where the images of a split are stored: what a loader takes from its indexes.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use parquet::arrow::{ArrowSchemaConverter, ProjectionMask};

use super::index::{fixed, read, schema};
use super::{DatasetError, FileEntry, Split};
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location};

/// Where an image is stored, and how large it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its shard: a position in the manifest's list.
    pub shard: u32,
    /// Its row in the shard.
    pub row: u32,
    /// Where its encoded bytes begin in the shard's file.
    pub offset: u64,
    /// How many they are.
    pub bytes: u32,
    /// Its width in pixels, as stored.
    pub width: u32,
    /// Its height in pixels, as stored.
    pub height: u32,
    /// Where its entry points begin in the shard's file.
    pub entry_points_offset: u64,
    /// How many bytes they are as stored; 0 where there are none.
    pub entry_points_bytes: u32,
}

/// What a loader needs to know of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Its number in the split.
    pub id: InstanceId,
    /// Its class, where it has one.
    pub label: Option<ClassId>,
    /// Where it is stored.
    pub place: Place,
    /// The digest of its encoded bytes.
    pub image: Digest,
}

impl Split {
    /// What the indexes of its parts say, one after the other: by id.
    ///
    /// # Errors
    /// If one is missing or damaged, or has other instances than the manifest says.
    pub fn read_places(&self, dataset: &Location) -> Result<Vec<Located>, DatasetError> {
        // What the manifest counts is compared with what the files hold, and takes no memory before.
        let mut all = Vec::new();
        for part in &self.ingest {
            let rows = read_places(dataset, &part.index)?;
            if rows.len() as u64 != part.instances {
                let shard = dataset.join(&part.index.path).to_string();
                let reason = format!("it has {} rows, the manifest says {}", rows.len(), part.instances);
                return Err(DatasetError::Damaged { shard, reason });
            }
            all.extend(rows);
        }
        match (0..).map(InstanceId).zip(&all).find(|(expected, row)| row.id != *expected) {
            Some((expected, _)) => Err(self.wrong_index(dataset, expected)),
            None if all.len() as u64 != self.instances => {
                let reason = format!("its indexes have {} rows, not {}", all.len(), self.instances);
                Err(DatasetError::Damaged { shard: dataset.to_string(), reason })
            }
            None => Ok(all),
        }
    }

    /// The error of an index that says something else of an instance than its shard.
    pub(super) fn wrong_index(&self, dataset: &Location, id: InstanceId) -> DatasetError {
        let mut ends = self.ingest.iter().scan(0, |end, part| {
            *end += part.instances;
            Some((*end, &part.index.path))
        });
        let path = ends.find(|(end, _)| u64::from(id.0) < *end).map_or("index", |(_, path)| path.as_str());
        let reason = format!("what it says of instance {id} is not so");
        DatasetError::Damaged { shard: dataset.join(path).to_string(), reason }
    }
}

/// Reads of an index what a loader needs, and checks it against the manifest's digest.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
pub(super) fn read_places(dataset: &Location, entry: &FileEntry) -> Result<Vec<Located>, DatasetError> {
    let described = ArrowSchemaConverter::new().convert(&schema()).expect("an index's columns have types");
    let names = schema();
    let wanted = names.fields().iter().map(|field| field.name().as_str());
    let mask =
        ProjectionMask::columns(&described, wanted.filter(|name| !["path", "view_hash"].contains(name)));
    read(dataset, entry, &mask, |batch, rows| {
        rows.extend(located(batch)?);
        Some(())
    })
}

pub(super) fn located(batch: &RecordBatch) -> Option<Vec<Located>> {
    let long = |name| Some(batch.column_by_name(name)?.as_primitive::<Int64Type>().values());
    let short = |name| Some(batch.column_by_name(name)?.as_primitive::<Int32Type>().values());
    let (ids, labels, offsets) = (long("instance_id")?, long("label")?, long("offset")?);
    let (shards, places, sizes) = (short("shard")?, short("row")?, short("bytes")?);
    let (widths, heights, digests) = (short("width")?, short("height")?, fixed(batch, "digest")?);
    // Indexes from before have neither.
    let (points, points_bytes) = (long("entry_points_offset"), short("entry_points_bytes"));
    let row = |row: usize| {
        Some(Located {
            id: InstanceId::from_stored(ids[row])?,
            label: ClassId::from_stored(labels[row])?,
            place: Place {
                shard: u32::try_from(shards[row]).ok()?,
                row: u32::try_from(places[row]).ok()?,
                offset: u64::try_from(offsets[row]).ok()?,
                bytes: u32::try_from(sizes[row]).ok()?,
                width: u32::try_from(widths[row]).ok()?,
                height: u32::try_from(heights[row]).ok()?,
                entry_points_offset: u64::try_from(points.map_or(0, |points| points[row])).ok()?,
                entry_points_bytes: u32::try_from(points_bytes.map_or(0, |bytes| bytes[row])).ok()?,
            },
            image: Digest(digests.value(row).try_into().ok()?),
        })
    };
    (0..batch.num_rows()).map(row).collect()
}
