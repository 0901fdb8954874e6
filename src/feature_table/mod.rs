//! Feature tables: one vector for each instance, as an Arrow IPC file.
//!
//! The memory bank on disk and exported features are this one format: columns `instance_id`, `feature`,
//! `label`, `updated_step`, and schema metadata that says what the features are. Any Arrow tool opens it,
//! and it can be memory-mapped. Tables of other programs are read too (Arrow IPC file or stream, Parquet), if
//! they hold vectors; `foreign.rs` says what these may have besides. A table is checked when it is read.
//!
//! Invariants of a table that was read: no id occurs twice, and the ids of a bank ascend (other tables keep
//! the order of their file); every value is finite; rows are of unit length where the metadata says so; every
//! label names a class.

mod columns;
mod decode;
mod foreign;
mod rows;
mod schema;
mod stored;
mod table;
mod writer;

pub use columns::ColumnNames;
pub use foreign::{Foreign, ForeignLabels, RowNames};
pub use rows::{Dtype, PendingVectors, Table, Vectors, normalise, read_ahead};
pub use schema::{Kind, TableMeta};
pub use stored::{StoredTable, open_table};
pub use table::{FeatureTable, TableSummary};
pub use writer::{RowColumns, TableWriter};

use crate::failure::Failure;
use crate::storage::StorageError;

/// How far from 1 the length of a row may be where a table says that its rows are of unit length.
///
/// A bank in bf16 sets it: rounding to 8 bits changes each value, and so the length, by up to 2^-8.
pub const UNIT_TOLERANCE: f64 = 0.004;

/// Classes at most where an image has one: what a [`ClassId`](crate::ids::ClassId) can number.
const MOST_CLASSES: usize = u16::MAX as usize + 1;

/// A feature table cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file is missing.
    #[error("{table}: no feature table is there")]
    NotThere {
        /// The table.
        table: String,
    },
    /// A table without rows where some are needed.
    #[error("{table}: the table has no rows")]
    Empty {
        /// The table.
        table: String,
    },
    /// The bytes are not those of an Arrow or Parquet file, or are cut.
    #[error("{table}: not a complete Arrow or Parquet file (truncated or damaged?)")]
    Malformed {
        /// The table.
        table: String,
        /// The cause.
        #[source]
        source: arrow::error::ArrowError,
    },
    /// An Arrow or Parquet file without the columns or metadata of a feature table.
    #[error("{table}: not a feature table: {reason}")]
    NotATable {
        /// The table.
        table: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// A column that is missing or holds something else.
    #[error("{table}: column `{column}` {reason}")]
    Column {
        /// The table.
        table: String,
        /// The column's name.
        column: String,
        /// What it holds, and what was expected.
        reason: String,
    },
    /// Several columns that can be meant.
    #[error("{table}: the {role} can be those of {columns}: name the column by {option}")]
    Ambiguous {
        /// The table.
        table: String,
        /// The columns.
        columns: String,
        /// What is sought.
        role: &'static str,
        /// The option that decides.
        option: &'static str,
    },
    /// The bytes are not those that the checkpoint names.
    #[error("{table}: damaged: its digest is not the one that the checkpoint names")]
    Damaged {
        /// The table.
        table: String,
    },
    /// An id that is negative, occurs twice, or is out of order in a bank.
    #[error("{table} row {row}: invalid instance id {id}: {reason}")]
    Id {
        /// The table.
        table: String,
        /// The row, from 0.
        row: usize,
        /// The id.
        id: i64,
        /// Why.
        reason: &'static str,
    },
    /// A label that names none of the classes.
    #[error("{table} row {row}: label {label} is out of range, expected -1 or a class below {classes}{}",
        if *classes == MOST_CLASSES { ", as a table has that many classes at most" } else { "" })]
    Label {
        /// The table.
        table: String,
        /// The row, from 0.
        row: usize,
        /// The label.
        label: i64,
        /// The number of classes, or the most that a table can have.
        classes: usize,
    },
    /// A value that is not a finite number.
    #[error("{table} row {row}: the feature is not finite")]
    NotFinite {
        /// The table.
        table: String,
        /// The row, from 0.
        row: usize,
    },
    /// A row that is not of unit length although the table says so.
    #[error("{table} row {row}: the feature's length is {length}, not 1 as the table says")]
    NotUnit {
        /// The table.
        table: String,
        /// The row, from 0.
        row: usize,
        /// Its length.
        length: f64,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl TableError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Storage(error) => error.failure(),
            _ => Failure::Data,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
pub(crate) mod tests;
