//! The queries' own rows.

use tch::{Kind, Tensor};

use super::Queries;
use crate::bank::BankShard;
use crate::units::Temperature;

/// What a part of the bank knows of the queries' own rows; zero for queries whose row lies elsewhere.
#[derive(Debug)]
pub(super) struct Positives {
    /// `[batch]` f32: similarity over temperature.
    pub(super) logits: Tensor,
    /// `[batch, dim]` f32.
    pub(super) rows: Tensor,
}

impl Positives {
    pub(super) fn of(queries: Queries<'_>, temperature: Temperature, part: &BankShard) -> Self {
        let found = queries.rows_in(part);
        let mut rows = part.rows().index_select(0, &found.row()).to_kind(Kind::Float);
        if !found.is_complete() {
            rows = queries.features.zeros_like().index_copy(0, &found.query(), &rows);
        }
        let products = &rows * (queries.features / temperature.get());
        Self { logits: products.sum_dim_intlist([1_i64].as_slice(), false, Kind::Float), rows }
    }

    /// Adds what a disjoint part knows.
    pub(super) fn merge(&mut self, other: &Self) {
        self.logits += &other.logits;
        self.rows += &other.rows;
    }
}
