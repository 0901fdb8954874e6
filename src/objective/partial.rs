//! What a part of the bank's rows says of a batch, and the whole that disjoint parts make.

use tch::{Kind, Tensor};

use super::candidates::{Candidates, for_each_tile};
use super::log_sum::LogSum;
use super::log_z::LogZSum;
use super::noise_sum::{Noise, NoiseSum};
use super::positives::Positives;
use super::{Evaluation, Queries};
use crate::bank::BankShard;
use crate::units::Temperature;

/// Sums over a part of the rows; those over disjoint parts merge.
#[derive(Debug)]
pub struct Partial {
    pub(super) own: Positives,
    pub(super) candidates: Sum,
    pub(super) partition: Option<LogZSum>,
    instances: usize,
    temperature: Temperature,
}

#[derive(Debug)]
pub(super) enum Sum {
    /// Of `softmax` and `infonce`.
    Exponentials(LogSum),
    /// Of `nce`.
    Noise(NoiseSum),
}

impl Partial {
    /// The sums of a softmax over own row and candidates.
    pub(super) fn softmax(
        queries: Queries<'_>,
        temperature: Temperature,
        part: &BankShard,
        candidates: Candidates<'_>,
    ) -> Self {
        let mut sum = LogSum::empty(queries.features, temperature);
        for_each_tile(queries, temperature, part, candidates, |tile| sum.add(tile));
        let own = Positives::of(queries, temperature, part);
        let instances = part.instances();
        Self { own, candidates: Sum::Exponentials(sum), partition: None, instances, temperature }
    }

    /// The sums of noise-contrastive estimation.
    pub(super) fn nce(
        queries: Queries<'_>,
        temperature: Temperature,
        part: &BankShard,
        candidates: Candidates<'_>,
        (noise, estimate_partition): (Noise, bool),
    ) -> Self {
        let mut sum = NoiseSum::empty(queries.features, noise);
        let mut partition = estimate_partition.then(LogZSum::empty);
        for_each_tile(queries, temperature, part, candidates, |tile| {
            sum.add(&tile);
            if let Some(partition) = &mut partition {
                partition.add(&tile);
            }
        });
        let own = Positives::of(queries, temperature, part);
        let instances = part.instances();
        Self { own, candidates: Sum::Noise(sum), partition, instances, temperature }
    }

    /// Adds what a disjoint part says of the same batch.
    ///
    /// # Panics
    /// If the other is of another objective.
    pub fn merge(&mut self, other: Self) {
        self.own.merge(&other.own);
        match (&mut self.candidates, other.candidates) {
            (Sum::Exponentials(own), Sum::Exponentials(other)) => own.merge(other),
            (Sum::Noise(own), Sum::Noise(other)) => own.merge(&other),
            _ => panic!("partials of one objective merge"),
        }
        if let (Some(own), Some(other)) = (&mut self.partition, other.partition) {
            own.merge(other);
        }
    }

    /// Loss and gradient, once all parts are merged. With `x` the logarithm of the candidates' sum less the
    /// own logit, the softmax's loss is `softplus(x)` and its gradient
    /// `sigmoid(x) (mean candidate - own row) / (batch τ)`: no difference of nearly equal numbers.
    pub(super) fn finish(self, queries: Queries<'_>, proximal_weight: f64) -> Evaluation {
        let column = |values: &Tensor| values.to_kind(Kind::Float).unsqueeze(1);
        let (batch, own) = (queries.batch as f64, &self.own);
        let (mut loss, direction) = match &self.candidates {
            Sum::Exponentials(sum) => {
                let x = sum.ln() - &own.logits;
                let towards = (sum.mean_row() - &own.rows) * column(&x.sigmoid());
                (log_one_plus_exp(&x), towards)
            }
            Sum::Noise(sum) => {
                let u = own.logits.to_kind(Kind::Double) - &sum.noise.offset;
                let towards = &sum.weighted - &own.rows * column(&(-&u).sigmoid());
                (&sum.loss + log_one_plus_exp(&-u), towards)
            }
        };
        let mut gradient = direction / (batch * self.temperature.get());
        if proximal_weight > 0.0 {
            let away = queries.features - &own.rows;
            loss += away.square().sum_dim_intlist([1_i64].as_slice(), false, Kind::Double) * proximal_weight;
            gradient += away * (2.0 * proximal_weight / batch);
        }
        let partition =
            self.partition.map(|negatives| negatives.ln_estimate_beside(&own.logits, self.instances));
        Evaluation { loss: loss.sum(Kind::Double) / batch, gradient, ln_partition: partition }
    }
}

/// `ln(1 + exp(x))` without overflow and, for very negative `x`, without loss of digits.
fn log_one_plus_exp(x: &Tensor) -> Tensor {
    x.clamp_min(0.0) + (-x.abs()).exp().log1p()
}
