//! `duplicates.parquet`: groups of pictures that are the same.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};

use super::index::write_table;
use super::{DatasetError, FileEntry};
use crate::ids::InstanceId;
use crate::storage::Location;

/// The file's name within the dataset's folder.
pub const DUPLICATES_FILE: &str = "duplicates.parquet";

/// A picture of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateRow {
    /// The group's number, from 0.
    pub group: u64,
    /// The picture's split.
    pub split: String,
    /// Its number in the split.
    pub id: InstanceId,
    /// Where it came from.
    pub path: String,
    /// Whether its bytes are those of the group's first picture.
    pub identical: bool,
    /// The bits in which its view hash differs from that of the group's first picture; none where it has no hash.
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
