//! Sums of an objective over some of the bank's rows, and their merging over disjoint shards.
//!
//! Each owner computes the sums over its own rows for all queries of the batch. Only these sums and each
//! query's positive are exchanged: two vectors and at most three numbers per query, for any bank size and K.

use tch::{Kind, Tensor};

use super::candidates::{Candidates, Tile, for_each_tile};
use super::{Evaluation, Queries};
use crate::bank::BankShard;
use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::units::Temperature;

/// Below every logit but finite, so that differences to it are not NaN.
const LOWEST: f64 = -1e30;

/// From this τ on, `exp(±1/τ)` (3e14) times any number of rows is far from f32's limits (3e38).
const LOWEST_TEMPERATURE: f64 = 0.03;

/// Sums over some rows; those over disjoint rows merge.
#[derive(Debug)]
pub(super) struct Partial {
    own: Positives,
    candidates: Sum,
    partition: Option<LogZSum>,
    instances: usize,
    temperature: Temperature,
}

#[derive(Debug)]
pub(super) enum Sum {
    /// For `softmax` and `infonce`.
    Exponentials(LogSum),
    /// For `nce`.
    Noise(NoiseSum),
}

impl Partial {
    /// Computes the sums over the candidates in a shard of the bank; `sum` and `partition` are empty sums.
    pub(super) fn of(
        queries: Queries<'_>,
        temperature: Temperature,
        part: &BankShard,
        candidates: Candidates<'_>,
        mut sum: Sum,
        mut partition: Option<LogZSum>,
    ) -> Self {
        for_each_tile(queries, temperature, part, candidates, |tile| {
            if let Some(partition) = &mut partition {
                partition.add(&tile.logits);
            }
            match &mut sum {
                Sum::Exponentials(sum) => sum.add(tile),
                Sum::Noise(sum) => sum.add(&tile),
            }
        });
        let own = Positives::of(queries, temperature, part);
        Self { own, candidates: sum, partition, instances: part.instances(), temperature }
    }

    /// Adds the sums over disjoint rows, for the same batch.
    ///
    /// # Panics
    /// If the other partial belongs to another objective.
    pub(super) fn merge(&mut self, other: Self) {
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

    /// Returns loss and gradient once all partials are merged. With `x` the logarithm of the candidates' sum
    /// minus the positive's logit, the softmax loss is `softplus(x)` and its gradient is `sigmoid(x) (mean
    /// candidate - own row) / (batch τ)`. Neither is a difference of nearly equal numbers.
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

    /// Replaces the sums by those over the rows of all owners, the same at each of them.
    pub(super) fn sum_over(&mut self, owners: &ProcessGroup) -> Result<(), DistributedError> {
        if owners.world() == 1 {
            return Ok(());
        }
        match &mut self.candidates {
            Sum::Exponentials(sum) => sum.sum_over(&mut self.own, owners)?,
            Sum::Noise(sum) => sum.sum_over(&mut self.own, owners)?,
        }
        self.partition.as_mut().map_or(Ok(()), |partition| partition.sum_over(owners))
    }
}

/// Positives of the queries in a shard; zero for queries whose row is elsewhere.
#[derive(Debug)]
pub(super) struct Positives {
    /// `[batch]` f32: similarity divided by temperature.
    logits: Tensor,
    /// `[batch, dim]` f32.
    rows: Tensor,
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

    /// Adds the positives of a disjoint shard.
    pub(super) fn merge(&mut self, other: &Self) {
        self.logits += &other.logits;
        self.rows += &other.rows;
    }

    /// Sums positives and `rows` over all owners, in one message.
    ///
    /// # Shape
    /// `rows: [batch, dim]` f32 -> `[batch, dim]`
    fn sum_with(&mut self, rows: &Tensor, owners: &ProcessGroup) -> Result<Tensor, DistributedError> {
        let dim = rows.size()[1];
        let all = Tensor::cat(&[&self.logits.unsqueeze(1), &self.rows, rows], 1);
        owners.all_reduce(&all, Reduce::Sum)?;
        self.logits = all.select(1, 0);
        self.rows = all.narrow(1, 1, dim);
        Ok(all.narrow(1, 1 + dim, dim))
    }

    pub(super) fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// Sums only the logits over all owners.
    pub(super) fn sum_logits_over(&mut self, owners: &ProcessGroup) -> Result<(), DistributedError> {
        owners.all_reduce(&self.logits, Reduce::Sum)
    }
}

/// Sums `sum_i exp(logit_i)` and `sum_i exp(logit_i) row_i` for each query.
///
/// Logits of unit vectors are at most 1/τ. For τ from [`LOWEST_TEMPERATURE`] on, the exponentials are summed directly,
/// in five passes over a tile (product, exponential in place, sum, weighted product). Below, the sum is relative to a
/// running maximum, so that nothing overflows; when the maximum grows, earlier sums shrink.
///
/// # Source
/// Milakov and Gimelshein 2018 (online softmax); the weighted rows as in Rabe and Staats 2021.
#[derive(Debug)]
pub(super) struct LogSum {
    /// `[batch, 1]` f32: the largest logit so far; 0 if not needed.
    maximum: Tensor,
    /// Whether a running maximum is needed.
    is_relative: bool,
    /// `[batch]` f64: sum of `exp(logit - maximum)`.
    sum: Tensor,
    /// `[batch, dim]` f32: sum of the rows with these weights.
    weighted: Tensor,
}

impl LogSum {
    /// Creates empty sums for queries with these features.
    pub(super) fn empty(features: &Tensor, temperature: Temperature) -> Self {
        let (batch, device) = (features.size()[0], features.device());
        let is_relative = temperature.get() < LOWEST_TEMPERATURE;
        let lowest = if is_relative { LOWEST } else { 0.0 };
        Self {
            maximum: Tensor::full([batch, 1], lowest, (Kind::Float, device)),
            is_relative,
            sum: Tensor::zeros([batch], (Kind::Double, device)),
            weighted: features.zeros_like(),
        }
    }

    /// Adds a tile; overwrites its logits.
    fn add(&mut self, mut tile: Tile) {
        if self.is_relative {
            self.rise(&tile.logits.amax([1_i64].as_slice(), true));
            let _ = tile.logits.g_sub_(&self.maximum);
        }
        let _ = tile.logits.exp_();
        self.sum += tile.logits.sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
        self.weighted += tile.weighted(&tile.logits);
    }

    /// Adds the sums over disjoint rows.
    fn merge(&mut self, mut other: Self) {
        if self.is_relative {
            self.rise(&other.maximum);
            other.rise(&self.maximum);
        }
        self.sum += &other.sum;
        self.weighted += &other.weighted;
    }

    /// Returns the logarithm of the sum, `[batch]` f64.
    fn ln(&self) -> Tensor {
        self.sum.log() + self.maximum.squeeze_dim(1).to_kind(Kind::Double)
    }

    /// Returns the mean row weighted by exponentials, `[batch, dim]` f32; zero without rows.
    fn mean_row(&self) -> Tensor {
        &self.weighted / self.sum.clamp_min(f64::from(f32::MIN_POSITIVE)).to_kind(Kind::Float).unsqueeze(1)
    }

    /// Raises the maximum to the other's, if that is larger.
    fn rise(&mut self, other: &Tensor) {
        let maximum = self.maximum.maximum(other);
        let shrink = (&self.maximum - &maximum).exp();
        self.sum *= shrink.squeeze_dim(1);
        self.weighted *= &shrink;
        self.maximum = maximum;
    }

    fn sum_over(&mut self, own: &mut Positives, owners: &ProcessGroup) -> Result<(), DistributedError> {
        if self.is_relative {
            let largest = self.maximum.copy();
            owners.all_reduce(&largest, Reduce::Max)?;
            self.rise(&largest);
        }
        self.weighted = own.sum_with(&self.weighted, owners)?;
        owners.all_reduce(&self.sum, Reduce::Sum)
    }
}

/// Constants of the noise distribution.
#[derive(Debug)]
pub(super) struct Noise {
    /// `ln Z + ln(K/n + eps)`, a f64 scalar on the features' device.
    pub offset: Tensor,
    /// `ln(1 + eps n / K)`: the part of eps in each term's loss that the offset does not contain.
    pub constant: f64,
}

/// Sums `sum_j softplus(u_j)` and `sum_j sigmoid(u_j) row_j` for each query, with `u = logit - offset`.
#[derive(Debug)]
pub(super) struct NoiseSum {
    noise: Noise,
    /// `[batch]` f64.
    loss: Tensor,
    /// `[batch, dim]` f32.
    weighted: Tensor,
}

impl NoiseSum {
    /// Creates empty sums for queries with these features.
    pub(super) fn empty(features: &Tensor, noise: Noise) -> Self {
        let loss = Tensor::zeros([features.size()[0]], (Kind::Double, features.device()));
        Self { noise, loss, weighted: features.zeros_like() }
    }

    /// Adds a tile.
    fn add(&mut self, tile: &Tile) {
        let u = &tile.logits - &self.noise.offset;
        if self.noise.constant > 0.0 {
            let terms =
                tile.logits.gt(f64::NEG_INFINITY).sum_dim_intlist([1_i64].as_slice(), false, Kind::Double);
            self.loss += terms * self.noise.constant;
        }
        self.loss += u.softplus().sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
        self.weighted += tile.weighted(&u.sigmoid());
    }

    /// Adds the sums over disjoint rows.
    fn merge(&mut self, other: &Self) {
        self.loss += &other.loss;
        self.weighted += &other.weighted;
    }

    fn sum_over(&mut self, own: &mut Positives, owners: &ProcessGroup) -> Result<(), DistributedError> {
        self.weighted = own.sum_with(&self.weighted, owners)?;
        owners.all_reduce(&self.loss, Reduce::Sum)
    }
}

/// Sum of the terms of a Z estimate: exponentials of logits, over queries and candidates alike.
#[derive(Debug, Default)]
pub(super) struct LogZSum {
    /// f64 scalars: logarithms of sums of exponentials.
    ln_sums: Vec<Tensor>,
    /// f64 scalars: numbers of summands.
    terms: Vec<Tensor>,
}

impl LogZSum {
    /// Adds logits of any shape; minus infinity does not count as a term.
    pub(super) fn add(&mut self, logits: &Tensor) {
        let rows = if logits.dim() == 1 { logits.unsqueeze(0) } else { logits.shallow_clone() };
        let each = rows.logsumexp([1_i64].as_slice(), false).to_kind(Kind::Double);
        self.ln_sums.push(each.logsumexp([0_i64].as_slice(), false));
        self.terms.push(rows.gt(f64::NEG_INFINITY).sum(Kind::Double));
    }

    /// Adds the terms of disjoint rows.
    pub(super) fn merge(&mut self, other: Self) {
        self.ln_sums.extend(other.ln_sums);
        self.terms.extend(other.terms);
    }

    /// Returns the logarithm of the sum so far, a f64 scalar.
    fn ln_sum(&self) -> Tensor {
        Tensor::stack(&self.ln_sums, 0).logsumexp([0_i64].as_slice(), false)
    }

    /// Returns the number of terms, a f64 scalar.
    fn terms(&self) -> Tensor {
        Tensor::stack(&self.terms, 0).sum(Kind::Double)
    }

    /// Returns `ln Ẑ` of `ema` and `delayed`, a f64 scalar, from a sum over negatives alone: the positive is one
    /// of `n` rows, and the negatives represent the `n - 1` others.
    ///
    /// # Shape
    /// `positives: [queries]`, logits
    ///
    /// # Source
    /// Paper, equation 8, which estimates Z from rows drawn uniformly.
    pub(super) fn ln_estimate_beside(&self, positives: &Tensor, instances: usize) -> Tensor {
        let positives = positives.to_kind(Kind::Double);
        let positive = positives.logsumexp([0_i64].as_slice(), false) - (positives.size()[0] as f64).ln();
        // If all negatives are masked, their sum is 0.
        let others = (instances as f64 - 1.0).max(0.0).ln();
        let negative = self.ln_sum() - self.terms().clamp_min(1.0).log() + others;
        Tensor::stack(&[positive, negative], 0).logsumexp([0_i64].as_slice(), false)
    }

    /// Returns `ln(n * mean)`, a f64 scalar: the reference's estimate, from a sum over positives and negatives.
    pub(super) fn ln_estimate(&self, instances: usize) -> Tensor {
        self.ln_sum() - self.terms().log() + (instances as f64).ln()
    }

    /// Adds the terms of all other owners.
    pub(super) fn sum_over(&mut self, owners: &ProcessGroup) -> Result<(), DistributedError> {
        if owners.world() == 1 {
            return Ok(());
        }
        let own = Tensor::stack(&[self.ln_sum(), self.terms()], 0).unsqueeze(0);
        let all = owners.all_gather(&own)?;
        self.ln_sums = all.select(1, 0).unbind(0);
        self.terms = vec![all.select(1, 1).sum(Kind::Double)];
        Ok(())
    }
}

/// Computes `ln(1 + exp(x))` without overflow and, for very negative `x`, without loss of digits.
fn log_one_plus_exp(x: &Tensor) -> Tensor {
    x.clamp_min(0.0) + (-x.abs()).exp().log1p()
}
