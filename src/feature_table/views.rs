//! Views of a table: some of its rows, or its rows at unit length.

use std::ops::Range;

use super::error::TableError;
use super::rows::{PendingVectors, Table};
use super::schema::TableMeta;
use crate::ids::{ClassId, InstanceId};

/// A run of a table's rows, counted from 0.
#[derive(Debug)]
pub struct TableSlice<'a> {
    table: &'a dyn Table,
    rows: Range<usize>,
}

impl<'a> TableSlice<'a> {
    /// These rows of `table`.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn new(table: &'a dyn Table, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= table.rows(), "the table has the rows");
        Self { table, rows }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Table for TableSlice<'_> {
    fn meta(&self) -> &TableMeta {
        self.table.meta()
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn id(&self, row: usize) -> InstanceId {
        self.table.id(self.rows.start + row)
    }

    fn label(&self, row: usize) -> Option<ClassId> {
        self.table.label(self.rows.start + row)
    }

    fn updated_steps(&self, rows: Range<usize>) -> Result<Vec<Option<u64>>, TableError> {
        self.table.updated_steps(rows.start + self.rows.start..rows.end + self.rows.start)
    }

    fn ranges(&self, longest: usize) -> Vec<Range<usize>> {
        let own = |range: Range<usize>| range.start.max(self.rows.start)..range.end.min(self.rows.end);
        let here = self.table.ranges(longest).into_iter().map(own).filter(|range| !range.is_empty());
        here.map(|range| range.start - self.rows.start..range.end - self.rows.start).collect()
    }

    fn start_read(&self, rows: Range<usize>) -> PendingVectors<'_> {
        let start = self.rows.start;
        self.table.start_read(rows.start + start..rows.end + start).counted_from(start)
    }

    /// Checks the whole table.
    fn verify(&self) -> Result<(), TableError> {
        self.table.verify()
    }
}

/// A table whose rows are brought to unit length as they are read, so that inner products are cosines. Rows of a table
/// that says that they are of unit length keep their bits, and a row of zeros stays.
#[derive(Debug)]
pub struct UnitRows<'a> {
    table: &'a dyn Table,
    meta: TableMeta,
}

impl<'a> UnitRows<'a> {
    /// The rows of `table` at unit length.
    pub fn new(table: &'a dyn Table) -> Self {
        Self { table, meta: TableMeta { unit_length: true, ..table.meta().clone() } }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Table for UnitRows<'_> {
    fn meta(&self) -> &TableMeta {
        &self.meta
    }

    fn rows(&self) -> usize {
        self.table.rows()
    }

    fn id(&self, row: usize) -> InstanceId {
        self.table.id(row)
    }

    fn label(&self, row: usize) -> Option<ClassId> {
        self.table.label(row)
    }

    fn updated_steps(&self, rows: Range<usize>) -> Result<Vec<Option<u64>>, TableError> {
        self.table.updated_steps(rows)
    }

    fn ranges(&self, longest: usize) -> Vec<Range<usize>> {
        self.table.ranges(longest)
    }

    fn start_read(&self, rows: Range<usize>) -> PendingVectors<'_> {
        let read = self.table.start_read(rows);
        if self.table.meta().unit_length { read } else { read.at_unit_length() }
    }

    fn verify(&self) -> Result<(), TableError> {
        self.table.verify()
    }
}
