//! The report as one HTML page that needs no network.
//!
//! Everything is in the page: style, script, images as data URLs. What an image-less reader needs (scores,
//! tables, names) is plain HTML; the script filters, sorts and draws the map.

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

/// Neighbours that the gallery shows for a query of a report.
pub const SHOWN_NEIGHBOURS: usize = 20;

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
    /// How many of them the gallery shows for a query.
    pub shown: usize,
    /// The name of the dataset of the queries, or for images of none of that of the bank, where it is known.
    pub dataset: Option<&'a str>,
    /// The queries that the gallery shows.
    pub examples: &'a [Example],
    /// The scores of the run; empty without one.
    pub history: &'a History,
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
        let shown = |example: &Example| self.neighbours.of(example.query).take(self.shown);
        self.examples.iter().flat_map(shown).map(|(row, _)| self.bank.id(row)).collect()
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
///
/// # Errors
/// If the steps of a bank's rows cannot be read.
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
        text::add!(out, "<a href=\"#{}\">{}</a>", section.id, section.title);
    }
    out.push_str("</nav>\n");
    // Without scores there are no classes to choose; the script asks for it all the same.
    let hidden = if input.report().has_scores() { "" } else { " hidden" };
    text::add!(
        out,
        "<label class=\"pick\"{hidden}>Class <select id=\"filter\"><option value=\"\">all</option>"
    );
    for class in input.report().per_class.iter().filter(|class| class.queries > 0) {
        // Without a value an option has its text, in which a browser joins spaces and lines.
        let name = escape(&class.class);
        text::add!(out, "<option value=\"{name}\">{name}</option>");
    }
    out.push_str("</select></label>\n</div>\n");
}

#[cfg(test)]
mod tests;
