//! The neighbours as a Parquet file.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Builder, Int64Array, Int64Builder, ListBuilder, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;

use super::EvalError;
use crate::feature_table::{FeatureTable, Table};
use crate::search::Neighbours;
use crate::storage::{Location, StorageError, Upload};

/// Queries that are made ready at a time.
const BATCH_QUERIES: usize = 4096;

/// Publishes columns `query_id`, `neighbour_ids` and `similarities`, a row for each query.
///
/// # Errors
/// If the store fails.
pub fn write_neighbours(
    location: &Location,
    bank: &dyn Table,
    queries: &FeatureTable,
    neighbours: &Neighbours,
) -> Result<(), EvalError> {
    let failed = |source: ParquetError| StorageError::Failed {
        operation: "write",
        location: location.to_string(),
        local: location.local_path().is_some(),
        source: Box::new(source),
    };
    let upload = Upload::start(location)?;
    let schema = batch(bank, queries, neighbours, 0..0).schema();
    let mut writer = ArrowWriter::try_new(upload, schema, None).map_err(failed)?;
    for start in (0..queries.len()).step_by(BATCH_QUERIES) {
        let range = start..(start + BATCH_QUERIES).min(queries.len());
        writer.write(&batch(bank, queries, neighbours, range)).map_err(failed)?;
    }
    writer.into_inner().map_err(failed)?.finish()?;
    Ok(())
}

fn batch(
    bank: &dyn Table,
    queries: &FeatureTable,
    neighbours: &Neighbours,
    range: Range<usize>,
) -> RecordBatch {
    let (mut ids, mut similarities) =
        (ListBuilder::new(Int64Builder::new()), ListBuilder::new(Float32Builder::new()));
    for query in range.clone() {
        for (row, similarity) in neighbours.of(query) {
            ids.values().append_value(bank.ids()[row].to_stored());
            similarities.values().append_value(similarity);
        }
        ids.append(true);
        similarities.append(true);
    }
    let query_ids = queries.ids[range].iter().map(|id| id.to_stored());
    let columns: [(&str, ArrayRef); 3] = [
        ("query_id", Arc::new(Int64Array::from_iter_values(query_ids))),
        ("neighbour_ids", Arc::new(ids.finish())),
        ("similarities", Arc::new(similarities.finish())),
    ];
    RecordBatch::try_from_iter(columns).expect("the columns have a row for each query")
}
