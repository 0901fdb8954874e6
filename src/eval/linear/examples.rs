//! Labelled features.

use tch::{Kind, Tensor};

use crate::eval::EvalError;
use crate::feature_table::FeatureTable;
use crate::ids::ClassId;

/// Rows that go to the device together.
const CHUNK: i64 = 16_384;
/// Keeps the division by a standard deviation finite.
const LEAST_DEVIATION: f64 = 1e-6;

/// Labelled rows, on the CPU.
#[derive(Debug)]
pub(super) struct Examples {
    /// `[rows, dim]` f32.
    pub(super) features: Tensor,
    /// `[rows]` i64.
    pub(super) labels: Tensor,
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
}

impl Scale {
    /// The map on features as they are that equals this one on features on the scale.
    pub(super) fn fold_into(&self, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
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
