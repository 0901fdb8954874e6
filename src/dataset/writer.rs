//! Writes a shard.
//!
//! Entry points are stored beside their image, with a seal. A loader that reads one image alone cannot check the digest
//! of the column that contains them, and entry points of another image would give wrong pixels. Therefore each value
//! ends with a part of a digest, which also covers the image's size and last bytes. [`crate::image`] finds the entry
//! points.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, Encoding};
use parquet::data_type::{ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use serde::{Deserialize, Serialize};

use super::{DatasetError, ENTRY_POINTS, FooterEntry, IMAGE_BYTES, LENGTH_BYTES, Row, ShardEntry, schema};
use crate::ids::ClassId;
use crate::storage::{Digest, Location, Upload};

/// Size in bytes of a row group's images at which it ends early. A row group is in memory whole when it is written and
/// read, and Parquet's offsets within it have 31 bits.
const ROW_GROUP_BYTES: usize = 256 << 20;

/// Key of the metadata entry for other readers.
const HUGGINGFACE: &str = "huggingface";

/// Layout of shards.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Maximum number of rows of a row group, which one ranged read fetches; fewer if the images are huge.
    pub row_group: usize,
    /// Names of the classes, for the metadata.
    pub classes: Vec<String>,
}

/// A published shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenShard {
    /// Entry for the manifest.
    pub entry: ShardEntry,
    /// By row: offset of the image's encoded bytes in the file.
    pub offsets: Vec<u64>,
    /// By row: offset of the stored entry points in the file, and their number of bytes; 0 if there are none.
    #[serde(default)]
    pub entry_points: Vec<(u64, u32)>,
}

/// Writer of one shard, which appears when [`ShardWriter::finish`] succeeds.
///
/// The bytes are a function of the rows and the options. Columns are written directly from the rows: Arrow arrays of
/// images would copy each twice more, into memory that is allocated again for each row group.
pub struct ShardWriter {
    path: String,
    shown: String,
    writer: SerializedFileWriter<Digests>,
    row_group: usize,
    pending: Vec<Row>,
    pending_bytes: usize,
    /// By row: size of the image in bytes.
    sizes: Vec<Option<u64>>,
    /// By row: size of the stored entry points in bytes.
    entry_points: Vec<Option<u64>>,
}

impl fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardWriter({}, {} rows)", self.shown, self.sizes.len())
    }
}

impl ShardWriter {
    /// Starts the shard at `path` within the dataset's folder.
    ///
    /// # Errors
    /// If the store refuses.
    pub fn start(dataset: &Location, path: &str, options: &WriterOptions) -> Result<Self, DatasetError> {
        let location = dataset.join(path);
        let upload = Upload::start(&location)?;
        let entry = huggingface_entry(&options.classes);
        // The Arrow schema contains the entry too, for pyarrow.
        let schema = schema().with_metadata(HashMap::from([(HUGGINGFACE.to_owned(), entry.clone())]));
        let metadata = KeyValue::new(HUGGINGFACE.to_owned(), entry);
        let mut properties = WriterProperties::builder()
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_created_by("instdisc dataset 1".to_owned())
            .set_compression(Compression::UNCOMPRESSED)
            .set_encoding(Encoding::PLAIN)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(vec![metadata]))
            .build();
        let shown = location.to_string();
        let digests =
            Digests { upload: Some(upload), current: blake3::Hasher::new(), row_groups: Vec::new() };
        let failed = |source| DatasetError::Write { shard: shown.clone(), source };
        add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
        let columns = ArrowSchemaConverter::new().convert(&schema).map_err(failed)?;
        let writer = SerializedFileWriter::new(digests, columns.root_schema_ptr(), Arc::new(properties))
            .map_err(failed)?;
        let mut shard = Self {
            path: path.to_owned(),
            shown,
            writer,
            row_group: options.row_group,
            pending: Vec::new(),
            pending_bytes: 0,
            sizes: Vec::new(),
            entry_points: Vec::new(),
        };
        // The format's first bytes belong to no row group.
        shard.sync()?;
        shard.writer.inner_mut().current.reset();
        Ok(shard)
    }

    /// Adds a row.
    ///
    /// # Errors
    /// If the store fails.
    pub fn push(&mut self, row: Row) -> Result<(), DatasetError> {
        if self.pending_bytes + row.bytes.len() > ROW_GROUP_BYTES {
            self.flush()?;
        }
        self.pending_bytes += row.bytes.len();
        self.sizes.push(Some(row.bytes.len() as u64));
        let points = row.entry_points.as_ref().map(|points| sealed_bytes(points.len()));
        self.pending_bytes += points.unwrap_or(0);
        self.entry_points.push(points.map(|bytes| bytes as u64));
        self.pending.push(row);
        if self.pending.len() == self.row_group { self.flush() } else { Ok(()) }
    }

    /// Publishes the shard.
    ///
    /// # Errors
    /// If the store fails; then nothing is published.
    pub fn finish(mut self) -> Result<WrittenShard, DatasetError> {
        self.flush()?;
        let failed = |source| DatasetError::Write { shard: self.shown.clone(), source };
        let metadata = self.writer.finish().map_err(failed)?;
        let unknown = || failed(ParquetError::General("the offsets of its values are unknown".into()));
        let offsets = offsets(&metadata, IMAGE_BYTES, &self.sizes).ok_or_else(unknown)?;
        let points = self::offsets(&metadata, ENTRY_POINTS, &self.entry_points).ok_or_else(unknown)?;
        let point_bytes = self.entry_points.iter().map(|bytes| bytes.unwrap_or(0) as u32);
        let entry_points = points.into_iter().zip(point_bytes).collect();
        // The writer buffers the end of the file until then.
        self.sync()?;
        let digests = self.writer.inner_mut();
        let footer =
            FooterEntry { bytes: digests.current.count(), digest: digests.current.finalize().into() };
        let row_groups = std::mem::take(&mut digests.row_groups);
        let upload = digests.upload.take().expect("a writer is finished once");
        let published = upload.finish()?;
        let entry = ShardEntry {
            path: self.path,
            rows: self.sizes.len() as u64,
            bytes: published.bytes,
            digest: published.digest,
            row_groups,
            footer: Some(footer),
        };
        Ok(WrittenShard { entry, offsets, entry_points })
    }

    fn flush(&mut self) -> Result<(), DatasetError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = write_group(&mut self.writer, &self.pending);
        written.map_err(|source| DatasetError::Write { shard: self.shown.clone(), source })?;
        self.pending.clear();
        self.pending_bytes = 0;
        self.sync()?;
        self.writer.inner_mut().end_group();
        Ok(())
    }

    /// Passes all buffered bytes to the upload.
    fn sync(&mut self) -> Result<(), DatasetError> {
        let failed = |source| DatasetError::Write { shard: self.shown.clone(), source };
        self.writer.flush().map_err(|error| failed(error.into()))
    }
}

/// Returns the value of the `huggingface` metadata entry, from which `datasets` and pandas know images and classes.
pub(super) fn huggingface_entry(classes: &[String]) -> String {
    let value = |dtype: &str| serde_json::json!({"dtype": dtype, "_type": "Value"});
    serde_json::json!({"info": {"features": {
        "instance_id": value("int64"),
        "image": {"_type": "Image"},
        "label": {"names": classes, "_type": "ClassLabel"},
        "width": value("int32"),
        "height": value("int32"),
        "entry_points": value("binary"),
    }}})
    .to_string()
}

/// Returns the offset of each value of a column, from the values' sizes (`None`, a null, has offset 0). A page ends
/// with its values, each preceded by its length in four bytes.
fn offsets(metadata: &ParquetMetaData, column: usize, sizes: &[Option<u64>]) -> Option<Vec<u64>> {
    const LENGTH: u64 = LENGTH_BYTES as u64;
    let mut offsets = Vec::with_capacity(sizes.len());
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let first_of_group = offsets.len();
        let pages = metadata.page_index()?.offset_index(number, column)?.page_locations();
        for (number, page) in pages.iter().enumerate() {
            let next = pages.get(number + 1).map_or(group.num_rows(), |next| next.first_row_index);
            let rows = first_of_group + page.first_row_index as usize..first_of_group + next as usize;
            let values: u64 = sizes.get(rows.clone())?.iter().flatten().map(|size| LENGTH + size).sum();
            let end = page.offset as u64 + page.compressed_page_size as u64;
            let mut at = end.checked_sub(values)?;
            for size in &sizes[rows] {
                offsets.push(size.map_or(0, |_| at + LENGTH));
                at += size.map_or(0, |size| LENGTH + size);
            }
        }
    }
    (offsets.len() == sizes.len()).then_some(offsets)
}

/// Writer to the upload, which computes the digests of the row groups and then of the footer.
#[derive(Debug)]
struct Digests {
    /// Upload; `None` once finished.
    upload: Option<Upload>,
    /// Hash of the row group being written; after the last one, of the footer.
    current: blake3::Hasher,
    row_groups: Vec<Digest>,
}

impl Digests {
    fn open(&mut self) -> std::io::Result<&mut Upload> {
        self.upload.as_mut().ok_or_else(|| std::io::Error::other("the shard is finished"))
    }

    fn end_group(&mut self) {
        self.row_groups.push(self.current.finalize().into());
        self.current.reset();
    }
}

impl Write for Digests {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let taken = self.open()?.write(buffer)?;
        self.current.update(&buffer[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.open()?.flush()
    }
}

/// Writes rows as one row group with the columns of [`schema`].
fn write_group(writer: &mut SerializedFileWriter<Digests>, rows: &[Row]) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    put::<Int64Type>(&mut group, rows.iter().map(|row| Some(row.id.to_stored())))?;
    put::<ByteArrayType>(&mut group, rows.iter().map(|row| Some(row.bytes.clone().into())))?;
    put::<ByteArrayType>(&mut group, rows.iter().map(|row| Some(row.path.as_str().into())))?;
    put::<Int64Type>(&mut group, rows.iter().map(|row| Some(ClassId::to_stored(row.label))))?;
    put::<Int32Type>(&mut group, rows.iter().map(|row| Some(row.width as i32)))?;
    put::<Int32Type>(&mut group, rows.iter().map(|row| Some(row.height as i32)))?;
    let stored = |row: &Row| Some(sealed(row.entry_points.as_ref()?, &row.bytes).into());
    put::<ByteArrayType>(&mut group, rows.iter().map(stored))?;
    group.close()?;
    Ok(())
}

/// Writes the next column of a row group.
fn put<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Digests>,
    values: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.expect("as many columns as the schema has");
    let typed = column.typed::<T>();
    let most = typed.get_descriptor().max_def_level();
    let (mut levels, mut present) = (Vec::new(), Vec::new());
    for value in values {
        levels.push(if value.is_some() { most } else { most - 1 });
        present.extend(value);
    }
    typed.write_batch(&present, Some(&levels), None)?;
    column.close()
}

/// Number of bytes of the digest that seals entry points.
const SEAL_BYTES: usize = 8;
/// Number of bytes at the end of an image that the seal covers.
const LAST_BYTES: usize = 64;

/// Returns an image's entry points with their seal, as a shard stores them.
fn sealed(points: &[u8], image: &[u8]) -> Vec<u8> {
    [points, &seal(points, image)].concat()
}

/// Returns the stored size of `points` bytes of entry points.
fn sealed_bytes(points: usize) -> usize {
    points + SEAL_BYTES
}

/// Returns the entry points without their seal, if the stored bytes were written for this image.
pub fn unsealed(mut stored: Bytes, image: &[u8]) -> Option<Bytes> {
    let len = stored.len().checked_sub(SEAL_BYTES)?;
    let found = stored.split_off(len);
    (found[..] == seal(&stored, image)).then_some(stored)
}

fn seal(points: &[u8], image: &[u8]) -> [u8; SEAL_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(points);
    hasher.update(&(image.len() as u64).to_le_bytes());
    hasher.update(&image[image.len().saturating_sub(LAST_BYTES)..]);
    let mut seal = [0; SEAL_BYTES];
    seal.copy_from_slice(&hasher.finalize().as_bytes()[..SEAL_BYTES]);
    seal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_of_stored_entry_points_and_another_image_are_found() {
        let (points, image) = (Bytes::from_static(b"entry points"), [7; 100]);
        let stored = sealed(&points, &image);
        assert_eq!(stored.len(), sealed_bytes(points.len()));
        assert_eq!(unsealed(Bytes::from(stored.clone()), &image), Some(points));
        for bit in 0..8 * stored.len() {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unsealed(damaged.into(), &image), None);
        }
        let mut other = image;
        other[99] = 8;
        assert_eq!(unsealed(Bytes::from(stored.clone()), &other), None, "other last bytes");
        assert_eq!(unsealed(stored.into(), &image[1..]), None, "another size");
        assert_eq!(unsealed(Bytes::from_static(b"short"), &image), None);
    }
}
