//! Small Parquet tables beside the shards: how all of them are written and read.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::{DatasetError, FileEntry};
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location, Upload};

/// Rows that are read at a time.
const BATCH_ROWS: usize = 1 << 16;

/// Writes a table, a row group for each batch; `path` is its place in the dataset.
///
/// # Errors
/// If the store fails.
pub(super) fn write_table(
    location: &Location,
    schema: Arc<Schema>,
    batches: impl Iterator<Item = RecordBatch>,
    path: &str,
) -> Result<FileEntry, DatasetError> {
    let failed = |source| DatasetError::Write { shard: location.to_string(), source };
    let properties = WriterProperties::builder()
        .set_created_by("instdisc dataset 1".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    let mut writer =
        ArrowWriter::try_new(Upload::start(location)?, schema, Some(properties)).map_err(failed)?;
    for batch in batches {
        writer.write(&batch).and_then(|()| writer.flush()).map_err(failed)?;
    }
    let published = writer.into_inner().map_err(failed)?.finish()?;
    Ok(FileEntry { path: path.to_owned(), bytes: published.bytes, digest: published.digest })
}

/// What `append` makes of the rows of a table's bytes; it says nothing where a value is out of range.
///
/// # Errors
/// If they are not of a table with the columns of one of these schemas.
pub(super) fn read_table<T>(
    bytes: Bytes,
    location: &Location,
    schemas: &[Schema],
    mask: ProjectionMask,
    append: impl Fn(&RecordBatch, &mut Vec<T>) -> Option<()>,
) -> Result<Vec<T>, DatasetError> {
    let damaged = |reason: String| DatasetError::Damaged { shard: location.to_string(), reason };
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(|builder| {
            if !schemas.iter().any(|schema| schema.fields() == builder.schema().fields()) {
                return Err(ParquetError::General("its columns are those of another table".into()));
            }
            builder.with_projection(mask).with_batch_size(BATCH_ROWS).build()
        })
        .map_err(|error| damaged(error.to_string()))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| damaged(error.to_string()))?;
        append(&batch, &mut rows).ok_or_else(|| damaged("a value is out of range".into()))?;
    }
    Ok(rows)
}

/// The contents of a file that the manifest gives a digest of. Bytes that come damaged are read once more.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
pub(super) fn read_whole(location: &Location, digest: Digest) -> Result<Bytes, DatasetError> {
    let damaged = |reason: &str| DatasetError::Damaged { shard: location.to_string(), reason: reason.into() };
    match location.read_checked(Location::read, digest) {
        Err(error) if error.is_not_found() => Err(damaged("it is missing")),
        other => other?.ok_or_else(|| damaged("its digest is not that of the manifest")),
    }
}

/// Publishes a file that names some labelled instances of a split: Parquet with columns `instance_id` and `label`.
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
