//! A run of the bank's rows, as its owner sees it.

use std::ops::Range;

use tch::Tensor;

use crate::ids::BankRow;

/// Contiguous rows of a bank. An objective works on parts: one owner has all rows in one, several have
/// some each.
#[derive(Debug)]
pub struct BankShard {
    rows: Tensor,
    first_row: usize,
    instances: usize,
}

impl BankShard {
    /// # Shape
    /// `rows: [len, dim]`, those from `first_row` on of a bank of `instances` rows
    pub(super) fn new(rows: Tensor, first_row: usize, instances: usize) -> Self {
        Self { rows, first_row, instances }
    }

    /// `[len, dim]` in the type in which the bank keeps them, without a graph.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.size()[0] as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length of a row.
    pub fn dim(&self) -> usize {
        self.rows.size()[1] as usize
    }

    /// The first row's place in the bank.
    pub fn first_row(&self) -> usize {
        self.first_row
    }

    /// The places in the bank.
    pub fn range(&self) -> Range<usize> {
        self.first_row..self.first_row + self.len()
    }

    /// The rows of the whole bank.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// Which of these positions lie here, as (index into the slice, row within the part).
    pub fn owned(&self, positions: &[BankRow]) -> impl Iterator<Item = (usize, usize)> {
        let range = self.range();
        let rows = positions.iter().map(|position| position.row()).enumerate();
        rows.filter(move |(_, row)| range.contains(row)).map(|(query, row)| (query, row - self.first_row))
    }
}
