//! Embeddings as Parquet, for DuckDB, LanceDB, Polars and pandas.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::commands::CommandError;
use crate::eval::open_bank;
use crate::feature_table::ColumnNames;
use crate::ids::ClassId;
use crate::storage::{Location, StorageError, Upload};

/// Rows of a row group.
const ROW_GROUP: usize = 1 << 16;

/// Publishes a feature table, or the bank of a checkpoint or run, with columns `instance_id`, `feature` (a list of the table's length), `label`, `class` and
/// `updated_step`, and returns the number of rows.
///
/// # Errors
/// If the table cannot be read, or the store fails.
pub fn export_parquet(table: &Location, output: &Location) -> Result<usize, CommandError> {
    let (table, _) = open_bank(table, &ColumnNames::default())?;
    let failed = |source: ParquetError| StorageError::Failed {
        operation: "write",
        location: output.to_string(),
        local: output.local_path().is_some(),
        source: Box::new(source),
    };
    let dim = table.meta().dim as i32;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let schema = Arc::new(Schema::new_with_metadata(
        vec![
            Field::new("instance_id", DataType::Int64, false),
            Field::new("feature", DataType::FixedSizeList(Arc::clone(&item), dim), false),
            Field::new("label", DataType::Int64, true),
            Field::new("class", DataType::Utf8, true),
            Field::new("updated_step", DataType::Int64, true),
        ],
        table.meta().to_metadata(),
    ));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_column_dictionary_enabled("feature.list.element".into(), false)
        .build();
    let upload = Upload::start(output)?;
    let mut writer = ArrowWriter::try_new(upload, Arc::clone(&schema), Some(properties)).map_err(failed)?;
    let name = |class: ClassId| table.meta().classes.get(class.index()).map(String::as_str);
    for rows in table.ranges(ROW_GROUP) {
        let vectors = table.start_read(rows.clone()).finish()?;
        let values = Float32Array::from(vectors.rows(rows.clone())?.into_owned());
        let feature = FixedSizeListArray::new(Arc::clone(&item), dim, Arc::new(values), None);
        let labels = &table.labels()[rows.clone()];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(table.ids()[rows.clone()].iter().map(|id| id.to_stored()))),
            Arc::new(feature),
            Arc::new(Int64Array::from_iter(labels.iter().map(|label| label.map(|class| i64::from(class.0))))),
            Arc::new(StringArray::from_iter(labels.iter().map(|label| label.and_then(name)))),
            Arc::new(Int64Array::from_iter(
                table.updated_steps()[rows].iter().map(|step| step.map(|step| step as i64)),
            )),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are the schema's");
        writer.write(&batch).and_then(|()| writer.flush()).map_err(failed)?;
    }
    table.verify()?;
    writer.into_inner().map_err(failed)?.finish()?;
    Ok(table.ids().len())
}
