//! The settings of an objective.

use crate::run_config::{ObjectiveKind, PartitionChoice, Sampling};
use crate::units::Temperature;

/// The settings of an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectiveOptions {
    /// Which one.
    pub kind: ObjectiveKind,
    /// τ.
    pub temperature: Temperature,
    /// K, the sampled rows of each query; not for `softmax`.
    pub negatives: usize,
    /// Who shares them.
    pub sampling: Sampling,
    /// Leave out a sampled row that is the query's own.
    pub exclude_positive: bool,
    /// Added to the noise's probability in the denominators of `nce`; 0, or the reference's 1e-7.
    pub eps: f64,
    /// Where Z of `nce` comes from.
    pub partition: PartitionChoice,
    /// The weight of the old Z in the moving average.
    pub partition_decay: f64,
    /// λ of the proximal term `λ ‖f - v‖²` (paper, equation 9); 0 as in the reference.
    pub proximal_weight: f64,
}

impl ObjectiveOptions {
    /// The settings with the reference's values beside kind, temperature and number of negatives.
    pub fn new(kind: ObjectiveKind, temperature: Temperature, negatives: usize) -> Self {
        Self {
            kind,
            temperature,
            negatives,
            sampling: Sampling::PerSample,
            exclude_positive: false,
            eps: 0.0,
            partition: PartitionChoice::Fixed,
            partition_decay: 0.99,
            proximal_weight: 0.0,
        }
    }
}
