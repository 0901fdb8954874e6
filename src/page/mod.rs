//! The report as one HTML page that needs no network.
//!
//! Everything is in the page: style, script, images as data URLs. What an image-less reader needs (scores,
//! tables, names) is plain HTML; the script filters, sorts and draws the map.

/// Adds a formatted piece; writing to a `String` cannot fail.
macro_rules! add {
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        write!($out, $($arg)*).expect("a String takes everything")
    }};
}

mod gallery;
mod map;
mod scores;
mod trend;

pub use self::gallery::{Example, ExampleKind, examples};
pub use self::map::{EmbeddingMap, map};
pub use self::trend::{HistoryPoint, history};

use crate::eval::{KnnReport, KnnReports, Thumbnails};
use crate::feature_table::{FeatureTable, Kind, Table};
use crate::ids::{ClassId, InstanceId};
use crate::search::Neighbours;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Neighbours that the gallery shows for a query.
const SHOWN_NEIGHBOURS: usize = 20;

/// The inputs of a page.
#[derive(Clone, Copy, Debug)]
pub struct PageInput<'a> {
    /// The scores.
    pub reports: &'a KnnReports,
    /// The first feature's bank.
    pub bank: &'a dyn Table,
    /// The first feature's queries.
    pub queries: &'a FeatureTable,
    /// Their neighbours.
    pub neighbours: &'a Neighbours,
    /// The queries that the gallery shows.
    pub examples: &'a [Example],
    /// The scores of the run's checkpoints; empty without a run.
    pub history: &'a [HistoryPoint],
    /// Queries on a plane.
    pub map: Option<&'a EmbeddingMap>,
}

/// The images of a page.
#[derive(Clone, Debug, Default)]
pub struct PageImages {
    /// Of the gallery's queries.
    pub queries: Thumbnails,
    /// Of their neighbours.
    pub bank: Thumbnails,
    /// Of the map's points, in one image.
    pub sprite: Option<Vec<u8>>,
}

impl PageInput<'_> {
    /// Instances of the queries' split that the gallery shows.
    pub fn shown_queries(&self) -> Vec<InstanceId> {
        self.examples.iter().map(|example| self.queries.ids[example.query]).collect()
    }

    /// Instances of the bank's split that the gallery shows.
    pub fn shown_neighbours(&self) -> Vec<InstanceId> {
        let shown = |example: &Example| self.neighbours.of(example.query).take(SHOWN_NEIGHBOURS);
        self.examples.iter().flat_map(shown).map(|(row, _)| self.bank.ids()[row]).collect()
    }

    /// Instances of the queries' split that the map shows.
    pub fn mapped(&self) -> Vec<InstanceId> {
        let rows = self.map.iter().flat_map(|map| &map.rows);
        rows.map(|&row| self.queries.ids[row]).collect()
    }

    fn report(&self) -> &KnnReport {
        &self.reports.first
    }

    fn class_name(&self, label: Option<ClassId>) -> &str {
        let names = &self.bank.meta().classes;
        label.and_then(|class| names.get(class.index())).map_or("unlabelled", String::as_str)
    }
}

/// The page.
pub fn page(input: &PageInput<'_>, images: &PageImages) -> String {
    let mut body = String::new();
    let has_scores = input.report().has_scores();
    let sections = [
        has_scores.then(|| trend::section(input)).flatten(),
        has_scores.then(|| scores::grid(input.reports)).flatten(),
        scores::retrieval(input.reports),
        has_scores.then(|| scores::classes(input.report())).flatten(),
        map::section(input, images),
        gallery::section(input, images),
        ages(input.bank),
    ];
    let sections: Vec<Section> = sections.into_iter().flatten().collect();
    scores::headline(&mut body, input);
    toolbar(&mut body, input, &sections);
    for section in &sections {
        add!(
            body,
            "<section id=\"{0}\" aria-labelledby=\"h-{0}\">\n<h2 id=\"h-{0}\">{1}</h2>\n",
            section.id,
            section.title
        );
        body.push_str(&section.html);
        body.push_str("</section>\n");
    }
    let report = input.report();
    let score = if has_scores { percent(report.top1) + ": " } else { String::new() };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>{score}nearest neighbours at step {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <main>\n{body}</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        report.step
    )
}

/// A part of the page with a heading.
struct Section {
    id: &'static str,
    title: &'static str,
    html: String,
}

/// Links to the sections, and the class that all of them follow.
fn toolbar(out: &mut String, input: &PageInput<'_>, sections: &[Section]) {
    out.push_str("<div class=\"toolbar\">\n<nav aria-label=\"Sections\">");
    for section in sections {
        add!(out, "<a href=\"#{}\">{}</a>", section.id, section.title);
    }
    out.push_str("</nav>\n");
    // Without scores there are no classes to choose; the script asks for it all the same.
    let hidden = if input.report().has_scores() { "" } else { " hidden" };
    add!(out, "<label class=\"pick\"{hidden}>Class <select id=\"filter\"><option value=\"\">all</option>");
    for class in input.report().per_class.iter().filter(|class| class.queries > 0) {
        // Without a value an option has its text, in which a browser joins spaces and lines.
        let name = escape(&class.class);
        add!(out, "<option value=\"{name}\">{name}</option>");
    }
    out.push_str("</select></label>\n</div>\n");
}

/// Bars of the histogram.
const BARS: u64 = 24;

/// How long ago the rows of a bank were written.
fn ages(bank: &dyn Table) -> Option<Section> {
    let (meta, steps) = (bank.meta(), bank.updated_steps());
    let mut ages: Vec<u64> = steps.iter().flatten().map(|step| meta.step.saturating_sub(step + 1)).collect();
    if meta.kind != Kind::Bank || ages.is_empty() {
        return None;
    }
    ages.sort_unstable();
    let never = steps.len() - ages.len();
    let oldest = ages.last().copied().unwrap_or(0);
    let width = (oldest + 1).div_ceil(BARS).max(1);
    let mut counts = vec![0_u64; ((oldest / width) + 1) as usize];
    ages.iter().for_each(|age| counts[(age / width) as usize] += 1);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let mean = ages.iter().sum::<u64>() as f64 / ages.len() as f64;
    let mut html = String::new();
    add!(
        html,
        "<p class=\"about\">Steps since a row was written, at step {}: {:.0} in the mean, {} in the middle, {} at most{}</p>\n",
        grouped(meta.step),
        mean,
        grouped(ages[ages.len() / 2]),
        grouped(oldest),
        if never > 0 {
            format!("; {} rows were never written.", grouped(never as u64))
        } else {
            ".".to_owned()
        }
    );
    add!(
        html,
        "<div class=\"histogram\" role=\"img\" aria-label=\"Histogram of the rows' ages, from 0 to {oldest} steps\">\n"
    );
    for (at, count) in (0..).zip(&counts) {
        let (from, to) = (at * width, ((at + 1) * width - 1).min(oldest));
        let range = if from == to { grouped(from) } else { format!("{} to {}", grouped(from), grouped(to)) };
        add!(
            html,
            "<span style=\"--share:{:.4}\" title=\"{range} steps: {} rows\"></span>",
            *count as f64 / most as f64,
            grouped(*count)
        );
    }
    add!(
        html,
        "\n</div>\n<p class=\"axis\"><span>written just now</span><span>{} steps ago</span></p>\n",
        grouped(oldest)
    );
    Some(Section { id: "ages", title: "Age of the bank", html })
}

/// A share as text.
fn percent(share: f64) -> String {
    // The sum of nothing is -0.
    format!("{:.1} %", 100.0 * share + 0.0)
}

/// An interval of shares as text.
fn interval([low, high]: [f64; 2]) -> String {
    format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high)
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text escaped for any place in HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
        .replace('\n', "&#10;")
        .replace('\r', "&#13;")
}

/// A name escaped for HTML, with breaks allowed after underlines.
fn breakable(name: &str) -> String {
    escape(name).replace('_', "_<wbr>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tests::{options, table, temperature};
    use crate::eval::{evaluate, evaluate_with_neighbours};
    use crate::storage::Location;

    #[test]
    fn the_page_escapes_names_and_loads_nothing() {
        let (mut bank, queries) = (table(15, 40, 8, 2), table(16, 8, 8, 2));
        bank.meta.classes = vec!["<script>alert(1)</script>".into(), "a & \"b\"".into()];
        let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
        let examples = examples(&bank, &queries, &neighbours, 5, temperature(0.07));
        let map = map(&queries, 100).expect("mapped");
        let reports = KnnReports { first: report, other_features: Vec::new() };
        let input = PageInput {
            reports: &reports,
            bank: &bank,
            queries: &queries,
            neighbours: &neighbours,
            examples: &examples,
            history: &[],
            map: Some(&map),
        };
        let html = page(&input, &PageImages::default());
        assert!(!html.contains("<script>alert") && html.contains("&lt;script&gt;alert"));
        assert!(!html.contains("http://") && !html.contains("https://"));
        assert_eq!(html.matches("<article").count(), 8);
        // Five neighbours reach recall@5, and not all 20 rows of a class.
        assert!(html.contains("recall@5</th><th scope=\"col\">mAP@5</th>") && !html.contains("recall@10"));
        let map = input.reports.first.retrieval.as_ref().expect("labels").map;
        assert!(html.contains(&format!(
            "title=\"of the 5 nearest\">{}</td><td style=\"--heat:0\">–</td>",
            percent(map)
        )));
    }

    /// The page's filter compares what an option has as its value with what an article has as its class.
    #[test]
    fn a_class_whose_name_has_a_line_break_can_be_chosen_on_the_page() {
        let (mut bank, queries) = (table(15, 40, 8, 2), table(16, 8, 8, 2));
        bank.meta.classes = vec!["two\nlines".into(), "two  spaces\r".into()];
        let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
        let examples = examples(&bank, &queries, &neighbours, 5, temperature(0.07));
        let reports = KnnReports { first: report, other_features: Vec::new() };
        let input = PageInput {
            reports: &reports,
            bank: &bank,
            queries: &queries,
            neighbours: &neighbours,
            examples: &examples,
            history: &[],
            map: None,
        };
        let html = page(&input, &PageImages::default());
        for name in ["two&#10;lines", "two  spaces&#13;"] {
            assert!(html.contains(&format!("<option value=\"{name}\">")), "{name:?}");
            assert!(html.contains(&format!("data-class=\"{name}\"")), "{name:?}");
        }
    }

    #[test]
    fn the_gallery_shows_each_class_before_any_twice_and_the_surest_first() {
        let (bank, queries) = (table(25, 900, 8, 6), table(26, 400, 8, 6));
        let (_, found) = evaluate_with_neighbours(&bank, &queries, &options(21)).expect("scored");
        let examples = examples(&bank, &queries, &found, 9, temperature(0.07));
        let of =
            |kind: ExampleKind| examples.iter().filter(|example| example.kind == kind).collect::<Vec<_>>();
        for kind in [ExampleKind::Best, ExampleKind::Worst, ExampleKind::Typical] {
            let shown = of(kind);
            assert_eq!(shown.len(), 20, "{kind:?}");
            let class = |example: &&Example| queries.labels[example.query];
            let mut first: Vec<_> = shown.iter().take(6).map(class).collect();
            first.sort_unstable();
            first.dedup();
            assert_eq!(first.len(), 6, "{kind:?}");
        }
        let mut queries_shown: Vec<usize> = examples.iter().map(|example| example.query).collect();
        queries_shown.sort_unstable();
        queries_shown.dedup();
        assert_eq!(queries_shown.len(), 60, "no query is shown twice");
        for example in of(ExampleKind::Best) {
            assert_eq!(example.winner, queries.labels[example.query]);
            assert!(example.own_share > 0.0 && example.own_share <= 1.0);
        }
        for example in of(ExampleKind::Worst) {
            assert_ne!(example.winner, queries.labels[example.query]);
            assert!(example.winner_share >= example.own_share);
        }
    }

    #[test]
    fn the_history_has_the_reports_that_can_be_compared() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = Location::from_path(dir.path()).expect("a location");
        let (bank, queries) = (table(27, 100, 8, 4), table(28, 20, 8, 4));
        let report = evaluate(&bank, &queries, &options(5)).expect("scored");
        let report = KnnReport { feature: "bank as stored".into(), ..report };
        let publish = |step: u64, report: KnnReport| {
            let reports = KnnReports { first: report, other_features: Vec::new() };
            let text = serde_json::to_string(&reports).expect("JSON");
            let mode = crate::storage::PublishMode::Overwrite;
            run.join(&format!("eval/knn-val-step-{step:08}.json")).publish(text, mode).expect("published");
        };
        publish(40, KnnReport { step: 40, ..report.clone() });
        publish(20, KnnReport { step: 20, top1: 0.25, ..report.clone() });
        publish(30, KnnReport { step: 30, k: 7, ..report.clone() });
        publish(10, KnnReport { step: 10, feature: "another".into(), ..report.clone() });
        publish(0, KnnReport { step: 0, ..report.clone() });
        let newest = KnnReport { step: 60, ..report };
        let points = history(&run, &newest).expect("read");
        assert_eq!(points.iter().map(|point| point.step).collect::<Vec<_>>(), [20, 40, 60]);
        assert_eq!(points[0].top1, 0.25);
        let config = "arch = \"resnet18\"\nbank_init = \"encode\"\n";
        run.join("config.toml").publish(config, crate::storage::PublishMode::Create).expect("published");
        let points = history(&run, &newest).expect("read");
        assert_eq!(points.iter().map(|point| point.step).collect::<Vec<_>>(), [0, 20, 40, 60]);
    }

    #[test]
    fn a_name_is_broken_between_its_words_alone() {
        assert_eq!(breakable("great_white<shark"), "great_<wbr>white&lt;shark");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_281_167].map(grouped), ["0", "999", "1,000", "1,281,167"]);
    }
}
