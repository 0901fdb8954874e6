//! The report as one HTML page that needs no network.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{KnnReport, Neighbours, Thumbnails};
use crate::feature_table::{FeatureTable, Table};
use crate::ids::{ClassId, InstanceId};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Neighbours that the gallery shows for a query.
const SHOWN_NEIGHBOURS: usize = 10;
/// Queries that the gallery shows.
const SHOWN_QUERIES: usize = 60;

/// What a page is made from.
#[derive(Clone, Copy, Debug)]
pub struct PageInput<'a> {
    /// The scores.
    pub report: &'a KnnReport,
    /// The bank.
    pub bank: &'a dyn Table,
    /// The queries.
    pub queries: &'a FeatureTable,
    /// Their neighbours.
    pub neighbours: &'a Neighbours,
}

impl PageInput<'_> {
    /// Rows of the queries that the gallery shows: labelled ones, spread evenly over the split.
    pub fn shown_queries(&self) -> Vec<usize> {
        let labelled: Vec<usize> =
            (0..self.queries.len()).filter(|&row| self.queries.labels[row].is_some()).collect();
        let step = labelled.len().div_ceil(SHOWN_QUERIES).max(1);
        labelled.into_iter().step_by(step).collect()
    }

    /// Instances of the bank that the gallery shows.
    pub fn shown_bank_instances(&self) -> Vec<InstanceId> {
        let shown = |query| self.neighbours.of(query).take(SHOWN_NEIGHBOURS);
        self.shown_queries().into_iter().flat_map(shown).map(|(row, _)| self.bank.ids()[row]).collect()
    }
}

/// The page.
pub fn page(input: &PageInput<'_>, query_pictures: &Thumbnails, bank_pictures: &Thumbnails) -> String {
    let report = input.report;
    let mut body = String::new();
    headline(&mut body, report);
    grid(&mut body, report);
    classes(&mut body, report);
    gallery(&mut body, input, query_pictures, bank_pictures);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>kNN report: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        percent(report.top1)
    )
}

/// Adds a formatted piece; writing to a `String` cannot fail.
macro_rules! add {
    ($out:expr, $($arg:tt)*) => {
        write!($out, $($arg)*).expect("a String takes everything")
    };
}

fn headline(out: &mut String, report: &KnnReport) {
    add!(
        out,
        "<header>\n<h1>Nearest-neighbour report</h1>\n<p class=\"about\">{} queries of split <b>{}</b> against {} rows ({}), step {}, {} classes. ",
        report.queries,
        escape(&report.split),
        report.bank_rows,
        escape(&report.feature),
        report.step,
        report.classes
    );
    add!(
        out,
        "Dataset <code title=\"{0}\">{1}</code>.</p>\n",
        escape(&report.dataset_digest),
        escape(report.dataset_digest.get(..12).unwrap_or(&report.dataset_digest))
    );
    out.push_str("<dl class=\"scores\">\n");
    for (name, value, note) in [
        ("top-1", report.top1, format!("k = {}, τ = {}", report.k, report.temperature)),
        ("top-5", report.top5, format!("k = {}, τ = {}", report.k, report.temperature)),
        ("chance", report.chance, "guessing a class".to_owned()),
    ] {
        add!(out, "<div><dt>{name}</dt><dd>{}</dd><p>{note}</p></div>\n", percent(value));
    }
    out.push_str("</dl>\n</header>\n");
}

fn grid(out: &mut String, report: &KnnReport) {
    if report.grid.len() < 2 {
        return;
    }
    let mut temperatures: Vec<f64> = report.grid.iter().map(|cell| cell.temperature).collect();
    temperatures.dedup();
    temperatures.truncate(
        temperatures
            .iter()
            .skip(1)
            .position(|t| *t == temperatures[0])
            .map_or(temperatures.len(), |at| at + 1),
    );
    let (low, high) = report
        .grid
        .iter()
        .fold((1.0_f64, 0.0_f64), |(low, high), cell| (low.min(cell.top1), high.max(cell.top1)));
    out.push_str("<section>\n<h2>Neighbours and temperature</h2>\n<table class=\"heat\">\n<thead><tr><th scope=\"col\">k \\ τ</th>");
    for temperature in &temperatures {
        add!(out, "<th scope=\"col\">{temperature}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in report.grid.chunks(temperatures.len()) {
        add!(out, "<tr><th scope=\"row\">{}</th>", row[0].k);
        for cell in row {
            let heat = if high > low { (cell.top1 - low) / (high - low) } else { 1.0 };
            add!(out, "<td style=\"--heat:{heat:.3}\">{}</td>", percent(cell.top1));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</section>\n");
}

fn classes(out: &mut String, report: &KnnReport) {
    let mut scored: Vec<_> = report.per_class.iter().filter(|class| class.queries > 0).collect();
    scored.sort_by(|a, b| b.top1.total_cmp(&a.top1).then(a.class.cmp(&b.class)));
    out.push_str("<section>\n<h2>Classes</h2>\n<ul class=\"bars\">\n");
    for class in scored {
        add!(
            out,
            "<li><span class=\"name\">{}</span><span class=\"bar\" style=\"--share:{:.4}\"></span><span class=\"value\">{}</span></li>\n",
            escape(&class.class),
            class.top1,
            percent(class.top1)
        );
    }
    out.push_str("</ul>\n</section>\n");
}

fn gallery(out: &mut String, input: &PageInput<'_>, query_pictures: &Thumbnails, bank_pictures: &Thumbnails) {
    let name = |label: Option<ClassId>| {
        label
            .and_then(|class| input.bank.meta().classes.get(class.index()))
            .map_or("unlabelled", String::as_str)
    };
    let shown = input.shown_queries();
    let mut classes: Vec<&str> = shown.iter().map(|&row| name(input.queries.labels[row])).collect();
    classes.sort_unstable();
    classes.dedup();
    out.push_str("<section>\n<h2>Queries and their neighbours</h2>\n<p class=\"legend\"><span class=\"right\">right class</span> <span class=\"wrong\">another class</span></p>\n");
    out.push_str("<p><label>Class <select id=\"filter\"><option value=\"\">all</option>");
    for class in &classes {
        add!(out, "<option>{}</option>", escape(class));
    }
    out.push_str(
        "</select></label> <span id=\"shown\" role=\"status\"></span></p>\n<div class=\"gallery\">\n",
    );
    for row in shown {
        let own = name(input.queries.labels[row]);
        add!(
            out,
            "<article data-class=\"{0}\">\n<figure class=\"query\">{1}<figcaption>{0}</figcaption></figure>\n<div class=\"neighbours\">\n",
            escape(own),
            image(query_pictures, input.queries.ids[row], own)
        );
        for (neighbour, similarity) in input.neighbours.of(row).take(SHOWN_NEIGHBOURS) {
            let class = name(input.bank.labels()[neighbour]);
            let verdict = if class == own { "right" } else { "wrong" };
            add!(
                out,
                "<figure class=\"{verdict}\">{}<figcaption>{}<br>{similarity:.3}</figcaption></figure>\n",
                image(bank_pictures, input.bank.ids()[neighbour], class),
                escape(class)
            );
        }
        out.push_str("</div>\n</article>\n");
    }
    out.push_str("</div>\n</section>\n");
}

fn image(pictures: &Thumbnails, id: InstanceId, class: &str) -> String {
    match pictures.get(id) {
        Some(jpeg) => format!(
            "<img src=\"data:image/jpeg;base64,{}\" width=\"64\" height=\"64\" alt=\"instance {id}, {}\">",
            STANDARD.encode(jpeg),
            escape(class)
        ),
        None => format!("<span class=\"missing\">{id}</span>"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
