//! The constant Z that replaces the partition function in `nce`.

use tch::{Kind, Tensor};

use super::candidates::Tile;
use crate::distributed::{DistributedError, ProcessGroup};

/// Z as the objective's state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LogZ {
    /// Not known yet.
    #[default]
    Unset,
    /// Known; it moves only where a moving average is asked for.
    Set {
        /// Its natural logarithm.
        ln_z: f64,
    },
}

impl LogZ {
    /// The natural logarithm of Z, once it is set.
    pub fn ln_z(self) -> Option<f64> {
        match self {
            Self::Unset => None,
            Self::Set { ln_z } => Some(ln_z),
        }
    }

    /// `Z <- decay Z + (1 - decay) estimate`, in the logarithm; an estimate alone sets it.
    pub(super) fn average(self, ln_estimate: f64, decay: f64) -> Self {
        let ln_z = match self {
            Self::Unset => ln_estimate,
            Self::Set { ln_z } => {
                let (old, new) = (ln_z + decay.ln(), ln_estimate + (1.0 - decay).ln());
                old.max(new) + (-(old - new).abs()).exp().ln_1p()
            }
        };
        Self::Set { ln_z }
    }
}

/// The terms of an estimate of Z: exponentials of logits, over queries and candidates alike.
#[derive(Debug)]
pub(super) struct LogZSum {
    /// f64 scalars: logarithms of sums of exponentials.
    ln_sums: Vec<Tensor>,
    /// f64 scalars: numbers of summands.
    terms: Vec<Tensor>,
}

impl LogZSum {
    /// The sum over nothing.
    pub(super) fn empty() -> Self {
        Self { ln_sums: Vec::new(), terms: Vec::new() }
    }

    /// Adds the candidates of a tile.
    pub(super) fn add(&mut self, tile: &Tile) {
        self.add_logits(&tile.logits);
    }

    /// Adds logits of any shape; minus infinity does not count as a term.
    pub(super) fn add_logits(&mut self, logits: &Tensor) {
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

    /// The logarithm of the sum so far, a f64 scalar.
    fn ln_sum(&self) -> Tensor {
        Tensor::stack(&self.ln_sums, 0).logsumexp([0_i64].as_slice(), false)
    }

    /// How many terms it has, a f64 scalar.
    fn terms(&self) -> Tensor {
        Tensor::stack(&self.terms, 0).sum(Kind::Double)
    }

    /// `ln Ẑ` of `ema`, a f64 scalar, where the sum is over negatives alone: the positive is one row of `n`, the
    /// negatives stand for the `n - 1` others.
    ///
    /// # Shape
    /// `positives: [queries]`, logits
    ///
    /// # Source
    /// Paper, equation 8, which estimates Z from rows drawn uniformly.
    pub(super) fn ln_estimate_beside(&self, positives: &Tensor, instances: usize) -> Tensor {
        let positives = positives.to_kind(Kind::Double);
        let positive = positives.logsumexp([0_i64].as_slice(), false) - (positives.size()[0] as f64).ln();
        // Where every negative is left out, their sum is nothing.
        let others = (instances as f64 - 1.0).max(0.0).ln();
        let negative = self.ln_sum() - self.terms().clamp_min(1.0).log() + others;
        Tensor::stack(&[positive, negative], 0).logsumexp([0_i64].as_slice(), false)
    }

    /// `ln(n * mean)`, a f64 scalar: the reference's estimate, where the sum is over positives and negatives.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_that_of_z_and_not_of_its_logarithm() {
        let z = LogZ::Unset.average(2.0_f64.ln(), 0.9).average(12.0_f64.ln(), 0.9);
        let expected = 0.9 * 2.0 + 0.1 * 12.0;
        assert!((z.ln_z().expect("set").exp() - expected).abs() < 1e-12);
    }

    #[test]
    fn huge_values_do_not_overflow() {
        let z = LogZ::Set { ln_z: 2000.0 }.average(2001.0, 0.5);
        assert!((z.ln_z().expect("set") - 2_000.620_114_506_958_3).abs() < 1e-9);
    }
}
