//! kNN reports, whose scores are fractions in 0..1, and neighbours as a Parquet file.

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

/// Quantile of the normal distribution that leaves 2.5 % above it.
const QUANTILE: f64 = 1.959_963_984_540_054;
/// Digits of a dataset's digest in a feature's name.
const DIGEST_DIGITS: usize = 12;
/// Queries whose neighbours are written at a time.
const BATCH_QUERIES: usize = 4096;

/// Report of a kNN evaluation of one feature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnReport {
    /// Fraction of queries whose own class won, for the largest `k` and the first temperature; NaN (null in
    /// JSON) without labels.
    pub top1: f64,
    /// Fraction of queries whose own class was among the first five.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Wilson's 95 % interval of `top5`.
    pub top5_interval: [f64; 2],
    /// Largest number of neighbours.
    pub k: usize,
    /// First temperature.
    pub temperature: f64,
    /// Name of the feature that voted; scores of different features are not comparable.
    pub feature: String,
    /// Labelled queries, which were scored; 0 if the bank has no labels.
    pub queries: usize,
    /// Queries without a label.
    pub unlabelled_queries: usize,
    /// Split of the rows that voted.
    pub bank_split: String,
    /// Rows that could vote.
    pub bank_rows: usize,
    /// Number of classes.
    pub classes: usize,
    /// One over the number of classes: less than chance if classes differ in size.
    pub chance: f64,
    /// Chance: the score of always naming the most frequent class, also if the queries' own rows are excluded.
    pub most_frequent_class: f64,
    /// Whether a query's own row was excluded.
    pub leave_one_out: bool,
    /// Number of excluded pairs of a query and a duplicate of its image; `None` if all rows voted.
    pub excluded_duplicates: Option<usize>,
    /// Scores of every `k` with every temperature.
    pub grid: Vec<GridCell>,
    /// Recall@k and mean average precision of the neighbours; `None` without labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<Retrieval>,
    /// Score of each class, for `k` and `temperature`.
    pub per_class: Vec<ClassScore>,
    /// Most frequently confused pairs of classes, for `k` and `temperature`.
    pub confusions: Vec<Confusion>,
    /// Digest of the dataset.
    pub dataset_digest: String,
    /// Split of the queries.
    pub split: String,
    /// Device that computed the evaluated features, `cpu` or `cuda`, if their table names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Precision of these features: `f32`, `tf32`, `bf16` or `f16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Training step of the bank.
    pub step: u64,
    /// Notes for readers of the scores, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Duration of the phases.
    pub timing: Timing,
}

impl KnnReport {
    /// Returns whether any vote was scored.
    pub fn has_scores(&self) -> bool {
        !self.top1.is_nan()
    }

    /// Returns the fraction of queries in the `count` most frequent classes, the score of always naming these.
    pub fn most_frequent_classes(&self, count: usize) -> f64 {
        let mut queries: Vec<usize> = self.per_class.iter().map(|class| class.queries).collect();
        queries.sort_unstable_by(|a, b| b.cmp(a));
        let all: usize = queries.iter().sum();
        queries.iter().take(count).sum::<usize>() as f64 / all as f64
    }
}

/// Report over one or several features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reports<T> {
    /// Report of the first feature.
    #[serde(flatten)]
    pub first: T,
    /// Reports of the other features.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_features: Vec<T>,
}

impl<T> Reports<T> {
    /// Iterates over the reports of all features.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.other_features)
    }
}

/// kNN reports of one or several features.
pub type KnnReports = Reports<KnnReport>;

impl KnnReports {
    /// Returns a distinct name for each report's feature: equal names get split and dataset, and if still
    /// equal, the number of the pair.
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
    /// Number of neighbours.
    pub k: usize,
    /// Temperature τ.
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

/// Score of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Name of the class.
    pub class: String,
    /// Number of its queries.
    pub queries: usize,
    /// Fraction of these queries whose own class won.
    pub top1: f64,
    /// Fraction of these queries whose own class was among the first five.
    pub top5: f64,
}

/// Queries of one class for which another class won.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Confusion {
    /// Class of the queries.
    pub class: String,
    /// Class that won.
    pub voted: String,
    /// Number of such queries.
    pub queries: usize,
    /// Fraction of the class's queries.
    pub share: f64,
}

/// Duration of the phases, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Time of reading the bank's vectors and finding the neighbours.
    pub search_seconds: f64,
    /// Time of voting.
    pub vote_seconds: f64,
}

/// Returns Wilson's 95 % interval of `hits` in `trials`, which is valid also for none or all. NaN without trials.
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
    // Rounding must not move an end past the fraction itself.
    [(middle - half).clamp(0.0, share), (middle + half).clamp(share, 1.0)]
}

/// Publishes columns `query_id`, `neighbour_ids` and `similarities`, with a row for each query. `row_names`
/// are those of bank and queries; text names become text ids.
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

/// Returns the ids of some rows.
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

/// Builds `rows` lists of `k` values each.
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
