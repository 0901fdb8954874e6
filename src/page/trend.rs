//! Scores over training: a point for each checkpoint, and a table with a line for each.

use super::text::{add, grouped, interval, percent};
use super::{HistoryPoint, PageInput, Section};

/// Steps of the vertical scale that are tried, as shares.
const SCALES: [f64; 6] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25];
/// Lines of the vertical scale at most.
const MOST_LINES: f64 = 6.0;
/// The least distance of two labels at the right edge, in hundredths of the chart's height.
const LABEL_DISTANCE: f64 = 9.0;

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
