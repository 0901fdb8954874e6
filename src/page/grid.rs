//! Every number of neighbours with every temperature, a heat map for each feature.

use super::Section;
use super::text::{add, escape, interval, percent};
use crate::eval::{GridCell, KnnReport, KnnReports};

pub(super) fn section(reports: &KnnReports) -> Option<Section> {
    let all: Vec<&KnnReport> = std::iter::once(&reports.first).chain(&reports.other_features).collect();
    if all.len() == 1 && reports.first.grid.len() < 2 {
        return None;
    }
    let mut html = String::from(
        "<p class=\"about\">Top-1 by the number of neighbours that vote and the temperature of their weights. The best \
         cell has a frame.</p>\n",
    );
    html.push_str("<div class=\"heats\">\n");
    for report in all {
        heat(&mut html, report);
    }
    html.push_str("</div>\n");
    Some(Section { id: "grid", title: "Neighbours and temperature", html })
}

fn heat(html: &mut String, report: &KnnReport) {
    let mut temperatures: Vec<f64> = report.grid.iter().map(|cell| cell.temperature).collect();
    temperatures.sort_by(f64::total_cmp);
    temperatures.dedup();
    let mut rows: Vec<&GridCell> = report.grid.iter().collect();
    rows.sort_by(|a, b| a.k.cmp(&b.k).then(a.temperature.total_cmp(&b.temperature)));
    rows.dedup_by_key(|cell| (cell.k, cell.temperature.to_bits()));
    let best = report.grid.iter().map(|cell| cell.top1).fold(0.0, f64::max);
    let least = report.grid.iter().map(|cell| cell.top1).fold(1.0, f64::min);
    add!(
        html,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Scores of {0}\">\n<table class=\"heat\">\n<caption>{0}</caption>\n\
         <thead><tr><th scope=\"col\">K \\ τ</th>",
        escape(&report.feature)
    );
    for temperature in &temperatures {
        add!(html, "<th scope=\"col\">{temperature}</th>");
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in rows.chunks(temperatures.len().max(1)) {
        add!(html, "<tr><th scope=\"row\">{}</th>", row[0].k);
        for cell in row {
            let heat = if best > least { (cell.top1 - least) / (best - least) } else { 1.0 };
            let class = if cell.top1 == best { " class=\"best\"" } else { "" };
            add!(
                html,
                "<td{class} style=\"--heat:{heat:.3}\" title=\"{} (95 %), top-5 {}\">{}</td>",
                interval(cell.top1_interval),
                percent(cell.top5),
                percent(cell.top1)
            );
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n</div>\n");
}
