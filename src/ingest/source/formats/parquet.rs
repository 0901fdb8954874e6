//! Hugging Face image datasets: an `image` struct of `bytes` and `path`, and possibly a `label`.
//!
//! Rows of compressed row groups can only be read in order. Labels and names are therefore read first, for the plan.
//! The ingest copies the images to this machine, and reads them from the copy in any order.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom};

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use rayon::prelude::*;

use super::super::archive::{Containers, Extent, SourceFile, Spool, Window};
use super::super::names::{examples, file_name, first_of};
use super::super::records::{
    ClassNames, Container, Entry, Evidence, Fault, ImageBytes, Naming, Record, Records,
};

use super::{LABEL_NAMES, SPLIT_NAME, choose_column, unread_split};
use crate::guard::guard;
use crate::image::{Format, format_of};
use crate::ingest::{IngestError, IngestOptions};
use crate::progress::Progress;
use crate::storage::Location;

/// Number of rows that are in memory at once.
const ROWS: usize = 64;
/// Number of rows of labels and names that are in memory at once.
const SMALL_ROWS: usize = 8192;
/// Names of the column of images.
const IMAGE_NAMES: [&str; 6] = ["image", "img", "picture", "jpg", "jpeg", "png"];

/// A table whose images are still to be copied.
#[derive(Debug)]
pub(crate) struct Table {
    location: Location,
    /// File as listed; a change since then is an error.
    file: SourceFile,
    /// Name of the column of images.
    image: String,
}

/// Information of a table on its images, without their bytes.
#[derive(Debug)]
struct TableIndex {
    table: Table,
    names: Texts,
    labels: Option<Texts>,
    splits: Option<Texts>,
    class_names: Option<Vec<String>>,
    label_column: Option<String>,
    /// Whether any row may have bytes, by the table's statistics.
    has_bytes: bool,
    /// Mean size of an image in bytes, by the table's metadata.
    mean_bytes: u64,
    /// Warning of a column that may contain the split.
    unread_split: Option<String>,
}

/// A column of texts; `None` for nulls.
type Texts = Vec<Option<String>>;

/// Adds the images of the tables; [`fetch`] copies their bytes.
pub(crate) fn collect(records: &mut Records<'_>, files: &[Container]) -> Result<Vec<Table>, IngestError> {
    records.naming = Naming::ByLabel;
    let options = records.options;
    let listed: Vec<TableIndex> = files
        .par_iter()
        .map(|file| guarded(&file.location, || list(options, &file.location)))
        .collect::<Result<_, IngestError>>()?;
    let mut tables = Vec::with_capacity(listed.len());
    let mut first_names: Option<(String, Vec<String>)> = None;
    let (mut columns, mut without_labels) = (BTreeMap::<String, String>::new(), Vec::new());
    for (file, listed) in files.iter().zip(listed) {
        if let Some(names) = listed.class_names {
            let (other, first) = first_names.get_or_insert_with(|| (file.name.clone(), names.clone()));
            if *first != names {
                let at = first.iter().zip(&names).position(|(a, b)| a != b);
                let at = at.unwrap_or(first.len().min(names.len()));
                let reason = format!(
                    "its class names differ from those of `{other}`, first at class {at}: ingest tables of one list of \
                     classes together"
                );
                return Err(IngestError::layout(&file.location, reason));
            }
        }
        match &listed.label_column {
            Some(column) => drop(columns.insert(column.clone(), file.name.clone())),
            None => without_labels.push(file.name.clone()),
        }
        listed.unread_split.into_iter().for_each(|warning| records.warn(warning));
        let origin = records.add_origin(&file.name);
        let container = tables.len() as u32;
        let fault = (!listed.has_bytes).then_some(Fault::NoBytes);
        let text_of = |texts: &Option<Texts>, row: usize| texts.as_ref()?[row].clone();
        for (row, name) in listed.names.into_iter().enumerate() {
            let name = name.map(|path| file_name(&path).to_owned()).filter(|name| !name.is_empty());
            let path = name.unwrap_or_else(|| row_name(&file.location, row as u64));
            let label = text_of(&listed.labels, row);
            let evidence = label.map_or(Evidence::Absent, |text| Evidence::Text(records.word(&text)));
            let split = text_of(&listed.splits, row).filter(|split| !split.is_empty());
            let split = split.map(|split| records.word(&split));
            let extent = Extent::Range { offset: row as u64 };
            let place = ImageBytes { container, extent, bytes: listed.mean_bytes };
            records.push_row(Record { split, fault, ..Record::new(origin, path, evidence, place) });
        }
        tables.push(listed.table);
    }
    if columns.len() > 1 && !options.unlabelled {
        let each: Vec<String> =
            columns.iter().map(|(column, file)| format!("`{column}` in `{file}`")).collect();
        let reason = format!(
            "labels are in columns of different names, {}: `--label-column` names one, or ingest one kind of \
             table at a time",
            each.join(", ")
        );
        return Err(records.wrong(reason));
    }
    let none = "no column is called like one (`--label-column` names one)";
    records.note(match columns.keys().next() {
        Some(column) if without_labels.is_empty() => format!("labels: from the column `{column}`"),
        Some(column) => {
            format!("labels: from the column `{column}`; none in {}: {none}", examples(&without_labels))
        }
        None if options.unlabelled => "labels: none, by `--unlabelled`".into(),
        None => format!("labels: none, since {none}"),
    });
    if let Some((origin, names)) = first_names {
        records.class_names = Some(ClassNames { names, origin: format!("the class list of `{origin}`") });
    }
    Ok(tables)
}

/// Returns a name for an unnamed image; [`fetch`] adds the extension, once the image's bytes are known.
fn row_name(table: &Location, row: u64) -> String {
    format!("{}-{row:08}", table.file_name().trim_end_matches(".parquet"))
}

/// Runs Parquet's reader; its panic, as on a damaged file, becomes an error of the file.
fn guarded<T>(location: &Location, work: impl FnOnce() -> Result<T, IngestError>) -> Result<T, IngestError> {
    guard(work).unwrap_or_else(|message| {
        Err(IngestError::layout(location, format!("damaged: its reader failed: {message}")))
    })
}

/// Converts an error of the reader or of a column to one of the file.
fn unreadable<E: std::fmt::Display>(location: &Location) -> impl Fn(E) -> IngestError {
    move |error| IngestError::layout(location, error.to_string())
}

fn open(
    location: &Location,
    file: SourceFile,
) -> Result<ParquetRecordBatchReaderBuilder<Chunks>, IngestError> {
    let chunks = Chunks { file, location: location.clone() };
    ParquetRecordBatchReaderBuilder::try_new(chunks).map_err(unreadable(location))
}

fn list(options: &IngestOptions, location: &Location) -> Result<TableIndex, IngestError> {
    let file = SourceFile::open(location)?;
    let builder = open(location, file.clone())?;
    let schema = builder.schema().clone();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let choose = |option, asked: &Option<String>, known: &[&str]| {
        choose_column(&names, option, asked.as_deref(), known).map_err(unreadable(location))
    };
    let image = choose("--image-column", &options.image_column, &IMAGE_NAMES)?.ok_or_else(|| {
        let reason = format!(
            "no column of images; its columns are {} (`--image-column` names one)",
            first_of(&names, names.len())
        );
        IngestError::layout(location, reason)
    })?;
    check_image_column(location, &schema, image)?;
    let choose_label = || choose("--label-column", &options.label_column, &LABEL_NAMES);
    let label = if options.unlabelled { None } else { choose_label()? };
    let split = names.iter().position(|name| name.eq_ignore_ascii_case(SPLIT_NAME));
    for column in label.into_iter().chain(split) {
        check_label_column(location, &schema, column)?;
    }
    let class_names = |at: Option<usize>| at.and_then(|at| names_of_numbers(&builder, &schema, names[at]));
    let (class_names, split_names) = (class_names(label), class_names(split));
    let (mut rows, mut image_bytes, mut has_bytes) = (0, 0, false);
    for group in builder.metadata().row_groups() {
        let group_rows = u64::try_from(group.num_rows()).unwrap_or(0);
        let mut all_null = group_rows == 0;
        for column in group.columns() {
            let (first, last) = match column.column_path().parts() {
                [first, .., last] => (first, last.as_str()),
                [only] => (only, "bytes"),
                [] => continue,
            };
            if first == names[image] && last != "path" {
                image_bytes += u64::try_from(column.uncompressed_size()).unwrap_or(0);
                let nulls = column.statistics().and_then(|statistics| statistics.null_count_opt());
                all_null |= last == "bytes" && nulls == Some(group_rows);
            }
        }
        rows += group_rows;
        has_bytes |= !all_null;
    }
    // Only small columns: names, labels and splits.
    let parquet_schema = builder.parquet_schema();
    let is_small = |leaf: &usize| {
        let column = parquet_schema.column(*leaf);
        let parts = column.path().parts();
        let is_of = |column: usize| parts.first().is_some_and(|root| root == names[column]);
        is_of(image) && parts.get(1).is_some_and(|part| part == "path")
            || label.is_some_and(is_of)
            || split.is_some_and(is_of)
    };
    let leaves = (0..parquet_schema.num_columns()).filter(is_small);
    let mask = ProjectionMask::leaves(parquet_schema, leaves);
    let reader = builder.with_projection(mask).with_batch_size(SMALL_ROWS).build();
    let reader = reader.map_err(unreadable(location))?;
    let mut listed = TableIndex {
        table: Table { location: location.clone(), file, image: names[image].to_owned() },
        has_bytes,
        names: Vec::new(),
        labels: label.map(|_| Vec::new()),
        splits: split.map(|_| Vec::new()),
        class_names,
        label_column: label.map(|label| names[label].to_owned()),
        mean_bytes: image_bytes / rows.max(1),
        unread_split: unread_split(&names, true),
    };
    for batch in reader {
        let batch = batch.map_err(unreadable(location))?;
        let column = |at: Option<usize>| at.and_then(|at| batch.column_by_name(names[at]));
        let paths =
            column(Some(image)).and_then(|column| column.as_struct_opt()?.column_by_name("path").cloned());
        match paths {
            Some(paths) => listed.names.extend(texts(location, &paths)?),
            None => listed.names.extend(std::iter::repeat_n(None, batch.num_rows())),
        }
        for (at, texts_of) in [(label, &mut listed.labels), (split, &mut listed.splits)] {
            if let (Some(column), Some(list)) = (column(at), texts_of) {
                list.extend(texts(location, column)?);
            }
        }
    }
    if let (Some(names), Some(splits)) = (split_names, &mut listed.splits) {
        for split in splits.iter_mut().flatten() {
            let name = split.parse().ok().and_then(|number: usize| names.get(number));
            *split = name.cloned().ok_or_else(|| {
                let reason = format!("the split {split} has no name; its list has {}", names.len());
                IngestError::layout(location, reason)
            })?;
        }
    }
    Ok(listed)
}

fn check_image_column(location: &Location, schema: &Schema, image: usize) -> Result<(), IngestError> {
    let field = schema.field(image);
    let (name, kind) = (field.name(), field.data_type());
    let has_bytes = match kind {
        DataType::Struct(fields) => {
            fields.find("bytes").is_some_and(|(_, field)| is_binary(field.data_type()))
        }
        other => is_binary(other),
    };
    if has_bytes {
        return Ok(());
    }
    let reason = if is_text(kind) {
        format!("its column `{name}` holds paths, not bytes; ingest the files by a csv list of `path,label`")
    } else {
        format!(
            "its column `{name}` is {kind}; expected a struct of bytes and path, or binary (`--image-column`)"
        )
    };
    Err(IngestError::layout(location, reason))
}

fn check_label_column(location: &Location, schema: &Schema, label: usize) -> Result<(), IngestError> {
    let field = schema.field(label);
    let kind = match field.data_type() {
        DataType::Dictionary(_, values) => values,
        other => other,
    };
    if is_text(kind) || kind.is_numeric() || *kind == DataType::Null {
        return Ok(());
    }
    let reason = format!(
        "its column `{}` is {kind}; expected a number or a name for each image (`--label-column`, `--unlabelled`)",
        field.name()
    );
    Err(IngestError::layout(location, reason))
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        || matches!(kind, DataType::Dictionary(_, values) if is_text(values))
}

/// Converts a column of strings, categories or numbers to texts.
fn texts(location: &Location, column: &ArrayRef) -> Result<Texts, IngestError> {
    if column.data_type() == &DataType::Null {
        return Ok(vec![None; column.len()]);
    }
    let column = arrow::compute::cast(column, &DataType::Utf8).map_err(unreadable(location))?;
    Ok(column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect())
}

/// Returns the names of a column's numbers, from Hugging Face's metadata entry.
fn names_of_numbers(
    builder: &ParquetRecordBatchReaderBuilder<Chunks>,
    schema: &Schema,
    column: &str,
) -> Option<Vec<String>> {
    let key_values = builder.metadata().file_metadata().key_value_metadata();
    let entry = key_values.and_then(|entries| entries.iter().find(|entry| entry.key == "huggingface"));
    let text = entry
        .and_then(|entry| entry.value.clone())
        .or_else(|| schema.metadata().get("huggingface").cloned())?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    let names = value.get("info")?.get("features")?.get(column)?.get("names")?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    match names {
        serde_json::Value::Array(names) => names.iter().map(text).collect(),
        // As in dataset cards: number to name.
        serde_json::Value::Object(names) => {
            (0..names.len()).map(|number| text(names.get(&number.to_string())?)).collect()
        }
        _ => None,
    }
}

/// Copies the images that entries name, and updates the entries to refer to the copy.
pub(crate) fn fetch(
    tables: &[Table],
    splits: &mut BTreeMap<String, Vec<Entry>>,
    containers: &mut Containers,
    progress: &dyn Progress,
) -> Result<(), IngestError> {
    let mut wanted: Vec<Vec<(u64, &mut Entry)>> = tables.iter().map(|_| Vec::new()).collect();
    for entry in splits.values_mut().flatten() {
        if let (None, &Extent::Range { offset: row }) = (entry.fault, &entry.extent) {
            wanted[entry.container as usize].push((row, entry));
        }
    }
    let total = wanted.iter().map(Vec::len).sum::<usize>();
    progress.begin("copy the images of Parquet tables", total as u64);
    let spool = Spool::new()?;
    spool.check_space(wanted.iter().flatten().map(|(_, entry)| entry.bytes).sum())?;
    for (table, rows) in tables.iter().zip(&mut wanted) {
        rows.sort_unstable_by_key(|(row, _)| *row);
        let Some(last) = rows.last().map(|(row, _)| *row) else { continue };
        let mut writer = spool.writer();
        guarded(&table.location, || {
            let mut next = rows.iter_mut().peekable();
            let mut row = 0_u64;
            for batch in images(table)? {
                let batch = batch.map_err(unreadable(&table.location))?;
                let bytes = bytes_of(batch.column(0));
                for at in 0..batch.num_rows() {
                    if let Some((_, entry)) = next.next_if(|(wanted, _)| *wanted == row) {
                        match value(&bytes, at) {
                            Some(image) => {
                                entry.extent = Extent::Range { offset: writer.push(image)? };
                                entry.bytes = image.len() as u64;
                                if file_name(&entry.path) == row_name(&table.location, row) {
                                    let ending = format_of(image).map_or("", Format::ending);
                                    entry.path = format!("{}{ending}", entry.path).into();
                                }
                            }
                            None => entry.fault = Some(Fault::NoBytes),
                        }
                        progress.advance(1);
                    }
                    row += 1;
                }
                if row > last {
                    break;
                }
            }
            let Some((missing, _)) = next.next() else { return Ok(()) };
            let reason = format!("damaged: it ends before row {missing}");
            Err(IngestError::layout(&table.location, reason))
        })?;
        let copy = containers.add_file(writer.finish(&format!("the copy of {}", table.location)));
        rows.iter_mut().for_each(|(_, entry)| entry.container = copy);
    }
    progress.finish();
    Ok(())
}

/// Reads the column of images, a few rows at a time.
fn images(table: &Table) -> Result<ParquetRecordBatchReader, IngestError> {
    let builder = open(&table.location, table.file.clone())?;
    let image = builder.schema().index_of(&table.image).map_err(unreadable(&table.location))?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), [image]);
    builder.with_projection(mask).with_batch_size(ROWS).build().map_err(unreadable(&table.location))
}

/// Returns the bytes of a column of images.
fn bytes_of(column: &ArrayRef) -> ArrayRef {
    match column.as_any().downcast_ref::<StructArray>() {
        Some(parts) => parts.column_by_name("bytes").expect("the schema was checked").clone(),
        None => column.clone(),
    }
}

/// Returns an image's bytes; `None` for a null.
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

/// A file, local or not, for Parquet's reader.
struct Chunks {
    file: SourceFile,
    location: Location,
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
        let end = end.ok_or_else(|| {
            ParquetError::EOF(format!("a column begins or ends outside of {}", self.location))
        })?;
        let extent = Extent::Range { offset: start };
        self.file.read(&extent, end - start).map_err(|error| ParquetError::External(Box::new(error)))
    }
}
