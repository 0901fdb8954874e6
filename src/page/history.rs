//! The scores of a run's checkpoints so far, from their reports.

use serde::Deserialize;

use crate::eval::KnnReport;
use crate::storage::{Location, StorageError, read_concurrently};

/// The scores of one checkpoint.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct HistoryPoint {
    /// The training step.
    pub step: u64,
    /// See [`KnnReport::top1`].
    pub top1: f64,
    /// See [`KnnReport::top5`].
    pub top5: f64,
    /// See [`KnnReport::top1_interval`].
    pub top1_interval: [f64; 2],
    /// See [`KnnReport::top5_interval`].
    pub top5_interval: [f64; 2],
    feature: String,
    k: usize,
    temperature: f64,
    split: String,
    /// Reports of before it was noted have none.
    #[serde(default)]
    bank_split: Option<String>,
    queries: usize,
    leave_one_out: bool,
    excluded_duplicates: Option<usize>,
}

impl HistoryPoint {
    /// The scores of a report.
    pub fn of(report: &KnnReport) -> Self {
        Self {
            step: report.step,
            top1: report.top1,
            top5: report.top5,
            top1_interval: report.top1_interval,
            top5_interval: report.top5_interval,
            feature: report.feature.clone(),
            k: report.k,
            temperature: report.temperature,
            split: report.split.clone(),
            bank_split: Some(report.bank_split.clone()),
            queries: report.queries,
            leave_one_out: report.leave_one_out,
            excluded_duplicates: report.excluded_duplicates,
        }
    }

    /// Whether the scores mean the same: same feature, votes and queries.
    fn compares_with(&self, other: &Self) -> bool {
        (&self.feature, self.k, &self.split, self.queries)
            == (&other.feature, other.k, &other.split, other.queries)
            && self.bank_split.as_ref().zip(other.bank_split.as_ref()).is_none_or(|(own, other)| own == other)
            && self.temperature == other.temperature
            && (self.leave_one_out, self.excluded_duplicates)
                == (other.leave_one_out, other.excluded_duplicates)
    }
}

/// The scores of the run's checkpoints that can be compared with this report, by step; its own is among them.
///
/// # Errors
/// If the store fails. A file that is not a report is skipped.
pub fn history(run: &Location, report: &KnnReport) -> Result<Vec<HistoryPoint>, StorageError> {
    let own = HistoryPoint::of(report);
    let folder = run.join("eval");
    let mut points = vec![own.clone()];
    let is_report =
        |name: &str| name.starts_with("knn-") && name.contains("-step-") && name.ends_with(".json");
    let names = folder.list()?.into_iter().map(|entry| entry.name).filter(|name| is_report(name));
    for read in read_concurrently(names.map(|name| (folder.join(&name), None)).collect()) {
        let text = match read {
            Ok(text) => text,
            // Another job may be replacing it.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let point = serde_json::from_slice::<HistoryPoint>(&text).ok();
        points.extend(point.filter(|point| point.step != own.step && point.compares_with(&own)));
    }
    // Random rows do not depend on the encoder.
    let is_first =
        |point: &HistoryPoint| point.step == 0 && point.feature.starts_with("bank") && *point != own;
    if points.iter().any(is_first) && !began_encoded(run)? {
        points.retain(|point| !is_first(point));
    }
    points.sort_by_key(|point| point.step);
    // A checkpoint may have several reports with the same headline.
    points.dedup_by_key(|point| point.step);
    Ok(points)
}

/// Whether the rows of a run's bank were the untrained encoder's features before the first step.
fn began_encoded(run: &Location) -> Result<bool, StorageError> {
    let text = match run.join("config.toml").read() {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    };
    let config: toml::Table = text.parse().unwrap_or_default();
    Ok(config.get("bank_init").and_then(toml::Value::as_str) == Some("encode"))
}
