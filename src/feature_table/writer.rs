//! Writing a feature table as a stream of record batches.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use arrow::ipc::writer::FileWriter;

use super::schema::schema;
use super::{FeatureTable, TableError};
use crate::storage::{Location, Published, Upload};

/// Rows of a record batch: 32 MiB of features at 128 numbers a row.
const BATCH_ROWS: usize = 1 << 16;

impl FeatureTable {
    /// Publishes the table, whole or not at all.
    ///
    /// # Errors
    /// If the store fails.
    ///
    /// # Panics
    /// If the columns differ in length.
    pub fn write(&self, location: &Location) -> Result<Published, TableError> {
        assert_eq!(self.labels.len(), self.len(), "a label or none for each row");
        assert_eq!(self.updated_step.len(), self.len(), "a step or none for each row");
        assert_eq!(self.features.len(), self.len() * self.meta.dim, "a vector for each row");
        let upload = Upload::start(location)?;
        let failed = |error: ArrowError| match error {
            ArrowError::IoError(_, source) => storage_error(location, source),
            source => TableError::Malformed { table: location.to_string(), source },
        };
        let upload = self.write_to(upload).map_err(failed)?;
        Ok(upload.finish()?)
    }

    fn write_to<W: Write>(&self, sink: W) -> Result<W, ArrowError> {
        let schema = Arc::new(schema(self.meta.dim, self.meta.to_metadata()));
        let mut writer = FileWriter::try_new_buffered(sink, &schema)?;
        for start in (0..self.len()).step_by(BATCH_ROWS) {
            let rows = start..(start + BATCH_ROWS).min(self.len());
            let values = &self.features[rows.start * self.meta.dim..rows.end * self.meta.dim];
            let item = Arc::new(Field::new("item", DataType::Float32, false));
            let values = Arc::new(Float32Array::from(values.to_vec()));
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from_iter_values(
                    self.ids[rows.clone()].iter().map(|id| id.to_stored()),
                )),
                Arc::new(FixedSizeListArray::try_new(item, self.meta.dim as i32, values, None)?),
                Arc::new(Int64Array::from_iter(
                    self.labels[rows.clone()].iter().map(|label| label.map(|class| i64::from(class.0))),
                )),
                Arc::new(Int64Array::from_iter(
                    self.updated_step[rows].iter().map(|step| step.map(|step| step as i64)),
                )),
            ];
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
        }
        writer.finish()?;
        let buffered = writer.into_inner()?;
        buffered.into_inner().map_err(|error| ArrowError::from(error.into_error()))
    }
}

fn storage_error(location: &Location, error: std::io::Error) -> TableError {
    let source: Box<dyn std::error::Error + Send + Sync> = error.into();
    let (location, local) = (location.to_string(), location.local_path().is_some());
    crate::storage::StorageError::Failed { operation: "write", location, local, source }.into()
}
