//! The exact non-parametric softmax over all instances.
//!
//! `loss = mean over the batch of  logsumexp_i(f·v_i / τ) - f·v_y / τ`, streamed over tiles of the bank with
//! a running maximum; a second pass adds up the gradient `1/(batch τ) (sum_i p_i v_i - v_y)`.
//!
//! # Source
//! Paper, equation 2; reference `LinearAverage.py`, which holds all `[batch, instances]` logits.

use tch::{Kind, Tensor, no_grad};

use super::{Evaluation, Queries, TILE_BYTES};
use crate::bank::MemoryBank;
use crate::units::Temperature;

/// The objective `softmax`; it has no state.
#[derive(Clone, Debug)]
pub struct Softmax {
    temperature: Temperature,
}

impl Softmax {
    /// The objective with this temperature.
    pub fn new(temperature: Temperature) -> Self {
        Self { temperature }
    }

    /// The loss of the batch and its gradient.
    pub fn evaluate(&self, queries: Queries<'_>, bank: &MemoryBank) -> Evaluation {
        let temperature = self.temperature.get();
        let batch = queries.positions.len() as f64;
        no_grad(|| {
            let own = bank.gather(queries.positions);
            let positive = (&own * queries.features).sum_dim_intlist([1_i64].as_slice(), false, Kind::Double)
                / temperature;
            let mut parts = Vec::new();
            for_each_tile(queries, bank, |similarities, _| {
                let logits = similarities / temperature;
                let maximum = logits.amax([1_i64].as_slice(), true);
                let sum = (logits - &maximum).exp().sum_dim_intlist([1_i64].as_slice(), false, Kind::Double);
                parts.push(sum.log() + maximum.squeeze_dim(1).to_kind(Kind::Double));
            });
            let ln_sum = Tensor::stack(&parts, 0).logsumexp([0_i64].as_slice(), false);
            let loss = (&ln_sum - positive).sum(Kind::Double).double_value(&[]) / batch;
            let offset = ln_sum.to_kind(Kind::Float).unsqueeze(1);
            let mut gradient = -own;
            for_each_tile(queries, bank, |similarities, rows| {
                let probabilities = (similarities / temperature - &offset).exp();
                gradient += probabilities.matmul(rows);
            });
            Evaluation { loss, gradient: gradient / (batch * temperature) }
        })
    }
}

/// Calls `visit` with similarities `[batch, tile]` and rows `[tile, dim]` of one tile after the other.
fn for_each_tile(queries: Queries<'_>, bank: &MemoryBank, mut visit: impl FnMut(&Tensor, &Tensor)) {
    let rows = bank.len() as i64;
    let row_bytes = (bank.dim() + 2 * queries.positions.len()) * size_of::<f32>();
    let tile = (TILE_BYTES / row_bytes).max(1) as i64;
    let mut start = 0;
    while start < rows {
        let len = tile.min(rows - start);
        let part = bank.rows().narrow(0, start, len);
        visit(&queries.features.matmul(&part.tr()), &part);
        start += len;
    }
}
