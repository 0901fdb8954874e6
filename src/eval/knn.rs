//! kNN score of a bank by the neighbours of labelled queries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::duplicates::common_rows;
use super::report::{ClassScore, Confusion, GridCell, KnnReport, Timing, score_interval};
use super::retrieval::{LabelSets, retrieval};
use super::vote::{Ballot, Outcome};
use super::{Duplicates, EvalError, Retrieval};
use crate::feature_table::{FeatureTable, Kind, Table, TableError, TableMeta};
use crate::ids::ClassId;
use crate::search::{Neighbours, search};
use crate::units::Temperature;

/// Default number of voting neighbours, unless there are few rows (paper, section 3.4).
pub const MOST_BY_DEFAULT: usize = 200;
/// Ratio of rows to neighbours with few rows: if all rows voted, the most frequent class would win each vote.
const ROWS_OF_A_NEIGHBOUR: usize = 10;

/// Number of classes that count for top-5.
const TOP: usize = 5;
/// Maximum number of class pairs that a report names as confused.
const CONFUSIONS: usize = 30;

/// Mean cosine above which a trained encoder's embeddings count as collapsed.
const COLLAPSED_COSINE: f64 = 0.95;
/// Smallest number of queries for a reliable mean cosine.
const FEWEST_FOR_COLLAPSE: usize = 5;
/// Number of bank rows sampled for the collapse check, and of the ranges that they come from.
const SAMPLED_ROWS: usize = 2048;
const SAMPLED_RANGES: usize = 16;

/// Options of the vote.
#[derive(Clone, Debug, PartialEq)]
pub struct KnnOptions {
    /// Numbers of neighbours; each is scored.
    pub k: Vec<usize>,
    /// Temperatures; each is scored with each `k`.
    pub temperature: Vec<Temperature>,
    /// Whether a bank row with the query's own id is excluded; for queries from the bank's own split.
    pub leave_one_out: bool,
    /// Duplicates of the queries to exclude from the vote; `None` lets all rows vote.
    pub exclude: Option<Duplicates>,
    /// Labels of images that have several each. Then nothing votes, and recall and mAP count rows that share a label.
    pub label_sets: Option<Arc<LabelSets>>,
    /// Minimum number of neighbours to return per query, limited by the rows of the bank; the first `k` vote.
    pub shown: usize,
}

impl Default for KnnOptions {
    /// Returns the paper's options: 200 neighbours, τ = 0.07.
    fn default() -> Self {
        let temperature = Temperature::new(0.07).expect("in range");
        Self {
            k: vec![MOST_BY_DEFAULT],
            temperature: vec![temperature],
            leave_one_out: false,
            exclude: None,
            label_sets: None,
            shown: 0,
        }
    }
}

/// Returns the default `k` for this many voting rows: 200, or a tenth of the rows if they are fewer than 2000.
pub fn default_k(rows: usize) -> usize {
    (rows / ROWS_OF_A_NEIGHBOUR).clamp(1, MOST_BY_DEFAULT)
}

/// Scores the bank.
///
/// # Errors
/// If the tables do not belong together, or an option such as `k` is invalid for them.
pub fn evaluate(
    bank: &dyn Table,
    queries: &FeatureTable,
    options: &KnnOptions,
) -> Result<KnnReport, EvalError> {
    Ok(evaluate_with_neighbours(bank, queries, options)?.0)
}

/// Scores the bank and returns the neighbours too, as rows of `bank`.
///
/// The bank is read once for all cells of the grid.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with_neighbours(
    bank: &dyn Table,
    queries: &FeatureTable,
    options: &KnnOptions,
) -> Result<(KnnReport, Neighbours), EvalError> {
    let find = |queries: &FeatureTable, k| Ok(search(bank, queries, k, options.leave_one_out)?);
    evaluate_by(bank, queries, options, &find)
}

/// Scores the bank by the neighbours that `find` returns for unit-length queries. Only ids, labels and
/// metadata of `bank` are read.
///
/// # Errors
/// As [`evaluate`].
pub(super) fn evaluate_by(
    bank: &dyn Table,
    queries: &FeatureTable,
    options: &KnnOptions,
    find: &dyn Fn(&FeatureTable, usize) -> Result<Neighbours, EvalError>,
) -> Result<(KnnReport, Neighbours), EvalError> {
    check(bank, queries, options)?;
    let queries = &*queries.at_unit_length();
    let largest = options.k.iter().copied().max().unwrap_or(0);
    let duplicates = options.exclude.as_ref();
    // The first k neighbours besides duplicates are among this many.
    let more = duplicates.map_or(0, Duplicates::most);
    let available = bank.rows().saturating_sub(usize::from(options.leave_one_out) + more);
    if largest > available {
        return Err(EvalError::KTooLarge { k: largest, rows: available });
    }
    let wanted = largest.max(options.shown.min(available));
    let started = Instant::now();
    let mut neighbours = find(queries, wanted + more)?;
    if let Some(duplicates) = duplicates {
        neighbours = duplicates.leave_out(neighbours, wanted, bank, &queries.ids);
    }
    let search_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let votes = count(bank, queries, &neighbours, options);
    let timing = Timing { search_seconds, vote_seconds: started.elapsed().as_secs_f64() };
    let retrieval = retrieval(bank, queries, &neighbours, options);
    Ok((report(bank, queries, options, votes, retrieval, timing), neighbours))
}

fn check(bank: &dyn Table, queries: &FeatureTable, options: &KnnOptions) -> Result<(), EvalError> {
    let options_wrong = |reason: &str| Err(EvalError::Options { reason: reason.into() });
    if options.k.is_empty() || options.k.contains(&0) || options.temperature.is_empty() {
        return options_wrong("k and temperature need at least one value, and k is above 0");
    }
    if let Some(reason) = bank.meta().conflict(&queries.meta) {
        return Err(EvalError::Mismatch { tables: "the bank and the queries".into(), reason });
    }
    let (own, other) = (&queries.meta, bank.meta());
    if options.leave_one_out && are_of_two_splits(own, other) {
        let (own, other) = (&own.split, &other.split);
        return options_wrong(&format!(
            "--leave-one-out is for queries of the bank's split: the queries are of `{own}`, the bank is of `{other}`"
        ));
    }
    Ok(())
}

/// Returns whether equal ids mean different images: by the splits' digests, else by their names if known.
fn are_of_two_splits(a: &TableMeta, b: &TableMeta) -> bool {
    match (&a.split_digest, &b.split_digest) {
        (Some(a), Some(b)) => a != b,
        _ => a.split != b.split && !a.split.is_empty() && !b.split.is_empty(),
    }
}

/// Hits of one cell of the grid: top-1 and top-5.
type Hits = [usize; 2];

/// Results of all votes.
struct Votes {
    /// Hits for every `k` with every temperature, in the order of the options.
    cells: Vec<Hits>,
    /// Index of the cell with the most neighbours and the first temperature.
    headline: usize,
    /// Class of each labelled query, with its vote's outcome in the headline cell.
    outcomes: Vec<(ClassId, Outcome)>,
}

fn count(bank: &dyn Table, queries: &FeatureTable, neighbours: &Neighbours, options: &KnnOptions) -> Votes {
    // Indices of the ks in ascending order, as the ballot returns its outcomes.
    let mut ascending: Vec<usize> = (0..options.k.len()).collect();
    ascending.sort_by_key(|&at| options.k[at]);
    let ks: Vec<usize> = ascending.iter().map(|&at| options.k[at]).collect();
    let classes = bank.labels().flatten().map(|class| class.index() + 1).max().unwrap_or(0);
    let width = options.temperature.len();
    // Without labelled rows nothing votes and nothing is scored.
    let scored = queries.labels.iter().enumerate().filter(|_| classes > 0);
    let labelled: Vec<(usize, ClassId)> =
        scored.filter_map(|(query, label)| Some((query, (*label)?))).collect();
    let vote = |ballot: &mut Ballot, &(query, class): &(usize, ClassId)| {
        let mut cells = vec![Outcome { winner: None, rank: None }; ks.len() * width];
        for (column, &temperature) in options.temperature.iter().enumerate() {
            let voters = neighbours.of(query).map(|(row, similarity)| (bank.label(row), similarity));
            let outcomes = ballot.outcomes(voters, class, &ks, temperature);
            for (&at, outcome) in ascending.iter().zip(outcomes) {
                cells[at * width + column] = outcome;
            }
        }
        cells
    };
    let headline = ascending.last().map_or(0, |&at| at * width);
    let outcomes: Vec<Vec<Outcome>> = labelled.par_iter().map_init(|| Ballot::new(classes), vote).collect();
    let mut cells = vec![[0, 0]; ks.len() * width];
    for outcomes in &outcomes {
        cells.iter_mut().zip(outcomes).for_each(|(hits, outcome)| add(hits, *outcome));
    }
    let of_headline = labelled.iter().zip(outcomes).map(|(&(_, class), cells)| (class, cells[headline]));
    Votes { cells, headline, outcomes: of_headline.collect() }
}

fn add([top1, top5]: &mut Hits, outcome: Outcome) {
    *top1 += usize::from(outcome.rank == Some(0));
    *top5 += usize::from(outcome.rank.is_some_and(|rank| rank < TOP));
}

fn report(
    bank: &dyn Table,
    queries: &FeatureTable,
    options: &KnnOptions,
    votes: Votes,
    retrieval: Option<Retrieval>,
    timing: Timing,
) -> KnnReport {
    let meta = bank.meta();
    let scored = votes.outcomes.len();
    let pairs = options.k.iter().flat_map(|&k| options.temperature.iter().map(move |t| (k, t.get())));
    let cell = |((k, temperature), [top1, top5]): ((usize, f64), Hits)| GridCell {
        k,
        temperature,
        top1: top1 as f64 / scored as f64,
        top5: top5 as f64 / scored as f64,
        top1_interval: score_interval(top1, scored),
        top5_interval: score_interval(top5, scored),
    };
    let grid: Vec<GridCell> = pairs.zip(votes.cells).map(cell).collect();
    let headline = grid[votes.headline].clone();
    let per_class = per_class(&meta.classes, &votes.outcomes);
    let bank_rows = match &options.label_sets {
        Some(sets) => sets.bank.iter().filter(|labels| !labels.is_empty()).count(),
        None => bank.labels().flatten().count(),
    };
    let compared = retrieval.as_ref().map_or(0, |retrieval| retrieval.queries);
    let largest = per_class.iter().map(|score| score.queries).max().unwrap_or(0);
    KnnReport {
        top1: headline.top1,
        top5: headline.top5,
        top1_interval: headline.top1_interval,
        top5_interval: headline.top5_interval,
        k: headline.k,
        temperature: headline.temperature,
        feature: feature_name(bank),
        queries: compared,
        unlabelled_queries: queries.len() - compared,
        bank_split: meta.split.clone(),
        bank_rows,
        classes: meta.classes.len(),
        chance: if meta.classes.is_empty() || options.label_sets.is_some() {
            f64::NAN
        } else {
            1.0 / meta.classes.len() as f64
        },
        most_frequent_class: largest as f64 / scored as f64,
        leave_one_out: options.leave_one_out,
        excluded_duplicates: options.exclude.as_ref().map(|duplicates| duplicates.pairs(&queries.ids)),
        grid,
        retrieval,
        per_class,
        confusions: confusions(&meta.classes, &votes.outcomes),
        dataset_digest: queries.meta.dataset_digest.clone(),
        split: queries.meta.split.clone(),
        device: queries.meta.device.clone(),
        precision: queries.meta.precision.clone(),
        step: meta.step,
        notes: [
            own_votes(bank, queries, options),
            no_votes(bank, queries, options),
            collapsed(&queries.meta, &queries.features, "queries"),
            like_guessing(headline.top1_interval, largest as f64 / scored as f64),
        ]
        .into_iter()
        .flatten()
        .collect(),
        timing,
    }
}

/// Note that images with several labels do not vote.
const SEVERAL_LABELS: &str =
    "images have several labels, so nothing votes: recall and mAP count rows that share a label";
/// End of the note about missing labels.
const NO_SCORES: &str = "so there are neighbours and no scores";

/// Returns the note that nothing votes, with the reason.
fn no_votes(bank: &dyn Table, queries: &FeatureTable, options: &KnnOptions) -> Option<String> {
    if options.label_sets.is_some() {
        return Some(SEVERAL_LABELS.into());
    }
    let queries: &dyn Table = queries;
    let who = match (bank.has_labels(), queries.has_labels()) {
        (false, false) => "neither bank nor queries have labels",
        (false, true) => "the bank has no labels",
        (true, false) => "the queries have no labels",
        (true, true) => return None,
    };
    Some(format!("{who}, {NO_SCORES}"))
}

/// Returns whether a note only informs, while other notes warn.
pub fn is_remark(note: &str) -> bool {
    note == SEVERAL_LABELS || note.ends_with(NO_SCORES)
}

/// Returns the note that queries vote for themselves.
fn own_votes(bank: &dyn Table, queries: &FeatureTable, options: &KnnOptions) -> Option<String> {
    if options.leave_one_out {
        return None;
    }
    let own = common_rows(&bank.meta().split, bank.ids(), queries)?;
    let so = if queries.labels.iter().any(Option::is_some) {
        " and vote for their own class, so the scores are too high"
    } else {
        ""
    };
    Some(format!("{own} find themselves in the bank{so}: give --leave-one-out"))
}

/// Returns the note that an uninformative encoder could reach this score.
fn like_guessing([low, high]: [f64; 2], most_frequent_class: f64) -> Option<String> {
    let is_like = low <= most_frequent_class && most_frequent_class <= high;
    is_like.then(|| {
        format!(
            "top-1 may be that of always naming the most frequent class, {:.1} %: its interval is {:.1} to {:.1} %",
            100.0 * most_frequent_class,
            100.0 * low,
            100.0 * high
        )
    })
}

/// Returns the note that the bank's rows are nearly all alike, from a sample of them.
///
/// # Errors
/// If the rows cannot be read.
pub fn collapsed_rows(bank: &dyn Table) -> Result<Option<String>, TableError> {
    if !may_collapse(bank.meta()) {
        return Ok(None);
    }
    let ranges = bank.ranges(SAMPLED_ROWS / SAMPLED_RANGES);
    let mut features = Vec::new();
    // Sample over the whole bank, as rows may be sorted by class.
    for range in ranges.iter().step_by(ranges.len().div_ceil(SAMPLED_RANGES).max(1)) {
        let vectors = bank.start_read(range.clone()).finish()?;
        features.extend_from_slice(&vectors.rows(range.clone())?);
    }
    Ok(collapsed(bank.meta(), &features, "rows of the bank"))
}

/// Returns whether cosines near 1 mean a collapse; rows of an untrained encoder always have them.
fn may_collapse(meta: &TableMeta) -> bool {
    meta.unit_length && meta.step > 0
}

/// Returns the note that a trained encoder gives all images nearly the same embedding.
fn collapsed(meta: &TableMeta, features: &[f32], who: &str) -> Option<String> {
    let rows = features.len() / meta.dim;
    if !may_collapse(meta) || rows < FEWEST_FOR_COLLAPSE {
        return None;
    }
    let mut sums = vec![0.0; meta.dim];
    for row in features.chunks_exact(meta.dim) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    // For n unit vectors, the squared sum is n plus the cosines of the n (n - 1) pairs.
    let rows = rows as f64;
    let cosine = (sums.iter().map(|sum| sum * sum).sum::<f64>() - rows) / (rows * (rows - 1.0));
    (cosine > COLLAPSED_COSINE).then(|| {
        format!(
            "the features are nearly all alike: two {who} have a mean cosine of {cosine:.3}, so the encoder \
             has collapsed or has hardly been trained: more `--epochs` help, or if the loss does not fall, a \
             third of the `--lr`"
        )
    })
}

fn per_class(classes: &[String], votes: &[(ClassId, Outcome)]) -> Vec<ClassScore> {
    let mut counts = vec![(0, [0, 0]); classes.len()];
    for &(class, outcome) in votes {
        if let Some((queries, hits)) = counts.get_mut(class.index()) {
            *queries += 1;
            add(hits, outcome);
        }
    }
    let score = |(class, (queries, hits)): (&String, (usize, Hits))| {
        let [top1, top5] = hits.map(|hits| hits as f64 / queries.max(1) as f64);
        ClassScore { class: class.clone(), queries, top1, top5 }
    };
    classes.iter().zip(counts).map(score).collect()
}

/// Returns confused pairs of classes, the most frequent first; ties go to the lower classes.
fn confusions(classes: &[String], votes: &[(ClassId, Outcome)]) -> Vec<Confusion> {
    let mut queries = BTreeMap::<ClassId, usize>::new();
    let mut pairs = BTreeMap::<(ClassId, ClassId), usize>::new();
    for &(class, outcome) in votes {
        *queries.entry(class).or_default() += 1;
        if let Some(winner) = outcome.winner.filter(|&winner| winner != class) {
            *pairs.entry((class, winner)).or_default() += 1;
        }
    }
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by_key(|&(classes, count)| (std::cmp::Reverse(count), classes));
    pairs.truncate(CONFUSIONS);
    let name = |class: ClassId| classes.get(class.index()).cloned().unwrap_or_else(|| class.to_string());
    let confusion = |((class, voted), count): ((ClassId, ClassId), usize)| Confusion {
        class: name(class),
        voted: name(voted),
        queries: count,
        share: count as f64 / queries[&class] as f64,
    };
    pairs.into_iter().map(confusion).collect()
}

fn feature_name(bank: &dyn Table) -> String {
    let meta = bank.meta();
    let origin = match meta.kind {
        Kind::Bank => "bank as stored",
        Kind::Embedding => "re-encoded",
    };
    let layer = if meta.layer.is_empty() { "unnamed layer" } else { &meta.layer };
    format!("{origin}, {layer}, {}-d", meta.dim)
}
