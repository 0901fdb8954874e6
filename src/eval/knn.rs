//! The score of a bank by the neighbours of labelled queries.

use std::time::Instant;

use serde::Serialize;

use super::EvalError;
use super::search::{Neighbours, search};
use super::vote::vote;
use crate::feature_table::{FeatureTable, Kind};
use crate::ids::ClassId;
use crate::units::Temperature;

/// A class counts for top-5 when it is among so many.
const TOP: usize = 5;

/// How neighbours vote.
#[derive(Clone, Debug, PartialEq)]
pub struct KnnOptions {
    /// Numbers of neighbours; each is scored.
    pub k: Vec<usize>,
    /// Temperatures; each is scored with each `k`.
    pub temperature: Vec<Temperature>,
    /// A bank row of the query's own id does not vote; for queries from the bank's own split.
    pub leave_one_out: bool,
}

impl Default for KnnOptions {
    /// The paper's: 200 neighbours, τ = 0.07.
    fn default() -> Self {
        let temperature = Temperature::new(0.07).expect("in range");
        Self { k: vec![200], temperature: vec![temperature], leave_one_out: false }
    }
}

/// What a vote gave. Scores are shares in 0..1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnReport {
    /// The share of queries whose class won, for the first `k` and temperature.
    pub top1: f64,
    /// The share of queries whose class was among the first five.
    pub top5: f64,
    /// The first number of neighbours.
    pub k: usize,
    /// The first temperature.
    pub temperature: f64,
    /// Which features voted: scores of different features cannot be compared.
    pub feature: String,
    /// Labelled queries, the ones that were scored.
    pub queries: usize,
    /// Queries without a label.
    pub unlabelled_queries: usize,
    /// Rows that could vote.
    pub bank_rows: usize,
    /// The number of classes.
    pub classes: usize,
    /// The score of guessing: one over the number of classes.
    pub chance: f64,
    /// Whether a query's own row was left out.
    pub leave_one_out: bool,
    /// Every `k` with every temperature.
    pub grid: Vec<GridCell>,
    /// The score of each class, for the first `k` and temperature.
    pub per_class: Vec<ClassScore>,
    /// The dataset.
    pub dataset_digest: String,
    /// The split of the queries.
    pub split: String,
    /// The training step of the bank.
    pub step: u64,
    /// How long it took.
    pub timing: Timing,
}

/// Scores of one `k` with one temperature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GridCell {
    /// Neighbours.
    pub k: usize,
    /// τ.
    pub temperature: f64,
    /// See [`KnnReport::top1`].
    pub top1: f64,
    /// See [`KnnReport::top5`].
    pub top5: f64,
}

/// The score of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Its name.
    pub class: String,
    /// Its queries.
    pub queries: usize,
    /// The share of them whose class won.
    pub top1: f64,
}

/// How long the parts took, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Finding the neighbours.
    pub search_seconds: f64,
    /// Voting.
    pub vote_seconds: f64,
}

/// Scores the bank.
///
/// # Errors
/// If the tables do not belong together, nothing has a label, or `k` is too large.
pub fn evaluate(
    bank: &FeatureTable,
    queries: &FeatureTable,
    options: &KnnOptions,
) -> Result<KnnReport, EvalError> {
    Ok(evaluate_with_neighbours(bank, queries, options)?.0)
}

/// Scores the bank and gives the neighbours too; their rows are those of `bank`.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with_neighbours(
    bank: &FeatureTable,
    queries: &FeatureTable,
    options: &KnnOptions,
) -> Result<(KnnReport, Neighbours), EvalError> {
    check(bank, queries, options)?;
    let voters = bank.labels.iter().flatten().count();
    let largest = options.k.iter().copied().max().unwrap_or(0);
    let available = bank.len() - usize::from(options.leave_one_out);
    if largest > available {
        return Err(EvalError::KTooLarge { k: largest, rows: available });
    }
    let started = Instant::now();
    let neighbours = search(bank, queries, largest, options.leave_one_out);
    let search_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let mut grid = Vec::new();
    let mut first_hits = Vec::new();
    for &k in &options.k {
        for &temperature in &options.temperature {
            let hits = hits(bank, queries, &neighbours, k, temperature);
            let share = |within: usize| share(&hits, |rank| rank < within);
            grid.push(GridCell { k, temperature: temperature.get(), top1: share(1), top5: share(TOP) });
            if first_hits.is_empty() {
                first_hits = hits;
            }
        }
    }
    let classes = bank.meta.classes.len();
    let report = KnnReport {
        top1: grid[0].top1,
        top5: grid[0].top5,
        k: grid[0].k,
        temperature: grid[0].temperature,
        feature: feature_name(bank),
        queries: first_hits.len(),
        unlabelled_queries: queries.len() - first_hits.len(),
        bank_rows: voters,
        classes,
        chance: 1.0 / classes.max(1) as f64,
        leave_one_out: options.leave_one_out,
        per_class: per_class(bank, &first_hits),
        dataset_digest: bank.meta.dataset_digest.clone(),
        split: queries.meta.split.clone(),
        step: bank.meta.step,
        grid,
        timing: Timing { search_seconds, vote_seconds: started.elapsed().as_secs_f64() },
    };
    Ok((report, neighbours))
}

fn check(bank: &FeatureTable, queries: &FeatureTable, options: &KnnOptions) -> Result<(), EvalError> {
    let options_wrong = |reason: &str| Err(EvalError::Options { reason: reason.into() });
    if options.k.is_empty() || options.k.contains(&0) || options.temperature.is_empty() {
        return options_wrong("k and temperature need at least one value, and k is above 0");
    }
    let differ = |what: &str, bank: &dyn std::fmt::Display, queries: &dyn std::fmt::Display| {
        Err(EvalError::Mismatch { reason: format!("{what} {bank} and {queries}") })
    };
    let (a, b) = (&bank.meta, &queries.meta);
    if a.dataset_digest != b.dataset_digest {
        return differ("they are of the datasets", &a.dataset_digest, &b.dataset_digest);
    }
    if a.dim != b.dim {
        return differ("their vectors have lengths", &a.dim, &b.dim);
    }
    if bank.labels.iter().flatten().next().is_none() || queries.labels.iter().flatten().next().is_none() {
        return Err(EvalError::Mismatch { reason: "one of them has no labels".into() });
    }
    Ok(())
}

/// For every labelled query its class and the rank (from 0) that the vote gives it; `usize::MAX` for none.
fn hits(
    bank: &FeatureTable,
    queries: &FeatureTable,
    neighbours: &Neighbours,
    k: usize,
    temperature: Temperature,
) -> Vec<(ClassId, usize)> {
    let rank = |query: usize, class: ClassId| {
        let voters = neighbours
            .of(query)
            .take(k)
            .filter_map(|(row, similarity)| Some((bank.labels[row]?, similarity)));
        let ranked = vote(voters, temperature);
        ranked.iter().position(|&ranked| ranked == class).unwrap_or(usize::MAX)
    };
    let labelled = queries.labels.iter().enumerate().filter_map(|(query, label)| Some((query, (*label)?)));
    labelled.map(|(query, class)| (class, rank(query, class))).collect()
}

fn share(hits: &[(ClassId, usize)], is_hit: impl Fn(usize) -> bool) -> f64 {
    hits.iter().filter(|(_, rank)| is_hit(*rank)).count() as f64 / hits.len().max(1) as f64
}

fn per_class(bank: &FeatureTable, hits: &[(ClassId, usize)]) -> Vec<ClassScore> {
    let score = |(index, name): (usize, &String)| {
        let own: Vec<_> = hits.iter().filter(|(class, _)| class.index() == index).copied().collect();
        ClassScore { class: name.clone(), queries: own.len(), top1: share(&own, |rank| rank == 0) }
    };
    bank.meta.classes.iter().enumerate().map(score).collect()
}

fn feature_name(bank: &FeatureTable) -> String {
    let origin = match bank.meta.kind {
        Kind::Bank => "bank as stored",
        Kind::Embedding => "re-encoded",
    };
    format!("{origin}, {}, {}-d", bank.meta.layer, bank.meta.dim)
}
