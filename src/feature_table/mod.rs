//! Feature tables: one vector for each instance, as an Arrow IPC file.
//!
//! The memory bank on disk and exported features are this one format: columns `instance_id`, `feature`,
//! `label`, `updated_step`, and schema metadata that says what the features are. Any Arrow tool opens it,
//! and it can be memory-mapped. Tables of other programs are read too (Arrow IPC file or stream, Parquet), if
//! they hold vectors; `foreign.rs` says what these may have besides. A table is checked when it is read.
//!
//! Invariants of a table that was read: no id occurs twice, and the ids of a bank ascend (other tables keep the order of
//! their file); every value is finite; rows are of unit length where the metadata says so; every label names a class.

mod columns;
mod decode;
mod error;
mod foreign;
mod rows;
mod schema;
mod stored;
mod table;
mod views;
mod writer;

pub use columns::ColumnNames;
pub use error::TableError;
pub use foreign::{Foreign, ForeignLabels, RowNames};
pub use rows::{Dtype, PendingVectors, Table, Vectors};
pub use schema::{Kind, TableMeta};
pub use stored::{StoredTable, open_table};
pub use table::{FeatureTable, TableSummary};
pub use views::{TableSlice, UnitRows};
pub use writer::{RowColumns, TableWriter};

/// How far from 1 the length of a row may be where a table says that its rows are of unit length.
///
/// A bank in bf16 sets it: rounding to 8 bits changes each value, and so the length, by up to 2^-8.
pub const UNIT_TOLERANCE: f64 = 0.004;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
