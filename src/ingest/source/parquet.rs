//! Hugging Face image datasets: an `image` struct of `bytes` and `path`, and perhaps a `label`.
//!
//! Rows come out of compressed row groups in order only, so the pictures are copied once into a file without a
//! name, from which they are read in any order.

use std::io::{Seek, SeekFrom};

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::{DataType, Int64Type, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::archive::{Extent, SourceFile, Spool, SpoolWriter, Window};
use super::collect::{Collector, Label, Place};
use super::names::{file_name, split_of_shard};
use super::wrong;
use crate::ingest::IngestError;
use crate::storage::Location;

/// Rows that are in memory at once.
const ROWS: usize = 64;
/// Names of the column of pictures.
const IMAGE_NAMES: [&str; 3] = ["image", "img", "picture"];
/// Names of the column of labels.
const LABEL_NAMES: [&str; 4] = ["label", "fine_label", "labels", "target"];

/// Adds the pictures of the files, each file's split by its name.
pub(super) fn collect(collector: &mut Collector<'_>, files: &[Location]) -> Result<(), IngestError> {
    let named = files.iter().all(|file| split_of_shard(file.file_name()).is_some());
    let default = collector.default_split();
    let mut spool = Spool::new().writer();
    // The spool is the next part of the store: its number is known before it is complete.
    let mut rows = Vec::new();
    for file in files {
        let split = split_of_shard(file.file_name()).filter(|_| named).unwrap_or(&default).to_owned();
        if collector.wants(&split) {
            read_file(collector, file, &split, &mut spool, &mut rows)?;
        }
    }
    let container = collector.containers.add_file(spool.finish("the copy of the images"));
    for Picture { split, path, label, offset, bytes } in rows {
        let label = match &label {
            Stored::None => Label::None,
            Stored::Number(number) => Label::Number(*number),
            Stored::Name(name) => Label::Name(name),
        };
        collector.add(&split, &path, label, Place { container, extent: Extent::Range { offset }, bytes })?;
    }
    Ok(())
}

/// A row, its picture in the spool.
struct Picture {
    split: String,
    path: String,
    label: Stored,
    offset: u64,
    bytes: u64,
}

enum Stored {
    None,
    Number(u64),
    Name(String),
}

fn read_file(
    collector: &mut Collector<'_>,
    file: &Location,
    split: &str,
    spool: &mut SpoolWriter,
    rows: &mut Vec<Picture>,
) -> Result<(), IngestError> {
    let bad = |error: ParquetError| wrong(file, error.to_string());
    let builder = ParquetRecordBatchReaderBuilder::try_new(Chunks::open(file)?).map_err(bad)?;
    let schema = builder.schema().clone();
    let find = |names: &[&str]| names.iter().find_map(|name| schema.index_of(name).ok());
    let image = find(&IMAGE_NAMES).ok_or_else(|| wrong(file, "it has no column \"image\""))?;
    let is_image = match schema.field(image).data_type() {
        DataType::Struct(fields) => {
            fields.find("bytes").is_some_and(|(_, field)| is_binary(field.data_type()))
        }
        other => is_binary(other),
    };
    if !is_image {
        let kind = schema.field(image).data_type();
        let reason = format!("its column \"image\" is {kind}, not a struct of bytes and path");
        return Err(wrong(file, reason));
    }
    let label = find(&LABEL_NAMES);
    let key_values = builder.metadata().file_metadata().key_value_metadata();
    let entry = key_values.and_then(|entries| entries.iter().find(|entry| entry.key == "huggingface"));
    let text =
        entry.and_then(|entry| entry.value.clone()).or_else(|| schema.metadata().get("huggingface").cloned());
    if let (Some(text), Some(label)) = (text, label)
        && let Some(names) = class_names(&text, schema.field(label).name())
    {
        collector.give_names(names);
    }
    let roots = [Some(image), label].into_iter().flatten();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_batch_size(ROWS).build().map_err(bad)?;
    let columns = Columns::of(&schema, image, label);
    let mut row = 0_u64;
    for batch in reader {
        let batch = batch.map_err(|error| wrong(file, error.to_string()))?;
        let (bytes, paths) =
            images(batch.column_by_name(&columns.image).ok_or_else(|| wrong(file, "a column is missing"))?);
        let labels = columns.label.as_ref().and_then(|name| batch.column_by_name(name));
        let labels = labels.map(|column| labels_of(file, column)).transpose()?;
        for at in 0..batch.num_rows() {
            let picture = value(&bytes, at).unwrap_or_default();
            let label = labels.as_ref().map_or(Stored::None, |labels| labels(at));
            let stem = file.file_name().trim_end_matches(".parquet");
            let name = paths.as_ref().and_then(|paths| text_at(paths, at));
            let name = name.map_or_else(|| format!("{stem}-{row:08}"), |path| file_name(&path).to_owned());
            let path = match &label {
                Stored::None => name,
                Stored::Number(class) => format!("{class}/{name}"),
                Stored::Name(class) => format!("{class}/{name}"),
            };
            let offset = spool.push(picture)?;
            rows.push(Picture { split: split.to_owned(), path, label, offset, bytes: picture.len() as u64 });
            row += 1;
        }
    }
    Ok(())
}

struct Columns {
    image: String,
    label: Option<String>,
}

impl Columns {
    fn of(schema: &Schema, image: usize, label: Option<usize>) -> Self {
        let name = |at: usize| schema.field(at).name().clone();
        Self { image: name(image), label: label.map(name) }
    }
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// The bytes and, where there are any, the paths of a column of pictures.
fn images(column: &ArrayRef) -> (ArrayRef, Option<ArrayRef>) {
    match column.as_any().downcast_ref::<StructArray>() {
        Some(parts) => {
            let bytes = parts.column_by_name("bytes").expect("the schema was checked");
            (bytes.clone(), parts.column_by_name("path").cloned())
        }
        None => (column.clone(), None),
    }
}

/// A picture's bytes; a row without them is an empty picture, which the check refuses with its reason.
fn value(column: &ArrayRef, at: usize) -> Option<&[u8]> {
    if column.is_null(at) {
        return None;
    }
    match column.data_type() {
        DataType::Binary => Some(column.as_binary::<i32>().value(at)),
        DataType::LargeBinary => Some(column.as_binary::<i64>().value(at)),
        DataType::BinaryView => Some(column.as_binary_view().value(at)),
        _ => None,
    }
}

fn text_at(column: &ArrayRef, at: usize) -> Option<String> {
    if column.is_null(at) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(at).to_owned()),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(at).to_owned()),
        DataType::Utf8View => Some(column.as_string_view().value(at).to_owned()),
        _ => None,
    }
}

/// The labels of a batch; −1 and null are none.
fn labels_of(file: &Location, column: &ArrayRef) -> Result<Box<dyn Fn(usize) -> Stored>, IngestError> {
    let kind = column.data_type().clone();
    if matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
        let column = column.clone();
        return Ok(Box::new(move |at| text_at(&column, at).map_or(Stored::None, Stored::Name)));
    }
    if !kind.is_integer() {
        return Err(wrong(file, format!("its column \"label\" is {kind}, neither a number nor a name")));
    }
    let numbers = arrow_cast(column, file)?;
    Ok(Box::new(move |at| {
        let numbers = numbers.as_primitive::<Int64Type>();
        let known = numbers.is_valid(at).then(|| u64::try_from(numbers.value(at)).ok()).flatten();
        known.map_or(Stored::None, Stored::Number)
    }))
}

fn arrow_cast(column: &ArrayRef, file: &Location) -> Result<ArrayRef, IngestError> {
    arrow::compute::cast(column, &DataType::Int64).map_err(|error| wrong(file, error.to_string()))
}

/// The class names of a column, from Hugging Face's entry.
fn class_names(text: &str, column: &str) -> Option<Vec<String>> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = value.get("info")?.get("features")?.get(column)?.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// A file, wherever it lies, as Parquet's reader wants it.
struct Chunks {
    file: SourceFile,
}

impl Chunks {
    fn open(location: &Location) -> Result<Self, IngestError> {
        Ok(Self { file: SourceFile::open(location)? })
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.file.len()
    }
}

impl ChunkReader for Chunks {
    type T = std::io::BufReader<Window>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let window = Window::new(&self.file).map_err(|error| ParquetError::External(Box::new(error)))?;
        let mut reader = std::io::BufReader::new(window.sequential());
        reader.seek(SeekFrom::Start(start))?;
        Ok(reader)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let end = start.checked_add(length as u64).filter(|&end| end <= self.file.len());
        let end = end.ok_or_else(|| ParquetError::EOF("a column lies outside of the file".into()))?;
        self.file
            .read(&Extent::Range { offset: start }, end - start)
            .map_err(|error| ParquetError::External(Box::new(error)))
    }
}
