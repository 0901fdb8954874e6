//! Evaluated features and their scores: overall, by options, by class.

use super::text::{add, breakable, escape, grouped, interval, percent, prose};
use super::{PageInput, Section};
use crate::eval::{Confusion, GridCell, KnnReport, KnnReports, Retrieval, is_remark};

/// Number of pairs shown at first.
const FIRST_PAIRS: usize = 12;

/// Renders the evaluated features and their headline scores.
pub(super) fn headline(out: &mut String, input: &PageInput<'_>) {
    let report = input.report();
    let all = report.queries + report.unlabelled_queries;
    let title = if report.has_scores() {
        format!("{} of queries get their class right", percent(report.top1))
    } else {
        format!("The neighbours of {} {}", grouped(all as u64), if all == 1 { "image" } else { "images" })
    };
    add!(out, "<header>\n<p class=\"kicker\">Nearest-neighbour report</p>\n<h1>{title}</h1>\n");
    let (queries, rows) = if report.has_scores() {
        (report.queries, format!("{} labelled rows", grouped(report.bank_rows as u64)))
    } else {
        (all, format!("{} rows", grouped(input.bank.rows() as u64)))
    };
    let classes = (report.classes > 0).then(|| format!("{} classes", grouped(report.classes as u64)));
    let dataset = (!report.dataset_digest.is_empty()).then(|| {
        let digest = &report.dataset_digest;
        let start = escape(digest.get(..12).unwrap_or(digest));
        let code = format!("<code title=\"{}\">{start}</code>", escape(digest));
        match input.dataset.filter(|name| !name.is_empty()) {
            Some(name) => format!("dataset <b>{}</b> ({code})", escape(name)),
            None => format!("dataset {code}"),
        }
    });
    let what: String = [classes, dataset].into_iter().flatten().map(|part| format!(", {part}")).collect();
    add!(
        out,
        "<p class=\"about\">{} {}{}, compared with {rows}: <b>{}</b>, step {}{}.{}{}</p>\n",
        grouped(queries as u64),
        if queries == 1 { "query" } else { "queries" },
        // Images outside a dataset and tables of other programs have no split.
        if report.split.is_empty() {
            String::new()
        } else {
            format!(" of split <b>{}</b>", escape(&report.split))
        },
        escape(&report.feature),
        grouped(report.step),
        what,
        if report.leave_one_out { " A query's own row does not vote." } else { "" },
        report.excluded_duplicates.map_or_else(String::new, |pairs| {
            format!(" {} rows with a query's own image did not vote.", grouped(pairs as u64))
        }),
    );
    for note in &report.notes {
        let class = if is_remark(note) { "about" } else { "warning" };
        add!(out, "<p class=\"{class}\" role=\"note\">{}</p>\n", prose(note));
    }
    if !report.has_scores() {
        out.push_str("</header>\n");
        return;
    }
    out.push_str("<dl class=\"scores\">\n");
    let votes = format!("k = {}, τ = {}", report.k, report.temperature);
    for (name, value, range) in
        [("top-1", report.top1, report.top1_interval), ("top-5", report.top5, report.top5_interval)]
    {
        // Fewer than five neighbours cannot vote for five classes, and with at most five classes top-5 is always 1.
        if name == "top-5" && (report.k < 5 || report.classes <= 5) {
            continue;
        }
        add!(
            out,
            "<div><dt>{name} <span>{votes}</span></dt><dd>{}</dd>\
             <dd class=\"gauge\" style=\"--share:{value:.4};--low:{:.4};--high:{:.4};--chance:{:.4}\" \
             aria-hidden=\"true\"></dd><dd class=\"note\">{} (95 %)</dd></div>\n",
            percent(value),
            range[0],
            range[1],
            report.most_frequent_classes(if name == "top-1" { 1 } else { 5 }),
            interval(range),
        );
    }
    let share = report.most_frequent_class;
    add!(
        out,
        "<div><dt>chance <span>always the most frequent class</span></dt><dd>{}</dd>\
         <dd class=\"gauge\" style=\"--share:{1:.4};--low:{1:.4};--high:{1:.4};--chance:{1:.4}\" \
         aria-hidden=\"true\"></dd><dd class=\"note\">{2}</dd></div>\n",
        percent(share),
        share,
        if report.top1 >= share {
            format!("top-1 is {:.1} times that", report.top1 / share.max(f64::MIN_POSITIVE))
        } else {
            "top-1 is below that".to_owned()
        }
    );
    out.push_str("</dl>\n</header>\n");
}

/// Renders the scores of all numbers of neighbours and temperatures, as a heat map for each feature.
pub(super) fn grid(reports: &KnnReports) -> Option<Section> {
    if reports.other_features.is_empty() && reports.first.grid.len() < 2 {
        return None;
    }
    let mut html = String::from(
        "<p class=\"about\">Top-1 by the number of neighbours that vote and the temperature of their weights. The best \
         cell has a frame.</p>\n",
    );
    html.push_str("<div class=\"heats\">\n");
    for (report, name) in reports.all().zip(reports.names()) {
        heat(&mut html, report, &name);
    }
    html.push_str("</div>\n");
    Some(Section { id: "grid", title: "Neighbours and temperature", html })
}

fn heat(html: &mut String, report: &KnnReport, name: &str) {
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
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Scores of {0}\">\n\
         <table class=\"heat\">\n<caption>{0}</caption>\n<thead><tr><th scope=\"col\">K \\ τ</th>",
        escape(name)
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

/// Renders recall and mean average precision, with a row for each feature.
pub(super) fn retrieval(reports: &KnnReports) -> Option<Section> {
    let measured: Vec<(String, &Retrieval)> = reports
        .names()
        .into_iter()
        .zip(reports.all())
        .filter_map(|(name, report)| Some((name, report.retrieval.as_ref()?)))
        .collect();
    // Banks of different sizes may have different k: the row with the largest has all columns.
    let (_, most) = measured.iter().max_by_key(|(_, retrieval)| retrieval.k)?;
    let mut html = String::from(
        "<p class=\"about\">Recall@k is the share of queries with a row of their class among their k \
         nearest. mAP@K is the mean average precision of the K nearest. mAP@R ranks as many rows as a \
         query's class has.",
    );
    if most.without_relevant > 0 {
        let [without, all] = [most.without_relevant, most.queries].map(|count| grouped(count as u64));
        add!(html, " {without} of {all} queries have no row of their class in the bank and count as 0.");
    }
    html.push_str(
        "</p>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Recall and precision\">\n\
         <table class=\"heat\">\n<thead><tr><th scope=\"col\">feature</th>",
    );
    let names = most.recall.iter().map(|at| format!("recall@{}", at.k));
    for name in names.chain([format!("mAP@{}", most.k), "mAP@R".to_owned()]) {
        add!(html, "<th scope=\"col\">{name}</th>");
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for (feature, retrieval) in &measured {
        add!(html, "<tr><th scope=\"row\">{}</th>", escape(feature));
        let mut cell = |share: Option<f64>, title: &str| match share {
            Some(share) => {
                add!(html, "<td style=\"--heat:{share:.3}\" title=\"{title}\">{}</td>", percent(share));
            }
            None => html.push_str("<td style=\"--heat:0\">–</td>"),
        };
        for at in 0..most.recall.len() {
            let at = retrieval.recall.get(at);
            let title = at.map(|at| interval(at.interval) + " (95 %)").unwrap_or_default();
            cell(at.map(|at| at.recall), &title);
        }
        cell(Some(retrieval.map), &format!("of the {} nearest", retrieval.k));
        cell(retrieval.map_at_r, "of as many as the class has rows");
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n</div>\n");
    Some(Section { id: "retrieval", title: "Recall and precision", html })
}

/// Renders the score of each class, and the confused pairs of classes.
pub(super) fn classes(report: &KnnReport) -> Option<Section> {
    let mut scored: Vec<_> = report.per_class.iter().filter(|class| class.queries > 0).collect();
    if scored.is_empty() {
        return None;
    }
    scored.sort_by(|a, b| b.top1.total_cmp(&a.top1).then(a.class.cmp(&b.class)));
    let mut html = String::from(
        "<div class=\"columns\">\n<div>\n<div class=\"bar-head\"><h3>Top-1 of each class</h3>\n\
         <div class=\"segments\" role=\"group\" aria-label=\"Order of the classes\" id=\"class-order\">\
         <button type=\"button\" data-order=\"best\" aria-pressed=\"true\">best</button>\
         <button type=\"button\" data-order=\"worst\" aria-pressed=\"false\">worst</button>\
         <button type=\"button\" data-order=\"name\" aria-pressed=\"false\">A to Z</button></div></div>\n\
         <ul class=\"bars tall\" id=\"classes-list\" tabindex=\"0\" aria-label=\"Top-1 of each class\">\n",
    );
    for class in scored {
        add!(
            html,
            "<li data-class=\"{0}\" data-top1=\"{1:.6}\"><button type=\"button\" class=\"name\" title=\"Show \
             only {0}\">{5}</button><span class=\"bar\" style=\"--share:{1:.4}\"></span>\
             <span class=\"value\" title=\"{2} queries, top-5 {3}\">{4}</span></li>\n",
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
            "<li data-class=\"{0}\"><span class=\"name\"><b>{5}</b> voted <b>{1}</b></span>\
             <span class=\"bar wrong\" style=\"--share:{2:.4}\"></span>\
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
