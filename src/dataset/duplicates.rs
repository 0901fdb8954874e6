//! `duplicates.parquet`: groups of images that are the same.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema};
use parquet::arrow::ProjectionMask;

use super::table::{read_table, write_table};
use super::{DatasetError, FileEntry};
use crate::ids::InstanceId;
use crate::storage::Location;

/// The file's name within the dataset's folder.
pub const DUPLICATES_FILE: &str = "duplicates.parquet";

/// An image of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateRow {
    /// The group's number, from 0.
    pub group: u64,
    /// The image's split.
    pub split: String,
    /// Its number in the split.
    pub id: InstanceId,
    /// Where it came from.
    pub path: String,
    /// Whether its bytes are those of the group's first image.
    pub identical: bool,
    /// The bits in which its view hash differs from that of the group's first image; none where it has no hash.
    pub distance: Option<u32>,
}

/// The columns.
pub(super) fn schema() -> Schema {
    Schema::new(vec![
        Field::new("group", DataType::Int64, false),
        Field::new("split", DataType::Utf8, false),
        Field::new("instance_id", DataType::Int64, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("identical", DataType::Boolean, false),
        Field::new("distance", DataType::Int32, true),
    ])
}

/// Writes the file, in the place of one that is there.
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
    let schema = Arc::new(schema());
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are the schema's");
    write_table(&dataset.join(DUPLICATES_FILE), schema, std::iter::once(batch), DUPLICATES_FILE)
}

/// Reads the file.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
pub fn read_duplicates(dataset: &Location) -> Result<Vec<DuplicateRow>, DatasetError> {
    let location = dataset.join(DUPLICATES_FILE);
    let bytes = match location.read() {
        Err(error) if error.is_not_found() => {
            let reason = "it is missing; ingest looks for duplicates and writes it".into();
            return Err(DatasetError::Damaged { shard: location.to_string(), reason });
        }
        other => other?,
    };
    read_table(bytes, &location, &[schema()], ProjectionMask::all(), append)
}

fn append(batch: &RecordBatch, rows: &mut Vec<DuplicateRow>) -> Option<()> {
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
