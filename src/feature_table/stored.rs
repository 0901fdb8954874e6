//! Feature tables whose vectors remain in their file.
//!
//! Opening a table reads footer, ids and labels. Vectors and steps are read later, by ranges of rows, so a table of any
//! size needs little memory. Arrow's `FileDecoder` cannot do that: it reads whole blocks of 64 Ki vectors. So
//! [`find_batch`] finds the byte ranges of the columns from the block's message, which arrow parses.

use std::ops::Range;

use arrow::array::{Array, UInt16Array, UInt16Builder};
use arrow::error::ArrowError;
use arrow::ipc::reader::read_footer_length;
use arrow::ipc::{Block, root_as_message};
use arrow::util::bit_util::get_bit;
use bytes::Bytes;

use super::TableError;
use super::columns::{ColumnNames, check_ids, id_of, label_of, step_of};
use super::decode::{Footer, TRAILER_BYTES, wrong};
use super::foreign::Foreign;
use super::rows::{Dtype, FirstRow, PendingVectors, RunningDigest, Table, read_ahead, split};
use super::schema::{NamedMeta, TableMeta, fields};
use super::table::FeatureTable;
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location, PendingRead, StorageError};

/// Bytes read from the end at first: usually the footer, with the names of a thousand classes.
const TAIL_BYTES: u64 = 64 << 10;
/// Bytes before a message: a marker and the message's length.
const MESSAGE_PREFIX: usize = 8;
/// Number of reads under way while a table is opened, besides the one that is waited for.
const READS_AHEAD: usize = 7;
/// Rows whose ids and labels are read together: 1 MiB each, so pending reads take 8 MiB, and the column being
/// decoded 1 MiB.
const COLUMN_ROWS: usize = 1 << 16;
/// Longest vector in an Arrow list of fixed length.
const MOST_NUMBERS: usize = i32::MAX as usize;

/// Table whose vectors and steps are read by ranges of rows. Labels are in memory, 2 bytes a row, and so are
/// ids that are not consecutive, 4 bytes a row.
#[derive(Debug)]
pub struct StoredTable {
    /// Files of the table, in the order of their rows.
    files: Vec<TableFile>,
    meta: TableMeta,
    values: Dtype,
    ids: Ids,
    labels: UInt16Array,
    batches: Vec<Batch>,
}

/// File of a table.
#[derive(Debug)]
struct TableFile {
    location: Location,
    /// Name of the file in errors.
    name: String,
    /// Digest of the file, if known.
    digest: Option<RunningDigest>,
    /// Row of the table at which the file starts.
    first_row: usize,
}

/// Location of a record batch.
#[derive(Clone, Debug)]
struct Batch {
    /// Index of the file.
    file: usize,
    rows: Range<usize>,
    /// Offset of the vectors.
    features: u64,
    ids: Column,
    labels: Column,
    steps: Column,
}

/// Location of a column of 64-bit integers in the file.
#[derive(Clone, Debug)]
struct Column {
    /// Offset of the validity, one bit per row; `None` if no row is null.
    validity: Option<u64>,
    /// Offset of the values.
    values: u64,
}

impl Column {
    /// Starts to read rows, counted from the batch's first.
    fn start_read(&self, file: &Location, rows: Range<usize>) -> PendingColumn {
        let bytes = |start: u64, bytes: Range<usize>| {
            file.start_read_range(start + bytes.start as u64..start + bytes.end as u64)
        };
        PendingColumn {
            validity: self.validity.map(|start| bytes(start, rows.start / 8..rows.end.div_ceil(8))),
            first_bit: rows.start % 8,
            values: bytes(self.values, 8 * rows.start..8 * rows.end),
        }
    }
}

/// Rows of a column that are being read.
struct PendingColumn {
    validity: Option<PendingRead>,
    /// Position of the first row's bit.
    first_bit: usize,
    values: PendingRead,
}

impl PendingColumn {
    fn finish(self) -> Result<Vec<Option<i64>>, StorageError> {
        let validity = self.validity.map(PendingRead::finish).transpose()?;
        let values = self.values.finish()?;
        let is_valid = |row: usize| validity.as_ref().is_none_or(|bits| get_bit(bits, self.first_bit + row));
        let value = |(row, &bytes)| is_valid(row).then(|| i64::from_le_bytes(bytes));
        Ok(values.as_chunks().0.iter().enumerate().map(value).collect())
    }
}

/// Opens a table for reads by ranges of rows: in its file if this program wrote it, else in memory, with
/// further data of other programs' tables. `names` are those of [`FeatureTable::read_foreign`].
///
/// # Errors
/// If the table is invalid, with the first faulty row or column; with `names`, [`TableError::Empty`] without rows.
pub fn open_table(
    location: &Location,
    names: Option<&ColumnNames>,
) -> Result<(Box<dyn Table>, Option<Foreign>), TableError> {
    // The reader of whole tables accepts those of other programs, and describes damage.
    let (table, foreign): (Box<dyn Table>, _) = match open_file(location) {
        Ok(Some(file)) => (Box::new(StoredTable::of_files(vec![(location.clone(), None, file)])?), None),
        Ok(None) | Err(TableError::Malformed { .. } | TableError::NotATable { .. }) => {
            let (table, foreign) = FeatureTable::read_foreign(location, names)?;
            (Box::new(table), foreign)
        }
        Err(error) => return Err(error),
    };
    if names.is_some() && table.rows() == 0 {
        return Err(TableError::Empty { table: location.to_string() });
    }
    Ok((table, foreign))
}

impl StoredTable {
    /// Opens a table and checks everything but its vectors, which are checked when read.
    ///
    /// # Errors
    /// If the table is invalid, with the first faulty row, or if another program wrote it; [`open_table`]
    /// accepts those.
    pub fn open(location: &Location) -> Result<Self, TableError> {
        Self::open_all([(location.clone(), None)])
    }

    /// Opens a table in several files, each a table itself, such as the shards of a bank. [`Table::verify`] compares
    /// the read bytes with the digests, if given.
    ///
    /// # Errors
    /// As [`StoredTable::open`], and if the files are not parts of one table.
    ///
    /// # Panics
    /// If `files` is empty.
    pub fn open_all(files: impl IntoIterator<Item = (Location, Option<Digest>)>) -> Result<Self, TableError> {
        let open = |(location, digest): (Location, Option<Digest>)| match open_file(&location)? {
            Some(file) => Ok((location, digest, file)),
            None => {
                let reason = "expected the columns, types and metadata that this program writes".into();
                Err(TableError::NotATable { table: location.to_string(), reason })
            }
        };
        Self::of_files(files.into_iter().map(open).collect::<Result<_, _>>()?)
    }

    /// Returns the number type of the vectors in the files.
    pub fn dtype(&self) -> Dtype {
        self.values
    }

    /// Sets the digest of the rows' split, if the table lacks it.
    #[must_use]
    pub fn with_split_digest(mut self, digest: &str) -> Self {
        self.meta.split_digest.get_or_insert_with(|| digest.to_owned());
        self
    }

    /// Returns the batch that contains these rows.
    fn batch_of(&self, rows: &Range<usize>) -> &Batch {
        let holds = |batch: &&Batch| batch.rows.start <= rows.start && rows.end <= batch.rows.end;
        self.batches.iter().find(holds).expect("the rows are one of the table's ranges")
    }

    fn of_files(files: Vec<(Location, Option<Digest>, OpenFile)>) -> Result<Self, TableError> {
        let mut opened: Option<(TableMeta, Dtype)> = None;
        let total = files.iter().flat_map(|(.., file)| &file.batches).map(|batch| batch.rows.len()).sum();
        let (mut ids, mut labels) = (Ids::Run { first: 0, rows: 0 }, UInt16Builder::with_capacity(total));
        let (mut opened_files, mut batches) = (Vec::<TableFile>::new(), Vec::<Batch>::new());
        for (file, (location, digest, of_file)) in files.into_iter().enumerate() {
            let (name, first_row) = (location.to_string(), batches.last().map_or(0, |batch| batch.rows.end));
            let OpenFile { meta, values, bytes, batches: mut own } = of_file;
            match &opened {
                None => opened = Some((meta, values)),
                Some(first) if *first == (meta, values) => {}
                Some(_) => {
                    let reason = format!("it is not part of the same table as {}", opened_files[0].name);
                    return Err(TableError::NotATable { table: name, reason });
                }
            }
            let classes = opened.as_ref().map_or(0, |(meta, _)| meta.classes.len());
            let parts = own
                .iter()
                .flat_map(|batch| split(0..batch.rows.len(), COLUMN_ROWS).map(move |rows| (batch, rows)));
            let start = |(batch, rows): &(&Batch, Range<usize>)| {
                [&batch.ids, &batch.labels].map(|column| column.start_read(&location, rows.clone()))
            };
            for ((batch, rows), [of_ids, of_labels]) in read_ahead(parts, READS_AHEAD, start) {
                let first = batch.rows.start + rows.start;
                for (row, id) in (first..).zip(of_ids.finish()?) {
                    ids.push(id_of(&name, row, id.unwrap_or(-1))?, total);
                }
                for (row, label) in (first..).zip(of_labels.finish()?) {
                    let label = label_of(&name, row, label, classes)?;
                    labels.append_option(label.map(|class| class.0));
                }
            }
            for batch in &mut own {
                batch.file = file;
                batch.rows = batch.rows.start + first_row..batch.rows.end + first_row;
            }
            batches.extend(own);
            let digest = digest.map(|digest| RunningDigest::new(&location, bytes, digest));
            opened_files.push(TableFile { location, name, digest, first_row });
        }
        let (meta, values) = opened.expect("a table has a file");
        if let Ids::Listed(ids) = &ids {
            check_ids(meta.kind, ids, |row| {
                let after = opened_files.partition_point(|file| file.first_row <= row);
                let TableFile { name, first_row, .. } = &opened_files[after - 1];
                (name.clone(), row - first_row)
            })?;
        }
        Ok(Self { files: opened_files, meta, values, ids, labels: labels.finish(), batches })
    }
}

/// Contents of a file's footer, and its batches, counted from row 0.
struct OpenFile {
    meta: TableMeta,
    values: Dtype,
    bytes: u64,
    batches: Vec<Batch>,
}

/// Reads the footer of a file; `None` without the columns and metadata that this program writes, uncompressed.
fn open_file(location: &Location) -> Result<Option<OpenFile>, TableError> {
    let name = location.to_string();
    let malformed = |source: ArrowError| TableError::Malformed { table: name.clone(), source };
    if location.local_path().is_some_and(std::path::Path::is_dir) {
        return Ok(None);
    }
    let size = match location.size() {
        Err(error) if error.is_not_found() => return Err(TableError::NotThere { table: name }),
        other => other?,
    };
    let cut = || malformed(wrong("it is cut short"));
    let trailer_at = size.checked_sub(TRAILER_BYTES as u64).ok_or_else(cut)?;
    let tail_at = size.saturating_sub(TAIL_BYTES);
    let tail = location.read_range(tail_at..size)?;
    let trailer = tail.last_chunk().filter(|_| tail.len() as u64 == size - tail_at).ok_or_else(cut)?;
    let length = read_footer_length(*trailer).map_err(malformed)?;
    let footer_at = trailer_at.checked_sub(length as u64).ok_or_else(cut)?;
    let footer = match footer_at.checked_sub(tail_at) {
        Some(from) => tail.slice(from as usize..(trailer_at - tail_at) as usize),
        None => location.read_range(footer_at..trailer_at)?,
    };
    let Footer { schema, blocks, .. } = Footer::of(&footer).map_err(malformed)?;
    let named =
        NamedMeta::of(&schema).map_err(|reason| TableError::NotATable { table: name.clone(), reason })?;
    let Some(meta) = named.whole().filter(|meta| (1..=MOST_NUMBERS).contains(&meta.dim)) else {
        return Ok(None);
    };
    let fits = |dtype: &Dtype| *schema.fields() == fields(meta.dim, dtype.of_arrow());
    let Some(values) = [Dtype::F32, Dtype::F16].into_iter().find(fits) else { return Ok(None) };
    let parts = blocks.iter().map(|block| parts_of(block, size)).collect::<Result<Vec<_>, _>>();
    let start = |(head, _): &(Range<u64>, _)| location.start_read_range(head.clone());
    let mut batches: Vec<Batch> = Vec::new();
    for ((_, body), message) in read_ahead(parts.map_err(malformed)?, READS_AHEAD, start) {
        let row = batches.last().map_or(0, |batch| batch.rows.end);
        let found = find_batch(&message.finish()?, row, body, meta.dim * values.bytes());
        let Some(batch) = found.map_err(malformed)? else { return Ok(None) };
        batches.push(batch);
    }
    Ok(Some(OpenFile { meta, values, bytes: size, batches }))
}

/// Returns the ranges of a block's message and of its body in a file of this size.
fn parts_of(block: &Block, size: u64) -> Result<(Range<u64>, Range<u64>), ArrowError> {
    let whole =
        |value: i64| u64::try_from(value).map_err(|_| wrong("a block has a negative offset or length"));
    let after = |start: u64, length: i64| {
        let end = start.checked_add(whole(length)?).filter(|end| *end <= size);
        end.ok_or_else(|| wrong("a block ends after the file"))
    };
    let start = whole(block.offset())?;
    let body = after(start, block.metaDataLength().into())?;
    Ok((start..body, body..after(body, block.bodyLength())?))
}

/// Finds the columns of a batch in its body; `None` if the batch is compressed.
fn find_batch(
    message: &Bytes,
    row: usize,
    body: Range<u64>,
    vector_bytes: usize,
) -> Result<Option<Batch>, ArrowError> {
    let message = message.get(MESSAGE_PREFIX..).ok_or_else(|| wrong("a message is cut"))?;
    let message = root_as_message(message).map_err(|error| wrong(error.to_string()))?;
    let batch = message.header_as_record_batch().ok_or_else(|| wrong("a block is not a record batch"))?;
    if batch.compression().is_some() {
        return Ok(None);
    }
    let rows = usize::try_from(batch.length()).map_err(|_| wrong("a batch has no length"))?;
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else {
        return Err(wrong("a batch has no columns"));
    };
    // The nodes are id, feature, its numbers, label, step.
    if nodes.len() != 5 || nodes.iter().take(3).any(|node| node.null_count() != 0) {
        return Err(wrong("an id or a feature is null"));
    }
    // Each node has a validity and values; a list has only a validity.
    if buffers.len() != 9 {
        return Err(wrong("a batch has other columns"));
    }
    // Returns the start of a buffer, which must have at least `least` bytes.
    let start = |at: usize, least: Option<usize>| {
        let buffer = buffers.get(at);
        let start = u64::try_from(buffer.offset()).ok().and_then(|offset| body.start.checked_add(offset));
        let bytes = u64::try_from(buffer.length()).ok();
        let bytes = bytes.filter(|bytes| least.is_some_and(|least| *bytes >= least as u64));
        let (start, bytes) = start.zip(bytes).ok_or_else(|| wrong("a column is too short"))?;
        let is_within = start.checked_add(bytes).is_some_and(|end| end <= body.end);
        if is_within { Ok(start) } else { Err(wrong("a column ends after its block")) }
    };
    let validity = |at: usize, node: usize| {
        let has_nulls = nodes.get(node).null_count() != 0;
        // Without nulls the validity may exist but be too short.
        let found = start(at, Some(if has_nulls { rows.div_ceil(8) } else { 0 }))?;
        Ok::<_, ArrowError>(has_nulls.then_some(found))
    };
    let numbers = |at: usize| start(at, rows.checked_mul(8));
    Ok(Some(Batch {
        file: 0,
        ids: Column { validity: None, values: numbers(1)? },
        features: start(4, rows.checked_mul(vector_bytes))?,
        labels: Column { validity: validity(5, 3)?, values: numbers(6)? },
        steps: Column { validity: validity(7, 4)?, values: numbers(8)? },
        rows: row..row.checked_add(rows).ok_or_else(|| wrong("its batches have too many rows"))?,
    }))
}

/// Instances of all rows. Those of a whole split are consecutive and take no memory.
#[derive(Debug)]
enum Ids {
    /// Consecutive ids.
    Run { first: u32, rows: usize },
    /// Any other ids, such as those of a sample.
    Listed(Vec<InstanceId>),
}

impl Ids {
    fn rows(&self) -> usize {
        match self {
            Self::Run { rows, .. } => *rows,
            Self::Listed(ids) => ids.len(),
        }
    }

    fn of(&self, row: usize) -> InstanceId {
        match self {
            Self::Run { first, rows } => {
                assert!(row < *rows, "the table has the row");
                InstanceId(first + row as u32)
            }
            Self::Listed(ids) => ids[row],
        }
    }

    /// Appends the id of the next row. Lists reserve space for all `total` rows at once instead of doubling.
    fn push(&mut self, id: InstanceId, total: usize) {
        match self {
            Self::Run { rows: 0, .. } => *self = Self::Run { first: id.0, rows: 1 },
            Self::Run { first, rows } if u64::from(*first) + *rows as u64 == u64::from(id.0) => *rows += 1,
            Self::Run { rows, .. } => {
                let mut ids = Vec::with_capacity(total);
                ids.extend((0..*rows).map(|row| self.of(row)));
                ids.push(id);
                *self = Self::Listed(ids);
            }
            Self::Listed(ids) => ids.push(id),
        }
    }
}

impl Table for StoredTable {
    fn meta(&self) -> &TableMeta {
        &self.meta
    }

    fn rows(&self) -> usize {
        self.ids.rows()
    }

    fn id(&self, row: usize) -> InstanceId {
        self.ids.of(row)
    }

    fn label(&self, row: usize) -> Option<ClassId> {
        self.labels.is_valid(row).then(|| ClassId(self.labels.value(row)))
    }

    fn updated_steps(&self, rows: Range<usize>) -> Result<Vec<Option<u64>>, TableError> {
        let batch = self.batch_of(&rows);
        let first = batch.rows.start;
        let file = &self.files[batch.file].location;
        let steps = batch.steps.start_read(file, rows.start - first..rows.end - first);
        Ok(steps.finish()?.into_iter().map(step_of).collect())
    }

    fn ranges(&self, longest: usize) -> Vec<Range<usize>> {
        self.batches.iter().flat_map(|batch| split(batch.rows.clone(), longest)).collect()
    }

    fn start_read(&self, rows: Range<usize>) -> PendingVectors<'_> {
        let batch = self.batch_of(&rows);
        let size = (self.meta.dim * self.values.bytes()) as u64;
        let at = |row: usize| batch.features + (row - batch.rows.start) as u64 * size;
        let TableFile { location, name, digest, first_row } = &self.files[batch.file];
        let read = location.start_read_range(at(rows.start)..at(rows.end));
        let first = FirstRow { counted: rows.start, in_file: rows.start - first_row };
        let digest = digest.as_ref().map(|digest| (digest, at(rows.start)));
        PendingVectors::file(read, self.values, name, &self.meta, first, digest)
    }

    fn verify(&self) -> Result<(), TableError> {
        self.files.iter().filter_map(|file| file.digest.as_ref()).try_for_each(RunningDigest::verify)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature_table::tests::table;

    /// A bank of 100 million rows has 200 MB of columns in memory, not 2.4 GB.
    #[test]
    fn the_columns_of_a_whole_split_take_two_bytes_a_row_and_those_of_a_sample_six() {
        let dir = tempfile::tempdir().expect("a folder");
        let location = Location::from_path(&dir.path().join("table.arrow")).expect("a location");
        let mut whole = table(100_000);
        let opened = |table: &FeatureTable| {
            table.write(&location).expect("written");
            let StoredTable { ids, labels, .. } = StoredTable::open(&location).expect("opened");
            // Plus a bit per row, as some rows have no label.
            assert!(labels.get_buffer_memory_size() <= 2 * 100_000 + 100_000 / 8 + 128);
            ids
        };
        assert!(matches!(opened(&whole), Ids::Run { first: 0, rows: 100_000 }));
        whole.ids[99_999].0 += 1;
        let Ids::Listed(ids) = opened(&whole) else { panic!("the ids have a gap") };
        assert_eq!((ids.len(), ids.capacity()), (100_000, 100_000));
    }
}
