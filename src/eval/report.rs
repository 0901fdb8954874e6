//! What an evaluation gives: the report, whose scores are shares in 0..1, and the neighbours as a Parquet file.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::Field;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use serde::Serialize;

use super::{EvalError, Retrieval};
use crate::feature_table::{FeatureTable, RowNames, Table};
use crate::search::Neighbours;
use crate::storage::{Location, Upload};

/// The quantile of the normal distribution that leaves 2.5 % above it.
const QUANTILE: f64 = 1.959_963_984_540_054;
/// Digits of a dataset's digest in a name.
const DIGEST_DIGITS: usize = 12;
/// Queries whose neighbours are written at a time.
const BATCH_QUERIES: usize = 4096;

/// A kNN report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnReport {
    /// The share of queries whose class won, for the largest `k` and the first temperature; not a number (null in
    /// JSON) where nothing has a label.
    pub top1: f64,
    /// The share of queries whose class was among the first five.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Wilson's 95 % interval of `top5`.
    pub top5_interval: [f64; 2],
    /// The largest number of neighbours.
    pub k: usize,
    /// The first temperature.
    pub temperature: f64,
    /// Which features voted: scores of different features cannot be compared.
    pub feature: String,
    /// Labelled queries, the ones that were scored; 0 where the bank has no labels.
    pub queries: usize,
    /// Queries without a label.
    pub unlabelled_queries: usize,
    /// The split of the rows that voted.
    pub bank_split: String,
    /// Rows that could vote.
    pub bank_rows: usize,
    /// The number of classes.
    pub classes: usize,
    /// One over the number of classes: less than chance where classes differ in size.
    pub chance: f64,
    /// Chance: the score of always naming the class of most queries, also where their own rows are left out.
    pub most_frequent_class: f64,
    /// Whether a query's own row was left out.
    pub leave_one_out: bool,
    /// Pairs of a query and a bank row with the same image that did not vote; none where all voted.
    pub excluded_duplicates: Option<usize>,
    /// Every `k` with every temperature.
    pub grid: Vec<GridCell>,
    /// Recall@k and mean average precision of the neighbours; none where nothing has a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<Retrieval>,
    /// The score of each class, for `k` and `temperature`.
    pub per_class: Vec<ClassScore>,
    /// The pairs of classes that were taken for one another most often, for `k` and `temperature`.
    pub confusions: Vec<Confusion>,
    /// The dataset.
    pub dataset_digest: String,
    /// The split of the queries.
    pub split: String,
    /// What computed the evaluated features, `cpu` or `cuda`, where their table names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// In which type: `f32`, `tf32`, `bf16` or `f16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// The training step of the bank.
    pub step: u64,
    /// What a reader of the scores has to know; a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How long it took.
    pub timing: Timing,
}

impl KnnReport {
    /// Whether any vote was scored.
    pub fn has_scores(&self) -> bool {
        !self.top1.is_nan()
    }

    /// The share of queries in the `count` classes of most queries: what naming these always would score.
    pub fn most_frequent_classes(&self, count: usize) -> f64 {
        let mut queries: Vec<usize> = self.per_class.iter().map(|class| class.queries).collect();
        queries.sort_unstable_by(|a, b| b.cmp(a));
        let all: usize = queries.iter().sum();
        queries.iter().take(count).sum::<usize>() as f64 / all as f64
    }
}

/// A report over one or several features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reports<T> {
    /// That of the first feature.
    #[serde(flatten)]
    pub first: T,
    /// Those of the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_features: Vec<T>,
}

impl<T> Reports<T> {
    /// The report of each feature.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.other_features)
    }
}

/// The kNN reports of one or several features.
pub type KnnReports = Reports<KnnReport>;

impl KnnReports {
    /// What to call the feature of each report: where several have one name, with split and dataset; where
    /// that is one too, with the number of the pair.
    pub fn names(&self) -> Vec<String> {
        let with_dataset = |report: &KnnReport| {
            let KnnReport { feature, split, dataset_digest, .. } = report;
            let split = if split.is_empty() { String::new() } else { format!(", split {split}") };
            let dataset = dataset_digest.get(..DIGEST_DIGITS).unwrap_or(dataset_digest);
            let dataset = if dataset.is_empty() { String::new() } else { format!(", dataset {dataset}") };
            format!("{feature}{split}{dataset}")
        };
        let numbered =
            self.all().zip(1..).map(|(report, pair)| format!("{}, pair {pair}", with_dataset(report)));
        let levels = [
            self.all().map(|report| report.feature.clone()).collect::<Vec<_>>(),
            self.all().map(with_dataset).collect(),
            numbered.collect(),
        ];
        let is_single =
            |names: &Vec<String>, at: usize| names.iter().filter(|name| **name == names[at]).count() == 1;
        let name =
            |at: usize| levels.iter().find(|names| is_single(names, at)).unwrap_or(&levels[2])[at].clone();
        (0..levels[0].len()).map(name).collect()
    }
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
    /// See [`KnnReport::top1_interval`].
    pub top1_interval: [f64; 2],
    /// See [`KnnReport::top5_interval`].
    pub top5_interval: [f64; 2],
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
    /// The share of them whose class was among the first five.
    pub top5: f64,
}

/// Queries of one class for which another class won.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Confusion {
    /// The class of the queries.
    pub class: String,
    /// The class that won.
    pub voted: String,
    /// How many queries.
    pub queries: usize,
    /// Their share of the queries of the class.
    pub share: f64,
}

/// How long the parts took, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Reading the bank's vectors and finding the neighbours.
    pub search_seconds: f64,
    /// Voting.
    pub vote_seconds: f64,
}

/// The 95 % interval of a share, `hits` of `trials`, after Wilson; also where all or none are hits. Not a number where
/// there are no trials.
///
/// # Source
/// Wilson 1927; Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion (2001), equation 4.
pub(super) fn score_interval(hits: usize, trials: usize) -> [f64; 2] {
    if trials == 0 {
        return [f64::NAN; 2];
    }
    let (n, share) = (trials as f64, hits as f64 / trials as f64);
    let square = QUANTILE * QUANTILE;
    let middle = (share + square / (2.0 * n)) / (1.0 + square / n);
    let half = QUANTILE / (1.0 + square / n) * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
    // Rounding must not put an end beside the share itself.
    [(middle - half).clamp(0.0, share), (middle + half).clamp(share, 1.0)]
}

/// Publishes columns `query_id`, `neighbour_ids` and `similarities`, a row for each query. `row_names` are
/// those of bank and queries; ids are text where these are.
///
/// # Errors
/// If the store fails.
pub fn write_neighbours(
    location: &Location,
    bank: &dyn Table,
    queries: &FeatureTable,
    neighbours: &Neighbours,
    row_names: &[RowNames; 2],
) -> Result<(), EvalError> {
    let failed = |source: ParquetError| location.failed_by("write", source);
    let batch = |range: Range<usize>| {
        let found = &neighbours.found[range.start * neighbours.k..range.end * neighbours.k];
        let rows = found.iter().map(|&(row, _)| row as usize);
        let similarities = Float32Array::from_iter_values(found.iter().map(|&(_, similarity)| similarity));
        let [of_bank, of_queries] = row_names;
        let columns: [(&str, ArrayRef); 3] = [
            ("query_id", ids(of_queries, queries, range.clone())),
            ("neighbour_ids", lists(ids(of_bank, bank, rows), range.len(), neighbours.k)),
            ("similarities", lists(Arc::new(similarities), range.len(), neighbours.k)),
        ];
        RecordBatch::try_from_iter(columns).expect("the columns have a row for each query")
    };
    let upload = Upload::start(location)?;
    let mut writer = ArrowWriter::try_new(upload, batch(0..0).schema(), None).map_err(failed)?;
    for start in (0..queries.len()).step_by(BATCH_QUERIES) {
        let range = start..(start + BATCH_QUERIES).min(queries.len());
        writer.write(&batch(range)).map_err(failed)?;
    }
    writer.into_inner().map_err(failed)?.finish()?;
    Ok(())
}

/// The ids of some rows.
fn ids(names: &RowNames, table: &dyn Table, rows: impl Iterator<Item = usize>) -> ArrayRef {
    match names {
        RowNames::Texts(texts) => Arc::new(StringArray::from_iter_values(rows.map(|row| &texts[row]))),
        RowNames::Numbers(ids) => {
            Arc::new(Int64Array::from_iter_values(rows.map(|row| ids[row].to_stored())))
        }
        RowNames::Ids | RowNames::Unnamed => {
            Arc::new(Int64Array::from_iter_values(rows.map(|row| table.id(row).to_stored())))
        }
    }
}

/// `rows` lists of `k` values each.
fn lists(values: ArrayRef, rows: usize, k: usize) -> ArrayRef {
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(std::iter::repeat_n(k, rows)), values, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From SciPy: `binomtest(hits, trials).proportion_ci(method="wilson")`.
    #[test]
    fn the_interval_is_that_of_other_libraries() {
        for (hits, trials, [low, high]) in [
            (3, 10, [0.107_791_267_4, 0.603_221_852_5]),
            (50, 200, [0.195_081_680_1, 0.314_340_983_1]),
            (0, 1, [0.0, 0.793_450_685_6]),
            (7, 7, [0.645_669_564_9, 1.0]),
        ] {
            let [found_low, found_high] = score_interval(hits, trials);
            assert!(
                (found_low - low).abs() < 1e-8 && (found_high - high).abs() < 1e-8,
                "{hits} of {trials}: {found_low} {found_high}"
            );
        }
    }

    #[test]
    fn nothing_is_known_of_no_trials() {
        assert!(score_interval(0, 0).iter().all(|end| end.is_nan()));
    }
}
