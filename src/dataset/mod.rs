//! Datasets: shards of encoded images as Parquet, and the manifest that makes them one.
//!
//! A folder is a dataset when it has a `manifest.json`, which is written last and names every shard with
//! its size and blake3 digest. Readers fetch one row group at a time by a single ranged read. The format is
//! described in docs/formats.md. The module knows neither image codecs nor tensors.
//!
//! Invariants of a published split: it holds exactly the ids `0..instances`; ids follow the order of a
//! sorted ImageFolder (what was appended later comes after, in its own order); nothing that a manifest names is ever changed.

mod duplicates;
mod entry_points;
mod index;
mod manifest;
mod reader;
mod summary;
mod table;
mod writer;

use arrow::datatypes::{DataType, Field, Fields, Schema};
use bytes::Bytes;
use parquet::errors::ParquetError;

pub use duplicates::{DUPLICATES_FILE, DuplicateRow, read_duplicates, write_duplicates};
pub use entry_points::unsealed;
pub use index::{IndexRow, Located, Place, ViewHash, read_index, read_paths, write_index};
pub use manifest::{
    ContentDigest, DuplicateCounts, EVALUATION_SPLITS, EXIF_ORIENTATION, FileEntry, FooterEntry,
    IngestRecord, Manifest, PartReport, ShardEntry, Split,
};
pub use reader::ShardReader;
pub use summary::{DatasetSummary, SplitSummary, summarise, verify};
pub use table::write_label_subset;
pub use writer::{ShardWriter, WriterOptions, WrittenShard};

use crate::failure::Failure;
use crate::ids::{ClassId, InstanceId};
use crate::storage::StorageError;

/// The leaf columns of the encoded images in a shard, and of their entry points.
const IMAGE_BYTES: usize = 1;
const ENTRY_POINTS: usize = 6;

/// Bytes of the length before each value of these columns, in a plain page.
const LENGTH_BYTES: usize = 4;

/// One image with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number in the split.
    pub id: InstanceId,
    /// Its class, where it has one.
    pub label: Option<ClassId>,
    /// The encoded image as it came.
    pub bytes: Bytes,
    /// Where it came from: `<class>/<file>`.
    pub path: String,
    /// Columns of pixels.
    pub width: u32,
    /// Rows of pixels.
    pub height: u32,
    /// Where decoding can start within a JPEG, if that is known (`image::entry_points`).
    pub entry_points: Option<Bytes>,
}

impl Row {
    /// The number of pixels.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// The columns of a shard. Of entry points alone a value may be null; all are declared as nullable because Hugging Face `datasets` takes its
/// features from the metadata only where the declared type is its own, which is.
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

/// The columns of a shard from before there were entry points.
fn schema_without_entry_points() -> Schema {
    let fields = schema().fields;
    Schema::new(fields[..fields.len() - 1].to_vec())
}

/// A dataset cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder has no manifest.
    #[error("{dataset}: no dataset is there (it has no manifest.json); `instdisc ingest` makes one")]
    NotThere {
        /// The folder.
        dataset: String,
    },
    /// The manifest does not say what it should.
    #[error("{file}: its contents are not understood: {reason}")]
    Manifest {
        /// The manifest.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The dataset has no such split.
    #[error("{dataset}: there is no split `{split}`; there are {}", quoted(known))]
    NoSplit {
        /// The folder.
        dataset: String,
        /// The split asked for.
        split: String,
        /// The splits that it has.
        known: Vec<String>,
    },
    /// No split is there to evaluate on.
    #[error(
        "{dataset}: there is no split to evaluate on ({}), there are {}; `knn --split {} --leave-one-out` \
         compares the images of a split with each other, and `ingest --hold-out test=10%` sets a share of them apart",
        EVALUATION_SPLITS.join(", "), quoted(known), known.first().map_or("NAME", String::as_str)
    )]
    NoEvaluationSplit {
        /// The folder.
        dataset: String,
        /// The splits that it has.
        known: Vec<String>,
    },
    /// A shard's file is missing, or of another size or digest than the manifest says.
    #[error("{shard}: damaged: {reason}")]
    Damaged {
        /// The shard.
        shard: String,
        /// What differs.
        reason: String,
    },
    /// A row group cannot be read.
    #[error("{shard} row group {row_group}: {reason}")]
    RowGroup {
        /// The shard.
        shard: String,
        /// The row group, from 0.
        row_group: usize,
        /// What is wrong.
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
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Storage(error) => error.failure(),
            Self::Write { source, .. } => failure_of_write(source),
            Self::NoSplit { .. } | Self::NoEvaluationSplit { .. } => Failure::Config,
            _ => Failure::Data,
        }
    }
}

/// The store's kind of failure, where an upload failed below the Parquet writer.
fn failure_of_write(error: &ParquetError) -> Failure {
    let ParquetError::External(cause) = error else { return Failure::Io };
    let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    io.and_then(|cause| cause.downcast_ref::<StorageError>()).map_or(Failure::Io, StorageError::failure)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
