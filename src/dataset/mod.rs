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
mod error;
mod index;
mod manifest;
mod reader;
mod summary;
mod table;
mod writer;

pub use duplicates::{DUPLICATES_FILE, DuplicateRow, read_duplicates, write_duplicates};
pub use entry_points::unsealed;
pub use error::DatasetError;
pub use index::{IndexRow, Located, Place, ViewHash, read_index, read_paths, write_index};
pub use manifest::{
    ContentDigest, DuplicateCounts, EVALUATION_SPLITS, EXIF_ORIENTATION, FileEntry, FooterEntry,
    IngestRecord, Manifest, PartReport, ShardEntry, Split,
};
pub use reader::ShardReader;
pub use summary::{DatasetSummary, SplitSummary, summarise, verify};
pub use table::write_label_subset;
pub use writer::{ShardWriter, WriterOptions, WrittenShard};

use arrow::datatypes::{DataType, Field, Fields, Schema};
use bytes::Bytes;

use crate::ids::{ClassId, InstanceId};

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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
