//! Labelled features, a linear head on them, and how it scores.

use tch::{Device, Kind, Tensor};

use crate::eval::EvalError;
use crate::feature_table::FeatureTable;
use crate::ids::ClassId;

/// Rows that go to the device together.
const CHUNK: i64 = 16_384;
/// Keeps the division by a standard deviation finite.
const LEAST_DEVIATION: f64 = 1e-6;
/// Classes that count for top-5.
const TOP: i64 = 5;

/// Labelled rows, on the CPU.
#[derive(Debug)]
pub(super) struct Examples {
    /// `[rows, dim]` f32.
    pub features: Tensor,
    /// `[rows]` i64.
    pub labels: Tensor,
}

/// What is subtracted from each number of a feature, and what divides it.
#[derive(Debug)]
pub(super) struct Scale {
    mean: Tensor,
    deviation: Tensor,
}

impl Scale {
    /// The features on this scale.
    pub(super) fn apply(&self, features: &Tensor) -> Tensor {
        let device = features.device();
        (features - self.mean.to_device(device)) / self.deviation.to_device(device)
    }

    /// The map on features as they are that equals this one on features on the scale.
    fn fold_into(&self, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        let device = weight.device();
        let folded = weight / self.deviation.to_device(device).unsqueeze(1);
        let bias = bias - self.mean.to_device(device).unsqueeze(0).matmul(&folded).squeeze_dim(0);
        (folded, bias)
    }
}

impl Examples {
    /// The labelled rows of a table, in its order.
    ///
    /// # Errors
    /// If there is none, or a number is not finite.
    pub(super) fn of(table: &FeatureTable) -> Result<Self, EvalError> {
        table.check()?;
        let dim = table.meta.dim as i64;
        let labelled: Vec<i64> =
            (0..table.len()).filter(|&row| table.labels[row].is_some()).map(|row| row as i64).collect();
        if labelled.is_empty() {
            return Err(EvalError::Mismatch {
                reason: "one of them has no labels; ingest the split with its classes".into(),
            });
        }
        let all = Tensor::from_slice(&table.features).view([-1, dim]);
        let features = if labelled.len() == table.len() {
            all
        } else {
            all.index_select(0, &Tensor::from_slice(&labelled))
        };
        let labels: Vec<i64> = table.labels.iter().flatten().map(|class| i64::from(class.0)).collect();
        Ok(Self { features, labels: Tensor::from_slice(&labels) })
    }

    /// Examples from a batch of features on any device; rows without a label must have been left out.
    pub(super) fn new(features: Tensor, labels: &[ClassId]) -> Self {
        let labels: Vec<i64> = labels.iter().map(|class| i64::from(class.0)).collect();
        Self { features, labels: Tensor::from_slice(&labels) }
    }

    pub(super) fn len(&self) -> usize {
        self.labels.size()[0] as usize
    }

    /// Some of the rows.
    pub(super) fn select(&self, rows: &[usize]) -> Self {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let rows = Tensor::from_slice(&rows);
        Self { features: self.features.index_select(0, &rows), labels: self.labels.index_select(0, &rows) }
    }

    /// Runs of rows, so that not all of them have to be on a device at once.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (Tensor, Tensor)> + '_ {
        let rows = self.len() as i64;
        (0..rows).step_by(CHUNK as usize).map(move |start| {
            let len = CHUNK.min(rows - start);
            (self.features.narrow(0, start, len), self.labels.narrow(0, start, len))
        })
    }

    /// Mean and deviation of each number.
    pub(super) fn scale(&self) -> Scale {
        let (first, rows) = ([0_i64], self.len() as f64);
        let sum = |of: &dyn Fn(&Tensor) -> Tensor| {
            let parts: Vec<Tensor> = self.chunks().map(|(features, _)| of(&features)).collect();
            Tensor::stack(&parts, 0).sum_dim_intlist(first.as_slice(), false, Kind::Double) / rows
        };
        let mean = sum(&|features| features.sum_dim_intlist(first.as_slice(), false, Kind::Double));
        let variance = sum(&|features| {
            (features.to_kind(Kind::Double) - &mean).square().sum_dim_intlist(
                first.as_slice(),
                false,
                Kind::Double,
            )
        });
        let deviation = variance.sqrt().clamp_min(LEAST_DEVIATION);
        Scale { mean: mean.to_kind(Kind::Float), deviation: deviation.to_kind(Kind::Float) }
    }
}

/// A linear map from features to scores of the classes.
#[derive(Debug)]
pub(super) struct Head {
    /// `[dim, classes]` f32, for features as they are: a scale is part of it.
    pub weight: Tensor,
    /// `[classes]` f32.
    pub bias: Tensor,
    /// Steps that were taken to find it.
    pub steps: u64,
    /// Whether the minimum was reached.
    pub converged: bool,
}

/// Hits among a number of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Rows whose class has the highest score.
    pub top1: usize,
    /// Rows whose class is among the five highest.
    pub top5: usize,
    /// Rows that were counted.
    pub rows: usize,
}

impl Score {
    /// The share of the rows.
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
    /// The head for features as they are that equals this map of features on the scale.
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

    /// The hits among these rows.
    pub(super) fn score(&self, examples: &Examples, device: Device) -> Score {
        let (weight, bias) = (self.weight.to_device(device), self.bias.to_device(device));
        let mut score = Score::default();
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
        let mut score = Score::default();
        score.add(&logits, &Tensor::from_slice(&[0_i64, 2, 1]));
        assert_eq!(score, Score { top1: 1, top5: 2, rows: 3 });
    }
}
