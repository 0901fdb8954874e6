//! The reports of probes and classifiers. Scores are shares in 0..1.

use serde::Serialize;

use super::Solver;
use super::head::Score;
use super::sgd::Cell;
use crate::eval::report::score_interval;
use crate::loader::SubsetRecord;
use crate::units::Fraction;

/// A report over one or several features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearReport {
    /// That of the first feature.
    #[serde(flatten)]
    pub first: ProbeReport,
    /// Those of the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_features: Vec<ProbeReport>,
}

impl LinearReport {
    /// The report of each feature.
    pub fn all(&self) -> impl Iterator<Item = &ProbeReport> {
        std::iter::once(&self.first).chain(&self.other_features)
    }
}

/// The report of one probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeReport {
    /// The share of queries whose class has the highest score.
    pub top1: f64,
    /// The share of queries whose class is among the five highest.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Wilson's 95 % interval of `top5`.
    pub top5_interval: [f64; 2],
    /// The layer and its width.
    pub feature: String,
    /// Labelled rows that were evaluated.
    pub queries: usize,
    /// Labelled rows that were trained on.
    pub train_rows: usize,
    /// The number of classes.
    pub classes: usize,
    /// The score of guessing.
    pub chance: f64,
    /// How the weights were found.
    pub solver: Solver,
    /// The learning rate that was chosen; none for `lbfgs`.
    pub lr: Option<f64>,
    /// The weight decay that was chosen.
    pub weight_decay: f64,
    /// Whether each number of the features was brought to mean 0 and variance 1.
    pub standardized: bool,
    /// Whether each epoch saw other crops of the images.
    pub augmented: bool,
    /// Steps taken.
    pub iterations: u64,
    /// Whether `lbfgs` reached the minimum; true for `sgd`, which does not ask.
    pub converged: bool,
    /// Every setting with its scores on the held-out tenth of the training rows; empty where there was one.
    pub sweep: Vec<SweepCell>,
    /// The share of the labels that was used, where not all were.
    pub label_fraction: Option<Fraction>,
    /// The seed by which they were chosen.
    pub label_seed: Option<u64>,
    /// The seed of the order of rows, and of those held out.
    pub seed: u64,
    /// Which labels these were.
    pub labels: Option<SubsetRecord>,
    /// The dataset.
    pub dataset_digest: String,
    /// The split that was trained on.
    pub train_split: String,
    /// The split that was evaluated.
    pub split: String,
    /// What computed the evaluated features, `cpu` or `cuda`, where their table names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// In which type: `f32`, `tf32`, `bf16` or `f16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// The training step of the encoder.
    pub step: u64,
    /// What should be known when the scores are read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How long it took, without embedding.
    pub seconds: f64,
}

/// One setting of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SweepCell {
    /// The learning rate; none for `lbfgs`.
    pub lr: Option<f64>,
    /// The weight decay.
    pub weight_decay: f64,
    /// On the held-out tenth of the training rows.
    pub validation_top1: f64,
    /// Likewise.
    pub validation_top5: f64,
}

impl SweepCell {
    pub(super) fn new(cell: Cell, score: Score) -> Self {
        Self {
            lr: cell.lr,
            weight_decay: cell.weight_decay,
            validation_top1: score.share(score.top1),
            validation_top5: score.share(score.top5),
        }
    }
}

/// The scores of a classifier. Shares are in 0..1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassifierReport {
    /// The share of labelled images whose class has the highest score.
    pub top1: f64,
    /// The share of labelled images whose class is among the five highest.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Wilson's 95 % interval of `top5`.
    pub top5_interval: [f64; 2],
    /// Labelled images.
    pub queries: usize,
}

impl ClassifierReport {
    /// The shares of these hits.
    pub fn new(score: Score) -> Self {
        Self {
            top1: score.share(score.top1),
            top5: score.share(score.top5),
            top1_interval: score_interval(score.top1, score.rows),
            top5_interval: score_interval(score.top5, score.rows),
            queries: score.rows,
        }
    }
}
