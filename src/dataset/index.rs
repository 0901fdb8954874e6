//! The index of a part of a split: a row for each instance, without its image.
//!
//! A reader finds each image through the index without opening the shards, reads the image alone, and checks it by its
//! digest. Duplicate detection uses the index too. A loader reads only the columns of [`Located`].
//!
//! A second file, `duplicates.parquet`, lists groups of images that are the same or look alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, FixedSizeBinaryBuilder, Int32Array,
    Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema};
use parquet::arrow::{ArrowSchemaConverter, ProjectionMask};
use serde::{Deserialize, Serialize};

use super::{DatasetError, FileEntry, Split, read_table, read_whole, write_table};
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location};

/// Perceptual hash of 256 bits; images that look the same differ in few of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ViewHash(pub [u64; 4]);

impl ViewHash {
    /// Returns the number of bits in which the hashes differ.
    pub fn distance(&self, other: &Self) -> u32 {
        self.0.iter().zip(other.0).map(|(a, b)| (a ^ b).count_ones()).sum()
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (part, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            part.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_be_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        Self([0, 1, 2, 3].map(word))
    }
}

/// Position and size of a stored image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Shard, as an index into the manifest's list.
    pub shard: u32,
    /// Row in the shard.
    pub row: u32,
    /// Offset of the encoded bytes in the shard's file.
    pub offset: u64,
    /// Number of encoded bytes.
    pub bytes: u32,
    /// Width in pixels, as stored.
    pub width: u32,
    /// Height in pixels, as stored.
    pub height: u32,
    /// Offset of the entry points in the shard's file.
    pub entry_points_offset: u64,
    /// Number of bytes of the stored entry points; 0 if there are none.
    pub entry_points_bytes: u32,
}

/// An entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexRow {
    /// Instance id within the split.
    pub id: InstanceId,
    /// Class, if the instance has one.
    pub label: Option<ClassId>,
    /// Path in the source: `<class>/<file>`.
    pub path: String,
    /// Position in the shards.
    pub place: Place,
    /// Digest of the encoded bytes.
    pub image: Digest,
    /// View hash; `None` for an image without contrast, or if no pixel was decoded.
    pub view: Option<ViewHash>,
}

/// The part of an index entry that a loader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Instance id within the split.
    pub id: InstanceId,
    /// Class, if the instance has one.
    pub label: Option<ClassId>,
    /// Position in the shards.
    pub place: Place,
    /// Digest of the encoded bytes.
    pub image: Digest,
}

/// Returns the columns of an index.
pub(super) fn schema() -> Schema {
    Schema::new(vec![
        Field::new("instance_id", DataType::Int64, false),
        Field::new("label", DataType::Int64, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("shard", DataType::Int32, false),
        Field::new("row", DataType::Int32, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("bytes", DataType::Int32, false),
        Field::new("width", DataType::Int32, false),
        Field::new("height", DataType::Int32, false),
        Field::new("digest", DataType::FixedSizeBinary(32), false),
        Field::new("view_hash", DataType::FixedSizeBinary(32), true),
        Field::new("entry_points_offset", DataType::Int64, false),
        Field::new("entry_points_bytes", DataType::Int32, false),
    ])
}

/// Returns the columns of an index from a version without entry points.
fn schema_without_entry_points() -> Schema {
    let fields = schema().fields;
    Schema::new(fields[..fields.len() - 2].to_vec())
}

/// Number of rows in a row group of the index.
const ROW_GROUP: usize = 1 << 16;

/// Writes an index at `path` within the dataset's folder.
///
/// # Errors
/// If the store fails.
pub fn write_index(dataset: &Location, path: &str, rows: &[IndexRow]) -> Result<FileEntry, DatasetError> {
    let location = dataset.join(path);
    let batches = rows.chunks(ROW_GROUP).map(record_batch);
    write_table(&location, Arc::new(schema()), batches, path)
}

fn record_batch(rows: &[IndexRow]) -> RecordBatch {
    let digests =
        FixedSizeBinaryArray::try_from_iter(rows.iter().map(|row| row.image.0)).expect("32 bytes each");
    let mut views = FixedSizeBinaryBuilder::with_capacity(rows.len(), 32);
    for row in rows {
        match row.view {
            Some(view) => views.append_value(view.to_bytes()).expect("32 bytes"),
            None => views.append_null(),
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id.to_stored()))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| ClassId::to_stored(row.label)))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.path))),
        numbers(rows, |place| place.shard),
        numbers(rows, |place| place.row),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.place.offset as i64))),
        numbers(rows, |place| place.bytes),
        numbers(rows, |place| place.width),
        numbers(rows, |place| place.height),
        Arc::new(digests),
        Arc::new(views.finish()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.place.entry_points_offset as i64))),
        numbers(rows, |place| place.entry_points_bytes),
    ];
    RecordBatch::try_new(Arc::new(schema()), columns).expect("the columns are those of the schema")
}

fn numbers(rows: &[IndexRow], of: fn(&Place) -> u32) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| of(&row.place) as i32)))
}

/// Reads an index and checks it against the manifest's digest.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
pub fn read_index(dataset: &Location, entry: &FileEntry) -> Result<Vec<IndexRow>, DatasetError> {
    read(
        dataset,
        entry,
        |_| true,
        |batch, rows| {
            let (paths, views) = (text(batch, "path")?, fixed(batch, "view_hash")?);
            let located = located(batch)?;
            rows.extend(located.into_iter().enumerate().map(|(row, found)| IndexRow {
                id: found.id,
                label: found.label,
                path: paths.value(row).to_owned(),
                place: found.place,
                image: found.image,
                view: views.is_valid(row).then(|| ViewHash::from_bytes(views.value(row))),
            }));
            Some(())
        },
    )
}

/// Reads the source paths of some instances from the indexes of the split's parts.
///
/// # Errors
/// If an index is missing or damaged, or the store fails.
pub fn read_paths(
    dataset: &Location,
    split: &Split,
    wanted: &BTreeSet<InstanceId>,
) -> Result<BTreeMap<InstanceId, String>, DatasetError> {
    let mut paths = BTreeMap::new();
    for part in &split.ingest {
        let is_needed = |column: &str| ["instance_id", "path"].contains(&column);
        let found = read(dataset, &part.index, is_needed, |batch, rows| {
            let ids = batch.column_by_name("instance_id")?.as_primitive::<Int64Type>();
            let paths = text(batch, "path")?;
            for (&id, path) in ids.values().iter().zip(paths) {
                let id = InstanceId::from_stored(id)?;
                if wanted.contains(&id) {
                    rows.push((id, path?.to_owned()));
                }
            }
            Some(())
        })?;
        paths.extend(found);
    }
    Ok(paths)
}

impl Split {
    /// Reads the indexes of the split's parts, one after the other; the result is ordered by id.
    ///
    /// # Errors
    /// If an index is missing or damaged, or has other instances than the manifest records.
    pub fn read_places(&self, dataset: &Location) -> Result<Vec<Located>, DatasetError> {
        // The manifest's count is compared with the rows of the files, and reserves no memory before.
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

    /// Makes the error of an index whose entry of an instance differs from its shard.
    pub(super) fn wrong_index(&self, dataset: &Location, id: InstanceId) -> DatasetError {
        let mut ends = self.ingest.iter().scan(0, |end, part| {
            *end += part.instances;
            Some((*end, &part.index.path))
        });
        let path = ends.find(|(end, _)| u64::from(id.0) < *end).map_or("index", |(_, path)| path.as_str());
        let reason = format!("invalid entry for instance {id}");
        DatasetError::Damaged { shard: dataset.join(path).to_string(), reason }
    }
}

/// Reads the columns of an index that a loader needs, and checks the file against the manifest's digest.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
fn read_places(dataset: &Location, entry: &FileEntry) -> Result<Vec<Located>, DatasetError> {
    let is_needed = |column: &str| !["path", "view_hash"].contains(&column);
    read(dataset, entry, is_needed, |batch, rows| {
        rows.extend(located(batch)?);
        Some(())
    })
}

/// Reads the needed columns of an index; `append` adds the rows of a batch to the result.
fn read<T>(
    dataset: &Location,
    entry: &FileEntry,
    is_needed: impl Fn(&str) -> bool,
    append: impl Fn(&RecordBatch, &mut Vec<T>) -> Option<()>,
) -> Result<Vec<T>, DatasetError> {
    let location = dataset.join(&entry.path);
    let schemas = [schema(), schema_without_entry_points()];
    let described = ArrowSchemaConverter::new().convert(&schemas[0]).expect("an index's columns have types");
    let columns = schemas[0].fields().iter().map(|field| field.name().as_str());
    let mask = ProjectionMask::columns(&described, columns.filter(|column| is_needed(column)));
    read_table(read_whole(&location, entry.digest)?, &location, &schemas, mask, append)
}

/// Parses the positions of a batch's instances; `None` if a value is out of range.
fn located(batch: &RecordBatch) -> Option<Vec<Located>> {
    let long = |name| Some(batch.column_by_name(name)?.as_primitive::<Int64Type>().values());
    let short = |name| Some(batch.column_by_name(name)?.as_primitive::<Int32Type>().values());
    let (ids, labels, offsets) = (long("instance_id")?, long("label")?, long("offset")?);
    let (shards, places, sizes) = (short("shard")?, short("row")?, short("bytes")?);
    let (widths, heights, digests) = (short("width")?, short("height")?, fixed(batch, "digest")?);
    // Older indexes have neither.
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

fn text<'a>(batch: &'a RecordBatch, name: &str) -> Option<&'a StringArray> {
    Some(batch.column_by_name(name)?.as_string::<i32>())
}

fn fixed<'a>(batch: &'a RecordBatch, name: &str) -> Option<&'a FixedSizeBinaryArray> {
    Some(batch.column_by_name(name)?.as_fixed_size_binary())
}

/// Name of the file of duplicates within the dataset's folder.
pub const DUPLICATES_FILE: &str = "duplicates.parquet";

/// An image of a group of duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateRow {
    /// Number of the group, from 0.
    pub group: u64,
    /// Split of the image.
    pub split: String,
    /// Instance id within the split.
    pub id: InstanceId,
    /// Path in the source.
    pub path: String,
    /// Whether the image's bytes are those of the group's first image.
    pub identical: bool,
    /// Hamming distance of the view hash to that of the group's first image; `None` if either has no hash.
    pub distance: Option<u32>,
}

/// Returns the columns of the file of duplicates.
pub(super) fn duplicates_schema() -> Schema {
    Schema::new(vec![
        Field::new("group", DataType::Int64, false),
        Field::new("split", DataType::Utf8, false),
        Field::new("instance_id", DataType::Int64, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("identical", DataType::Boolean, false),
        Field::new("distance", DataType::Int32, true),
    ])
}

/// Writes the file of duplicates, replacing an existing one.
///
/// # Errors
/// If the store fails.
pub fn write_duplicates(dataset: &Location, rows: &[DuplicateRow]) -> Result<FileEntry, DatasetError> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.group as i64))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.split))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id.to_stored()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.path))),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.identical)))),
        Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.distance.map(|bits| bits as i32)))),
    ];
    let schema = Arc::new(duplicates_schema());
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are the schema's");
    write_table(&dataset.join(DUPLICATES_FILE), schema, std::iter::once(batch), DUPLICATES_FILE)
}

/// Reads the file of duplicates.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
pub fn read_duplicates(dataset: &Location) -> Result<Vec<DuplicateRow>, DatasetError> {
    let location = dataset.join(DUPLICATES_FILE);
    let bytes = match location.read() {
        Err(error) if error.is_not_found() => {
            let needed = "and ingest wrote it: copy it from where the dataset came from, or ingest into another folder";
            return Err(DatasetError::Missing { file: location.to_string(), needed });
        }
        other => other?,
    };
    read_table(bytes, &location, &[duplicates_schema()], ProjectionMask::all(), append_duplicates)
}

fn append_duplicates(batch: &RecordBatch, rows: &mut Vec<DuplicateRow>) -> Option<()> {
    let int64 = |at: usize| batch.column(at).as_primitive::<Int64Type>();
    let text = |at: usize| batch.column(at).as_string::<i32>();
    let distances = batch.column(5).as_primitive::<Int32Type>();
    for row in 0..batch.num_rows() {
        let distance = distances.is_valid(row).then(|| u32::try_from(distances.value(row)));
        rows.push(DuplicateRow {
            group: u64::try_from(int64(0).value(row)).ok()?,
            split: text(1).value(row).to_owned(),
            id: InstanceId::from_stored(int64(2).value(row))?,
            path: text(3).value(row).to_owned(),
            identical: batch.column(4).as_boolean().value(row),
            distance: distance.transpose().ok()?,
        });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_as_it_was_written_and_damage_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let dataset = Location::from_path(dir.path()).expect("a location");
        let row = |id: u32| IndexRow {
            id: InstanceId(id),
            label: (id > 0).then_some(ClassId(id as u16)),
            path: format!("class/{id}.jpg"),
            place: Place {
                shard: id / 2,
                row: id % 2,
                offset: 1 << 40,
                bytes: id,
                width: 3,
                height: 4,
                entry_points_offset: u64::from(id) << 33,
                entry_points_bytes: id,
            },
            image: Digest::of(&[id as u8]),
            view: (id != 1).then_some(ViewHash([u64::from(id), 1, 2, u64::MAX])),
        };
        let rows: Vec<IndexRow> = (0..5).map(row).collect();
        let entry = write_index(&dataset, "index/train.parquet", &rows).expect("written");
        assert_eq!(read_index(&dataset, &entry).expect("read"), rows);
        let located =
            |row: &IndexRow| Located { id: row.id, label: row.label, place: row.place, image: row.image };
        let expected: Vec<Located> = rows.iter().map(located).collect();
        assert_eq!(read_places(&dataset, &entry).expect("read"), expected);
        let other = FileEntry { digest: Digest::of(b"other"), ..entry };
        let error = read_index(&dataset, &other).expect_err("another digest");
        assert!(error.to_string().contains("index/train.parquet: damaged"), "{error}");
    }

    #[test]
    fn a_distance_counts_differing_bits() {
        let hash = ViewHash([0, u64::MAX, 5, 6]);
        assert_eq!(hash.distance(&hash), 0);
        assert_eq!(hash.distance(&ViewHash([3, u64::MAX, 5, 7])), 3);
    }

    #[test]
    fn duplicates_come_back_as_they_were_written_and_a_missing_file_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let dataset = Location::from_path(dir.path()).expect("a location");
        let error = read_duplicates(&dataset).expect_err("nothing there");
        assert!(error.to_string().contains(DUPLICATES_FILE), "{error}");
        let row = |id: u32, split: &str| DuplicateRow {
            group: u64::from(id / 2),
            split: split.into(),
            id: InstanceId(id),
            path: format!("a/{id}.jpg"),
            identical: id.is_multiple_of(2),
            distance: (id > 1).then_some(id),
        };
        let rows = [row(0, "train"), row(1, "val"), row(2, "train"), row(3, "train")];
        write_duplicates(&dataset, &rows).expect("written");
        assert_eq!(read_duplicates(&dataset).expect("read"), rows);
    }
}
