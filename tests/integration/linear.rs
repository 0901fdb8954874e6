//! The linear probe against scikit-learn, and `instdisc linear` on a run.

use std::path::Path;

use instdisc::feature_table::{FeatureTable, Kind};
use instdisc::ids::ClassId;
use instdisc::rng::{Purpose, Stream};
use serde_json::Value;

use super::support::{
    entries, feature_table, instdisc, python_or_skip, read_json, read_parquet, scratch, trained, write_table,
};

/// Unit vectors around ten directions, as hard to tell apart as the features of a trained encoder.
pub(super) fn table(seed: u64, rows: usize, split: &str) -> FeatureTable {
    const DIM: usize = 64;
    const CLASSES: usize = 10;
    let direction = |stream: &mut Stream| -> Vec<f64> { (0..DIM).map(|_| stream.normal()).collect() };
    let mut centres = Stream::new(99, Purpose::Test, 0, 0);
    let centres: Vec<Vec<f64>> = (0..CLASSES).map(|_| direction(&mut centres)).collect();
    let mut stream = Stream::new(seed, Purpose::Test, 1, 0);
    let labels: Vec<usize> = (0..rows).map(|_| stream.below(CLASSES as u64) as usize).collect();
    let mut features = Vec::new();
    for &label in &labels {
        let own = direction(&mut stream);
        let mixed: Vec<f64> =
            own.iter().zip(&centres[label]).map(|(own, centre)| own + 0.25 * centre).collect();
        let length = mixed.iter().map(|x| x * x).sum::<f64>().sqrt();
        features.extend(mixed.iter().map(|x| (x / length) as f32));
    }
    let labels = labels.iter().map(|&label| Some(ClassId(label as u16))).collect();
    let mut table = feature_table(Kind::Embedding, CLASSES, labels, features);
    table.meta.split = split.into();
    table
}

fn assert_like_sklearn(test: &str, own: &Value, tables: [&Path; 2], decay: &str) {
    let arguments = [tables[0], tables[1], Path::new(decay)];
    let Some(output) = python_or_skip(test, "tests/python/check_linear.py", &arguments, "scikit-learn")
    else {
        return;
    };
    let theirs: Value = serde_json::from_str(&output).expect("JSON");
    for name in ["top1", "top5"] {
        let (own, theirs) = (own[name].as_f64().expect("a score"), theirs[name].as_f64().expect("a score"));
        assert!((own - theirs).abs() <= 0.003, "{name}: {own}, scikit-learn {theirs}");
    }
}

#[test]
fn the_probe_scores_as_scikit_learn_does() {
    let test = "the_probe_scores_as_scikit_learn_does";
    let dir = scratch();
    let (train, evaluated) = (dir.path().join("train.arrow"), dir.path().join("test.arrow"));
    write_table(&table(1, 4000, "train"), &train);
    write_table(&table(2, 4000, "val"), &evaluated);
    for decay in ["1e-2", "1e-4", "1e-6"] {
        let call = instdisc(&format!("linear --device cpu --weight-decay {decay}"));
        let report = call.arg("--train", &train).arg("--test", &evaluated).json();
        assert_eq!((&report["converged"], report.get("notes")), (&Value::Bool(true), None));
        assert!(report["top1"].as_f64() > Some(0.3) && report["top1"].as_f64() < Some(0.9), "{report}");
        assert_like_sklearn(test, &report, [&train, &evaluated], decay);
    }
    // Rows that were trained on say little.
    let call = instdisc("linear --device cpu --weight-decay 1e-2");
    let report = call.arg("--train", &train).arg("--test", &train).json();
    let note = "4000 of 4000 queries of split `train` were trained on";
    assert!(report["notes"][0].as_str().is_some_and(|text| text.starts_with(note)), "{report}");
}

/// Features of a hardly trained encoder: so ill-conditioned that scikit-learn does not converge on them either, which
/// is why the scores are not compared here.
#[test]
fn the_probe_of_a_run_keeps_its_features_and_its_report() {
    let dir = scratch();
    let run = trained(&dir, "--epochs 1 --no-monitor");
    let linear = |words: &str| instdisc(&format!("linear --device cpu {words}")).of_run(&run).json();
    let probe = || linear("--split val --feature pooled,conv2 --weight-decay 1e-3");
    let report = probe();
    assert_eq!((&report["feature"], &report["train_rows"]), (&"pooled, 64-d".into(), &120.into()));
    assert_eq!(report["other_features"][0]["feature"], "conv2, 4096-d");
    let named = |folder: &str, part: &str| {
        let files = entries(&run.join(folder)).into_iter();
        files.filter(|file| file.to_string_lossy().contains(part)).collect::<Vec<_>>()
    };
    let cached =
        |split: &str| named("eval/features", &format!("/{split}-pooled-step-00000008-")).swap_remove(0);
    let changed = || ["train", "val"].map(|split| cached(split).metadata().expect("a table").modified().ok());
    let written = changed();
    assert_eq!(probe()["top1"], report["top1"]);
    assert_eq!(changed(), written);
    let reports = || named("eval", "/linear-val-pooled_conv2-").len();
    assert_eq!(reports(), 1);
    linear("--feature pooled,conv2 --weight-decay 1e-2");
    assert_eq!(reports(), 2, "other options are another report");

    let few = || {
        linear("--weight-decay 1e-3 --label-fraction 0.5");
        named("eval", "-labels.parquet").swap_remove(0)
    };
    let labels = few();
    let written = std::fs::read(&labels).expect("the labels");
    std::fs::remove_file(&labels).expect("removed");
    assert_eq!(std::fs::read(few()).expect("they are there again"), written);
}

#[test]
fn the_probe_of_a_run_on_a_sample_is_trained_on_that_sample() {
    let dir = scratch();
    let run = trained(&dir, "--epochs 1 --limit 48 --no-monitor");
    let rows = |more: &str| {
        let report = instdisc(&format!("linear --device cpu --weight-decay 1e-2 {more}")).of_run(&run).json();
        (report["train_rows"].clone(), report["train_split"].clone(), report["label_seed"].clone())
    };
    assert_eq!(rows(""), (48.into(), "train".into(), Value::Null));
    assert_eq!(rows("--limit 0").0, 120);
    assert_eq!(rows("--label-fraction 0.5 --label-seed 3"), (60.into(), "train".into(), 3.into()));
    // The splits the other way round: a sample of the run's split says nothing of another.
    let val = rows("--train-split val --split train").0;
    assert!(val != 48 && val != 120, "{val}");
}

#[test]
fn few_labels_are_a_fixed_and_balanced_subset_that_is_recorded() {
    let dir = scratch();
    let (train, evaluated) = (dir.path().join("train.arrow"), dir.path().join("test.arrow"));
    write_table(&table(3, 2000, "train"), &train);
    write_table(&table(4, 500, "val"), &evaluated);
    let probe = |fraction: &str, seed: u32, name: &str| {
        instdisc(&format!(
            "linear --device cpu --weight-decay 1e-3 --label-fraction {fraction} --label-seed {seed}"
        ))
        .arg("--train", &train)
        .arg("--test", &evaluated)
        .arg("--output", dir.path().join(name))
        .ok();
        read_json(&dir.path().join(name))
    };
    let tenth = probe("0.1", 0, "a.json");
    assert_eq!((&tenth["train_rows"], &tenth["labels"]["rows_per_class"]), (&200.into(), &20.into()));
    assert_eq!(tenth["labels"], probe("0.1", 0, "b.json")["labels"]);
    assert_ne!(tenth["labels"], probe("0.1", 1, "c.json")["labels"]);
    let all =
        instdisc("linear --device cpu --weight-decay 1e-3").arg("--train", &train).arg("--test", &evaluated);
    assert!(all.json()["top1"].as_f64() > tenth["top1"].as_f64());
    assert_eq!(read_parquet(&dir.path().join("a-labels.parquet")).num_rows(), 200);
}

#[test]
fn other_crops_in_each_epoch_train_a_probe_too() {
    let dir = scratch();
    let run = trained(&dir, "--epochs 1 --no-monitor");
    let call = instdisc(
        "linear --augment --device cpu --feature conv1,pooled --epochs 6 --batch-size 32 --lr 0.1,0.01 \
         --weight-decay 0",
    );
    let report = call.of_run(&run).json();
    assert_eq!((&report["augmented"], &report["solver"]), (&true.into(), &"sgd".into()));
    assert_eq!(report["sweep"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["iterations"], 6 * 4);
    assert!(report["top1"].as_f64() > Some(0.2), "ten classes: {report}");
    assert_eq!(report["other_features"][0]["feature"], "pooled, 64-d");
}

#[test]
fn tables_that_do_not_fit_are_named_with_their_options() {
    let dir = scratch();
    let write = |name: &str, table: &FeatureTable| {
        let file = dir.path().join(name);
        write_table(table, &file);
        file
    };
    let full = table(5, 100, "train");
    let (mut other, mut unlabelled, mut empty) = (full.clone(), full.clone(), full.clone());
    other.meta.layer = "pooled".into();
    unlabelled.labels.fill(None);
    (empty.ids, empty.labels, empty.updated_step, empty.features) = Default::default();
    let full = write("full.arrow", &full);
    let (other, unlabelled) = (write("other.arrow", &other), write("unlabelled.arrow", &unlabelled));
    let empty = write("empty.arrow", &empty);
    let error = |train: &Path, test: &Path| {
        instdisc("linear --device cpu").arg("--train", train).arg("--test", test).fails(65)
    };
    let of_layers = error(&full, &other);
    let fits_not = format!("--train {} and --test {} do not fit each other", full.display(), other.display());
    assert!(
        of_layers.contains(&fits_not) && of_layers.contains("layers projection and pooled"),
        "{of_layers}"
    );
    assert!(
        error(&unlabelled, &full).contains(&format!("--train {}: no row has a label", unlabelled.display()))
    );
    assert!(
        error(&full, &unlabelled).contains(&format!("--test {}: no row has a label", unlabelled.display()))
    );
    for (train, test) in [(&empty, &full), (&full, &empty)] {
        assert!(error(train, test).ends_with("empty.arrow: the table has no rows"));
    }
}

#[test]
fn a_layer_that_the_network_has_not_is_wrong_usage() {
    let dir = scratch();
    let run = trained(&dir, "--epochs 1 --no-monitor");
    let call = instdisc("linear --device cpu --feature conv5").of_run(&run);
    assert!(call.fails(2).contains("no layer conv5; it has conv1 to conv4, pooled and projection"));
}
