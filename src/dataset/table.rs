//! Small Parquet tables beside the shards: how all of them are written and read.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::{DatasetError, FileEntry};
use crate::storage::{Location, Upload};

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
/// If they are not of a table with these columns.
pub(super) fn read_table<T>(
    bytes: Bytes,
    location: &Location,
    schema: &Schema,
    mask: ProjectionMask,
    append: impl Fn(&RecordBatch, &mut Vec<T>) -> Option<()>,
) -> Result<Vec<T>, DatasetError> {
    let damaged = |reason: String| DatasetError::Damaged { shard: location.to_string(), reason };
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(|builder| {
            if builder.schema().fields() != schema.fields() {
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
