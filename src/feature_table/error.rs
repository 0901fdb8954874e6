//! What can be wrong with a feature table.

use crate::failure::Failure;
use crate::storage::StorageError;

/// A feature table cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Nothing lies at the table's place.
    #[error("{table}: no feature table is there")]
    NotThere {
        /// The table.
        table: String,
    },
    /// The bytes are no Arrow IPC file, or are cut.
    #[error("{table}: it is no whole Arrow file")]
    Malformed {
        /// The table.
        table: String,
        /// The cause.
        #[source]
        source: arrow::error::ArrowError,
    },
    /// An Arrow file, but no feature table of this version.
    #[error("{table}: it is no feature table: {reason}")]
    NotATable {
        /// The table.
        table: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// An id that is negative, occurs twice, or is out of order in a bank.
    #[error("{table} row {row}: instance id {id} is wrong: {reason}")]
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
    /// A label that is none.
    #[error("{table} row {row}: label {label} is no class")]
    Label {
        /// The table.
        table: String,
        /// The row, from 0.
        row: usize,
        /// The label.
        label: i64,
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
