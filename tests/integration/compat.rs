//! Files that an earlier version wrote (tests/compat): they open, and its run goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::ArrayRef;
use flate2::read::GzDecoder;
use instdisc::augment::Recipe;
use instdisc::dataset::Manifest;
use instdisc::ids::BankRow;
use instdisc::loader::{Loader, LoaderOptions, MemorySource, ReadContext, Source, open_split};
use instdisc::storage::Location;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use super::support::{copy, instdisc, root, scratch};

/// Training and validation images of the dataset.
const IMAGES: (usize, usize) = (30, 10);
/// The step of the run's newest checkpoint: one of three in the second epoch.
const STEP: u64 = 4;

fn earlier(name: &str) -> PathBuf {
    root().join("tests/compat").join(name)
}

/// Unpacks the run into a folder; its path and that of its checkpoint.
fn unpack_run(folder: &Path) -> (PathBuf, PathBuf) {
    let packed = File::open(earlier("run.tar.gz")).expect("the run");
    tar::Archive::new(GzDecoder::new(packed)).unpack(folder).expect("unpacked");
    let run = folder.join("run");
    let checkpoint = run.join(format!("checkpoints/step-{STEP:08}"));
    (run, checkpoint)
}

fn inspect(location: impl AsRef<Path>) -> Value {
    instdisc("inspect --verify").arg("", location).json()
}

/// A report without what depends on the machine or was defined anew: times, notes, intervals.
fn scores(report: &Value) -> Value {
    let mut scores = report.clone();
    let without = |object: &mut Value| {
        object.as_object_mut().expect("an object").retain(|key, _| !key.ends_with("_interval"));
    };
    without(&mut scores);
    scores["grid"].as_array_mut().expect("a list").iter_mut().for_each(without);
    for key in ["timing", "notes"] {
        scores.as_object_mut().expect("an object").shift_remove(key);
    }
    scores
}

/// The columns of a Parquet file.
fn columns(file: &Path) -> Vec<ArrayRef> {
    let file = File::open(file).expect("a file");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|reader| reader.build());
    let batches = reader.expect("Parquet").map(|batch| batch.expect("rows"));
    batches.flat_map(|batch| batch.columns().to_vec()).collect()
}

#[test]
fn an_earlier_dataset_is_whole() {
    let summary = inspect(earlier("dataset"));
    let instances = |split: &str| summary["splits"][split]["instances"].clone();
    assert_eq!((instances("train"), instances("val")), (json!(IMAGES.0), json!(IMAGES.1)));
    assert_eq!((&summary["classes"], &summary["verified"]), (&json!(10), &json!(true)));
}

/// A split has shards without the column of entry points, and newer ones with it.
#[test]
fn a_loader_reads_shards_with_and_without_entry_points() {
    let dir = scratch();
    let (dataset, images) = (dir.path().join("dataset"), dir.path().join("images"));
    copy(&earlier("dataset"), &dataset);
    instdisc("synth --train-per-class 2 --val-per-class 1 --image-size 160").arg("--dest", &images).ok();
    instdisc("ingest --append").arg("--source", &images).arg("--dest", &dataset).ok();
    assert_eq!(inspect(&dataset)["splits"]["train"]["instances"], IMAGES.0 + 20);

    let dataset = Location::from_path(&dataset).expect("a location");
    let manifest = Manifest::read(&dataset).expect("a manifest");
    let source = open_split(&dataset, &manifest, "train", None).expect("a split");
    let rows: Vec<BankRow> = (0..source.len() as u32).map(BankRow).collect();
    let fetched = source.fetch_rows(&rows, &ReadContext::default()).into_iter();
    let has_points = fetched.map(|image| image.expect("read").entry_points.is_some());
    assert_eq!(has_points.collect::<Vec<_>>(), [[false; 30].as_slice(), &[true; 20]].concat());

    let mut without = source.read(&rows).expect("rows");
    without.iter_mut().for_each(|row| row.entry_points = None);
    let batches = |source: Arc<dyn Source>| {
        let options = LoaderOptions { batch_size: 16, ..LoaderOptions::default() };
        let loader = Loader::start(source, Recipe::imagenet(32), options).expect("started");
        loader.map(|batch| batch.expect("a batch")).collect::<Vec<_>>()
    };
    assert_eq!(batches(source), batches(Arc::new(MemorySource::new(without))));
}

#[test]
fn an_earlier_checkpoint_votes_as_its_report_says() {
    let dir = scratch();
    let (_, checkpoint) = unpack_run(dir.path());
    let neighbours = dir.path().join("neighbours.parquet");
    let voted = instdisc("knn --k 5,1 --temperature 0.07,1")
        .arg("--bank", &checkpoint)
        .arg("--queries", earlier("val.arrow"))
        .arg("--neighbours", &neighbours)
        .json();
    assert_eq!(columns(&neighbours), columns(&earlier("neighbours.parquet")));

    let report = earlier("knn.json");
    let expected: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let (voted, expected) = (scores(&voted), scores(&expected));
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&voted[key], value, "{key}");
    }
    let shown = inspect(&report);
    assert_eq!(shown["kind"], "knn_report");
    for key in ["top1", "top5", "queries", "bank_rows", "step"] {
        assert_eq!(shown[key], expected[key], "{key}");
    }
}

#[cfg(feature = "torch")]
mod trained {
    use instdisc::feature_table::FeatureTable;

    use super::*;

    /// Processors differ in the last bits, two images by more than 0.1.
    const TOLERANCE: f32 = 1e-4;

    fn read(table: &Path) -> FeatureTable {
        FeatureTable::read(&Location::from_path(table).expect("a location")).expect("a table")
    }

    /// Asserts that two tables have the same rows and, but for rounding, the same features.
    fn assert_same(actual: &FeatureTable, expected: &FeatureTable) {
        assert_eq!((&actual.ids, &actual.labels), (&expected.ids, &expected.labels));
        assert_eq!(actual.updated_step, expected.updated_step);
        assert_eq!(actual.features.len(), expected.features.len());
        let pairs = actual.features.iter().zip(&expected.features);
        let difference = pairs.map(|(actual, expected)| (actual - expected).abs()).fold(0.0, f32::max);
        assert!(difference < TOLERANCE, "{difference}");
    }

    #[test]
    fn an_earlier_encoder_gives_its_features_again() {
        let dir = scratch();
        let (_, checkpoint) = unpack_run(dir.path());
        let output = dir.path().join("val.arrow");
        instdisc("embed --split val --device cpu")
            .arg("--checkpoint", &checkpoint)
            .arg("--dataset", earlier("dataset"))
            .arg("--output", &output)
            .ok();
        assert_same(&read(&output), &read(&earlier("val.arrow")));
    }

    #[test]
    fn an_earlier_run_ends_as_the_earlier_program_would_have_ended_it_and_goes_on_from_there() {
        let dir = scratch();
        let (run, checkpoint) = unpack_run(dir.path());
        let lines = || {
            let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            lines.collect::<Vec<_>>()
        };
        let begun: Vec<_> = lines().into_iter().filter(|line| line["step"].as_u64() <= Some(STEP)).collect();
        let bank_after = |step: u64| {
            let epochs = step / 3;
            // The file of the run's first weights is gone.
            let report = instdisc(&format!("train --epochs {epochs} --init="))
                .arg("--config", run.join("config.toml"))
                .arg("--dataset", earlier("dataset"))
                .arg("--run", &run)
                .json();
            assert_eq!(report["step"], step);
            read(&run.join(format!("checkpoints/step-{step:08}/bank.arrow")))
        };
        assert_eq!(inspect(&checkpoint)["step"], STEP);

        assert_same(&bank_after(6), &read(&earlier("finished.arrow")));
        // The third epoch writes each row once, ten a step.
        let mut steps = bank_after(9).updated_step;
        steps.sort_unstable();
        assert_eq!(steps, [6, 7, 8].map(|step| [Some(step); 10]).concat());
        let all = lines();
        assert_eq!(all[..begun.len()], begun, "lines of the steps before stay");
        let intervals = all.iter().filter(|line| line["scope"] == "interval");
        let steps: Vec<_> = intervals.filter_map(|line| line["step"].as_u64()).collect();
        assert_eq!(steps, Vec::from_iter(1..=9));
    }
}
