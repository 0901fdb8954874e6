//! Scores over training: a point for each checkpoint, from its report, and a table with a line for each.

use serde::Deserialize;

use super::{PageInput, Section, grouped, interval, percent};
use crate::eval::KnnReport;
use crate::storage::{Location, StorageError, read_concurrently};

/// Steps of the vertical scale that are tried, as shares.
const SCALES: [f64; 6] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25];
/// Lines of the vertical scale at most.
const MOST_LINES: f64 = 6.0;
/// The least distance of two labels at the right edge, in hundredths of the chart's height.
const LABEL_DISTANCE: f64 = 9.0;

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

/// The section; none where there are fewer than two points.
pub(super) fn section(input: &PageInput<'_>) -> Option<Section> {
    let points = input.history;
    let [first, .., last] = points else { return None };
    let chance = input.report().chance;
    let lowest = points.iter().map(|point| point.top1_interval[0]).fold(chance, f64::min);
    let highest = points.iter().map(|point| point.top5_interval[1]).fold(0.0, f64::max);
    let scale = SCALES.into_iter().find(|scale| (highest - lowest) / scale <= MOST_LINES).unwrap_or(0.25);
    let (low, high) = ((lowest / scale).floor() * scale, (highest / scale).ceil() * scale);
    let x = |step: u64| 100.0 * (step - first.step) as f64 / (last.step - first.step).max(1) as f64;
    let y = |share: f64| 100.0 * (high - share) / (high - low).max(1e-9);

    let mut html = String::from(
        "<p class=\"about\">The share of queries whose class wins the vote (top-1) or is among the first five (top-5), with \
         95 % intervals, over training steps. Higher is better; the broken line is guessing.</p>\n\
         <div class=\"chart\" aria-hidden=\"true\">\n",
    );
    let lines = ((high - low) / scale).round() as usize;
    for line in 0..=lines {
        let share = low + line as f64 * scale;
        add!(
            html,
            "<span class=\"rule\" style=\"top:{:.2}%\"><i>{:.0} %</i></span>",
            y(share),
            100.0 * share
        );
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
            add!(
                html,
                "<b class=\"dot {name}\" style=\"left:{:.2}%;top:{:.2}%\" title=\"step {}: {}\"></b>",
                x(point.step),
                y(share),
                grouped(point.step),
                percent(share)
            );
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

/// Places near these, in their order, of which no two are nearer than labels are high; none is below the chart.
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
    html.push_str("<details open><summary>One line per checkpoint</summary>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Scores of the checkpoints\">\n<table>\n<thead><tr><th scope=\"col\">step</th><th scope=\"col\">top-1</th><th scope=\"col\">95 %</th><th scope=\"col\">top-5</th><th scope=\"col\">95 %</th></tr></thead>\n<tbody>\n");
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
