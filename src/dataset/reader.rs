//! Reads a shard, one row group at a time; [`verify`] checks every byte of a dataset.
//!
//! The columns are PLAIN and uncompressed, so the file contains an image's bytes unchanged, after a length of four
//! bytes. Images are therefore slices of their pages without a copy, and a single one is read by its offset.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use rayon::prelude::*;

use super::{
    ContentDigest, DatasetError, FooterEntry, IMAGE_BYTES, LENGTH_BYTES, Located, Manifest, Place, Row,
    ShardEntry, missing, read_whole, schema, schema_without_entry_points, unsealed,
};
use crate::guard::guard;
use crate::ids::{ClassId, InstanceId};
use crate::progress::Progress;
use crate::storage::{Digest, Location};

/// Size of the end of a shard that is fetched first; it contains the footer of all but huge shards.
const FOOTER_GUESS_BYTES: u64 = 256 << 10;

/// Number of leading columns in which no value is null.
const FULL_COLUMNS: usize = 5;

/// A shard, open for reading.
#[derive(Debug)]
pub struct ShardReader {
    location: Location,
    shown: String,
    bytes: u64,
    classes: usize,
    instances: u64,
    digests: Vec<Digest>,
    metadata: ArrowReaderMetadata,
}

impl ShardReader {
    /// Opens a shard of a dataset by its footer.
    ///
    /// `classes` and `instances` are those of the split; labels and ids out of their ranges are errors.
    ///
    /// # Errors
    /// If the shard is missing, has another size than in the manifest, or its footer is damaged.
    pub fn open(
        dataset: &Location,
        entry: &ShardEntry,
        classes: usize,
        instances: u64,
    ) -> Result<Self, DatasetError> {
        let open = || Self::open_once(dataset, entry, classes, instances);
        if dataset.local_path().is_some() { open() } else { read_again(open) }
    }

    fn open_once(
        dataset: &Location,
        entry: &ShardEntry,
        classes: usize,
        instances: u64,
    ) -> Result<Self, DatasetError> {
        let location = dataset.join(&entry.path);
        let shown = location.to_string();
        let damaged = |reason: String| DatasetError::Damaged { shard: shown.clone(), reason };
        let bytes = match location.size() {
            Err(error) if error.is_not_found() => return Err(missing(&location)),
            other => other?,
        };
        if bytes != entry.bytes {
            return Err(damaged(format!("it has {bytes} bytes, the manifest says {}", entry.bytes)));
        }
        let metadata = read_footer(&location, bytes, entry.footer)?;
        let known = [schema(), schema_without_entry_points()];
        if !known.iter().any(|known| known.fields() == metadata.schema().fields()) {
            return Err(damaged("its columns are not those of a dataset".into()));
        }
        let found = metadata.metadata();
        if found.file_metadata().num_rows() as u64 != entry.rows {
            return Err(damaged(format!("it does not have the {} rows that the manifest says", entry.rows)));
        }
        let counts =
            found.row_groups().iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(u64::MAX));
        if counts.fold(0, u64::saturating_add) != entry.rows {
            return Err(damaged("its row groups do not have the rows of its footer".into()));
        }
        let digests = entry.row_groups.clone();
        if found.num_row_groups() != digests.len() {
            let groups = digests.len();
            return Err(damaged(format!("it does not have the {groups} row groups that the manifest says")));
        }
        Ok(Self { location, shown, bytes, classes, instances, digests, metadata })
    }

    /// Returns the shard's location as text, for errors.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Returns the number of row groups.
    pub fn row_groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// Returns the number of rows in a row group.
    pub fn rows(&self, row_group: usize) -> usize {
        self.metadata.metadata().row_group(row_group).num_rows() as usize
    }

    /// Returns the number of bytes that reading a row group fetches.
    pub fn row_group_bytes(&self, row_group: usize) -> u64 {
        let range = self.row_group_range(row_group);
        range.end - range.start
    }

    /// Returns the manifest's digest of a row group's bytes.
    pub fn row_group_digest(&self, row_group: usize) -> Digest {
        self.digests[row_group]
    }

    /// Returns the byte range of a row group in the shard, which a read fetches and the digest covers.
    pub fn row_group_range(&self, row_group: usize) -> Range<u64> {
        let columns = self.metadata.metadata().row_group(row_group).columns().iter();
        let ranges = columns.map(|column| {
            let (start, len) = column.byte_range();
            start..start.saturating_add(len)
        });
        ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    /// Returns the location of the shard's file.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Reads a row group by one ranged read and checks its bytes against the manifest's digest.
    ///
    /// # Errors
    /// If the store fails or the bytes are not those that were written.
    pub fn read_row_group(&self, row_group: usize) -> Result<Vec<Row>, DatasetError> {
        let range = self.row_group_range(row_group);
        if range.end > self.bytes || range.start > range.end {
            return Err(self.wrong(row_group, "its bytes are outside of the shard".into()));
        }
        read_again(|| self.parse_row_group(row_group, self.location.read_range(range.clone())?))
    }

    /// Parses the rows of a row group's bytes, after checking these against the manifest's digest. The images share
    /// memory with `bytes`.
    ///
    /// # Errors
    /// If the bytes are not those that were written.
    pub fn parse_row_group(&self, row_group: usize, bytes: Bytes) -> Result<Vec<Row>, DatasetError> {
        if Digest::of(&bytes) != self.digests[row_group] {
            return Err(self.wrong(row_group, "its bytes are not those that were written".into()));
        }
        let range = self.row_group_range(row_group);
        if range.end > self.bytes || range.end.checked_sub(range.start) != Some(bytes.len() as u64) {
            return Err(self.wrong(row_group, "its bytes are outside of the shard".into()));
        }
        let part = FilePart { start: range.start, len: self.bytes, bytes };
        let images = images(&self.metadata, row_group, &part)
            .map_err(|reason| self.wrong(row_group, reason.to_string()))?;
        let schema = self.metadata.metadata().file_metadata().schema_descr_ptr();
        let mask =
            ProjectionMask::leaves(&schema, (0..schema.num_columns()).filter(|&leaf| leaf != IMAGE_BYTES));
        let failed = |reason: String| self.wrong(row_group, reason);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(part, self.metadata.clone())
            .with_row_groups(vec![row_group])
            .with_projection(mask)
            .with_batch_size(self.rows(row_group).max(1))
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let mut rows = Vec::with_capacity(images.len());
        for batch in reader {
            self.append(row_group, &batch.map_err(|error| failed(error.to_string()))?, &images, &mut rows)?;
        }
        Ok(rows)
    }

    fn append(
        &self,
        row_group: usize,
        batch: &RecordBatch,
        images: &[Bytes],
        rows: &mut Vec<Row>,
    ) -> Result<(), DatasetError> {
        let (columns, entry_points) = batch.columns().split_at(FULL_COLUMNS);
        let image = batch.column(1).as_struct();
        if columns.iter().chain(image.columns()).any(|column| column.null_count() > 0) {
            return Err(self.wrong(row_group, "a value is missing".into()));
        }
        let ids = batch.column(0).as_primitive::<Int64Type>();
        let paths = image.column(0).as_string::<i32>();
        let labels = batch.column(2).as_primitive::<Int64Type>();
        let (widths, heights) =
            (batch.column(3).as_primitive::<Int32Type>(), batch.column(4).as_primitive::<Int32Type>());
        let entry_points = entry_points.first().map(|column| column.as_binary::<i32>());
        let points_of = |row: usize, image: &[u8]| {
            let stored = entry_points.filter(|column| column.is_valid(row))?.value(row);
            unsealed(Bytes::copy_from_slice(stored), image)
        };
        for row in 0..batch.num_rows() {
            let number = rows.len();
            let wrong = |what: String| self.wrong(row_group, format!("row {number}: {what}"));
            let (id, label) = (ids.value(row), labels.value(row));
            let known_id = InstanceId::from_stored(id).filter(|id| u64::from(id.0) < self.instances);
            let known_label = ClassId::from_stored(label)
                .filter(|class| class.is_none_or(|class| class.index() < self.classes));
            let side = |value: i32| {
                let side = u32::try_from(value).ok().filter(|&value| value > 0);
                side.ok_or_else(|| wrong(format!("a side of {value} pixels")))
            };
            let bytes = images.get(number).cloned().ok_or_else(|| wrong("it has no image".into()))?;
            rows.push(Row {
                id: known_id.ok_or_else(|| wrong(format!("instance id {id} is out of range")))?,
                label: known_label.ok_or_else(|| wrong(format!("label {label} is out of range")))?,
                entry_points: points_of(row, &bytes),
                bytes,
                path: paths.value(row).to_owned(),
                width: side(widths.value(row))?,
                height: side(heights.value(row))?,
            });
        }
        Ok(())
    }

    fn wrong(&self, row_group: usize, reason: String) -> DatasetError {
        DatasetError::RowGroup { shard: self.shown.clone(), row_group, reason }
    }
}

/// Fetches and parses the footer of a Parquet file of this many bytes. With `expected`, the bytes are compared with the
/// digest before they are parsed; else more of the file is read if the footer is huge.
///
/// # Errors
/// If the footer or its schema is damaged, or the store fails.
pub(crate) fn read_footer(
    location: &Location,
    bytes: u64,
    expected: Option<FooterEntry>,
) -> Result<ArrowReaderMetadata, DatasetError> {
    let damaged = |part: &str, reason: String| DatasetError::Damaged {
        shard: location.to_string(),
        reason: format!("its {part}: {reason}"),
    };
    let of_footer = |reason: String| damaged("footer", reason);
    let mut from = bytes.saturating_sub(expected.map_or(FOOTER_GUESS_BYTES, |footer| footer.bytes));
    let footer = loop {
        let end = location.read_range(from..bytes)?;
        if expected.is_some_and(|footer| Digest::of(&end) != footer.digest) {
            return Err(of_footer("its bytes are not those that were written".into()));
        }
        let mut reader = ParquetMetaDataReader::new();
        match guard(|| reader.try_parse_sized(&end, bytes)).map_err(of_footer)? {
            Ok(()) => break reader.finish().map_err(|error| of_footer(error.to_string()))?,
            Err(ParquetError::NeedMoreData(needed))
                if expected.is_none() && needed as u64 <= bytes && from > 0 =>
            {
                from = (bytes - needed as u64).min(from - 1);
            }
            Err(error) => return Err(of_footer(error.to_string())),
        }
    };
    let metadata = guard(|| ArrowReaderMetadata::try_new(Arc::new(footer), ArrowReaderOptions::new()));
    let metadata = metadata.map_err(|reason| damaged("schema", reason))?;
    metadata.map_err(|error| damaged("schema", error.to_string()))
}

/// Returns the images of a row group, each as a slice of `part`.
///
/// # Errors
/// If an image is missing, or the pages are not those of a dataset.
fn images(
    metadata: &ArrowReaderMetadata,
    row_group: usize,
    part: &FilePart,
) -> Result<Vec<Bytes>, ParquetError> {
    let group = metadata.metadata().row_group(row_group);
    let wrong = |reason: &str| ParquetError::General(reason.into());
    let rows = usize::try_from(group.num_rows()).map_err(|_| wrong("it has a negative number of rows"))?;
    // Each image has its length before it.
    if rows > part.bytes.len() / LENGTH_BYTES {
        return Err(wrong("it claims more rows than its bytes can hold"));
    }
    let column = group.column(IMAGE_BYTES);
    let mut pages = SerializedPageReader::new(Arc::new(part.clone()), column, rows, None)?;
    let mut images = Vec::with_capacity(rows);
    while let Some(page) = pages.get_next_page()? {
        let Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } = page else {
            return Err(wrong("its images are not in plain pages"));
        };
        let values = values(&buf).ok_or_else(|| wrong("a page of images is cut"))?;
        let before = images.len();
        split(values, &mut images).ok_or_else(|| wrong("an image reaches beyond its page"))?;
        if images.len() - before != num_values as usize {
            return Err(wrong("a value is missing"));
        }
    }
    if images.len() != rows {
        return Err(wrong("it has more or fewer images than rows"));
    }
    Ok(images)
}

/// Skips the definition levels at the start of a version 1 page.
fn values(page: &Bytes) -> Option<Bytes> {
    let levels = u32::from_le_bytes(page.get(..4)?.try_into().ok()?) as usize;
    let start = levels.checked_add(4).filter(|&start| start <= page.len())?;
    Some(page.slice(start..))
}

/// Splits PLAIN byte arrays, each preceded by its length.
fn split(mut values: Bytes, images: &mut Vec<Bytes>) -> Option<()> {
    while !values.is_empty() {
        let len = u32::from_le_bytes(values.get(..4)?.try_into().ok()?) as usize;
        let end = len.checked_add(4).filter(|&end| end <= values.len())?;
        images.push(values.slice(4..end));
        values = values.slice(end..);
    }
    Some(())
}

/// A range of a file that acts as the whole file: reads outside of it are errors.
#[derive(Clone)]
struct FilePart {
    start: u64,
    len: u64,
    bytes: Bytes,
}

impl FilePart {
    fn slice(&self, start: u64, len: usize) -> parquet::errors::Result<Bytes> {
        let outside = || ParquetError::General("it points outside of its row group".into());
        let from =
            usize::try_from(start.checked_sub(self.start).ok_or_else(outside)?).map_err(|_| outside())?;
        let to = from.checked_add(len).filter(|&to| to <= self.bytes.len()).ok_or_else(outside)?;
        Ok(self.bytes.slice(from..to))
    }
}

impl Length for FilePart {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for FilePart {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let rest = self.bytes.len() as u64 - start.saturating_sub(self.start).min(self.bytes.len() as u64);
        Ok(Cursor::new(self.slice(start, rest as usize)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.slice(start, length)
    }
}

/// Reads once more if the bytes are damaged, since those damaged in transit are whole the second time.
fn read_again<T>(read: impl Fn() -> Result<T, DatasetError>) -> Result<T, DatasetError> {
    match read() {
        Err(error @ (DatasetError::Damaged { .. } | DatasetError::RowGroup { .. })) => {
            tracing::warn!("{error}; it is read once more");
            read()
        }
        other => other,
    }
}

/// Reads every byte of every shard and index, and checks digests, ids, the content's digest, and the positions in the
/// indexes. Stored entry points must be those that `entry_points` finds in the image.
///
/// # Errors
/// The first error that is found.
pub fn verify(
    dataset: &Location,
    manifest: &Manifest,
    entry_points: &(dyn Fn(&[u8]) -> Option<Vec<u8>> + Sync),
    progress: &dyn Progress,
) -> Result<(), DatasetError> {
    let has_others = |row: &&Row| {
        row.entry_points
            .as_ref()
            .is_some_and(|points| entry_points(&row.bytes).as_deref() != Some(&points[..]))
    };
    for (name, split) in &manifest.splits {
        progress.begin(&format!("verify {name}"), split.instances);
        let indexed = split.read_places(dataset)?;
        let mut found = vec![false; indexed.len()];
        for (shard, entry) in (0..).zip(&split.shards) {
            let bytes = read_whole(&dataset.join(&entry.path), entry.digest)?;
            let reader = ShardReader::open(dataset, entry, manifest.classes.len(), split.instances)?;
            let mut numbers = 0..;
            for group in 0..reader.row_groups() {
                let range = reader.row_group_range(group);
                let wrong = |reason: String| DatasetError::RowGroup {
                    shard: entry.path.clone(),
                    row_group: group,
                    reason,
                };
                let rows =
                    reader.parse_row_group(group, bytes.slice(range.start as usize..range.end as usize))?;
                if let Some(row) = rows.par_iter().find_first(has_others) {
                    let reason = format!("the entry points of instance {} are not its image's", row.id);
                    return Err(wrong(reason));
                }
                for (row, number) in rows.iter().zip(&mut numbers) {
                    if std::mem::replace(&mut found[row.id.row()], true) {
                        return Err(wrong(format!("instance id {} occurs twice in the split", row.id)));
                    }
                    if !is_as_indexed(row, &indexed[row.id.row()], (shard, number), &bytes) {
                        return Err(split.wrong_index(dataset, row.id));
                    }
                }
                progress.advance(reader.rows(group) as u64);
            }
        }
        progress.finish();
        let wrong =
            |reason: String| DatasetError::Damaged { shard: format!("{dataset} split {name}"), reason };
        if let Some(id) = found.iter().position(|found| !found) {
            return Err(wrong(format!("instance {id} is missing")));
        }
        let mut digest = ContentDigest::new(split.applies_exif_orientation());
        indexed.iter().for_each(|row| digest.add(row.id, row.label, row.image));
        if digest.finish() != split.digest {
            return Err(wrong("its content is not that of the manifest's digest".into()));
        }
    }
    Ok(())
}

/// Returns whether row `number` matches its index entry, and the shard's `bytes` at the entry's offsets.
fn is_as_indexed(row: &Row, said: &Located, (shard, number): (u32, u32), bytes: &[u8]) -> bool {
    let part = |offset: u64, len: u32| {
        let start = usize::try_from(offset).ok()?;
        bytes.get(start..start.checked_add(len as usize)?)
    };
    let size = row.bytes.len() as u32;
    let place = Place { shard, row: number, bytes: size, width: row.width, height: row.height, ..said.place };
    let has_points = if place.entry_points_bytes == 0 {
        row.entry_points.is_none()
    } else {
        let stored = part(place.entry_points_offset, place.entry_points_bytes).map(Bytes::copy_from_slice);
        let points = stored.and_then(|stored| unsealed(stored, &row.bytes));
        points.is_some() && points == row.entry_points
    };
    *said == Located { id: row.id, label: row.label, place, image: Digest::of(&row.bytes) }
        && part(place.offset, size).is_some_and(|image| *image == row.bytes)
        && has_points
}
