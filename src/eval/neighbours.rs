//! The neighbours as a Parquet file.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Builder, Int64Array, Int64Builder, ListBuilder, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;

use super::{EvalError, Neighbours};
use crate::feature_table::FeatureTable;
use crate::storage::{Location, StorageError, Upload};

/// Publishes columns `query_id`, `neighbour_ids` and `similarities`, a row for each query.
///
/// # Errors
/// If the store fails.
pub fn write_neighbours(
    location: &Location,
    bank: &FeatureTable,
    queries: &FeatureTable,
    neighbours: &Neighbours,
) -> Result<(), EvalError> {
    let (mut ids, mut similarities) =
        (ListBuilder::new(Int64Builder::new()), ListBuilder::new(Float32Builder::new()));
    for query in 0..queries.len() {
        for (row, similarity) in neighbours.of(query) {
            ids.values().append_value(bank.ids[row].to_stored());
            similarities.values().append_value(similarity);
        }
        ids.append(true);
        similarities.append(true);
    }
    let columns: [(&str, ArrayRef); 3] = [
        ("query_id", Arc::new(Int64Array::from_iter_values(queries.ids.iter().map(|id| id.to_stored())))),
        ("neighbour_ids", Arc::new(ids.finish())),
        ("similarities", Arc::new(similarities.finish())),
    ];
    let failed = |source: ParquetError| StorageError::Failed {
        operation: "write",
        location: location.to_string(),
        local: location.local_path().is_some(),
        source: Box::new(source),
    };
    let batch = RecordBatch::try_from_iter(columns).expect("the columns have a row for each query");
    let mut writer = ArrowWriter::try_new(Upload::start(location)?, batch.schema(), None).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.into_inner().map_err(failed)?.finish()?;
    Ok(())
}
