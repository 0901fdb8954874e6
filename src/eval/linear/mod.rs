//! The linear probe: multinomial logistic regression on frozen features.
//!
//! Minimised is the mean cross entropy of the training rows plus `weight_decay / 2` times the squared weights
//! (the bias has no decay), so L-BFGS gives scikit-learn's `LogisticRegression` with `C = 1 / (weight_decay * rows)`.
//! Of several settings, the best one on a held-out tenth of the training rows is fitted to all rows. The evaluated split
//! is used once.

mod augmented;
mod head;
mod lbfgs;
mod regression;
mod report;
mod sgd;

use std::sync::Arc;
use std::time::Instant;

use tch::{Device, Tensor, no_grad};

pub use augmented::probe_augmented;
pub use head::Score;
pub use report::{ClassifierReport, LinearReport, ProbeReport, SweepCell};

use self::head::{Examples, Head};
use self::sgd::{CachedPasses, Cell, Passes};
use super::duplicates::common_rows;
use super::embed::for_each_batch;
use super::report::score_interval;
use super::{EmbedError, EvalError};
use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::failure::Failure;
use crate::feature_table::{FeatureTable, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::loader::{LoaderError, Source, SubsetRecord, balanced_rows};
use crate::model::{Encoder, select_device};
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::units::Fraction;

/// The share of the training rows by which one of several settings is chosen.
const HELD_OUT: f64 = 0.1;

/// A probe cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum LinearError {
    /// Options or tables.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The encoder.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

impl LinearError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Eval(error) => error.failure(),
            Self::Embed(error) => error.failure(),
        }
    }
}

macro_rules! from_parts {
    ($($part:ty),*) => {
        $(impl From<$part> for LinearError {
            fn from(error: $part) -> Self {
                Self::Embed(error.into())
            }
        })*
    };
}

from_parts!(CheckpointError, DatasetError, LoaderError);

/// How the weights are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// All rows at once, to the minimum; there is no learning rate.
    Lbfgs,
    /// Stochastic gradient descent with momentum 0.9; the rate falls to 0 along half a cosine.
    Sgd,
}

/// How a probe is trained.
#[derive(Clone, Debug)]
pub struct LinearOptions {
    /// How the weights are found.
    pub solver: Solver,
    /// Learning rates, for [`Solver::Sgd`]; each is tried with each weight decay.
    pub lr: Vec<f64>,
    /// Weight decays.
    pub weight_decay: Vec<f64>,
    /// Passes over the rows, for [`Solver::Sgd`].
    pub epochs: u64,
    /// Rows of a step, for [`Solver::Sgd`].
    pub batch_size: usize,
    /// Steps of [`Solver::Lbfgs`] at most.
    pub iterations: usize,
    /// Bring each number of the features to mean 0 and variance 1 over the training rows first.
    pub standardize: bool,
    /// The seed of orders and choices.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
}

impl LinearOptions {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// If a list is empty or a number makes no sense.
    pub fn validate(&self) -> Result<(), EvalError> {
        let wrong = |reason: &str| Err(EvalError::Options { reason: reason.into() });
        if self.weight_decay.is_empty() || (self.solver == Solver::Sgd && self.lr.is_empty()) {
            return wrong("the sweep needs at least one weight decay, and with sgd one learning rate");
        }
        if self.weight_decay.iter().any(|decay| !decay.is_finite() || *decay < 0.0) {
            return wrong("a weight decay is at least 0");
        }
        if self.lr.iter().any(|lr| !lr.is_finite() || *lr <= 0.0) {
            return wrong("a learning rate is above 0");
        }
        if self.batch_size == 0 || self.epochs == 0 || self.iterations == 0 {
            return wrong("batch size, epochs and iterations are above 0");
        }
        Ok(())
    }

    /// What decides the result: all but the device.
    pub fn protocol(&self) -> serde_json::Value {
        let Self { solver, lr, weight_decay, epochs, batch_size, iterations, standardize, seed, device: _ } =
            self;
        serde_json::json!({
            "solver": solver, "lr": lr, "weight_decay": weight_decay, "epochs": epochs,
            "batch_size": batch_size, "iterations": iterations, "standardize": standardize, "seed": seed,
        })
    }

    /// Every setting of the sweep.
    fn cells(&self) -> Vec<Cell> {
        let rates: Vec<Option<f64>> = match self.solver {
            Solver::Lbfgs => vec![None],
            Solver::Sgd => self.lr.iter().copied().map(Some).collect(),
        };
        let decays =
            |lr: Option<f64>| self.weight_decay.iter().map(move |&weight_decay| Cell { lr, weight_decay });
        rates.into_iter().flat_map(decays).collect()
    }
}

/// Trains a probe on the labelled rows of one table and evaluates it by those of another.
///
/// # Errors
/// If the tables do not belong together, or one has no labels.
pub fn probe(
    train: &FeatureTable,
    test: &FeatureTable,
    options: &LinearOptions,
    progress: &dyn Progress,
) -> Result<ProbeReport, LinearError> {
    options.validate()?;
    check(&train.meta, &test.meta)?;
    let device = selected(options)?;
    let started = Instant::now();
    let classes = train.meta.classes.len();
    let (rows, evaluated) = (Examples::of(train)?, Examples::of(test)?);
    let cells = options.cells();
    let fit = |rows: &Examples, cells: &[Cell]| {
        let (what, passes) = match options.solver {
            Solver::Lbfgs => ("steps at most", (cells.len() * options.iterations) as u64),
            Solver::Sgd => ("epochs", options.epochs),
        };
        progress.begin(&format!("fit {} to {} rows, {what}", train.meta.layer, rows.len()), passes);
        let heads = fit_cached(rows, cells, classes, options, device, progress);
        progress.finish();
        heads
    };
    let (chosen, sweep) = if cells.len() == 1 {
        (cells[0], Vec::new())
    } else {
        let (kept, held_out) = hold_out(train, options.seed)?;
        let heads = fit(&rows.select(&kept), &cells)?;
        let held_out = rows.select(&held_out);
        choose(&cells, heads.iter().map(|head| head.score(&held_out, device)))
    };
    let head = fit(&rows, &[chosen])?.remove(0);
    let score = head.score(&evaluated, device);
    Ok(report(
        &train.meta,
        &test.meta,
        options,
        Fitted {
            chosen,
            sweep,
            head,
            score,
            rows: rows.len(),
            note: trained_on_note(&train.meta, &train.ids, test),
        },
        started,
    ))
}

fn selected(options: &LinearOptions) -> Result<Device, EmbedError> {
    let selected = select_device(options.device)?;
    tracing::info!("device {selected}");
    Ok(selected.device)
}

fn check(train: &TableMeta, test: &TableMeta) -> Result<(), EvalError> {
    let layers = || {
        let differ = train.layer != test.layer && !train.layer.is_empty() && !test.layer.is_empty();
        differ.then(|| format!("they are of the layers {} and {}", train.layer, test.layer))
    };
    if let Some(reason) = train.conflict(test).or_else(layers) {
        return Err(EvalError::Mismatch { reason });
    }
    Ok(())
}

fn fit_cached(
    rows: &Examples,
    cells: &[Cell],
    classes: usize,
    options: &LinearOptions,
    device: Device,
    progress: &dyn Progress,
) -> Result<Vec<Head>, LinearError> {
    let scale = options.standardize.then(|| rows.scale());
    match options.solver {
        Solver::Lbfgs => {
            let (scale, iterations) = (scale.as_ref(), options.iterations);
            Ok(regression::fit(rows, cells, classes, scale, iterations, device, progress))
        }
        Solver::Sgd => {
            let scales = scale.into_iter().collect::<Vec<_>>();
            let mut passes = CachedPasses::new(rows, options.batch_size, options.seed, progress);
            let cells = [cells.to_vec()];
            Ok(sgd::fit(&mut passes as &mut dyn Passes, &cells, classes, &scales, options.epochs, device)?
                .remove(0))
        }
    }
}

/// Positions among the labelled rows: those that are fitted, and those that choose.
fn hold_out(table: &FeatureTable, seed: u64) -> Result<(Vec<usize>, Vec<usize>), EvalError> {
    let labelled: Vec<usize> = (0..table.len()).filter(|&row| table.labels[row].is_some()).collect();
    let ids: Vec<_> = labelled.iter().map(|&row| table.ids[row]).collect();
    let labels: Vec<_> = labelled.iter().map(|&row| table.labels[row]).collect();
    split_off(&ids, &labels, seed)
}

fn split_off(
    ids: &[InstanceId],
    labels: &[Option<ClassId>],
    seed: u64,
) -> Result<(Vec<usize>, Vec<usize>), EvalError> {
    let tenth = Fraction::new(HELD_OUT).expect("a share");
    let held_out = balanced_rows(ids, labels, tenth, seed);
    let kept: Vec<usize> = (0..ids.len()).filter(|row| held_out.binary_search(row).is_err()).collect();
    if kept.is_empty() {
        let reason = "there are too few labels to choose one of several settings by; give one --lr and one --weight-decay".into();
        return Err(EvalError::Options { reason });
    }
    Ok((kept, held_out))
}

/// The cell with the best top-1, of equal ones the first; and what each reached.
fn choose(cells: &[Cell], scores: impl Iterator<Item = Score>) -> (Cell, Vec<SweepCell>) {
    let scores: Vec<Score> = scores.collect();
    let best = scores.iter().map(|score| score.top1).max();
    let at = scores.iter().position(|score| Some(score.top1) == best).unwrap_or(0);
    let sweep = cells.iter().zip(&scores).map(|(cell, score)| SweepCell::new(*cell, *score)).collect();
    (cells[at], sweep)
}

/// A probe that was trained and evaluated.
struct Fitted {
    chosen: Cell,
    sweep: Vec<SweepCell>,
    head: Head,
    score: Score,
    rows: usize,
    note: Option<String>,
}

/// The note that evaluated rows were trained on.
fn trained_on_note(train: &TableMeta, ids: &[InstanceId], test: &FeatureTable) -> Option<String> {
    let seen = common_rows(&train.split, ids, test)?;
    Some(format!("{seen} were trained on, so the scores tell what is remembered"))
}

fn report(
    train: &TableMeta,
    test: &TableMeta,
    options: &LinearOptions,
    fitted: Fitted,
    started: Instant,
) -> ProbeReport {
    let Fitted { chosen, sweep, head, score, rows, note } = fitted;
    ProbeReport {
        top1: score.share(score.top1),
        top5: score.share(score.top5),
        top1_interval: score_interval(score.top1, score.rows),
        top5_interval: score_interval(score.top5, score.rows),
        feature: format!("{}, {}-d", train.layer, train.dim),
        queries: score.rows,
        train_rows: rows,
        classes: train.classes.len(),
        chance: 1.0 / train.classes.len().max(1) as f64,
        solver: options.solver,
        lr: chosen.lr,
        weight_decay: chosen.weight_decay,
        standardized: options.standardize,
        augmented: false,
        iterations: head.steps,
        converged: head.converged,
        sweep,
        label_fraction: None,
        label_seed: None,
        seed: options.seed,
        labels: None::<SubsetRecord>,
        dataset_digest: test.dataset_digest.clone(),
        train_split: train.split.clone(),
        split: test.split.clone(),
        device: test.device.clone(),
        precision: test.precision.clone(),
        step: train.step,
        notes: note.into_iter().collect(),
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// Counts the hits of a classifier, an encoder whose projection has an output for each class, on every labelled image of
/// a source.
///
/// # Errors
/// If an image cannot be loaded.
pub fn classify(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    batch_size: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Score, EmbedError> {
    let mut score = Score::default();
    progress.begin("classify", source.len() as u64);
    for_each_batch(encoder, source, (batch_size, threads), progress, |batch, images| {
        let (rows, labels): (Vec<i64>, Vec<i64>) =
            (0..).zip(&batch.labels).filter_map(|(row, label)| Some((row, i64::from((*label)?.0)))).unzip();
        if !rows.is_empty() {
            let logits = no_grad(|| encoder.projected(images, false));
            let rows = Tensor::from_slice(&rows).to_device(logits.device());
            score.add(&logits.index_select(0, &rows), &Tensor::from_slice(&labels));
        }
        Ok(())
    })?;
    progress.finish();
    Ok(score)
}

#[cfg(test)]
mod tests;
