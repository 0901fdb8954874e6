//! Datasets: shards of encoded images as Parquet, and the manifest that makes them one.
//!
//! A folder is a dataset when it has a `manifest.json`, which is written last and names every shard with
//! its size and blake3 digest. Readers fetch one row group at a time by a single ranged read. The format is
//! described in docs/formats.md. The module knows neither image codecs nor tensors.
//!
//! Invariants of a published split: it holds exactly the ids `0..instances`; ids follow the order of a
//! sorted ImageFolder, then appended images in their own order; files that a manifest names never change.

mod index;
mod manifest;
mod reader;
mod writer;

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

pub use index::{
    DUPLICATES_FILE, DuplicateRow, IndexRow, Located, Place, ViewHash, read_duplicates, read_index,
    read_paths, write_duplicates, write_index,
};
pub use manifest::{
    ContentDigest, DuplicateCounts, EVALUATION_SPLITS, EXIF_ORIENTATION, FileEntry, FooterEntry,
    IngestRecord, Manifest, PartReport, ShardEntry, Split,
};
pub(crate) use reader::read_footer;
pub use reader::{ShardReader, verify};
pub use writer::{ShardWriter, WriterOptions, WrittenShard, unsealed};

use crate::failure::Failure;
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location, StorageError, Upload};

/// Indices of the leaf columns with the encoded images of a shard, and with their entry points.
const IMAGE_BYTES: usize = 1;
const ENTRY_POINTS: usize = 6;

/// Number of bytes of the length before each value of these columns, in a plain page.
const LENGTH_BYTES: usize = 4;

/// An image with its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Instance id within the split.
    pub id: InstanceId,
    /// Class, if the instance has one.
    pub label: Option<ClassId>,
    /// Encoded image, as stored.
    pub bytes: Bytes,
    /// Path in the source: `<class>/<file>`.
    pub path: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Entry points of a JPEG, at which decoding can start, if known (`image::entry_points`).
    pub entry_points: Option<Bytes>,
}

impl Row {
    /// Returns the number of pixels.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// Returns the columns of a shard. Only entry points may be null, but all are declared as nullable: Hugging Face
/// `datasets` takes its features from the metadata only if the declared type is its own.
fn schema() -> Schema {
    let image = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    Schema::new(vec![
        Field::new("instance_id", DataType::Int64, true),
        Field::new("image", DataType::Struct(image), true),
        Field::new("label", DataType::Int64, true),
        Field::new("width", DataType::Int32, true),
        Field::new("height", DataType::Int32, true),
        Field::new("entry_points", DataType::Binary, true),
    ])
}

/// Returns the columns of a shard from a version without entry points.
fn schema_without_entry_points() -> Schema {
    let fields = schema().fields;
    Schema::new(fields[..fields.len() - 1].to_vec())
}

/// Error from using or writing a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder has no manifest.
    #[error("{dataset}: no dataset is there (it has no manifest.json); `instdisc ingest` makes one")]
    NotThere {
        /// The folder.
        dataset: String,
    },
    /// The manifest is invalid.
    #[error("{file}: its contents are not understood: {reason}")]
    Manifest {
        /// The manifest.
        file: String,
        /// Reason why the manifest is invalid.
        reason: String,
    },
    /// The dataset has no such split.
    #[error("{dataset}: it has no split `{split}`; its splits are {}", quoted(known))]
    NoSplit {
        /// The folder.
        dataset: String,
        /// Requested split.
        split: String,
        /// Existing splits.
        known: Vec<String>,
    },
    /// The dataset has no split to evaluate on.
    #[error(
        "{dataset}: it has no split to evaluate on ({}), only {}; `knn --split {} --leave-one-out` \
         compares the images of a split with each other, and `ingest --hold-out test=10%` sets a share of them apart",
        EVALUATION_SPLITS.join(", "), quoted(known), known.first().map_or("NAME", String::as_str)
    )]
    NoEvaluationSplit {
        /// The folder.
        dataset: String,
        /// The splits that it has.
        known: Vec<String>,
    },
    /// A file of the dataset is missing.
    #[error("{file}: missing, {needed}")]
    Missing {
        /// The file.
        file: String,
        /// Reason why the file is needed.
        needed: &'static str,
    },
    /// A file of the dataset is not as the manifest describes it.
    #[error("{shard}: damaged: {reason}")]
    Damaged {
        /// The shard.
        shard: String,
        /// Reason why the file counts as damaged.
        reason: String,
    },
    /// A row group cannot be read.
    #[error("{shard} row group {row_group}: {reason}")]
    RowGroup {
        /// The shard.
        shard: String,
        /// The row group, from 0.
        row_group: usize,
        /// Reason why the row group cannot be read.
        reason: String,
    },
    /// A shard cannot be written.
    #[error("{shard}: cannot be written")]
    Write {
        /// The shard.
        shard: String,
        /// The cause.
        #[source]
        source: ParquetError,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl DatasetError {
    /// Returns the kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Storage(error) => error.failure(),
            Self::Write { source, .. } => failure_of_write(source),
            Self::NoSplit { .. } | Self::NoEvaluationSplit { .. } => Failure::Config,
            _ => Failure::Data,
        }
    }
}

/// Returns the store's kind of failure, if an upload failed below the Parquet writer.
fn failure_of_write(error: &ParquetError) -> Failure {
    let ParquetError::External(cause) = error else { return Failure::Io };
    let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    io.and_then(|cause| cause.downcast_ref::<StorageError>()).map_or(Failure::Io, StorageError::failure)
}

/// Number of rows that are read at a time.
const BATCH_ROWS: usize = 1 << 16;

/// Writes a table, a row group for each batch; `path` is its path within the dataset.
///
/// # Errors
/// If the store fails.
fn write_table(
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

/// Reads the rows of a table's bytes; `append` adds those of a batch, and returns `None` if a value is out of range.
///
/// # Errors
/// If the bytes are not a table with the columns of one of these schemas.
fn read_table<T>(
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

/// Makes the error of a missing file that the manifest names.
fn missing(location: &Location) -> DatasetError {
    DatasetError::Missing { file: location.to_string(), needed: "and the manifest names it" }
}

/// Reads a file and checks it against the manifest's digest. Damaged bytes are read once more.
///
/// # Errors
/// If it is missing or damaged, or the store fails.
fn read_whole(location: &Location, digest: Digest) -> Result<Bytes, DatasetError> {
    let damaged = |reason: &str| DatasetError::Damaged { shard: location.to_string(), reason: reason.into() };
    match location.read_checked(Location::read, digest) {
        Err(error) if error.is_not_found() => Err(missing(location)),
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
pub(crate) mod tests;
