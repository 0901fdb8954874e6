//! The report page in a browser, and what it shows.

use std::path::Path;

use serde_json::{Value, json};

use super::support::{
    dataset, images, ingest, instdisc, python_or_skip, read_parquet, scratch, train, trained,
};

/// The page of a run with three checkpoints, two features and a monitored dataset, opened in headless Chromium.
#[test]
fn a_page_works_in_a_browser() {
    let test = "a_page_works_in_a_browser";
    let dir = scratch();
    let run = dir.path().join("run");
    train(dataset(), &run, "--epochs 2 --monitor-every 1 --keep 0").arg("--monitor", dataset()).ok();
    let call = instdisc("knn --watch --split val --feature bank,pooled --k 20,1,5 --temperature 0.07,0.5");
    assert_eq!(call.of_run(&run).json(), json!({ "evaluated": [0, 8, 16], "end": "finished" }));
    let page = run.join("eval/knn-val-bank_pooled-k1_5_20-tau0.07_0.5-step-00000016.html");
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.matches("<tr><th scope=\"row\">").count() > 6, "checkpoints and cells");
    let Some(output) = python_or_skip(test, "tests/python/check_page.py", &[&page], "a browser") else {
        return;
    };
    let seen: Value = serde_json::from_str(&output).expect("JSON");
    for view in ["light", "dark", "phone"] {
        let seen = &seen[view];
        assert_eq!(seen["classes"], 10, "{view}");
        // Each query has 20 neighbours; the map has its images in one.
        let articles = seen["articles"].as_u64().expect("a number");
        assert!(articles >= 30 && seen["images"].as_u64() == Some(21 * articles + 1), "{view}: {seen}");
        let sections: Vec<&str> =
            seen["sections"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let expected = [
            "Over training",
            "Datasets",
            "Neighbours and temperature",
            "Recall and precision",
            "Classes",
            "Map",
            "Queries and neighbours",
            "Spread of the bank",
            "Age of the bank",
        ];
        assert_eq!(sections, expected, "{view}");
    }
}

/// Without labels there are neighbours and a map, and no scores.
#[test]
fn a_page_without_labels_works_in_a_browser_too() {
    let test = "a_page_without_labels_works_in_a_browser_too";
    let dir = scratch();
    let (data, run) = (dir.path().join("data"), dir.path().join("run"));
    ingest("--unlabelled", images(), &data).ok();
    train(&data, &run, "--epochs 1").ok();
    let report = instdisc("knn").arg("--run", &run).arg("--dataset", &data).json();
    assert!(report["top1"].is_null() && report["queries"] == 0, "{report}");
    let page = run.join("eval/knn-val-step-00000008.html");
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.contains("<h1>The neighbours of ") && !html.contains("get their class right"));
    // That labels are missing is no fault; that a run of eight steps has collapsed is one.
    let note = |class: &str, text: &str| html.contains(&format!("<p class=\"{class}\" role=\"note\">{text}"));
    assert!(note("about", "neither bank nor queries have labels") && !note("warning", "neither"));
    assert!(note("warning", "the features are nearly all alike"));
    let named: Vec<(&str, &str)> =
        html.split("<figure class=\"query\" title=\"image ").skip(1).filter_map(named).collect();
    assert!(!named.is_empty() && named.len() == html.matches("<figure class=\"query\"").count(), "{named:?}");
    for (path, shown) in named {
        assert!(
            images().join("val").join(path).is_file() && path.ends_with(shown) && shown.contains('/'),
            "{path} as {shown}"
        );
    }
    let Some(output) = python_or_skip(test, "tests/python/check_page.py", &[&page], "a browser") else {
        return;
    };
    let seen: Value = serde_json::from_str(&output).expect("JSON");
    for view in ["light", "dark", "phone"] {
        let seen = &seen[view];
        assert_eq!(seen["classes"], 0, "{view}");
        assert!(seen["articles"].as_u64() > Some(0) && seen["mapped"].as_u64() > Some(100), "{view}: {seen}");
    }
}

/// The path of a query's image, and the name by which the page shows it, from the HTML after `image `.
fn named(html: &str) -> Option<(&str, &str)> {
    let (title, rest) = html.split_once("\">")?;
    let shown = rest.split_once("<b>")?.1.split_once("</b>")?.0;
    Some((title.split_once(' ')?.1, shown))
}

#[test]
fn several_features_are_evaluated_in_one_pass() {
    let dir = scratch();
    let run = trained(&dir, "--epochs 1 --no-monitor");
    let call = instdisc("knn --split val --feature bank,projection,pooled --k 5,1 --map-points 0");
    let report = call.of_run(&run).json();
    let features: Vec<&str> = std::iter::once(&report)
        .chain(report["other_features"].as_array().into_iter().flatten())
        .filter_map(|report| report["feature"].as_str())
        .collect();
    let expected =
        ["bank as stored, projection, 16-d", "re-encoded, projection, 16-d", "re-encoded, pooled, 64-d"];
    assert_eq!(features, expected);
    assert!(report["other_features"][1]["grid"].as_array().is_some_and(|grid| grid.len() == 2));
    let other_way = |feature: &str| {
        let call = instdisc(&format!("knn --split train --train-split val --feature {feature} --k 5"));
        call.of_run(&run)
    };
    let report = other_way("projection").json();
    assert_eq!((&report["split"], &report["queries"]), (&"train".into(), &120.into()));
    assert!(run.join("eval/knn-train-from-val-projection-k5-step-00000008.json").is_file());
    assert!(other_way("bank").fails(2).contains("--feature projection"));
}

#[test]
fn a_report_of_a_run_is_kept_under_what_it_is_of_and_gets_a_lost_page_again() {
    let dir = scratch();
    let run = trained(&dir, "--epochs 1 --no-monitor");
    let knn = |words: &str| instdisc(&format!("knn --print lines {words}")).of_run(&run).run();
    let file = |name: &str| run.join("eval").join(name);
    let read = |name: &str| std::fs::read_to_string(file(name)).expect(name);
    let (made, _) = knn("");
    let page = read("knn-val-step-00000008.html");

    let (kept, err) = knn("");
    assert!(err.contains("knn-val-step-00000008.json: made before"), "{err}");
    assert!(err.contains(&format!("page {}", file("knn-val-step-00000008.html").display())), "{err}");
    let measures = made.split("; recall@1").nth(1).expect("measures").trim_end();
    assert!(measures.contains("mAP@") && kept.contains(&format!("recall@1{measures}")), "{kept} of {made}");

    // The points of the map are the page's content.
    let (_, err) = knn("--map-points 5");
    assert!(!err.contains("made before"), "{err}");
    assert!(read("knn-val-map5-step-00000008.html").len() < page.len());
    assert_eq!(read("knn-val-step-00000008.html"), page);
    assert!(knn("--map-points 5").1.contains("knn-val-map5-step-00000008.json: made before"));

    let html = file("knn-val-step-00000008.html");
    for lose in [|page: &Path| std::fs::remove_file(page), |page: &Path| std::fs::write(page, "")] {
        lose(&html).expect("lost");
        let (again, err) = knn("");
        assert!(err.contains("nothing to embed") && !err.contains("made before"), "{err}");
        assert_eq!((&again, read("knn-val-step-00000008.html").len()), (&made, page.len()));
    }

    // A file of neighbours beside it changes nothing: it has those that vote, the page some more.
    knn("--k 3");
    let page = read("knn-val-k3-step-00000008.html");
    let (_, err) = knn(&format!("--k 3 --neighbours {}", dir.path().join("n.parquet").display()));
    assert!(!err.contains("made before"), "{err}");
    assert_eq!(
        read("knn-val-k3-step-00000008.html").matches("<figure").count(),
        page.matches("<figure").count()
    );
    let batch = read_parquet(&dir.path().join("n.parquet"));
    let lists = batch.column_by_name("neighbour_ids").expect("a column");
    let first = arrow::array::AsArray::as_list::<i32>(lists).value(0);
    assert_eq!(arrow::array::Array::len(&first), 3);
}
