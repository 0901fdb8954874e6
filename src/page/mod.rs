//! Report as one HTML page that works offline.
//!
//! The page contains everything: style, script, and images as data URLs. Scores, tables and names are plain
//! HTML, readable without script; the script filters, sorts and draws the map.

mod bank;
mod datasets;
mod gallery;
mod map;
mod scores;
mod text;
mod trend;

pub use self::bank::BankSpread;
pub use self::datasets::DatasetTrend;
pub use self::gallery::{Example, ExampleKind, examples};
pub use self::map::{EmbeddingMap, map};
pub use self::trend::{History, HistoryPoint, history};
use crate::eval::{KnnReport, KnnReports, Thumbnails};
use crate::feature_table::{FeatureTable, Table, TableError};
use crate::ids::{ClassId, InstanceId};
use crate::search::Neighbours;
use text::{escape, percent};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Number of neighbours that the gallery shows for a query of a report.
pub const SHOWN_NEIGHBOURS: usize = 20;

/// Inputs of a page.
#[derive(Clone, Copy, Debug)]
pub struct PageInput<'a> {
    /// Scores of all features.
    pub reports: &'a KnnReports,
    /// Bank of the first feature.
    pub bank: &'a dyn Table,
    /// Queries of the first feature.
    pub queries: &'a FeatureTable,
    /// Neighbours of these queries.
    pub neighbours: &'a Neighbours,
    /// Number of neighbours that the gallery shows per query.
    pub shown: usize,
    /// Name of the queries' dataset if known, or of the bank's for images outside a dataset.
    pub dataset: Option<&'a str>,
    /// Queries that the gallery shows.
    pub examples: &'a [Example],
    /// Scores of the run; empty without a run.
    pub history: &'a History,
    /// Map of the queries.
    pub map: Option<&'a EmbeddingMap>,
}

/// Images of a page.
#[derive(Clone, Debug, Default)]
pub struct PageImages {
    /// Thumbnails of the gallery's queries.
    pub queries: Thumbnails,
    /// Thumbnails of their neighbours.
    pub bank: Thumbnails,
    /// Sprite of the map's points.
    pub sprite: Option<Vec<u8>>,
}

impl PageInput<'_> {
    /// Returns the instances of the queries' split that the gallery shows.
    pub fn shown_queries(&self) -> Vec<InstanceId> {
        self.examples.iter().map(|example| self.queries.ids[example.query]).collect()
    }

    /// Returns the instances of the bank's split that the gallery shows.
    pub fn shown_neighbours(&self) -> Vec<InstanceId> {
        let shown = |example: &Example| self.neighbours.of(example.query).take(self.shown);
        self.examples.iter().flat_map(shown).map(|(row, _)| self.bank.id(row)).collect()
    }

    /// Returns the instances of the queries' split that the map shows.
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

/// Renders the page.
///
/// # Errors
/// If the steps of the bank's rows cannot be read.
pub fn page(input: &PageInput<'_>, images: &PageImages) -> Result<String, TableError> {
    let mut body = String::new();
    let has_scores = input.report().has_scores();
    let sections = [
        has_scores.then(|| trend::section(input)).flatten(),
        datasets::section(input),
        has_scores.then(|| scores::grid(input.reports)).flatten(),
        scores::retrieval(input.reports),
        has_scores.then(|| scores::classes(input.report())).flatten(),
        map::section(input, images),
        gallery::section(input, images),
        bank::spread(input),
        bank::ages(input.bank)?,
    ];
    let sections: Vec<Section> = sections.into_iter().flatten().collect();
    scores::headline(&mut body, input);
    toolbar(&mut body, input, &sections);
    for section in &sections {
        text::add!(
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
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>{score}nearest neighbours at step {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <main>\n{body}</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        report.step
    ))
}

/// Section of the page with a heading.
struct Section {
    id: &'static str,
    title: &'static str,
    html: String,
}

/// Renders links to the sections, and the class filter that all of them follow.
fn toolbar(out: &mut String, input: &PageInput<'_>, sections: &[Section]) {
    out.push_str("<div class=\"toolbar\">\n<nav aria-label=\"Sections\">");
    for section in sections {
        text::add!(out, "<a href=\"#{}\">{}</a>", section.id, section.title);
    }
    out.push_str("</nav>\n");
    // The script needs the filter even without scores, when there are no classes to choose.
    let hidden = if input.report().has_scores() { "" } else { " hidden" };
    text::add!(
        out,
        "<label class=\"pick\"{hidden}>Class <select id=\"filter\"><option value=\"\">all</option>"
    );
    for class in input.report().per_class.iter().filter(|class| class.queries > 0) {
        // Without an explicit value the browser uses the option's text, in which it collapses white space.
        let name = escape(&class.class);
        text::add!(out, "<option value=\"{name}\">{name}</option>");
    }
    out.push_str("</select></label>\n</div>\n");
}

#[cfg(test)]
mod tests;
