//! What several owners of the bank's rows say of a batch, brought together.
//!
//! Every owner has the sums over its own rows for all queries of the batch. Those sums travel, never rows of
//! the bank: for each query two vectors and three numbers, whatever the bank's size and K.

use tch::{Kind, Tensor};

use super::log_sum::LogSum;
use super::log_z::LogZSum;
use super::noise_sum::NoiseSum;
use super::partial::{Partial, Sum};
use super::positives::Positives;
use crate::distributed::{DistributedError, ProcessGroup, Reduce};

impl Partial {
    /// Makes it the sums over the rows of all owners, the same ones at each of them.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn sum_over(&mut self, owners: &ProcessGroup) -> Result<(), DistributedError> {
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

impl LogSum {
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

impl NoiseSum {
    fn sum_over(&mut self, own: &mut Positives, owners: &ProcessGroup) -> Result<(), DistributedError> {
        self.weighted = own.sum_with(&self.weighted, owners)?;
        owners.all_reduce(&self.loss, Reduce::Sum)
    }
}

impl Positives {
    /// Sums what the owners know of the queries' own rows, and rows of theirs in the same message.
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

    /// Sums the similarities alone.
    pub(super) fn sum_logits_over(&mut self, owners: &ProcessGroup) -> Result<(), DistributedError> {
        owners.all_reduce(&self.logits, Reduce::Sum)
    }
}

impl LogZSum {
    /// Adds the terms of all other owners.
    pub(super) fn sum_over(&mut self, owners: &ProcessGroup) -> Result<(), DistributedError> {
        if owners.world() == 1 {
            return Ok(());
        }
        let own = Tensor::stack(&[self.ln_sum(), self.terms()], 0).unsqueeze(0);
        let all = owners.all_gather(&own)?;
        self.set(&all.select(1, 0), all.select(1, 1).sum(Kind::Double));
        Ok(())
    }
}
