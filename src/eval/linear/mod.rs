//! Linear probe: multinomial logistic regression on frozen features.
//!
//! The loss is the mean cross entropy of the training rows plus `weight_decay / 2` times the squared weights
//! (the bias has no decay). So L-BFGS gives scikit-learn's `LogisticRegression` with `C = 1 / (weight_decay *
//! rows)`. Of several settings, the best one on a held-out tenth of the training rows is fitted to all rows.
//! The evaluated split is used once.
//!
//! Features that fit in the memory limit are held; others are read from their table in every pass. Several
//! processes share the rows for L-BFGS, and the settings of the sweep for SGD: its steps are too small to
//! send gradients.

mod augmented;
mod examples;
mod head;
mod regression;
mod sgd;

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tch::{Device, Tensor, no_grad};

pub use augmented::probe_augmented;
pub use head::Score;

use self::examples::Examples;
use self::head::{Head, scale, scores};
use self::sgd::{Cell, TablePasses, window_rows};
use super::duplicates::common_rows;
use super::embed::{for_each_batch, select};
use super::report::{Reports, score_interval};
use super::{EmbedError, EvalError};
use crate::distributed::{DistributedError, ProcessGroup};
use crate::feature_table::{Table, TableMeta};
use crate::ids::{ClassId, InstanceId, RankShare};
use crate::loader::{Source, SubsetRecord, balanced_rows};
use crate::model::Encoder;
use crate::progress::Progress;
use crate::run_config::DeviceChoice;
use crate::units::{ByteSize, Fraction};

/// Fraction of the training rows held out to choose between settings.
const HELD_OUT: f64 = 0.1;

/// Optimiser of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// L-BFGS over all rows at once, to the minimum, without a learning rate.
    Lbfgs,
    /// Stochastic gradient descent with momentum 0.9; the rate falls to 0 along half a cosine.
    Sgd,
}

/// Options of training a probe.
#[derive(Clone, Debug, Serialize)]
pub struct LinearOptions {
    /// Optimiser of the weights.
    pub solver: Solver,
    /// Learning rates, for [`Solver::Sgd`]; each is tried with each weight decay.
    pub lr: Vec<f64>,
    /// Weight decays to try.
    pub weight_decay: Vec<f64>,
    /// Passes over the rows, for [`Solver::Sgd`].
    pub epochs: u64,
    /// Rows per step, for [`Solver::Sgd`].
    pub batch_size: usize,
    /// Maximum steps of [`Solver::Lbfgs`].
    pub iterations: usize,
    /// Whether to scale each number of the features to mean 0 and variance 1 over the training rows.
    pub standardize: bool,
    /// Seed of orders and selections.
    pub seed: u64,
    /// Device to compute on.
    #[serde(skip)]
    pub device: DeviceChoice,
    /// Number of this process on its machine; each process uses another CUDA device.
    #[serde(skip)]
    pub local_rank: usize,
    /// Size of the features in bytes above which every pass reads them from their table.
    #[serde(skip)]
    pub memory_limit: u64,
}

impl LinearOptions {
    /// Checks what the types do not enforce.
    ///
    /// # Errors
    /// If a list is empty or a number is invalid.
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

    /// Returns the options that determine the result: all but device and memory.
    pub fn protocol(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("the options are plain data")
    }

    /// Returns every setting of the sweep.
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

/// Tables that a probe is trained and evaluated on.
#[derive(Clone, Copy, Debug)]
pub struct ProbeTables<'a> {
    /// Training table.
    pub train: &'a dyn Table,
    /// Selected rows of the training table, ascending; `None` for all.
    pub among: Option<&'a [usize]>,
    /// Evaluated table.
    pub test: &'a dyn Table,
    /// Names of the two tables in errors.
    pub names: [&'a str; 2],
    /// Number of the probe within its job.
    pub number: usize,
}

/// Trains a probe on the labelled rows of one table and evaluates it on those of another. Rank 0 returns the report.
///
/// # Errors
/// If the tables do not belong together, one has no labels, or another process fails.
pub fn probe(
    tables: ProbeTables<'_>,
    options: &LinearOptions,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Option<ProbeReport>, EvalError> {
    options.validate()?;
    let ProbeTables { train, among, test, names, number } = tables;
    let (train_meta, test_meta) = (train.meta(), test.meta());
    check(train_meta, test_meta, names)?;
    let rows = Examples::of(train, among).ok_or_else(|| no_labels(names[0]))?;
    let evaluated = Examples::of(test, None).ok_or_else(|| no_labels(names[1]))?;
    let device = select(options.device, options.local_rank, group)?;
    let started = Instant::now();
    let alone = ProcessGroup::alone();
    // Processes that share the rows, and the settings that this process tries.
    let all = options.cells();
    let (team, own) = match options.solver {
        Solver::Lbfgs => (group, 0..all.len()),
        Solver::Sgd => (&alone, share(group).of(all.len())),
    };
    let fitting = Fitting { meta: train_meta, options, device, group: team, progress };
    let seen = trained_on_note(train_meta, rows.ids(), test);
    let (chosen, sweep) = if all.len() == 1 {
        (all[0], Vec::new())
    } else {
        let (kept, held_out) = {
            let (ids, labels): (Vec<_>, Vec<_>) = rows.ids().zip(rows.labels()).unzip();
            split_off(&ids, &labels, options.seed)?
        };
        let mut found = Vec::new();
        if !own.is_empty() {
            let (heads, _) = fitting.fit(rows.select(&kept), &all[own])?;
            found = scores(&heads, &rows.select(&held_out).shared(share(team)), device, team)?;
        }
        if options.solver == Solver::Sgd {
            found = exchange(group, &format!("probe/{number}"), &found)?.concat();
        }
        choose(&all, &found)
    };
    if team.world() < group.world() && !group.is_first() {
        return Ok(None);
    }
    let count = rows.len();
    let (mut heads, mixed) = fitting.fit(rows, &[chosen])?;
    let score = scores(&heads, &evaluated.shared(share(team)), device, team)?.remove(0);
    let notes = seen.into_iter().chain(mixed).collect();
    let fitted = Fitted { chosen, sweep, head: heads.remove(0), score, rows: count, notes };
    Ok(group.is_first().then(|| report(train_meta, test_meta, options, fitted, started)))
}

fn share(group: &ProcessGroup) -> RankShare {
    RankShare { rank: group.rank(), ranks: group.world() }
}

/// Exchanges the scores of all processes, ordered by rank. Not by a collective, which could time out, as
/// processes may have different amounts of work.
fn exchange(group: &ProcessGroup, key: &str, own: &[Score]) -> Result<Vec<Vec<Score>>, DistributedError> {
    let store = group.store();
    let text = serde_json::to_vec(own).expect("scores are plain data");
    store.set(&format!("{key}/{}", group.rank()), &text)?;
    let of_rank = |rank| {
        let text = store.wait_for(&format!("{key}/{rank}"))?;
        Ok(serde_json::from_slice(&text).expect("scores as they were written"))
    };
    (0..group.world()).map(of_rank).collect()
}

/// Inputs that all fits of a probe share.
struct Fitting<'a> {
    meta: &'a TableMeta,
    options: &'a LinearOptions,
    device: Device,
    /// Processes that share the rows.
    group: &'a ProcessGroup,
    progress: &'a dyn Progress,
}

impl Fitting<'_> {
    /// Fits a head for each setting. Returns a note if the memory limit affects the mixing of rows.
    fn fit(&self, rows: Examples<'_>, cells: &[Cell]) -> Result<(Vec<Head>, Option<String>), EvalError> {
        let Self { meta, options, device, group, progress } = *self;
        let limit = options.memory_limit;
        let rows = rows.shared(share(group)).hold(limit)?;
        if !rows.is_held() {
            let (count, limit) = (rows.len(), ByteSize(limit));
            progress.note(&format!(
                "{count} rows of {} numbers exceed the memory limit of {limit}: each pass reads the table",
                rows.dim()
            ));
        }
        let (what, passes) = match options.solver {
            Solver::Lbfgs => ("steps at most", (cells.len() * options.iterations) as u64),
            Solver::Sgd => ("epochs", options.epochs),
        };
        progress.begin(&format!("fit {} to {} rows, {what}", meta.layer, rows.len()), passes);
        let scale = if options.standardize { Some(scale(&rows, group)?) } else { None };
        let classes = meta.classes.len();
        let heads = match options.solver {
            Solver::Lbfgs => {
                let sizes = (classes, options.iterations);
                regression::fit(&rows, cells, sizes, scale.as_ref(), device, group, progress)?
            }
            Solver::Sgd => {
                let scales = scale.into_iter().collect::<Vec<_>>();
                let mut passes = TablePasses { rows: &rows, options, progress };
                sgd::fit(&mut passes, &[cells.to_vec()], classes, &scales, options.epochs, device)?.remove(0)
            }
        };
        progress.finish();
        let mixed = (options.solver == Solver::Sgd && !rows.is_held()).then(|| {
            let window = window_rows(rows.row_bytes(), options.batch_size, limit).max(options.batch_size);
            format!("by the memory limit of {}, rows were mixed in windows of {window}", ByteSize(limit))
        });
        Ok((heads, mixed))
    }
}

fn no_labels(table: &str) -> EvalError {
    EvalError::NoLabels { table: table.into() }
}

fn check(train: &TableMeta, test: &TableMeta, names: [&str; 2]) -> Result<(), EvalError> {
    let layers = || {
        let differ = train.layer != test.layer && !train.layer.is_empty() && !test.layer.is_empty();
        differ.then(|| format!("they are of the layers {} and {}", train.layer, test.layer))
    };
    if let Some(reason) = train.conflict(test).or_else(layers) {
        return Err(EvalError::Mismatch { tables: names.join(" and "), reason });
    }
    Ok(())
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
        let reason = "there are too few labels to choose one of several settings by; give one --lr and one \
                      --weight-decay"
            .into();
        return Err(EvalError::Options { reason });
    }
    Ok((kept, held_out))
}

/// Returns the cell with the best top-1, ties going to the first, and the scores of all cells.
fn choose(cells: &[Cell], scores: &[Score]) -> (Cell, Vec<SweepCell>) {
    let best = scores.iter().map(|score| score.top1).max();
    let at = scores.iter().position(|score| Some(score.top1) == best).unwrap_or(0);
    let cell = |(&Cell { lr, weight_decay }, score): (&Cell, &Score)| SweepCell {
        lr,
        weight_decay,
        validation_top1: score.share(score.top1),
        validation_top5: score.share(score.top5),
    };
    (cells[at], cells.iter().zip(scores).map(cell).collect())
}

/// Trained and evaluated probe.
struct Fitted {
    chosen: Cell,
    sweep: Vec<SweepCell>,
    head: Head,
    score: Score,
    rows: usize,
    notes: Vec<String>,
}

/// Returns the note that evaluated rows were trained on.
fn trained_on_note(
    train: &TableMeta,
    ids: impl Iterator<Item = InstanceId>,
    test: &dyn Table,
) -> Option<String> {
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
    let Fitted { chosen, sweep, head, score, rows, notes } = fitted;
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
        notes,
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// Reports of probes on one or several features.
pub type LinearReport = Reports<ProbeReport>;

/// Report of one probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeReport {
    /// Fraction of queries whose own class has the highest score.
    pub top1: f64,
    /// Fraction of queries whose own class is among the five highest.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Wilson's 95 % interval of `top5`.
    pub top5_interval: [f64; 2],
    /// Layer and its width.
    pub feature: String,
    /// Labelled rows evaluated.
    pub queries: usize,
    /// Labelled rows trained on.
    pub train_rows: usize,
    /// Number of classes.
    pub classes: usize,
    /// Score of guessing.
    pub chance: f64,
    /// Optimiser of the weights.
    pub solver: Solver,
    /// Chosen learning rate; `None` for `lbfgs`.
    pub lr: Option<f64>,
    /// Chosen weight decay.
    pub weight_decay: f64,
    /// Whether the features were scaled to mean 0 and variance 1.
    pub standardized: bool,
    /// Whether each epoch used new crops of the images.
    pub augmented: bool,
    /// Steps taken.
    pub iterations: u64,
    /// Whether `lbfgs` reached the minimum; always true for `sgd`.
    pub converged: bool,
    /// Settings with their scores on the held-out tenth of the training rows; empty if there was one setting.
    pub sweep: Vec<SweepCell>,
    /// Fraction of the labels used; `None` if all were.
    pub label_fraction: Option<Fraction>,
    /// Seed of the label selection.
    pub label_seed: Option<u64>,
    /// Seed of the order of rows, and of those held out.
    pub seed: u64,
    /// Identity of the selected labels.
    pub labels: Option<SubsetRecord>,
    /// Digest of the dataset.
    pub dataset_digest: String,
    /// Split trained on.
    pub train_split: String,
    /// Split evaluated.
    pub split: String,
    /// Device that computed the evaluated features, `cpu` or `cuda`, if their table names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Precision of these features: `f32`, `tf32`, `bf16` or `f16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Training step of the encoder.
    pub step: u64,
    /// Notes for readers of the scores.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Duration in seconds, without embedding.
    pub seconds: f64,
}

/// One setting of a sweep, with its scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SweepCell {
    /// Learning rate; `None` for `lbfgs`.
    pub lr: Option<f64>,
    /// Weight decay.
    pub weight_decay: f64,
    /// Top-1 on the held-out tenth of the training rows.
    pub validation_top1: f64,
    /// Top-5 on the same rows.
    pub validation_top5: f64,
}

/// Counts the hits of a classifier on every labelled image of a source. The classifier is an encoder whose
/// projection has an output for each class.
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

/// Scores of a classifier, as fractions in 0..1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassifierReport {
    /// Fraction of labelled images whose own class has the highest score.
    pub top1: f64,
    /// Fraction of labelled images whose own class is among the five highest.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Wilson's 95 % interval of `top5`.
    pub top5_interval: [f64; 2],
    /// Number of labelled images.
    pub queries: usize,
}

impl ClassifierReport {
    /// Computes the report from a count of hits.
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

#[cfg(test)]
mod tests;
