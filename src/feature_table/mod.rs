//! Feature tables: one vector for each instance, as an Arrow IPC file.
//!
//! The memory bank on disk and exported features are this one format: columns `instance_id`, `feature`,
//! `label`, `updated_step`, and schema metadata that says what the features are. Any Arrow tool opens it,
//! and it can be memory-mapped. Tables of other programs are read too (Arrow IPC file or stream, Parquet), if
//! they hold ids and vectors. A table is checked when it is read; what comes out is fit for use.
//!
//! Invariants of a table that was read: no id occurs twice; every value is finite; rows are of unit length
//! where the metadata says so; every label names a class; the ids of a bank ascend.

mod columns;
mod decode;
mod error;
mod meta;
mod passing;
mod reader;
mod rows;
mod schema;
mod slice;
mod stored;
mod unit;
mod writer;

pub use columns::ColumnNames;
pub use error::TableError;
pub use meta::{Kind, TableMeta};
pub use rows::{PendingVectors, Table, Vectors};
pub use schema::schema_text;
pub use slice::TableSlice;
pub use stored::{StoredTable, open_table};
pub use unit::UnitRows;

use serde::Serialize;

use crate::ids::{ClassId, InstanceId};

/// How far from 1 the length of a row may be where a table says that its rows are of unit length.
///
/// A bank in bf16 sets it: rounding to 8 bits changes each value, and so the length, by up to 2^-8.
pub const UNIT_TOLERANCE: f64 = 0.004;

/// A feature table in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureTable {
    /// What the features are.
    pub meta: TableMeta,
    /// `[rows]`: the instance of each row.
    pub ids: Vec<InstanceId>,
    /// `[rows]`: its class, where it has one.
    pub labels: Vec<Option<ClassId>>,
    /// `[rows]`: in a bank, the training step that last wrote the row.
    pub updated_step: Vec<Option<u64>>,
    /// `[rows * dim]`: row after row.
    pub features: Vec<f32>,
}

/// What `inspect` says of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableSummary {
    /// Always `feature_table`.
    pub kind: &'static str,
    /// What the features are.
    pub table: TableMeta,
    /// The number of rows.
    pub rows: usize,
    /// Rows with a label.
    pub labelled: usize,
    /// In a bank, the rows that no step has written yet.
    pub never_updated: Option<usize>,
    /// In a bank, the mean age of the other rows, in steps.
    pub mean_age_steps: Option<f64>,
}

impl FeatureTable {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The vector of a row.
    pub fn feature(&self, row: usize) -> &[f32] {
        &self.features[row * self.meta.dim..][..self.meta.dim]
    }

    /// What `inspect` says of the table.
    pub fn summary(&self) -> TableSummary {
        let updated: Vec<u64> = self.updated_step.iter().filter_map(|&step| step).collect();
        let is_bank = self.meta.kind == Kind::Bank;
        let age = |step: &u64| self.meta.step.saturating_sub(step + 1) as f64;
        let mean = updated.iter().map(age).sum::<f64>() / updated.len().max(1) as f64;
        TableSummary {
            kind: "feature_table",
            rows: self.len(),
            labelled: self.labels.iter().flatten().count(),
            never_updated: is_bank.then(|| self.len() - updated.len()),
            mean_age_steps: (is_bank && !updated.is_empty()).then_some(mean),
            table: self.meta.clone(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
