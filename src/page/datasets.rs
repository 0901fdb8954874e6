//! Top-1 of a run on each dataset, side by side: from its reports, and from its monitors during training.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::text::{SmallChart, add, escape, grouped, percent};
use super::trend::HistoryPoint;
use super::{PageInput, Section};

/// Digits of a dataset's digest, where reports lack its name.
const DIGEST_DIGITS: usize = 12;
/// Names of the trends of the run's monitor.
const BY_THE_BANK: &str = "While it trained, by the bank";
const ENCODER_ALONE: &str = "While it trained, the encoder alone";
/// The charts' scale ends at a multiple of this fraction.
const SCALE: f64 = 0.1;

/// Top-1 on one dataset over a run's steps.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetTrend {
    /// Name of the dataset, and its split.
    pub name: String,
    /// Description of features, votes and queries.
    pub about: String,
    /// Step and top-1, ascending.
    pub points: Vec<(u64, f64)>,
    /// Score of chance, if known.
    pub chance: Option<f64>,
}

impl DatasetTrend {
    /// Selects reports of one dataset and split: those comparable with `own`, or else the largest group of
    /// comparable ones.
    pub(super) fn of_reports(reports: &[&HistoryPoint], own: &HistoryPoint) -> Option<Self> {
        let group = |of: &HistoryPoint| -> Vec<&HistoryPoint> {
            reports.iter().copied().filter(|point| point.compares_with(of)).collect()
        };
        let rank = |of: &&HistoryPoint| {
            let alike = group(of);
            let newest = alike.iter().map(|point| point.step).max();
            (of.compares_with(own), of.has_votes_of(own), alike.len(), newest)
        };
        // Ties go to the first by name, for any order of the store.
        let of = reports.iter().copied().rev().max_by_key(rank)?;
        let steps: BTreeMap<u64, f64> = group(of).iter().map(|point| (point.step, point.top1)).collect();
        let name = match (&of.dataset, of.dataset_digest.get(..DIGEST_DIGITS)) {
            (Some(name), _) => name.clone(),
            (None, Some(digest)) => format!("dataset {digest}"),
            (None, None) => "dataset".to_owned(),
        };
        Some(Self {
            name: format!("{name}, {}", of.split),
            about: format!("{}, k = {}, {} queries", of.feature, of.k, grouped(of.queries as u64)),
            points: steps.into_iter().collect(),
            chance: of.chance,
        })
    }

    /// Parses the trends of the run's monitor, and of other monitored datasets, from the lines of `metrics.jsonl`.
    pub(super) fn of_metrics(text: &str) -> Vec<Self> {
        /// Name, and the split if the lines have it.
        type Of<'a> = (&'a str, Option<&'a str>);
        let mut found = BTreeMap::<(Of<'_>, u64), BTreeMap<u64, f64>>::new();
        let mut chances = BTreeMap::<Of<'_>, f64>::new();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for line in &lines {
            let Some(step) = line["step"].as_u64() else { continue };
            // The run's own monitor may change its split after a resume; other datasets have the split in their name.
            let split = line["monitor_split"].as_str();
            for (key, value) in line.as_object().into_iter().flatten() {
                let own = || Some((BY_THE_BANK, split, key.strip_prefix("knn")?));
                let other = key.split_once("/knn").map(|(name, score)| (name, None, score));
                let Some((name, split, score)) = other.or_else(own) else { continue };
                let Some(share) = value.as_f64() else { continue };
                let neighbours = || score.strip_suffix("_top1")?.parse().ok();
                if score == "_chance" {
                    chances.insert((name, split), share);
                } else if score == "_sample_top1" {
                    found.entry(((ENCODER_ALONE, split), 1)).or_default().insert(step, share);
                } else if let Some(k) = neighbours() {
                    found.entry(((name, split), k)).or_default().insert(step, share);
                }
            }
        }
        // The largest number of neighbours.
        let last: BTreeMap<Of<'_>, _> =
            found.into_iter().map(|((of, k), points)| (of, (k, points))).collect();
        let is_shared = |name: &str| last.keys().filter(|(other, _)| *other == name).count() > 1;
        let trend = |(&(name, split), (k, points)): (&Of<'_>, &(u64, BTreeMap<u64, f64>))| {
            let of = split.map_or_else(|| "a sample".to_owned(), |split| format!("a sample of `{split}`"));
            Self {
                about: match name {
                    BY_THE_BANK => {
                        format!("the run's monitor: {of} looks for its classes in the bank, k = {k}")
                    }
                    ENCODER_ALONE => {
                        format!("the run's monitor: {of} among itself, without the bank, k = 1")
                    }
                    _ => format!("--monitor: a sample, while the run trained, k = {k}"),
                },
                points: points.iter().map(|(&step, &share)| (step, share)).collect(),
                chance: chances
                    .get(&(if name == ENCODER_ALONE { BY_THE_BANK } else { name }, split))
                    .copied(),
                name: match split.filter(|_| is_shared(name)) {
                    Some(split) => format!("{name}, {split}"),
                    None => name.to_owned(),
                },
            }
        };
        last.iter().map(trend).collect()
    }
}

/// Renders the section; `None` if there are only the page's own scores.
pub(super) fn section(input: &PageInput<'_>) -> Option<Section> {
    let trends = &input.history.datasets;
    if trends.len() <= usize::from(input.report().has_scores()) {
        return None;
    }
    let all = || trends.iter().flat_map(|trend| &trend.points);
    let (first, last) = (all().map(|(step, _)| *step).min()?, all().map(|(step, _)| *step).max()?);
    let chances = trends.iter().filter_map(|trend| trend.chance);
    let highest = all().map(|(_, share)| *share).chain(chances).fold(0.0, f64::max);
    let highest = ((highest / SCALE).ceil() * SCALE).clamp(SCALE, 1.0);
    let mut html = String::from(
        "<p class=\"about\">Top-1 on each dataset and of each monitor over training steps, all with the same \
         axes. Scores of different datasets, features or k cannot be compared, their trends can. The broken \
         line is chance: always the most frequent class.</p>\n<div class=\"multiples\">\n",
    );
    for DatasetTrend { name, about, points, chance } in trends {
        let Some((step, _)) = points.last() else { continue };
        let than = chance.map_or_else(String::new, |chance| format!(", chance {}", percent(chance)));
        SmallChart {
            name,
            about,
            note: format!("step {}{than}", grouped(*step)),
            points,
            steps: (first, last),
            scale: (0.0, highest),
            broken: *chance,
            text: percent,
            tick: |share| format!("{:.0} %", 100.0 * share),
        }
        .write(&mut html);
    }
    html.push_str("</div>\n");
    table(&mut html, trends);
    Some(Section { id: "datasets", title: "Datasets", html })
}

/// Renders a table with a row for each step and a column for each dataset.
fn table(html: &mut String, trends: &[DatasetTrend]) {
    html.push_str(
        "<details><summary>One line per step</summary>\n\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Scores on the datasets\">\n\
         <table>\n<thead><tr><th scope=\"col\">step</th>",
    );
    for trend in trends {
        add!(
            html,
            "<th scope=\"col\" title=\"{}\">{}</th>",
            escape(&trend.about.replace('`', "")),
            escape(&trend.name)
        );
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    let steps: BTreeSet<u64> =
        trends.iter().flat_map(|trend| trend.points.iter().map(|(step, _)| *step)).collect();
    for step in steps {
        add!(html, "<tr><th scope=\"row\">{}</th>", grouped(step));
        for trend in trends {
            let share = trend.points.iter().find(|(of, _)| *of == step).map(|(_, share)| percent(*share));
            add!(html, "<td>{}</td>", share.unwrap_or_else(|| "–".to_owned()));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n</div>\n</details>\n");
}
