//! Feature tables: one vector for each instance, as an Arrow IPC file.
//!
//! Memory banks on disk and exported features share this format: columns `instance_id`, `feature`, `label`,
//! `updated_step`, and schema metadata that describes the features. Any Arrow tool opens it, and it can be
//! memory-mapped. Tables of other programs with vectors are read too (Arrow IPC file or stream, Parquet);
//! `foreign.rs` describes their further data. A table is checked when read.
//!
//! Invariants of a table that was read: no id occurs twice, and the ids of a bank ascend (other tables keep the order
//! of their file); every value is finite; rows have unit length if the metadata says so; every label names a class.

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

/// Largest distance from 1 of a row's length in a table whose metadata says unit length.
///
/// A bank in bf16 determines it: rounding to 8 bits changes each value, and so the length, by up to 2^-8.
pub const UNIT_TOLERANCE: f64 = 0.004;

/// Maximum number of classes of images with one class: the range of a [`ClassId`](crate::ids::ClassId).
const MOST_CLASSES: usize = u16::MAX as usize + 1;

/// Error of reading or writing a feature table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file is missing.
    #[error("{table}: no feature table is there")]
    NotThere {
        /// Name of the table.
        table: String,
    },
    /// The table has no rows, but some are needed.
    #[error("{table}: the table has no rows")]
    Empty {
        /// Name of the table.
        table: String,
    },
    /// The bytes are not an Arrow or Parquet file, or are truncated.
    #[error("{table}: not a complete Arrow or Parquet file (truncated or damaged?)")]
    Malformed {
        /// Name of the table.
        table: String,
        /// Underlying error.
        #[source]
        source: arrow::error::ArrowError,
    },
    /// The Arrow or Parquet file lacks columns or metadata of a feature table.
    #[error("{table}: not a feature table: {reason}")]
    NotATable {
        /// Name of the table.
        table: String,
        /// Description of the problem.
        reason: String,
    },
    /// A column is missing or has unexpected contents.
    #[error("{table}: column `{column}` {reason}")]
    Column {
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
        /// Actual and expected contents.
        reason: String,
    },
    /// Several columns fit a role.
    #[error("{table}: the {role} can be those of {columns}: name the column by {option}")]
    Ambiguous {
        /// Name of the table.
        table: String,
        /// Names of the columns.
        columns: String,
        /// Role that the columns fit.
        role: &'static str,
        /// Option that decides between them.
        option: &'static str,
    },
    /// The bytes do not match the checkpoint's digest.
    #[error("{table}: damaged: its digest is not the one that the checkpoint names")]
    Damaged {
        /// Name of the table.
        table: String,
    },
    /// An id is negative, occurs twice, or is out of order in a bank.
    #[error("{table} row {row}: invalid instance id {id}: {reason}")]
    Id {
        /// Name of the table.
        table: String,
        /// Row, from 0.
        row: usize,
        /// Faulty id.
        id: i64,
        /// Reason.
        reason: &'static str,
    },
    /// A label names none of the classes.
    #[error("{table} row {row}: label {label} is out of range, expected -1 or a class below {classes}{}",
        if *classes == MOST_CLASSES { ", as a table has that many classes at most" } else { "" })]
    Label {
        /// Name of the table.
        table: String,
        /// Row, from 0.
        row: usize,
        /// Faulty label.
        label: i64,
        /// Number of classes, or the maximum that a table can have.
        classes: usize,
    },
    /// A value is not finite.
    #[error("{table} row {row}: the feature is not finite")]
    NotFinite {
        /// Name of the table.
        table: String,
        /// Row, from 0.
        row: usize,
    },
    /// A row lacks unit length although the metadata says unit length.
    #[error("{table} row {row}: the feature's length is {length}, not 1 as the table says")]
    NotUnit {
        /// Name of the table.
        table: String,
        /// Row, from 0.
        row: usize,
        /// Length of the row.
        length: f64,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl TableError {
    /// Returns the kind of failure, which selects the exit code.
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
