//! Contents of the page.

use super::*;
use crate::eval::tests::{options, table, temperature};
use crate::eval::{evaluate, evaluate_with_neighbours};
use crate::storage::Location;

static NO_HISTORY: History =
    History { points: Vec::new(), datasets: Vec::new(), spread: Vec::new(), dim: None };

/// Renders a page of scores alone.
fn plain<'a>(
    reports: &'a KnnReports,
    (bank, queries): (&'a FeatureTable, &'a FeatureTable),
    neighbours: &'a Neighbours,
) -> PageInput<'a> {
    PageInput {
        reports,
        bank,
        queries,
        neighbours,
        shown: SHOWN_NEIGHBOURS,
        dataset: None,
        examples: &[],
        history: &NO_HISTORY,
        map: None,
    }
}

#[test]
fn the_page_escapes_names_and_loads_nothing() {
    let (mut bank, queries) = (table(15, 40, 8, 2), table(16, 8, 8, 2));
    bank.meta.classes = vec!["<script>alert(1)</script>".into(), "a & \"b\"".into()];
    let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
    let examples = examples(&bank, &queries, &neighbours, 5, temperature(0.07));
    let map = map(&queries, 100).expect("mapped");
    let reports = KnnReports { first: report, other_features: Vec::new() };
    let input =
        PageInput { examples: &examples, map: Some(&map), ..plain(&reports, (&bank, &queries), &neighbours) };
    let html = page(&input, &PageImages::default()).expect("a page");
    assert!(!html.contains("<script>alert") && html.contains("&lt;script&gt;alert"));
    assert!(!html.contains("http://") && !html.contains("https://"));
    assert_eq!(html.matches("<article").count(), 8);
    assert!(html.contains(", dataset <code title="), "no name is known");
    let html = page(&PageInput { dataset: Some("a<b"), ..input }, &PageImages::default()).expect("a page");
    assert!(html.contains(", dataset <b>a&lt;b</b> (<code title="));
    // Five neighbours allow recall@5, but not mAP@R, as a class has 20 rows.
    assert!(html.contains("recall@5</th><th scope=\"col\">mAP@5</th>") && !html.contains("recall@10"));
    let map = input.reports.first.retrieval.as_ref().expect("labels").map;
    assert!(
        html.contains(&format!(
            "title=\"of the 5 nearest\">{}</td><td style=\"--heat:0\">–</td>",
            percent(map)
        ))
    );
}

/// The page's filter compares the value of an option with the class of an article.
#[test]
fn a_class_whose_name_has_a_line_break_can_be_chosen_on_the_page() {
    let (mut bank, queries) = (table(15, 40, 8, 2), table(16, 8, 8, 2));
    bank.meta.classes = vec!["two\nlines".into(), "two  spaces\r".into()];
    let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
    let examples = examples(&bank, &queries, &neighbours, 5, temperature(0.07));
    let reports = KnnReports { first: report, other_features: Vec::new() };
    let input = PageInput { examples: &examples, ..plain(&reports, (&bank, &queries), &neighbours) };
    let html = page(&input, &PageImages::default()).expect("a page");
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
    let of = |kind: ExampleKind| examples.iter().filter(|example| example.kind == kind).collect::<Vec<_>>();
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
    let points = history(&run, &newest, "own", None).expect("read").points;
    assert_eq!(points.iter().map(|point| point.step).collect::<Vec<_>>(), [20, 40, 60]);
    assert_eq!(points[0].top1, 0.25);
    let config = "arch = \"resnet18\"\nbank_init = \"encode\"\n";
    run.join("config.toml").publish(config, crate::storage::PublishMode::Create).expect("published");
    let points = history(&run, &newest, "own", None).expect("read").points;
    assert_eq!(points.iter().map(|point| point.step).collect::<Vec<_>>(), [0, 20, 40, 60]);
}

/// Chance always means naming the most frequent classes of the queries.
#[test]
fn chance_on_the_page_is_that_of_the_most_frequent_classes() {
    let (bank, mut queries) = (table(15, 400, 8, 8), table(16, 20, 8, 8));
    for (at, label) in queries.labels.iter_mut().enumerate() {
        *label = Some(ClassId(if at < 13 { 1 } else { at as u16 - 12 }));
    }
    let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
    let shares = [1, 2, 5, 100].map(|count| report.most_frequent_classes(count));
    assert_eq!(shares, [0.7, 0.75, 0.9, 1.0]);
    assert_eq!((report.most_frequent_class, report.chance), (0.7, 0.125));
    let reports = KnnReports { first: report, other_features: Vec::new() };
    let input = plain(&reports, (&bank, &queries), &neighbours);
    let html = page(&input, &PageImages::default()).expect("a page");
    let chance = "<dt>chance <span>always the most frequent class</span></dt><dd>70.0 %</dd>";
    assert!(html.contains(chance) && html.contains("--chance:0.9000"), "{html}");
    // Chance is above all scores, but within the chart.
    let point = |step: u64| {
        let low = serde_json::json!({
            "step": step, "top1": 0.1, "top5": 0.2, "top1_interval": [0.0, 0.2], "top5_interval": [0.1, 0.3],
            "feature": "bank", "k": 5, "temperature": 0.07, "split": "val", "queries": 20, "leave_one_out": false
        });
        serde_json::from_value(low).expect("a point")
    };
    let history = History { points: vec![point(1), point(2)], ..History::default() };
    let html = page(&PageInput { history: &history, ..input }, &PageImages::default()).expect("a page");
    // 70 % on an axis that ends at 80 %.
    assert!(html.contains("rule chance\" style=\"top:12.50%\"") && !html.contains("top:-"), "{html}");
}

#[test]
fn a_run_has_a_trend_for_each_dataset_that_it_was_evaluated_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = Location::from_path(dir.path()).expect("a location");
    let (bank, queries) = (table(27, 100, 8, 4), table(28, 20, 8, 4));
    let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
    let of = |step: u64, top1: f64, feature: &str| KnnReport {
        step,
        top1,
        feature: feature.into(),
        split: "val".into(),
        dataset_digest: "0123456789abcdef".into(),
        ..report.clone()
    };
    let publish = |place: &str, name: Option<&str>, report: KnnReport| {
        let mut text = serde_json::to_value(&report).expect("JSON");
        text["dataset"] = name.into();
        let mode = crate::storage::PublishMode::Overwrite;
        run.join(&format!("eval/{place}.json")).publish(text.to_string(), mode).expect("published");
    };
    publish("knn-val-step-00000020", Some("own"), of(20, 0.3, "bank, 8-d"));
    // Reports on another dataset, by the page's feature and, more often, by another.
    publish("on-aa/knn-val-projection-step-00000020", Some("birds<"), of(20, 0.4, "projection"));
    publish("on-aa/knn-val-projection-step-00000040", Some("birds<"), of(40, 0.5, "projection"));
    publish("on-aa/knn-val-step-00000040", Some("birds<"), of(40, 0.1, "pooled"));
    // A report of an earlier version, without the dataset's name; and a file that is not a report.
    publish("on-bb/knn-val-projection-step-00000040", None, of(40, 0.6, "projection"));
    publish("on-bb/features/knn-val-step-00000040", Some("no"), of(40, 0.9, "projection"));
    let line = |step: u64, share: f64| {
        format!(
            "{{\"step\": {step}, \"cars_test/knn1_top1\": 0.9, \"cars_test/knn12_top1\": {share}, \
             \"cars_test/knn_chance\": 0.1, \"knn1_top1\": 0.9, \"knn20_top1\": 0.7, \"knn_sample_top1\": \
             0.6, \"knn_chance\": 0.2}}\n"
        )
    };
    let metrics = line(0, 0.2) + &line(10, 0.25) + "{torn";
    run.join("metrics.jsonl").publish(metrics, crate::storage::PublishMode::Create).expect("published");

    let newest = of(40, 0.35, "bank, 8-d");
    let found = history(&run, &newest, "own", None).expect("read");
    let shown = |trends: &[DatasetTrend]| -> Vec<(String, Vec<(u64, f64)>)> {
        trends.iter().map(|trend| (trend.name.clone(), trend.points.clone())).collect()
    };
    let birds = ("birds<, val".to_owned(), vec![(20, 0.4), (40, 0.5)]);
    let own = ("own, val".to_owned(), vec![(20, 0.3), (40, 0.35)]);
    let unnamed = ("dataset 0123456789ab, val".to_owned(), vec![(40, 0.6)]);
    let monitored = ("cars_test".to_owned(), vec![(0, 0.2), (10, 0.25)]);
    let while_it_trained = [("by the bank", 0.7), ("the encoder alone", 0.6)]
        .map(|(who, share)| (format!("While it trained, {who}"), vec![(0, share), (10, share)]));
    let [by_bank, encoder] = while_it_trained;
    let all =
        [own.clone(), birds.clone(), unnamed.clone(), by_bank.clone(), encoder.clone(), monitored.clone()];
    assert_eq!(shown(&found.datasets), all);
    let chances = found.datasets[3..].iter().map(|trend| trend.chance).collect::<Vec<_>>();
    assert_eq!(chances, [Some(0.2), Some(0.2), Some(0.1)]);

    let reports = KnnReports { first: newest, other_features: Vec::new() };
    let input = PageInput { history: &found, ..plain(&reports, (&bank, &queries), &neighbours) };
    let html = page(&input, &PageImages::default()).expect("a page");
    for name in ["own, val", "birds&lt;, val", "dataset 0123456789ab, val", "cars_test"] {
        assert!(html.contains(&format!("<h3>{name}</h3>")), "{name}");
    }
    assert!(html.contains(
        "<tr><th scope=\"row\">20</th><td>30.0 %</td><td>40.0 %</td><td>–</td><td>–</td>\
         <td>–</td><td>–</td></tr>"
    ));
    // The page of another dataset has that dataset first, with its own checkpoints.
    let other = history(&run, &of(60, 0.55, "projection"), "birds<", Some("on-aa")).expect("read");
    assert_eq!(other.points.iter().map(|point| point.step).collect::<Vec<_>>(), [20, 40, 60]);
    let grown = ("birds<, val".to_owned(), vec![(20, 0.4), (40, 0.5), (60, 0.55)]);
    let trained = ("own, val".to_owned(), vec![(20, 0.3)]);
    assert_eq!(shown(&other.datasets), [grown, trained, unnamed, by_bank, encoder, monitored]);
    // A single dataset needs no chart besides its own.
    let alone = History { datasets: found.datasets[..1].to_vec(), ..History::default() };
    let html = page(&PageInput { history: &alone, ..input }, &PageImages::default()).expect("a page");
    assert!(!html.contains("<h2 id=\"h-datasets\">"));
}

#[test]
fn the_page_of_a_run_says_how_its_bank_spread_and_what_is_good() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = Location::from_path(dir.path()).expect("a location");
    let (bank, queries) = (table(27, 100, 8, 4), table(28, 20, 8, 4));
    let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
    let line = |step: u64, rank: f64, uniformity: f64| {
        format!(
            "{{\"scope\": \"epoch\", \"step\": {step}, \"bank\": {{\"effective_rank\": {rank}, \
             \"uniformity\": {uniformity}}}}}\n"
        )
    };
    let publish = |name: &str, text: String| {
        run.join(name).publish(text, crate::storage::PublishMode::Create).expect("published");
    };
    publish(
        "metrics.jsonl",
        line(8, 3.25, -0.5)
            + "{\"scope\": \"interval\", \"step\": 9}\n"
            + &line(16, 11.5, -1.75)
            + &line(24, 11.5, -0.001),
    );
    let of = |history: &History| {
        let reports = KnnReports { first: report.clone(), other_features: Vec::new() };
        let input = PageInput { history, ..plain(&reports, (&bank, &queries), &neighbours) };
        page(&input, &PageImages::default()).expect("a page")
    };
    let found = history(&run, &report, "own", None).expect("read");
    let spread = |step, effective_rank, uniformity| BankSpread { step, effective_rank, uniformity };
    assert_eq!(
        (&found.spread[..], found.dim),
        (&[spread(8, 3.25, -0.5), spread(16, 11.5, -1.75), spread(24, 11.5, -0.001)][..], None)
    );
    let html = of(&found);
    assert!(html.contains("from 1 to the length of the embedding") && !html.contains("random rows"));
    publish("config.toml", "dim = 128\n".into());
    let html = of(&history(&run, &report, "own", None).expect("read"));
    let section = html.split("<section id=\"spread\"").nth(1).expect("the section");
    for said in [
        "from 1 to 128, all of them",
        "near 1 has collapsed",
        "<p><b>11.5</b> <span class=\"note\">of 128</span></p>",
        "<p><b>0.00</b> <span class=\"note\">random rows -3.94</span></p>",
        "title=\"step 16: -1.75\"",
        "title=\"step 8: 3.2\"",
        "<i>15</i>",
        "<i>-4</i>",
    ] {
        assert!(section.contains(said), "{said}: {section}");
    }
    assert!(!of(&History::default()).contains("<section id=\"spread\""));
}

#[test]
fn without_labels_the_gallery_shows_as_many_images_as_with_them() {
    let mut queries = table(26, 100, 8, 6);
    queries.labels.fill(None);
    let bank = table(25, 900, 8, 6);
    let (_, found) = evaluate_with_neighbours(&bank, &queries, &options(21)).expect("searched");
    assert_eq!(examples(&bank, &queries, &found, 9, temperature(0.07)).len(), 60);
}

#[test]
fn scores_of_another_monitor_split_are_a_trend_of_their_own() {
    let line = |step: u64, split: &str, share: f64| {
        let split =
            if split.is_empty() { String::new() } else { format!("\"monitor_split\": \"{split}\", ") };
        format!(
            "{{\"step\": {step}, {split}\"knn1_top1\": {share}, \"knn_chance\": 0.1, \
             \"cars_test/knn1_top1\": {share}}}\n"
        )
    };
    let shown = |text: &str| -> Vec<(String, Vec<(u64, f64)>)> {
        let trends = DatasetTrend::of_metrics(text);
        trends.into_iter().map(|trend| (trend.name, trend.points)).collect()
    };
    let name = "While it trained, by the bank";
    let other = ("cars_test".to_owned(), vec![(0, 0.2), (10, 0.3), (20, 0.9)]);
    let all = line(0, "val", 0.2) + &line(10, "val", 0.3) + &line(20, "test", 0.9);
    let (val, test) = (format!("{name}, val"), format!("{name}, test"));
    assert_eq!(
        shown(&all),
        [(test, vec![(20, 0.9)]), (val, vec![(0, 0.2), (10, 0.3)]), other.clone()],
        "no line from one split to the other"
    );
    // A single split needs no name, and older lines have none.
    let one = line(0, "", 0.2) + &line(10, "", 0.3) + &line(20, "", 0.9);
    assert_eq!(shown(&one), [(name.to_owned(), other.1.clone()), other]);
}
