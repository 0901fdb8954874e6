//! Parquet tables: shards of a dataset, other tables of this program, and those of other programs.
//!
//! The columns identify the table. Unless everything is checked, only the footer and the columns of ids and
//! labels are read, but no images.

use std::io::Cursor;
use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};
use serde_json::{Value, json};

use super::{FIRST_CLASSES, WITHOUT_DIGEST, own_name};
use crate::commands::CommandError;
use crate::dataset::{DatasetError, Manifest, ShardEntry, ShardReader, read_footer, read_index};
use crate::feature_table::FeatureTable;
use crate::guard::guard;
use crate::storage::{Location, read_concurrently};

/// Columns of each kind of table. A feature table has `instance_id` and `feature`; its other columns vary.
const KINDS: [(&str, &str); 5] = [
    ("shard", "instance_id image label width height"),
    ("index", "instance_id label path shard row offset bytes width height digest view_hash"),
    ("duplicates", "group split instance_id path identical distance"),
    ("label_subset", "instance_id label"),
    ("neighbours", "query_id neighbour_ids similarities"),
];
/// Further columns of shards and indexes, except those from before entry points existed.
const ENTRY_POINTS: [&str; 3] = ["entry_points", "entry_points_offset", "entry_points_bytes"];
/// Leaf column of the encoded images.
const IMAGE_BYTES: &str = "image.bytes";
/// Name of the writer of a dataset's tables, before the format's version.
const DATASET_WRITER: &str = "instdisc dataset ";
/// Number of rows, as in the index of a large dataset, above which ids and labels are not read.
const MOST_ROWS_READ: u64 = 4_000_000;
/// Rows decoded at a time.
const BATCH_ROWS: usize = 256;
/// Maximum number of folders between a dataset and a file of its manifest: `index/0001/train.parquet`.
const MOST_FOLDERS: usize = 3;

/// Summarises a Parquet file.
///
/// # Errors
/// If the file is damaged, or the store fails.
pub(super) fn inspect(location: &Location, check: bool) -> Result<Value, CommandError> {
    let table = Table::open(location)?;
    let columns = table.columns();
    let known: Vec<&str> = columns.iter().copied().filter(|name| !ENTRY_POINTS.contains(name)).collect();
    let kind =
        KINDS.iter().find(|(_, names)| names.split(' ').eq(known.iter().copied())).map(|(kind, _)| *kind);
    let Some(kind) = kind else {
        if ["instance_id", "feature"].iter().all(|name| columns.contains(name)) {
            // Reading a table checks all of it.
            let mut summary = serde_json::to_value(FeatureTable::read(location)?.summary())?;
            summary["columns"] = json!(columns);
            return Ok(summary);
        }
        // Table of another program, such as `knn --bank` accepts: summarise the footer.
        let mut summary = table.summary("parquet")?;
        let types = table.metadata.schema().fields().iter();
        summary["types"] = types.map(|field| field.data_type().to_string()).collect();
        if check {
            table.check("parquet", &mut summary)?;
        }
        return Ok(summary);
    };
    let mut summary = table.summary(kind)?;
    let is_small = summary["rows"].as_u64() <= Some(MOST_ROWS_READ);
    if is_small && columns.contains(&"instance_id") && columns.contains(&"label") {
        let (ids, labels) = table.ids_and_labels()?;
        summary["instance_ids"] = json!({
            "first": ids.first(),
            "last": ids.last(),
            "smallest": ids.iter().min(),
            "largest": ids.iter().max(),
        });
        summary["labelled"] = json!(labels.iter().filter(|label| **label >= 0).count());
    }
    if check {
        table.check(kind, &mut summary)?;
    }
    Ok(summary)
}

/// Parquet file that was opened by its footer.
struct Table<'a> {
    location: &'a Location,
    bytes: u64,
    metadata: ArrowReaderMetadata,
}

impl<'a> Table<'a> {
    fn open(location: &'a Location) -> Result<Self, DatasetError> {
        let bytes = location.size()?;
        Ok(Self { location, bytes, metadata: read_footer(location, bytes, None)? })
    }

    fn columns(&self) -> Vec<&str> {
        self.metadata.schema().fields().iter().map(|field| field.name().as_str()).collect()
    }

    /// Summarises the footer.
    fn summary(&self, kind: &str) -> Result<Value, DatasetError> {
        let metadata = self.metadata.metadata();
        let file = metadata.file_metadata();
        let rows = u64::try_from(file.num_rows());
        let rows =
            rows.map_err(|_| damaged(self.location, "its footer: a negative number of rows".into()))?;
        let mut summary = json!({
            "kind": kind,
            "rows": rows,
            "row_groups": metadata.num_row_groups(),
            "bytes": self.bytes,
            "columns": self.columns(),
            "created_by": file.created_by(),
        });
        let version =
            file.created_by().and_then(|name| name.strip_prefix(DATASET_WRITER)?.parse::<u32>().ok());
        if let Some(version) = version {
            summary["format_version"] = json!(version);
        }
        if let Some(classes) = class_names(metadata) {
            summary["classes"] = json!(classes.len());
            summary["first_classes"] = json!(&classes[..classes.len().min(FIRST_CLASSES)]);
        }
        if kind == "shard" {
            let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
            let images = columns.filter(|column| column.column_path().string() == IMAGE_BYTES);
            let sizes = images.map(|column| u64::try_from(column.compressed_size()).unwrap_or(0));
            summary["image_column_bytes"] = json!(sizes.fold(0, u64::saturating_add));
        }
        Ok(summary)
    }

    /// Returns the ids and labels of all rows, reading only these two columns.
    fn ids_and_labels(&self) -> Result<(Vec<i64>, Vec<i64>), DatasetError> {
        let mask = ProjectionMask::columns(self.metadata.parquet_schema(), ["instance_id", "label"]);
        let ranges = guard(|| self.ranges(&mask)).map_err(|reason| damaged(self.location, reason))?;
        if ranges.iter().any(|range| range.end > self.bytes) {
            return Err(damaged(self.location, "a column ends after the file".into()));
        }
        let wanted = ranges.iter().map(|range| (self.location.clone(), Some(range.clone()))).collect();
        let read = ranges.iter().zip(read_concurrently(wanted));
        let parts =
            read.map(|(range, bytes)| Ok((range.start, bytes?))).collect::<Result<_, DatasetError>>()?;
        let (mut ids, mut labels): (Vec<i64>, Vec<i64>) = (Vec::new(), Vec::new());
        self.decode(Parts { bytes: self.bytes, parts }, mask, |batch| {
            ids.extend(numbers(batch, "instance_id")?);
            labels.extend(numbers(batch, "label")?);
            Some(())
        })?;
        Ok((ids, labels))
    }

    /// Returns the byte ranges of some columns, one for each column of each row group.
    fn ranges(&self, mask: &ProjectionMask) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for group in self.metadata.metadata().row_groups() {
            for (leaf, column) in group.columns().iter().enumerate() {
                let (start, length) = column.byte_range();
                if mask.leaf_included(leaf) && length > 0 {
                    ranges.push(start..start.saturating_add(length));
                }
            }
        }
        ranges
    }

    /// Calls `each` with every batch of some columns; `each` returns `None` for an invalid value.
    fn decode(
        &self,
        file: impl ChunkReader + 'static,
        mask: ProjectionMask,
        mut each: impl FnMut(&RecordBatch) -> Option<()>,
    ) -> Result<(), DatasetError> {
        let decoded = guard(|| -> Result<(), String> {
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                .with_projection(mask)
                .with_batch_size(BATCH_ROWS)
                .build()
                .map_err(|error| error.to_string())?;
            for batch in reader {
                let batch = batch.map_err(|error| error.to_string())?;
                each(&batch).ok_or("a value is missing or of another type")?;
            }
            Ok(())
        });
        let wrong = |reason: String| damaged(self.location, reason);
        decoded.map_err(wrong)?.map_err(wrong)
    }

    /// Reads the whole table and compares it with the digests of its dataset's manifest, if that lists the table.
    fn check(&self, kind: &str, summary: &mut Value) -> Result<(), CommandError> {
        let named = match kind {
            "shard" | "index" => Named::find(self.location)?,
            _ => None,
        };
        if let Some(Named { dataset, manifest, path }) = &named {
            for (name, split) in &manifest.splits {
                let instances = split.instances;
                if let Some(entry) = split.shards.iter().find(|entry| entry.path == *path) {
                    let image_bytes = check_shard(dataset, entry, manifest.classes.len(), instances)?;
                    summary["image_bytes"] = json!(image_bytes);
                } else if let Some(part) = split.ingest.iter().find(|part| part.index.path == *path) {
                    read_index(dataset, &part.index)?;
                } else {
                    continue;
                }
                summary["split"] = json!(name);
                summary["dataset_digest"] = json!(manifest.dataset_digest);
                summary["verified_by"] = json!("the digests of its dataset's manifest");
                return Ok(());
            }
        }
        let mut image_bytes = 0;
        self.decode(self.location.read()?, ProjectionMask::all(), |batch| {
            if kind == "shard" {
                image_bytes += encoded_bytes(batch)?;
            }
            Some(())
        })?;
        if kind == "shard" {
            summary["image_bytes"] = json!(image_bytes);
        }
        summary["verified_by"] = json!(WITHOUT_DIGEST);
        Ok(())
    }
}

/// File of a dataset: the dataset's location, and the path within it.
struct Named {
    dataset: Location,
    manifest: Manifest,
    path: String,
}

impl Named {
    /// Searches for the dataset in the folders above the file.
    fn find(location: &Location) -> Result<Option<Self>, DatasetError> {
        let mut path = own_name(location);
        let mut above = location.folder();
        for _ in 0..MOST_FOLDERS {
            let Some(dataset) = above else { break };
            match Manifest::read(&dataset) {
                Ok(manifest) => return Ok(Some(Self { dataset, manifest, path })),
                // A manifest of another program may have the same name.
                Err(DatasetError::NotThere { .. } | DatasetError::Manifest { .. }) => {}
                Err(error) => return Err(error),
            }
            path = format!("{}/{path}", own_name(&dataset));
            above = dataset.folder();
        }
        Ok(None)
    }
}

/// Reads every row group of a shard and checks it against the manifest; opening the shard checks the footer.
/// Returns the total size of the encoded images.
fn check_shard(
    dataset: &Location,
    entry: &ShardEntry,
    classes: usize,
    instances: u64,
) -> Result<u64, DatasetError> {
    let shard = ShardReader::open(dataset, entry, classes, instances)?;
    let mut image_bytes = 0;
    for row_group in 0..shard.row_groups() {
        let rows = shard.read_row_group(row_group)?;
        image_bytes += rows.iter().map(|row| row.bytes.len() as u64).sum::<u64>();
    }
    // Older manifests have no digest of the footer.
    let is_whole =
        entry.footer.is_some() || shard.location().read_checked(Location::read, entry.digest)?.is_some();
    if is_whole {
        Ok(image_bytes)
    } else {
        Err(damaged(shard.location(), "its digest is not that of the manifest".into()))
    }
}

fn damaged(location: &Location, reason: String) -> DatasetError {
    DatasetError::Damaged { shard: location.to_string(), reason }
}

/// Returns the class names in the metadata of a shard.
fn class_names(metadata: &ParquetMetaData) -> Option<Vec<String>> {
    let entries = metadata.file_metadata().key_value_metadata()?;
    let text = entries.iter().find(|entry| entry.key == "huggingface")?.value.as_deref()?;
    let described: Value = serde_json::from_str(text).ok()?;
    serde_json::from_value(described["info"]["features"]["label"]["names"].clone()).ok()
}

/// Returns the values of a column of integers; `None` if it has another type or is missing.
fn numbers<'a>(batch: &'a RecordBatch, column: &str) -> Option<&'a [i64]> {
    let array = batch.column_by_name(column)?.as_primitive_opt::<Int64Type>()?;
    (array.null_count() == 0).then(|| &array.values()[..])
}

/// Returns the total size of the encoded images.
fn encoded_bytes(batch: &RecordBatch) -> Option<u64> {
    let image = batch.column_by_name("image")?.as_struct_opt()?;
    let encoded = image.column_by_name("bytes")?.as_binary_opt::<i32>()?;
    Some(encoded.iter().flatten().map(|bytes| bytes.len() as u64).sum())
}

/// Parts of a file with their offsets, read as if they were the whole file; reads outside them are errors.
struct Parts {
    bytes: u64,
    parts: Vec<(u64, Bytes)>,
}

impl Parts {
    /// Returns the bytes from an offset to the end of its part.
    fn after(&self, start: u64) -> parquet::errors::Result<Bytes> {
        let part = self.parts.iter().find(|(at, bytes)| (*at..*at + bytes.len() as u64).contains(&start));
        let (at, bytes) = part.ok_or_else(outside)?;
        Ok(bytes.slice((start - at) as usize..))
    }
}

fn outside() -> ParquetError {
    ParquetError::General("a page is not in its column".into())
}

impl Length for Parts {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Parts {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(Cursor::new(self.after(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let rest = self.after(start)?;
        if length > rest.len() {
            return Err(outside());
        }
        Ok(rest.slice(..length))
    }
}
