//! Writer of tables whose rows arrive over time, with constant memory.
//!
//! The table appears at its location as a whole when [`TableWriter::finish`] succeeds. A writer that is
//! dropped earlier leaves nothing.

use std::fmt;
use std::io::BufWriter;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayData, ArrayRef, FixedSizeListArray, Int64Array, RecordBatch, make_array};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::writer::FileWriter;

use super::TableError;
use super::rows::{Dtype, split};
use super::schema::{TableMeta, schema};
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Location, Published, Upload};

/// Rows of a record batch: 32 MiB of features at 128 numbers a row.
const BATCH_ROWS: usize = 1 << 16;
/// Bytes of vectors in a record batch, if these are longer than [`Dtype::LONGEST_F32`].
const BATCH_BYTES: usize = 8 << 20;

/// Columns of rows besides their vectors.
#[derive(Clone, Copy, Debug)]
pub struct RowColumns<'a> {
    /// `[rows]`: instance of each row.
    pub ids: &'a [InstanceId],
    /// `[rows]`: class of each row, if it has one.
    pub labels: &'a [Option<ClassId>],
    /// `[rows]`: in a bank, the training step that last wrote the row.
    pub updated_steps: &'a [Option<u64>],
}

impl RowColumns<'_> {
    /// Returns the columns of some of the rows.
    fn of(&self, rows: Range<usize>) -> Self {
        let Self { ids, labels, updated_steps } = self;
        Self { ids: &ids[rows.clone()], labels: &labels[rows.clone()], updated_steps: &updated_steps[rows] }
    }

    fn check(&self) {
        assert_eq!(self.labels.len(), self.ids.len(), "a label or none for each row");
        assert_eq!(self.updated_steps.len(), self.ids.len(), "a step or none for each row");
    }
}

/// Table that is being written.
pub struct TableWriter {
    location: Location,
    schema: Arc<Schema>,
    dim: usize,
    value: DataType,
    writer: FileWriter<BufWriter<Upload>>,
}

impl fmt::Debug for TableWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableWriter({})", self.location)
    }
}

impl TableWriter {
    /// Starts a table with vectors of this type.
    ///
    /// # Errors
    /// If the store fails.
    pub fn start(location: &Location, meta: &TableMeta, dtype: Dtype) -> Result<Self, TableError> {
        let value = dtype.of_arrow();
        let schema = Arc::new(schema(meta, value.clone()));
        let writer = FileWriter::try_new_buffered(Upload::start(location)?, &schema)
            .map_err(|error| failed(location, error))?;
        Ok(Self { location: location.clone(), schema, dim: meta.dim, value, writer })
    }

    /// Returns the number of rows in a record batch of such vectors.
    pub fn batch_rows(dim: usize, dtype: Dtype) -> usize {
        if dim <= Dtype::LONGEST_F32 {
            return BATCH_ROWS;
        }
        (BATCH_BYTES / (dim * dtype.bytes())).clamp(1, BATCH_ROWS)
    }

    /// Appends rows as one record batch. `values` are their numbers in the table's type, little-endian.
    ///
    /// # Errors
    /// If the store fails.
    ///
    /// # Panics
    /// If the columns differ in length.
    pub fn append(&mut self, rows: RowColumns<'_>, values: impl Into<Buffer>) -> Result<(), TableError> {
        rows.check();
        self.batch(rows, values.into())
            .and_then(|batch| self.writer.write(&batch))
            .map_err(|error| failed(&self.location, error))
    }

    fn batch(&self, rows: RowColumns<'_>, values: Buffer) -> Result<RecordBatch, ArrowError> {
        let RowColumns { ids, labels, updated_steps } = rows;
        let numbers = ArrayData::builder(self.value.clone()).len(ids.len() * self.dim).add_buffer(values);
        let item = Arc::new(Field::new("item", self.value.clone(), false));
        let vectors = make_array(numbers.align_buffers(true).build()?);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| id.to_stored()))),
            Arc::new(FixedSizeListArray::try_new(item, self.dim as i32, vectors, None)?),
            Arc::new(Int64Array::from_iter(labels.iter().map(|label| label.map(|class| i64::from(class.0))))),
            Arc::new(Int64Array::from_iter(updated_steps.iter().map(|step| step.map(|step| step as i64)))),
        ];
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }

    /// Publishes a whole table in f32, atomically. `vectors` returns the vectors of a range of rows; it is called with
    /// successive ranges of at most 65,536 rows, so that not all vectors must be in memory at once.
    ///
    /// # Shape
    /// `vectors(rows)`: `[rows * dim]`, row after row
    ///
    /// # Errors
    /// If `vectors` or the store fails.
    ///
    /// # Panics
    /// If the columns differ in length.
    pub fn write(
        location: &Location,
        meta: &TableMeta,
        columns: RowColumns<'_>,
        mut vectors: impl FnMut(Range<usize>) -> Result<Vec<f32>, TableError>,
    ) -> Result<Published, TableError> {
        columns.check();
        let mut writer = Self::start(location, meta, Dtype::F32)?;
        for rows in split(0..columns.ids.len(), BATCH_ROWS) {
            writer.append(columns.of(rows.clone()), vectors(rows)?)?;
        }
        writer.finish()
    }

    /// Publishes the table.
    ///
    /// # Errors
    /// If the store fails; then nothing is published.
    pub fn finish(mut self) -> Result<Published, TableError> {
        let failed = |error| failed(&self.location, error);
        self.writer.finish().map_err(failed)?;
        let buffered = self.writer.into_inner().map_err(failed)?;
        let upload = buffered.into_inner().map_err(|error| failed(ArrowError::from(error.into_error())))?;
        Ok(upload.finish()?)
    }
}

fn failed(location: &Location, error: ArrowError) -> TableError {
    match error {
        ArrowError::IoError(_, source) => location.failed_by("write", source).into(),
        source => TableError::Malformed { table: location.to_string(), source },
    }
}
