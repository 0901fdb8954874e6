//! A table with its rows at unit length, so that inner products are cosines.

use std::ops::Range;

use super::error::TableError;
use super::meta::TableMeta;
use super::rows::{PendingVectors, Table};
use crate::ids::{ClassId, InstanceId};

/// A table whose rows are brought to unit length as they are read; a row of zeros stays.
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

    fn ids(&self) -> &[InstanceId] {
        self.table.ids()
    }

    fn labels(&self) -> &[Option<ClassId>] {
        self.table.labels()
    }

    fn updated_steps(&self) -> &[Option<u64>] {
        self.table.updated_steps()
    }

    fn ranges(&self, longest: usize) -> Vec<Range<usize>> {
        self.table.ranges(longest)
    }

    fn start_read(&self, rows: Range<usize>) -> PendingVectors<'_> {
        self.table.start_read(rows).at_unit_length()
    }

    fn verify(&self) -> Result<(), TableError> {
        self.table.verify()
    }
}

/// Brings rows to unit length; the sums run in f64 and in order, so the result is the same on every machine.
pub(super) fn normalise(features: &mut [f32], dim: usize) {
    for row in features.chunks_exact_mut(dim) {
        let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}
