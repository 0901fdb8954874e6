//! Objectives: losses of a batch of features against the memory bank.
//!
//! With similarity `s`, temperature τ, `n` instances and a query's own row `v`:
//!
//! ```text
//! softmax   -ln( exp(s_own/τ) / sum over all rows exp(s_i/τ) )
//! infonce   the same over the own row and K sampled ones
//! nce       softplus(-u_own) + sum_j softplus(u_j),  u = s/τ - ln Z - ln(K/n + eps),  j over K sampled rows
//! all       + λ ‖f - v‖², the proximal term; and the mean over the batch
//! ```
//!
//! All objectives share one code path. Tiles of candidate rows go into the sums of a `Partial`; partials of disjoint
//! shards merge, in one process or over several; the partial of all rows gives loss and gradient in closed form.
//! Neither `[batch, instances]` logits nor `[batch, K, dim]` rows are ever held, and no autograd graph passes through.
//! Evaluation changes no state: Z is set by [`Objective::prepare`] and updated by [`Objective::follow`].
//!
//! # Source
//! Paper, equations 2-10; reference `LinearAverage.py`, `NCEAverage.py`, `NCECriterion.py`, whose `eps` of
//! 1e-7 is an option here. docs/numerics.md lists the differences and the reasons.

mod candidates;
mod negatives;
mod partial;

use tch::{Device, Kind, Tensor, no_grad};

pub use negatives::Negatives;

use self::candidates::{Candidates, for_each_tile};
use self::partial::{LogSum, LogZSum, Noise, NoiseSum, Partial, Positives, Sum};
use crate::bank::{BankShard, BatchRows};
use crate::distributed::{DistributedError, ProcessGroup};
use crate::ids::BankRow;
use crate::run_config::{ObjectiveKind, PartitionChoice, TrainConfig};

/// Queries of an objective: a batch, or a micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[queries, dim]` unit rows, f32, without a graph.
    pub features: &'a Tensor,
    /// `[queries]`: the positive's bank row for each query.
    pub positions: &'a [BankRow],
    /// Number of queries in the whole batch; losses and gradients of its micro-batches add up.
    pub batch: usize,
    /// Rows of these positions in this process's shard, if located before.
    pub rows: Option<&'a BatchRows>,
}

impl<'a> Queries<'a> {
    /// Creates the queries of a whole batch.
    pub fn whole(features: &'a Tensor, positions: &'a [BankRow]) -> Self {
        Self { features, positions, batch: positions.len(), rows: None }
    }

    /// Returns the queries' own rows in a shard.
    fn rows_in(&self, part: &BankShard) -> BatchRows {
        let Some(rows) = self.rows else { return part.rows_of(self.positions) };
        rows.check(part, self.positions);
        rows.shallow_clone()
    }
}

/// Loss and gradient of a batch.
#[derive(Debug)]
pub struct Evaluation {
    /// Mean loss over the batch, in nats; a f64 scalar on the features' device.
    pub loss: Tensor,
    /// Gradient of the loss with respect to the features, `[queries, dim]` f32.
    pub gradient: Tensor,
    /// This batch's estimate of ln Z, a f64 scalar; set only for a Z of `ema` or `delayed`.
    pub ln_partition: Option<Tensor>,
}

/// Objective with its state.
#[derive(Debug)]
pub struct Objective {
    config: TrainConfig,
    /// ln Z of `nce`, once known; follows later estimates only with `ema` and `delayed`.
    ln_z: Option<f64>,
    /// ln Z on the device, a f64 scalar; set once a step has moved it.
    moved: Option<Tensor>,
}

impl Objective {
    /// Creates an objective in a given state; `ln_z` is `None` at the start of a run.
    pub fn new(config: &TrainConfig, ln_z: Option<f64>) -> Self {
        let ln_z = if let PartitionChoice::Given(z) = config.partition { Some(z.ln()) } else { ln_z };
        Self { config: config.clone(), ln_z, moved: None }
    }

    /// Returns the configuration, which sets kind, τ, negatives, Z and the proximal term.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Returns ln Z of `nce`, as read last.
    pub fn ln_z(&self) -> Option<f64> {
        self.ln_z
    }

    /// Restores an earlier state, to undo a step.
    pub fn set_ln_z(&mut self, ln_z: Option<f64>) {
        (self.ln_z, self.moved) = (ln_z, None);
    }

    /// Stores the ln Z that was read after a step updated it ([`Objective::follow`]).
    pub fn note_ln_z(&mut self, ln_z: f64) {
        self.ln_z = Some(ln_z);
    }

    /// Returns the mean loss in nats of uninformative features, for which all rows are equally similar.
    pub fn chance_loss(&self, instances: usize) -> f64 {
        let negatives = self.config.negatives as f64;
        match self.config.objective {
            ObjectiveKind::Softmax => (instances as f64).ln(),
            ObjectiveKind::InfoNce => negatives.ln_1p(),
            // With a correct Z, each row is the query's own with probability 1 / (K + 1).
            ObjectiveKind::Nce => negatives.ln_1p() + negatives * negatives.recip().ln_1p(),
        }
    }

    /// Returns the number of negatives per query; `None` for `softmax`.
    pub fn negatives(&self) -> Option<usize> {
        (self.config.objective != ObjectiveKind::Softmax).then_some(self.config.negatives)
    }

    /// Estimates Z of `nce` from the first batch, before its evaluation. Does nothing if Z is set or unused.
    /// Each owner has some shards of the bank.
    ///
    /// # Errors
    /// If a collective fails.
    ///
    /// # Source
    /// Reference `NCEAverage.py`: `n` times the mean of `exp(s/τ)` over positives and negatives. With `ema` and
    /// `delayed`, the estimate of all other steps, in which the positive counts once.
    pub fn prepare(
        &mut self,
        queries: Queries<'_>,
        parts: &[BankShard],
        negatives: Option<&Negatives>,
        owners: &ProcessGroup,
    ) -> Result<(), DistributedError> {
        if self.ln_z.is_some() || self.config.objective != ObjectiveKind::Nce {
            return Ok(());
        }
        let estimate = no_grad(|| {
            let mut sum = LogZSum::default();
            let mut own: Option<Positives> = None;
            for part in parts {
                let candidates = self.candidates(negatives);
                for_each_tile(queries, self.config.temperature, part, candidates, |tile| {
                    sum.add(&tile.logits)
                });
                let found = Positives::of(queries, self.config.temperature, part);
                match &mut own {
                    None => own = Some(found),
                    Some(own) => own.merge(&found),
                }
            }
            let mut own = own.expect("a bank has a part");
            sum.sum_over(owners)?;
            own.sum_logits_over(owners)?;
            let instances = parts[0].instances();
            if self.config.partition.is_estimated() {
                return Ok(sum.ln_estimate_beside(own.logits(), instances));
            }
            sum.add(own.logits());
            Ok::<_, DistributedError>(sum.ln_estimate(instances))
        })?;
        self.ln_z = Some(estimate.double_value(&[]));
        Ok(())
    }

    /// Returns loss and gradient of the batch, the same at all owners, each of which has some shards of the bank.
    ///
    /// # Errors
    /// If a collective fails.
    ///
    /// # Panics
    /// If `nce` or `infonce` gets no negatives, or Z of `nce` is not set.
    pub fn evaluate(
        &self,
        queries: Queries<'_>,
        parts: &[BankShard],
        negatives: Option<&Negatives>,
        owners: &ProcessGroup,
    ) -> Result<Evaluation, DistributedError> {
        no_grad(|| {
            let partials = parts.iter().map(|part| self.partial(queries, part, negatives));
            let whole = partials.reduce(|mut whole, part| {
                whole.merge(part);
                whole
            });
            let mut whole = whole.expect("a bank has a part");
            whole.sum_over(owners)?;
            Ok(whole.finish(queries, self.config.proximal_weight))
        })
    }

    /// Returns the sums of the batch over a shard of the bank.
    fn partial(&self, queries: Queries<'_>, part: &BankShard, negatives: Option<&Negatives>) -> Partial {
        let temperature = self.config.temperature;
        let (sum, partition) = match self.config.objective {
            ObjectiveKind::Softmax | ObjectiveKind::InfoNce => {
                (Sum::Exponentials(LogSum::empty(queries.features, temperature)), None)
            }
            ObjectiveKind::Nce => {
                let count = negatives.map_or(0, Negatives::count);
                let noise = self.noise(count, part.instances(), queries.features.device());
                let estimates = self.config.partition.is_estimated();
                (Sum::Noise(NoiseSum::empty(queries.features, noise)), estimates.then(LogZSum::default))
            }
        };
        Partial::of(queries, temperature, part, self.candidates(negatives), sum, partition)
    }

    /// Moves Z if it follows the estimates, without a wait for the device: `Z <- decay Z + (1 - decay) estimate`, in
    /// the logarithm. The loop calls this after step `step` of epoch `epoch`, both from 0. The next evaluation uses the
    /// returned ln Z, a f64 scalar; [`Objective::note_ln_z`] takes it once it is read. `None` if Z stays.
    pub fn follow(&mut self, ln_estimate: &Tensor, (step, epoch): (u64, u64)) -> Option<Tensor> {
        let decay = match self.config.partition {
            PartitionChoice::Ema => self.config.partition_decay,
            // Average of all estimates so far.
            PartitionChoice::Delayed if epoch == 0 => step as f64 / (step + 1) as f64,
            _ => return None,
        };
        let moved = no_grad(|| {
            let old = self.ln_z_on(ln_estimate.device()) + decay.ln();
            old.logaddexp(&(ln_estimate + (1.0 - decay).ln()))
        });
        self.moved = Some(moved.shallow_clone());
        Some(moved)
    }

    /// Returns ln Z on a device, a f64 scalar.
    fn ln_z_on(&self, device: Device) -> Tensor {
        self.moved.as_ref().map_or_else(
            || {
                let ln_z = self.ln_z.expect("Z is estimated before the first evaluation");
                Tensor::full([], ln_z, (Kind::Double, device))
            },
            Tensor::shallow_clone,
        )
    }

    fn candidates<'a>(&self, negatives: Option<&'a Negatives>) -> Candidates<'a> {
        if self.config.objective == ObjectiveKind::Softmax {
            return Candidates::Others;
        }
        let negatives = negatives.expect("nce and infonce need negatives");
        Candidates::Sampled { negatives, exclude_own: self.config.exclude_positive }
    }

    fn noise(&self, count: usize, instances: usize, device: Device) -> Noise {
        let probability = count as f64 / instances as f64;
        let ln_c = (probability + self.config.eps).ln();
        let constant = if self.config.eps > 0.0 { ln_c - probability.ln() } else { 0.0 };
        Noise { offset: self.ln_z_on(device) + ln_c, constant }
    }
}

#[cfg(test)]
mod tests;
