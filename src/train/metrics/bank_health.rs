//! Memory-bank statistics, logged once per epoch.
//!
//! Measuring changes nothing. Rows are sampled where a statistic needs pairs or a decomposition.

use std::cell::Cell;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::bank::MemoryBank;
use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::ids::BankRow;
use crate::objective::{Objective, Queries};
use crate::rng::{Purpose, Stream};
use crate::run_config::{ObjectiveKind, TrainConfig};

/// Rows sampled for norms, pairs and the rank.
const SAMPLED_ROWS: usize = 2048;
/// Queries for the sum over the whole bank.
const SAMPLED_QUERIES: usize = 16;
/// Distance between the assumed and the exact ln Z, a factor of e, beyond which a run warns. Each further
/// warning needs the same growth again.
const MOST_DRIFT: f64 = 1.0;

/// Statistics of the memory bank after an epoch.
#[derive(Clone, Debug, Serialize)]
pub struct BankHealth {
    /// Rows by age, the number of steps since their last update: `[steps, rows]`, where `steps`, a power of
    /// two, is the upper edge of a bucket.
    pub age_histogram: Vec<(u64, u64)>,
    /// Mean age in steps of the rows that were ever updated.
    pub age_mean: f64,
    /// Largest age in steps.
    pub age_maximum: u64,
    /// Rows that no step has updated.
    pub never_written: u64,
    /// Largest distance from 1 of a sampled row's length.
    pub norm_error: f64,
    /// `ln mean exp(-2 ‖x - y‖²)` over pairs of sampled rows; lower values mean more evenly spread rows.
    ///
    /// # Source
    /// Wang and Isola 2020.
    pub uniformity: f64,
    /// `exp` of the entropy of the sampled rows' singular values: the number of directions that they use.
    ///
    /// # Source
    /// Roy and Vetterli 2007; Garrido et al. 2023 (RankMe).
    pub effective_rank: f64,
    /// Exact ln Z of sampled queries over all rows, for `nce`; compare with the assumed one.
    pub ln_partition_true: Option<f64>,
}

impl BankHealth {
    /// Measures the bank after step `step`; every process gets the same result. `last`: features and bank
    /// rows of the last global batch.
    pub(crate) fn of(
        bank: &MemoryBank,
        last: Option<&(Tensor, Vec<BankRow>)>,
        objective: &Objective,
        step: u64,
        group: &ProcessGroup,
    ) -> Result<Self, DistributedError> {
        let ages = Ages::of(bank, step).sum_over(group)?;
        no_grad(|| {
            let rows = gather(bank, &sample(bank.shard().instances(), step), group)?;
            let ln_partition_true = match last {
                Some((features, positions)) if objective.config().objective == ObjectiveKind::Nce => {
                    Some(true_partition(Queries::whole(features, positions), bank, objective, group)?)
                }
                _ => None,
            };
            Ok(Self {
                age_histogram: ages.histogram(),
                age_mean: ages.sum as f64 / ages.count.max(1) as f64,
                age_maximum: ages.maximum,
                never_written: bank.shard().instances() as u64 - ages.count,
                norm_error: norm_error(&rows),
                uniformity: uniformity(&rows),
                effective_rank: effective_rank(&rows),
                ln_partition_true,
            })
        })
    }

    /// Returns a warning if the run's assumed ln Z is far from the exact one. `warned` is the distance at the
    /// last warning, 0 at first.
    pub(crate) fn drift(&self, assumed: Option<f64>, warned: &Cell<f64>) -> Option<String> {
        let (assumed, actual) = assumed.zip(self.ln_partition_true)?;
        let distance = (assumed - actual).abs();
        if distance <= warned.get() + MOST_DRIFT {
            return None;
        }
        warned.set(distance);
        Some(format!(
            "ln Z is {assumed:.2}, that of all rows is {actual:.2} (sampled queries): negatives weigh {} than \
             the objective means; `--objective softmax` needs no Z; `--partition ema` follows the bank, \
             sooner with a smaller `--partition-decay`",
            if assumed > actual { "less" } else { "more" }
        ))
    }
}

/// Ages of rows, in steps.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Ages {
    /// Number of rows by power of two.
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    maximum: u64,
}

impl Ages {
    fn of(bank: &MemoryBank, step: u64) -> Self {
        let written = bank.updated_step().iter().flatten();
        let mut ages = Self::default();
        for age in written.map(|&at| step.saturating_sub(at + 1)) {
            let bucket = (u64::BITS - age.leading_zeros()) as usize;
            ages.buckets.resize(ages.buckets.len().max(bucket + 1), 0);
            ages.buckets[bucket] += 1;
            ages.count += 1;
            ages.sum += age;
            ages.maximum = ages.maximum.max(age);
        }
        ages
    }

    fn add(&mut self, other: &Self) {
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(sum, count)| *sum += count);
        self.count += other.count;
        self.sum += other.sum;
        self.maximum = self.maximum.max(other.maximum);
    }

    /// Adds up the ages of all owners.
    fn sum_over(self, owners: &ProcessGroup) -> Result<Self, DistributedError> {
        let words = owners.gather_bytes(&serde_json::to_vec(&self).expect("ages are plain data"))?;
        let mut all = Self::default();
        for word in words {
            all.add(&serde_json::from_slice(&word).expect("every owner sends ages"));
        }
        Ok(all)
    }

    /// Returns `(upper edge, count)` for each power of two up to the largest age.
    fn histogram(&self) -> Vec<(u64, u64)> {
        (0..).map(|bucket| 1_u64 << bucket).zip(self.buckets.iter().copied()).collect()
    }
}

fn sample(rows: usize, step: u64) -> Vec<BankRow> {
    if rows <= SAMPLED_ROWS {
        return (0..rows as u32).map(BankRow).collect();
    }
    let mut stream = Stream::new(0, Purpose::BankHealth, step, 0);
    (0..SAMPLED_ROWS).map(|_| BankRow(stream.below(rows as u64) as u32)).collect()
}

/// Gathers bank rows from all owners.
fn gather(
    bank: &MemoryBank,
    positions: &[BankRow],
    owners: &ProcessGroup,
) -> Result<Tensor, DistributedError> {
    let rows = bank.gather(positions);
    owners.all_reduce(&rows, Reduce::Sum)?;
    Ok(rows)
}

fn norm_error(rows: &Tensor) -> f64 {
    let lengths = rows.norm_scalaropt_dim(2, [1_i64].as_slice(), false);
    (lengths - 1.0).abs().max().double_value(&[])
}

fn uniformity(rows: &Tensor) -> f64 {
    let count = rows.size()[0];
    if count < 2 {
        return 0.0;
    }
    // For unit rows ‖x - y‖² = 2 - 2 x·y; the diagonal is left out.
    let terms = ((rows.matmul(&rows.tr()) - 1.0) * 4.0).exp();
    let pairs = terms.sum(Kind::Double) - terms.diagonal(0, 0, 1).sum(Kind::Double);
    (pairs / (count * (count - 1)) as f64).log().double_value(&[])
}

fn effective_rank(rows: &Tensor) -> f64 {
    let (_, values, _) = rows.to_kind(Kind::Double).svd(true, false);
    let shares = &values / values.sum(Kind::Double) + 1e-12;
    (-(&shares * shares.log()).sum(Kind::Double)).exp().double_value(&[])
}

/// Returns ln of the mean over queries of `sum_i exp(s_i/τ)`, exact over all rows.
fn true_partition(
    queries: Queries<'_>,
    bank: &MemoryBank,
    assumed: &Objective,
    owners: &ProcessGroup,
) -> Result<f64, DistributedError> {
    let (objective, proximal_weight) = (ObjectiveKind::Softmax, 0.0);
    let config = TrainConfig { objective, proximal_weight, ..assumed.config().clone() };
    let exact = Objective::new(&config, None);
    let count = queries.positions.len().min(SAMPLED_QUERIES);
    let mut logs = Vec::with_capacity(count);
    for query in 0..count {
        let features = queries.features.narrow(0, query as i64, 1);
        let positions = &queries.positions[query..=query];
        let whole = Queries::whole(&features, positions);
        let loss = exact.evaluate(whole, std::slice::from_ref(bank.shard()), None, owners)?.loss;
        let row = gather(bank, positions, owners)?;
        let own = (features * row).sum(Kind::Double) / config.temperature.get();
        logs.push((loss + own).double_value(&[]));
    }
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Ok(largest + (logs.iter().map(|ln| (ln - largest).exp()).sum::<f64>() / count as f64).ln())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn ages_fall_into_powers_of_two() {
        let written = [9, 8, 7, 6, 5, 2, 1].map(Some).to_vec();
        let rows = [1.0_f32, 0.0].repeat(written.len());
        let bank = MemoryBank::from_rows(&rows, 2, written, Device::Cpu);
        assert_eq!(Ages::of(&bank, 10).histogram(), [(1, 1), (2, 1), (4, 2), (8, 2), (16, 1)]);
    }

    #[test]
    fn a_z_that_drifted_by_more_than_a_factor_of_e_is_warned_of() {
        let health = |ln_partition_true| BankHealth {
            age_histogram: Vec::new(),
            age_mean: 0.0,
            age_maximum: 0,
            never_written: 0,
            norm_error: 0.0,
            uniformity: 0.0,
            effective_rank: 1.0,
            ln_partition_true,
        };
        let none = || Cell::new(0.0);
        let warned = none();
        let warning = health(Some(13.42)).drift(Some(18.61), &warned).expect("far away");
        assert!(warning.contains("18.61") && warning.contains("13.42"), "{warning}");
        assert_eq!(health(Some(13.42)).drift(Some(18.7), &warned), None, "it was said");
        assert!(health(Some(13.42)).drift(Some(19.7), &warned).is_some(), "it grew");
        assert_eq!(health(Some(13.42)).drift(Some(14.2), &none()), None);
        assert_eq!(health(None).drift(Some(18.61), &none()), None);
        assert_eq!(health(Some(13.42)).drift(None, &none()), None);
    }

    #[test]
    fn rank_spread_and_length_of_rows_are_those_by_hand() {
        let close =
            |number: f64, expected: f64| assert!((number - expected).abs() < 1e-6, "{number} {expected}");
        let equal = Tensor::from_slice2(&[[1.0_f32, 0.0], [1.0, 0.0], [1.0, 0.0]]);
        close(effective_rank(&equal), 1.0);
        close(uniformity(&equal), 0.0);
        let orthogonal = Tensor::eye(4, (Kind::Float, Device::Cpu));
        close(effective_rank(&orthogonal), 4.0);
        // ‖x - y‖² = 2 for every pair.
        close(uniformity(&orthogonal), -4.0);
        close(norm_error(&Tensor::from_slice2(&[[1.25_f32, 0.0], [0.0, 1.0]])), 0.25);
    }
}
