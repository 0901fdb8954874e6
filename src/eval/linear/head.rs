//! A trained probe, and how it scores.

use tch::{Device, Kind, Tensor};

use super::examples::Examples;

/// Classes that count for top-5.
const TOP: i64 = 5;

/// A linear map from features to scores of the classes.
#[derive(Debug)]
pub(super) struct Head {
    /// `[dim, classes]` f32, for features as they are: a scale is part of it.
    pub(super) weight: Tensor,
    /// `[classes]` f32.
    pub(super) bias: Tensor,
    /// Steps that were taken to find it.
    pub(super) steps: u64,
    /// Whether the minimum was reached.
    pub(super) converged: bool,
}

/// Hits among a number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Score {
    pub(super) top1: usize,
    pub(super) top5: usize,
    pub(super) rows: usize,
}

impl Score {
    pub(super) fn share(&self, hits: usize) -> f64 {
        hits as f64 / self.rows.max(1) as f64
    }

    /// Counts the rows whose class has the highest score, and one of the five highest. Of equal scores the
    /// lower class comes first; scores that are not finite miss, and so does a class that has no score.
    ///
    /// # Shape
    /// `[rows, classes]` and `[rows]` i64
    pub(super) fn add(&mut self, logits: &Tensor, labels: &Tensor) {
        let device = logits.device();
        let labels = labels.to_device(device).unsqueeze(1);
        let count = logits.size()[1];
        let known = labels.lt(count).squeeze_dim(1);
        let own = logits.gather(1, &labels.clamp_max(count - 1), false);
        let classes = Tensor::arange(count, (Kind::Int64, device)).unsqueeze(0);
        let equal_before = logits.eq_tensor(&own).logical_and(&classes.lt_tensor(&labels));
        let before = logits.gt_tensor(&own).logical_or(&equal_before);
        let rank = before.sum_dim_intlist([1_i64].as_slice(), false, Kind::Int64);
        let counts = logits.isfinite().all_dim(1, false).logical_and(&known);
        let hits = |top: i64| rank.lt(top).logical_and(&counts).sum(Kind::Int64).int64_value(&[]) as usize;
        self.top1 += hits(1);
        self.top5 += hits(TOP);
        self.rows += labels.size()[0] as usize;
    }
}

impl Head {
    /// The hits among these rows.
    pub(super) fn score(&self, examples: &Examples, device: Device) -> Score {
        let (weight, bias) = (self.weight.to_device(device), self.bias.to_device(device));
        let mut score = Score { top1: 0, top5: 0, rows: 0 };
        for (features, labels) in examples.chunks() {
            score.add(&(features.to_device(device).matmul(&weight) + &bias), &labels);
        }
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_a_class_without_a_score_misses() {
        let logits = Tensor::from_slice2(&[[2.0_f32, 1.0], [1.0, 2.0], [2.0, 1.0]]);
        let mut score = Score { top1: 0, top5: 0, rows: 0 };
        score.add(&logits, &Tensor::from_slice(&[0_i64, 2, 1]));
        assert_eq!(score, Score { top1: 1, top5: 2, rows: 3 });
    }
}
