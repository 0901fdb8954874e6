//! Linear heads on features, and their scores.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::examples::{Batch, Examples};
use crate::distributed::{ProcessGroup, Reduce};
use crate::eval::EvalError;
use crate::eval::distributed::gather_numbers;

/// Keeps the division by a standard deviation finite.
const LEAST_DEVIATION: f64 = 1e-6;
/// Number of classes that count for top-5.
const TOP: i64 = 5;

/// Standardisation of features: subtracts the mean of each number and divides by its deviation.
#[derive(Debug)]
pub(super) struct Scale {
    mean: Tensor,
    deviation: Tensor,
}

impl Scale {
    /// Standardises features.
    pub(super) fn apply(&self, features: &Tensor) -> Tensor {
        let device = features.device();
        (features - self.mean.to_device(device)) / self.deviation.to_device(device)
    }

    /// Converts a map for standardised features to the equal map for plain ones.
    fn fold_into(&self, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        let device = weight.device();
        let folded = weight / self.deviation.to_device(device).unsqueeze(1);
        let bias = bias - self.mean.to_device(device).unsqueeze(0).matmul(&folded).squeeze_dim(0);
        (folded, bias)
    }
}

/// Computes mean and deviation of each number over the examples of all processes.
///
/// # Errors
/// If the table cannot be read, or another process fails.
pub(super) fn scale(examples: &Examples<'_>, group: &ProcessGroup) -> Result<Scale, EvalError> {
    let (first, rows) = ([0_i64], examples.len() as f64);
    // Sums of all chunks in order, from all processes.
    let sum = |of: &dyn Fn(&Tensor) -> Tensor| {
        let mut sums: Vec<f64> = Vec::new();
        for batch in examples.chunks() {
            sums.extend(Vec::<f64>::try_from(of(&batch?.features)).expect("a vector of f64"));
        }
        let all = gather_numbers(group, &sums)?.concat();
        let all = Tensor::from_slice(&all).view([-1, examples.dim() as i64]);
        Ok::<_, EvalError>(all.sum_dim_intlist(first.as_slice(), false, Kind::Double) / rows)
    };
    let mean = sum(&|features| features.sum_dim_intlist(first.as_slice(), false, Kind::Double))?;
    let variance = sum(&|features| {
        let centred = features.to_kind(Kind::Double) - &mean;
        centred.square().sum_dim_intlist(first.as_slice(), false, Kind::Double)
    })?;
    let deviation = variance.sqrt().clamp_min(LEAST_DEVIATION);
    Ok(Scale { mean: mean.to_kind(Kind::Float), deviation: deviation.to_kind(Kind::Float) })
}

/// Linear map from features to class scores.
#[derive(Debug)]
pub(super) struct Head {
    /// `[dim, classes]` f32, for features that are not standardised.
    pub weight: Tensor,
    /// `[classes]` f32.
    pub bias: Tensor,
    /// Steps of the optimisation.
    pub steps: u64,
    /// Whether the optimisation reached the minimum.
    pub converged: bool,
}

/// Hits among counted rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Rows whose own class has the highest score.
    pub top1: usize,
    /// Rows whose own class is among the five highest.
    pub top5: usize,
    /// Counted rows.
    pub rows: usize,
}

impl Score {
    /// Returns the hits as a fraction of the rows.
    pub(super) fn share(&self, hits: usize) -> f64 {
        hits as f64 / self.rows.max(1) as f64
    }

    /// Counts the rows whose own class has the highest score, or one of the five highest. Ties go to the
    /// lower class; scores that are not finite miss, and so does a class without a score.
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
    /// Creates the head for plain features from a map for standardised ones.
    pub(super) fn new(
        weight: Tensor,
        bias: Tensor,
        scale: Option<&Scale>,
        steps: u64,
        converged: bool,
    ) -> Self {
        let (weight, bias) = match scale {
            None => (weight, bias),
            Some(scale) => scale.fold_into(&weight, &bias),
        };
        Self { weight, bias, steps, converged }
    }

    /// Adds the hits of a batch.
    pub(super) fn add_to(&self, score: &mut Score, batch: &Batch, device: Device) {
        let (weight, bias) = (self.weight.to_device(device), self.bias.to_device(device));
        score.add(&(batch.features.to_device(device).matmul(&weight) + bias), &batch.labels);
    }
}

/// Counts the hits of each head among the examples of all processes, in one pass.
///
/// # Errors
/// If the table cannot be read, or another process fails.
pub(super) fn scores(
    heads: &[Head],
    examples: &Examples<'_>,
    device: Device,
    group: &ProcessGroup,
) -> Result<Vec<Score>, EvalError> {
    let mut scores = vec![Score::default(); heads.len()];
    for batch in examples.chunks() {
        let batch = batch?;
        for (score, head) in scores.iter_mut().zip(heads) {
            head.add_to(score, &batch, device);
        }
    }
    let counts: Vec<i64> = scores
        .iter()
        .flat_map(|score| [score.top1, score.top5, score.rows].map(|count| count as i64))
        .collect();
    let counts = Tensor::from_slice(&counts);
    group.all_reduce(&counts, Reduce::Sum)?;
    let counts = Vec::<i64>::try_from(counts).expect("a vector of i64");
    let score = |&[top1, top5, rows]: &[i64; 3]| Score {
        top1: top1 as usize,
        top5: top5 as usize,
        rows: rows as usize,
    };
    Ok(counts.as_chunks().0.iter().map(score).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_a_class_without_a_score_and_one_of_a_score_that_is_not_finite_miss() {
        let logits = Tensor::from_slice2(&[[2.0_f32, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, f32::NAN]]);
        let mut score = Score::default();
        score.add(&logits, &Tensor::from_slice(&[0_i64, 2, 1, 0]));
        assert_eq!(score, Score { top1: 1, top5: 2, rows: 4 });
    }
}
