//! Scores over training: a chart with a point for each checkpoint's report, and a table with a row for each.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::bank::BankSpread;
use super::datasets::DatasetTrend;
use super::text::{add, dot, grouped, interval, percent, rule};
use super::{PageInput, Section};
use crate::eval::KnnReport;
use crate::storage::{Location, StorageError, read_concurrently};

/// Step sizes of the vertical scale to try, as fractions.
const SCALES: [f64; 6] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25];
/// Maximum number of lines of the vertical scale.
const MOST_LINES: f64 = 6.0;
/// Smallest distance between two labels at the right edge, in hundredths of the chart's height.
const LABEL_DISTANCE: f64 = 9.0;

/// History of a run's scores, from its folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Scores of checkpoints that are comparable with the page's report, ordered by step; includes the report's own.
    pub points: Vec<HistoryPoint>,
    /// Trend on each evaluated dataset, the report's first.
    pub datasets: Vec<DatasetTrend>,
    /// Spread of the bank's rows, ordered by step.
    pub spread: Vec<BankSpread>,
    /// Length of the embedding, if the run's configuration is available.
    pub dim: Option<u64>,
}

/// Scores of one checkpoint.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct HistoryPoint {
    /// Training step.
    pub step: u64,
    /// See [`KnnReport::top1`].
    pub top1: f64,
    /// See [`KnnReport::top5`].
    pub top5: f64,
    /// See [`KnnReport::top1_interval`].
    pub top1_interval: [f64; 2],
    /// See [`KnnReport::top5_interval`].
    pub top5_interval: [f64; 2],
    pub(super) feature: String,
    pub(super) k: usize,
    temperature: f64,
    pub(super) split: String,
    /// `None` in reports of older versions.
    #[serde(default)]
    bank_split: Option<String>,
    pub(super) queries: usize,
    /// `None` in reports of older versions.
    #[serde(default, rename = "most_frequent_class")]
    pub(super) chance: Option<f64>,
    /// Folder name of the dataset; `None` in reports of older versions.
    #[serde(default)]
    pub(super) dataset: Option<String>,
    #[serde(default)]
    pub(super) dataset_digest: String,
    leave_one_out: bool,
    excluded_duplicates: Option<usize>,
    /// Set in reports on another dataset than that of the training.
    #[serde(default)]
    trained_on: Option<serde_json::Value>,
}

impl HistoryPoint {
    /// Converts a report; `dataset` is the name of its dataset.
    pub fn of(report: &KnnReport, dataset: &str) -> Self {
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
            chance: Some(report.most_frequent_class),
            dataset: Some(dataset.to_owned()),
            dataset_digest: report.dataset_digest.clone(),
            leave_one_out: report.leave_one_out,
            excluded_duplicates: report.excluded_duplicates,
            trained_on: None,
        }
    }

    /// Returns whether the scores are comparable: same feature, votes and queries.
    pub(super) fn compares_with(&self, other: &Self) -> bool {
        (&self.split, self.queries) == (&other.split, other.queries)
            && self.bank_split.as_ref().zip(other.bank_split.as_ref()).is_none_or(|(own, other)| own == other)
            && self.has_votes_of(other)
            && self.excluded_duplicates == other.excluded_duplicates
    }

    /// Returns whether the same features vote in the same way.
    pub(super) fn has_votes_of(&self, other: &Self) -> bool {
        (&self.feature, self.k, self.leave_one_out) == (&other.feature, other.k, other.leave_one_out)
            && self.temperature == other.temperature
            && self.excluded_duplicates.is_some() == other.excluded_duplicates.is_some()
    }
}

/// Reads the history of a run's scores for this report; `dataset` is the name of the report's dataset. `on`
/// is the folder in `eval` for a dataset that the run was not trained on.
///
/// # Errors
/// If the store fails. A file that is not a report is skipped.
pub fn history(
    run: &Location,
    report: &KnnReport,
    dataset: &str,
    on: Option<&str>,
) -> Result<History, StorageError> {
    let own = HistoryPoint::of(report, dataset);
    let folder = run.join("eval");
    // Keyed by a dataset's folder, which is empty for the training dataset, and by split.
    let mut found = BTreeMap::<(String, String), Vec<HistoryPoint>>::new();
    let own_key = (on.unwrap_or_default().to_owned(), own.split.clone());
    if report.has_scores() {
        found.insert(own_key.clone(), vec![own.clone()]);
    }
    let names = folder.list()?.into_iter().map(|entry| entry.name);
    let names: Vec<(String, String)> = names.filter_map(|name| Some((report_folder(&name)?, name))).collect();
    let reads = names.iter().map(|(_, name)| (folder.join(name), None)).collect();
    for ((place, _), read) in names.iter().zip(read_concurrently(reads)) {
        let text = match read {
            Ok(text) => text,
            // Another job may be replacing the file.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let Ok(point) = serde_json::from_slice::<HistoryPoint>(&text) else { continue };
        // Skip reports on another dataset in the training dataset's folder.
        if place.is_empty() && point.trained_on.is_some() {
            continue;
        }
        let key = (place.clone(), point.split.clone());
        let is_own = key == own_key && point.step == own.step && point.compares_with(&own);
        if !is_own {
            found.entry(key).or_default().push(point);
        }
    }
    // Scores of initial bank rows; random rows do not depend on the encoder.
    let is_first =
        |point: &HistoryPoint| point.step == 0 && point.feature.starts_with("bank") && *point != own;
    let config: toml::Table = text_of(&run.join("config.toml"))?.parse().unwrap_or_default();
    // Whether the initial rows were features of the untrained encoder.
    let began_encoded = config.get("bank_init").and_then(toml::Value::as_str) == Some("encode");
    if !began_encoded {
        found.values_mut().for_each(|points| points.retain(|point| !is_first(point)));
    }
    let alike = found.get(&own_key).into_iter().flatten().filter(|point| point.compares_with(&own));
    let mut points: Vec<HistoryPoint> = alike.cloned().collect();
    points.sort_by_key(|point| point.step);
    // A checkpoint may have several reports with the same headline options.
    points.dedup_by_key(|point| point.step);

    let (first, others): (Vec<_>, Vec<_>) = found.iter().partition(|(key, _)| **key == own_key);
    let trend = |(_, points): (&_, &Vec<HistoryPoint>)| {
        let trend = DatasetTrend::of_reports(&points.iter().collect::<Vec<_>>(), &own)?;
        Some((trend, points.first()?.dataset_digest.clone()))
    };
    let found: Vec<(DatasetTrend, String)> = first.into_iter().chain(others).filter_map(trend).collect();
    let is_shared = |name: &str| found.iter().filter(|(trend, _)| trend.name == name).count() > 1;
    let named = |(trend, digest): &(DatasetTrend, String)| DatasetTrend {
        name: if is_shared(&trend.name) {
            format!("{} ({digest:.12})", trend.name)
        } else {
            trend.name.clone()
        },
        ..trend.clone()
    };
    let mut datasets: Vec<DatasetTrend> = found.iter().map(named).collect();
    let metrics = text_of(&run.join("metrics.jsonl"))?;
    datasets.extend(DatasetTrend::of_metrics(&metrics));
    let dim = config.get("dim").and_then(toml::Value::as_integer).and_then(|dim| u64::try_from(dim).ok());
    Ok(History { points, datasets, spread: BankSpread::of_metrics(&metrics), dim })
}

/// Returns the folder in `eval` of a `knn` report: `on-…`, or empty for the training dataset; `None` for other files.
fn report_folder(name: &str) -> Option<String> {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let is_report = file.starts_with("knn-") && file.contains("-step-") && file.ends_with(".json");
    let is_of_dataset = folder.is_empty() || folder.starts_with("on-") && !folder.contains('/');
    (is_report && is_of_dataset).then(|| folder.to_owned())
}

/// Returns the text of a file; empty if it does not exist.
fn text_of(file: &Location) -> Result<String, StorageError> {
    match file.read() {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if error.is_not_found() => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Renders the section; `None` with fewer than two points.
pub(super) fn section(input: &PageInput<'_>) -> Option<Section> {
    let points = &input.history.points;
    let [first, .., last] = points.as_slice() else { return None };
    let chance = input.report().most_frequent_class;
    let lowest = points.iter().map(|point| point.top1_interval[0]).fold(chance, f64::min);
    let highest = points.iter().map(|point| point.top5_interval[1]).fold(chance, f64::max);
    let scale = SCALES.into_iter().find(|scale| (highest - lowest) / scale <= MOST_LINES).unwrap_or(0.25);
    let (low, high) = ((lowest / scale).floor() * scale, (highest / scale).ceil() * scale);
    let x = |step: u64| 100.0 * (step - first.step) as f64 / (last.step - first.step).max(1) as f64;
    let y = |share: f64| 100.0 * (high - share) / (high - low).max(1e-9);

    let mut html = String::from(
        "<p class=\"about\">The share of queries whose class wins the vote (top-1) or is among the first \
         five (top-5), with 95 % intervals, over training steps. Higher is better; the broken line is \
         chance.</p>\n<div class=\"chart\" aria-hidden=\"true\">\n",
    );
    let lines = ((high - low) / scale).round() as usize;
    for line in 0..=lines {
        let share = low + line as f64 * scale;
        rule(&mut html, y(share), &format!("{:.0} %", 100.0 * share));
    }
    add!(html, "<span class=\"rule chance\" style=\"top:{:.2}%\"></span>", y(chance));
    html.push_str("<svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\">");
    type Read = fn(&HistoryPoint) -> (f64, [f64; 2]);
    let series: [(&str, Read); 2] = [
        ("top5", |point| (point.top5, point.top5_interval)),
        ("top1", |point| (point.top1, point.top1_interval)),
    ];
    for (name, read) in series {
        let edge =
            |point: &HistoryPoint, at: usize| format!("{:.2},{:.2}", x(point.step), y(read(point).1[at]));
        let band =
            points.iter().map(|point| edge(point, 1)).chain(points.iter().rev().map(|point| edge(point, 0)));
        let line = points.iter().map(|point| format!("{:.2},{:.2}", x(point.step), y(read(point).0)));
        add!(html, "<polygon class=\"band {name}\" points=\"{}\"/>", band.collect::<Vec<_>>().join(" "));
        add!(html, "<polyline class=\"{name}\" points=\"{}\"/>", line.collect::<Vec<_>>().join(" "));
    }
    html.push_str("</svg>\n");
    for (name, read) in series {
        for point in points {
            let share = read(point).0;
            dot(&mut html, name, (x(point.step), y(share)), point.step, &percent(share));
        }
    }
    let labels = [("top5", "top-5"), ("top1", "top-1"), ("chance", "chance")];
    let places = apart([y(last.top5), y(last.top1), y(chance)]);
    for ((name, label), place) in labels.into_iter().zip(places) {
        add!(html, "<span class=\"end {name}\" style=\"top:{place:.2}%\">{label}</span>");
    }
    add!(
        html,
        "<span class=\"steps\"><i>step {}</i><i>{}</i><i>{}</i></span>\n</div>\n",
        grouped(first.step),
        grouped(u64::midpoint(first.step, last.step)),
        grouped(last.step)
    );
    table(&mut html, points, input.report().step);
    Some(Section { id: "training", title: "Over training", html })
}

/// Moves labels apart by at least their height, in order and close to their places, none below the chart.
fn apart<const N: usize>(mut places: [f64; N]) -> [f64; N] {
    let mut order: Vec<usize> = (0..N).collect();
    order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
    for pair in order.windows(2) {
        places[pair[1]] = places[pair[1]].max(places[pair[0]] + LABEL_DISTANCE);
    }
    let mut lowest = 100.0;
    for at in order.into_iter().rev() {
        places[at] = places[at].min(lowest);
        lowest = places[at] - LABEL_DISTANCE;
    }
    places
}

fn table(html: &mut String, points: &[HistoryPoint], own: u64) {
    html.push_str(
        "<details open><summary>One line per checkpoint</summary>\n\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Scores of the \
         checkpoints\">\n<table>\n<thead><tr><th scope=\"col\">step</th>\
         <th scope=\"col\">top-1</th><th scope=\"col\">95 %</th><th scope=\"col\">top-5</th>\
         <th scope=\"col\">95 %</th></tr></thead>\n<tbody>\n",
    );
    for point in points {
        let here = if point.step == own { " aria-current=\"true\"" } else { "" };
        add!(
            html,
            "<tr{here}><th scope=\"row\">{}</th><td><b>{}</b></td><td>{}</td><td><b>{}</b></td><td>{}</td></tr>\n",
            grouped(point.step),
            percent(point.top1),
            interval(point.top1_interval),
            percent(point.top5),
            interval(point.top5_interval)
        );
    }
    html.push_str("</tbody>\n</table>\n</div>\n</details>\n");
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn labels_stay_where_they_are_or_move_as_far_as_they_must() {
        assert_eq!(apart([10.0, 50.0, 90.0]), [10.0, 50.0, 90.0]);
        assert_eq!(apart([40.0, 45.0, 41.0]), [40.0, 58.0, 49.0]);
        assert_eq!(apart([98.0, 99.0, 100.0]), [82.0, 91.0, 100.0]);
    }
}
