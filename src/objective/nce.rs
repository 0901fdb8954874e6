//! Noise-contrastive estimation.
//!
//! With similarity `s`, temperature τ, `n` instances and `K` negatives, the model's probability is
//! `P = exp(s/τ) / Z`, the noise's `1/n`, and with `c = K/n + eps` and `u = s/τ - ln Z - ln c`:
//!
//! ```text
//! loss     = mean over the batch of  softplus(-u_0) + sum_j softplus(u_j)  [+ K ln(c / (K/n))]
//! gradient = 1/(batch τ) ( -sigmoid(-u_0) v_0 + sum_j sigmoid(u_j) v_j )
//! ```
//!
//! where index 0 is the query's own row and `j` runs over its negatives.
//!
//! # Source
//! Paper, equations 4-8; reference `NCEAverage.py` and `NCECriterion.py`, whose `eps` of 1e-7 is an option
//! here. docs/numerics.md says what it does.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::{Evaluation, Negatives, Queries, TILE_BYTES};
use crate::bank::MemoryBank;
use crate::units::Temperature;

/// The settings of the objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NceOptions {
    /// K, the noise samples of each query.
    pub negatives: usize,
    /// τ.
    pub temperature: Temperature,
    /// Added to the noise's probability in the denominators; 0, or the reference's 1e-7.
    pub eps: f64,
}

/// The constant Z that stands for the partition function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// Not known yet.
    #[default]
    Unset,
    /// Estimated once, and fixed.
    Fixed {
        /// Its natural logarithm.
        ln_z: f64,
    },
}

impl Partition {
    /// The natural logarithm of Z, once it is set.
    pub fn ln_z(self) -> Option<f64> {
        match self {
            Self::Unset => None,
            Self::Fixed { ln_z } => Some(ln_z),
        }
    }
}

/// The objective `nce`: its settings and its state Z.
#[derive(Clone, Debug)]
pub struct Nce {
    options: NceOptions,
    partition: Partition,
}

impl Nce {
    /// The objective in a given state; [`Partition::Unset`] at the start of a run.
    pub fn new(options: NceOptions, partition: Partition) -> Self {
        Self { options, partition }
    }

    /// The settings.
    pub fn options(&self) -> NceOptions {
        self.options
    }

    /// The state.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Estimates Z from a batch as `n` times the mean of `exp(s/τ)` over positives and negatives, once:
    /// does nothing where Z is set.
    ///
    /// # Source
    /// Reference `NCEAverage.py`, which does this in the first forward pass, positives included.
    pub fn estimate_partition(&mut self, queries: Queries<'_>, bank: &MemoryBank, negatives: &Negatives) {
        if self.partition != Partition::Unset {
            return;
        }
        let temperature = self.options.temperature.get();
        let positive = self.positive_similarities(queries, bank) / temperature;
        let mut parts = vec![positive.to_kind(Kind::Double).logsumexp([0_i64].as_slice(), false)];
        self.for_each_tile(queries, bank, negatives, |similarities, _| {
            let scaled = (similarities / temperature).to_kind(Kind::Double).flatten(0, -1);
            parts.push(scaled.logsumexp([0_i64].as_slice(), false));
        });
        let sum = Tensor::stack(&parts, 0).logsumexp([0_i64].as_slice(), false).double_value(&[]);
        let terms = queries.positions.len() * (1 + negatives.rows().size()[1] as usize);
        self.partition = Partition::Fixed { ln_z: (bank.len() as f64).ln() + sum - (terms as f64).ln() };
    }

    /// The loss of the batch and its gradient.
    ///
    /// # Panics
    /// If Z is not set.
    pub fn evaluate(&self, queries: Queries<'_>, bank: &MemoryBank, negatives: &Negatives) -> Evaluation {
        let ln_z = self.partition.ln_z().expect("Z is estimated before the first evaluation");
        let temperature = self.options.temperature.get();
        let count = negatives.rows().size()[1] as f64;
        let noise = count / bank.len() as f64;
        let ln_c = (noise + self.options.eps).ln();
        let logit = |similarities: &Tensor| similarities / temperature - (ln_z + ln_c);
        no_grad(|| {
            let positive = logit(&self.positive_similarities(queries, bank));
            let mut loss = (-&positive).softplus().sum(Kind::Double);
            let weights = -(-&positive).sigmoid().unsqueeze(1);
            let mut gradient = bank.gather(queries.positions) * weights;
            self.for_each_tile(queries, bank, negatives, |similarities, rows| {
                let logits = logit(similarities);
                loss += logits.softplus().sum(Kind::Double);
                gradient += logits.sigmoid().unsqueeze(1).bmm(rows).squeeze_dim(1);
            });
            let batch = queries.positions.len() as f64;
            let offset = if count > 0.0 { count * (ln_c - noise.ln()) } else { 0.0 };
            Evaluation {
                loss: loss.double_value(&[]) / batch + offset,
                gradient: gradient / (batch * temperature),
            }
        })
    }

    /// `[batch]`: the similarity of each query to its own row.
    fn positive_similarities(&self, queries: Queries<'_>, bank: &MemoryBank) -> Tensor {
        (bank.gather(queries.positions) * queries.features).sum_dim_intlist(
            [1_i64].as_slice(),
            false,
            Kind::Float,
        )
    }

    /// Calls `visit` with similarities `[batch, tile]` and rows `[batch, tile, dim]` of one tile after the
    /// other.
    fn for_each_tile(
        &self,
        queries: Queries<'_>,
        bank: &MemoryBank,
        negatives: &Negatives,
        mut visit: impl FnMut(&Tensor, &Tensor),
    ) {
        let (batch, dim) = (queries.positions.len() as i64, bank.dim() as i64);
        let count = negatives.rows().size()[1];
        let row_bytes = batch as usize * dim as usize * size_of::<f32>();
        let tile = (TILE_BYTES / row_bytes.max(1)).max(1) as i64;
        let features = queries.features.unsqueeze(2);
        let mut start = 0;
        while start < count {
            let len = tile.min(count - start);
            let index = negatives.rows().narrow(1, start, len).reshape([-1]);
            let rows = bank.rows().index_select(0, &index).view([batch, len, dim]);
            visit(&rows.bmm(&features).squeeze_dim(2), &rows);
            start += len;
        }
    }
}
