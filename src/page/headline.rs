//! What was evaluated, and the scores.

use super::PageInput;
use super::text::{add, escape, grouped, interval, percent};

pub(super) fn write(out: &mut String, input: &PageInput<'_>) {
    let report = input.report();
    let title = if report.has_scores() {
        format!("{} of queries get their class right", percent(report.top1))
    } else {
        format!("The neighbours of {} images", grouped(report.unlabelled_queries as u64))
    };
    add!(out, "<header>\n<p class=\"kicker\">Nearest-neighbour report</p>\n<h1>{title}</h1>\n");
    let (queries, rows) = if report.has_scores() {
        (report.queries, format!("{} labelled rows", grouped(report.bank_rows as u64)))
    } else {
        (report.unlabelled_queries, format!("{} rows", grouped(input.bank.ids().len() as u64)))
    };
    add!(
        out,
        "<p class=\"about\">{} queries of split <b>{}</b>, compared with {rows}: <b>{}</b>, step {}. {}ataset \
         <code title=\"{}\">{}</code>.{}{}</p>\n",
        grouped(queries as u64),
        escape(&report.split),
        escape(&report.feature),
        grouped(report.step),
        if report.classes == 0 {
            "D".to_owned()
        } else {
            format!("{} classes, d", grouped(report.classes as u64))
        },
        escape(&report.dataset_digest),
        escape(report.dataset_digest.get(..12).unwrap_or(&report.dataset_digest)),
        if report.leave_one_out { " A query's own row does not vote." } else { "" },
        report.excluded_duplicates.map_or_else(String::new, |pairs| {
            format!(" {} rows with a query's own image did not vote.", grouped(pairs as u64))
        }),
    );
    for note in &report.notes {
        add!(out, "<p class=\"warning\" role=\"note\">{}</p>\n", escape(note));
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
        // Fewer neighbours than five cannot vote for five classes, and five classes hold every query.
        if name == "top-5" && (report.k < 5 || report.classes <= 5) {
            continue;
        }
        add!(
            out,
            "<div><dt>{name} <span>{votes}</span></dt><dd>{}</dd>\
             <dd class=\"gauge\" style=\"--share:{value:.4};--low:{:.4};--high:{:.4};--chance:{:.4}\" aria-hidden=\"true\"></dd>\
             <dd class=\"note\">{} (95 %)</dd></div>\n",
            percent(value),
            range[0],
            range[1],
            if name == "top-1" { report.chance } else { (5.0 * report.chance).min(1.0) },
            interval(range),
        );
    }
    // Where classes are of different sizes, the largest is the better guess.
    let largest = report.most_frequent_class;
    let (what, share) = if largest > 1.5 * report.chance {
        ("always the most frequent class", largest)
    } else {
        ("guessing a class", report.chance)
    };
    add!(
        out,
        "<div><dt>chance <span>{what}</span></dt><dd>{}</dd>\
         <dd class=\"gauge\" style=\"--share:{1:.4};--low:{1:.4};--high:{1:.4};--chance:{1:.4}\" aria-hidden=\"true\"></dd>\
         <dd class=\"note\">{2}</dd></div>\n",
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
