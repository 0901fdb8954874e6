//! A file that names some labelled instances of a split.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};

use super::table::write_table;
use super::{DatasetError, FileEntry};
use crate::ids::{ClassId, InstanceId};
use crate::storage::Location;

/// Publishes Parquet with columns `instance_id` and `label`.
///
/// # Errors
/// If the store fails.
///
/// # Panics
/// If there is not a label, or none, for each id.
pub fn write_label_subset(
    folder: &Location,
    name: &str,
    ids: &[InstanceId],
    labels: &[Option<ClassId>],
) -> Result<FileEntry, DatasetError> {
    let fields = ["instance_id", "label"].map(|name| Field::new(name, DataType::Int64, false));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| id.to_stored()))),
        Arc::new(Int64Array::from_iter_values(labels.iter().map(|&label| ClassId::to_stored(label)))),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("a label or none for each id");
    write_table(&folder.join(name), schema, std::iter::once(batch), name)
}
