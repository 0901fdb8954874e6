//! The score of each class, and the pairs that are taken for one another.

use super::Section;
use super::text::{add, breakable, escape, percent};
use crate::eval::{Confusion, KnnReport};

/// Pairs that are shown at once.
const FIRST_PAIRS: usize = 12;

pub(super) fn section(report: &KnnReport) -> Option<Section> {
    let mut scored: Vec<_> = report.per_class.iter().filter(|class| class.queries > 0).collect();
    if scored.is_empty() {
        return None;
    }
    scored.sort_by(|a, b| b.top1.total_cmp(&a.top1).then(a.class.cmp(&b.class)));
    let mut html = String::from(
        "<div class=\"columns\">\n<div>\n<div class=\"bar-head\"><h3>Top-1 of each class</h3>\n<div class=\"segments\" role=\"group\" aria-label=\"Order of the classes\" id=\"class-order\"><button type=\"button\" data-order=\"best\" aria-pressed=\"true\">best</button><button type=\"button\" data-order=\"worst\" aria-pressed=\"false\">worst</button><button type=\"button\" data-order=\"name\" aria-pressed=\"false\">A to Z</button></div></div>\n<ul class=\"bars tall\" id=\"classes-list\" tabindex=\"0\" aria-label=\"Top-1 of each class\">\n",
    );
    for class in scored {
        add!(
            html,
            "<li data-class=\"{0}\" data-top1=\"{1:.6}\"><button type=\"button\" class=\"name\" title=\"Show only {0}\">{5}</button>\
             <span class=\"bar\" style=\"--share:{1:.4}\"></span><span class=\"value\" title=\"{2} queries, top-5 {3}\">{4}</span></li>\n",
            escape(&class.class),
            class.top1,
            class.queries,
            percent(class.top5),
            percent(class.top1),
            breakable(&class.class)
        );
    }
    html.push_str("</ul>\n</div>\n<div>\n<div class=\"bar-head\"><h3>Taken for one another</h3></div>\n");
    let most = report
        .confusions
        .first()
        .map_or(1.0, |_| report.confusions.iter().map(|pair| pair.share).fold(0.0, f64::max).max(1e-9));
    let (first, rest) = report.confusions.split_at(report.confusions.len().min(FIRST_PAIRS));
    pairs(&mut html, first, most);
    if !rest.is_empty() {
        add!(html, "<details><summary>{} more pairs</summary>\n", rest.len());
        pairs(&mut html, rest, most);
        html.push_str("</details>\n");
    }
    if report.confusions.is_empty() {
        html.push_str("<p class=\"about\">No query was taken for another class.</p>\n");
    }
    html.push_str("</div>\n</div>\n");
    Some(Section { id: "classes", title: "Classes", html })
}

fn pairs(html: &mut String, pairs: &[Confusion], most: f64) {
    html.push_str("<ul class=\"bars pairs\">\n");
    for pair in pairs {
        add!(
            html,
            "<li data-class=\"{0}\"><span class=\"name\"><b>{5}</b> voted <b>{1}</b></span><span class=\"bar wrong\" style=\"--share:{2:.4}\"></span>\
             <span class=\"value\" title=\"{3} queries\">{4}</span></li>\n",
            escape(&pair.class),
            breakable(&pair.voted),
            pair.share / most,
            pair.queries,
            percent(pair.share),
            breakable(&pair.class)
        );
    }
    html.push_str("</ul>\n");
}
