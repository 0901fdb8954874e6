//! Our files over time and in other programs: what an earlier version wrote (tests/compat) opens, and its run
//! goes on; other programs read our files, exports among them; and a checkpoint of lemniscate.pytorch is read
//! by ours.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;
use instdisc::augment::Recipe;
use instdisc::dataset::Manifest;
use instdisc::ids::BankRow;
use instdisc::loader::{Loader, LoaderOptions, MemorySource, ReadContext, Source, open_split};
use serde_json::{Value, json};

use super::support::{
    copy, dataset, ingest, instdisc, knn, location, python, read_json, read_parquet, root, scratch,
};

/// Training and validation images of the dataset.
const IMAGES: (usize, usize) = (30, 10);
/// The step of the run's newest checkpoint: one of three in the second epoch.
const STEP: u32 = 4;

fn earlier(name: &str) -> PathBuf {
    root().join("tests/compat").join(name)
}

/// Unpacks the run into a folder; its path and that of its checkpoint.
fn unpack_run(folder: &Path) -> (PathBuf, PathBuf) {
    let packed = File::open(earlier("run.tar.gz")).expect("the run");
    tar::Archive::new(GzDecoder::new(packed)).unpack(folder).expect("unpacked");
    let run = folder.join("run");
    let newest = run.join(format!("checkpoints/step-{STEP:08}"));
    (run, newest)
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
    ingest("--append", &images, &dataset).ok();
    assert_eq!(inspect(&dataset)["splits"]["train"]["instances"], IMAGES.0 + 20);

    let dataset = location(&dataset);
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
    let call = knn("--k 5,1 --temperature 0.07,1", &checkpoint, &earlier("val.arrow"));
    let voted = call.arg("--neighbours", &neighbours).json();
    let columns = |file: &Path| read_parquet(file).columns().to_vec();
    assert_eq!(columns(&neighbours), columns(&earlier("neighbours.parquet")));

    let report = earlier("knn.json");
    let (voted, expected) = (scores(&voted), scores(&read_json(&report)));
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
    use crate::support::{checkpoint, metrics, read_table};

    /// Processors differ in the last bits, two images by more than 0.1.
    const TOLERANCE: f32 = 1e-4;

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
        assert_same(&read_table(&output), &read_table(&earlier("val.arrow")));
    }

    #[test]
    fn an_earlier_run_ends_as_the_earlier_program_would_have_ended_it_and_goes_on_from_there() {
        let dir = scratch();
        let (run, newest) = unpack_run(dir.path());
        let is_begun = |line: &Value| line["step"].as_u64() <= Some(STEP.into());
        let begun: Vec<_> = metrics(&run).into_iter().filter(is_begun).collect();
        let bank_after = |step: u32| {
            let epochs = step / 3;
            // The file of the run's first weights is gone.
            let report = instdisc(&format!("train --epochs {epochs} --init="))
                .arg("--config", run.join("config.toml"))
                .arg("--dataset", earlier("dataset"))
                .arg("--run", &run)
                .json();
            assert_eq!(report["step"], step);
            read_table(&checkpoint(&run, step).join("bank.arrow"))
        };
        assert_eq!(inspect(&newest)["step"], STEP);

        assert_same(&bank_after(6), &read_table(&earlier("finished.arrow")));
        // The third epoch writes each row once, ten a step.
        let mut steps = bank_after(9).updated_step;
        steps.sort_unstable();
        assert_eq!(steps, [6, 7, 8].map(|step| [Some(step); 10]).concat());
        let all = metrics(&run);
        assert_eq!(all[..begun.len()], begun, "lines of the steps before stay");
        let intervals = all.iter().filter(|line| line["scope"] == "interval");
        let steps: Vec<_> = intervals.filter_map(|line| line["step"].as_u64()).collect();
        assert_eq!(steps, Vec::from_iter(1..=9));
    }
}

#[test]
fn pyarrow_datasets_and_duckdb_read_a_shard() {
    let test = "pyarrow_datasets_and_duckdb_read_a_shard";
    let Some(output) = python(test, "tests/python/check_dataset.py", &[dataset()]) else { return };
    assert_eq!(output.trim(), "read 120 rows and 10 classes");
}

#[cfg(feature = "torch")]
mod other_programs {
    use super::*;
    use crate::support::{checkpoint, embed, images, python_fails};

    #[test]
    fn exports_open_in_torchvision_duckdb_and_the_projector() {
        let dir = scratch();
        let run = dir.path().join("run");
        // A network that torchvision has.
        instdisc(
            "train --arch resnet18 --image-size 32 --dim 24 --batch-size 32 --negatives 32 --device cpu \
             --epochs 1 --limit 64 --no-monitor",
        )
        .of_run(&run)
        .ok();
        let checkpoint = checkpoint(&run, 2);
        let bank = checkpoint.join("bank.arrow");
        let file = |name: &str| dir.path().join(name);
        let weights = |more: &str, name: &str| {
            let call = instdisc(&format!("export torchvision {more}"));
            call.arg("--checkpoint", &checkpoint).arg("--output", file(name)).json()
        };
        let whole = weights("", "whole.safetensors")["tensors"].as_u64().expect("a number");
        assert_eq!(weights("--without-projection", "backbone.safetensors")["tensors"], whole - 2);
        // For the scores of the card.
        instdisc("knn --split val --k 5").of_run(&run).ok();
        for form in ["timm", "huggingface"] {
            let call = instdisc(&format!("export {form}"));
            let exported = call.arg("--run", &run).arg("--output", file(form)).json();
            assert_eq!(exported["tensors"], whole, "{form}");
            let again = instdisc(&format!("export {form}")).arg("--checkpoint", &run);
            assert!(again.arg("--output", file(form)).fails(2).contains("a folder that is new or empty"));
        }
        instdisc(
            "train --arch resnet20-cifar --recipe cifar --image-size 32 --dim 24 --batch-size 32 \
             --device cpu --epochs 1 --no-monitor",
        )
        .of_run(&file("cifar"))
        .ok();
        let small = instdisc("export timm").arg("--checkpoint", file("cifar"));
        assert!(small.arg("--output", file("small")).fails(65).contains("`export torchvision`"));
        let pickle = instdisc("export torchvision").arg("--checkpoint", &checkpoint);
        let error = pickle.arg("--output", file("whole.pth")).fails(2);
        assert!(error.contains("safetensors, not a pickle") && !file("whole.pth").exists(), "{error}");
        std::fs::write(file("weights.pth"), b"PK\x03\x04").expect("a file");
        let begun = instdisc("train --arch resnet18 --image-size 32 --device cpu --epochs 1 --no-monitor");
        let error = begun.of_run(&file("begun")).arg("--init", file("weights.pth")).fails(65);
        assert!(error.contains("weights.pth") && error.contains("a PyTorch pickle"), "{error}");
        let table = |words: &str, table: &Path, output: &Path| {
            instdisc(&format!("export {words}")).arg("--table", table).arg("--output", output)
        };
        assert_eq!(table("parquet", &bank, &file("table.parquet")).json()["rows"], 64);
        let inside = checkpoint.join("more.parquet");
        let error = table("parquet", &bank, &inside).fails(2);
        assert!(error.contains("is a checkpoint") && !inside.exists());
        // A run stands for its newest checkpoint, and that for its bank.
        for place in [&run, &checkpoint] {
            assert_eq!(table("parquet", place, &file("again.parquet")).json()["rows"], 64);
            assert_eq!(std::fs::read(file("again.parquet")).ok(), std::fs::read(file("table.parquet")).ok());
        }
        let projector = |place: &Path, name: &str| table("projector --limit 50", place, &file(name));
        assert_eq!(projector(&run, "of_run").json()["rows"], 50);
        let of_bank = projector(&bank, "projector").arg("--dataset", dataset());
        assert_eq!(of_bank.json()["rows"], 50);
        let said = projector(&run, "of_run").said();
        assert!(said.contains("of_run holds `metadata.tsv`") && said.contains("replaced"), "{said}");
        embed("val", &file("cifar"), &file("val.arrow")).ok();
        let test = "exports_open_in_torchvision_duckdb_and_the_projector";
        let arguments = [dir.path(), Path::new("resnet18"), Path::new("24"), dataset()];
        let Some(output) = python(test, "tests/python/check_export.py", &arguments) else { return };
        assert_eq!(output.trim(), "checked 64 rows, 50 points");
    }

    #[test]
    fn a_checkpoint_of_lemniscate_keeps_its_rows_and_its_network() {
        let test = "a_checkpoint_of_lemniscate_keeps_its_rows_and_its_network";
        let converter = "jobs/tools/lemniscate_to_checkpoint.py";
        let dir = scratch();
        let [file, weights] = ["lemniscate.pth.tar", "weights.safetensors"].map(|name| dir.path().join(name));
        let train = images().join("train");
        let made = [train.as_path(), &file, &weights];
        let Some(_) = python(test, "tests/python/make_lemniscate.py", &made) else { return };
        let run = dir.path().join("run");
        let checkpoint = checkpoint(&run, 1000);
        let flags = ["--arch", "resnet18", "--image-size", "32", "--output"].map(Path::new);
        let mut arguments = vec![file.as_path(), Path::new("--dataset"), dataset()];
        arguments.extend(flags);
        arguments.push(&checkpoint);

        // Rows of other images.
        let mut wrong = arguments.clone();
        wrong.extend(["--split", "val"].map(Path::new));
        let error = python_fails(test, converter, &wrong, 1).expect("there is a Python");
        assert!(error.contains("120 rows") && error.contains("40 images"), "{error}");
        assert!(!run.exists());

        python(test, converter, &arguments).expect("there is a Python");
        let error = python_fails(test, converter, &arguments, 2).expect("there is a Python");
        assert!(error.contains("is a checkpoint already"), "{error}");
        let read = |path: &Path| std::fs::read(path).expect("readable");
        assert!(read(&checkpoint.join("model.safetensors")) == read(&weights));
        let bank = checkpoint.join("bank.arrow");
        assert_eq!(knn("--leave-one-out --k 5", &bank, &bank).json()["top1"], 1.0);
        let inspected = instdisc("inspect --print lines").arg("", &checkpoint).ok();
        assert!(inspected.contains("bank.never_updated                 120"), "{inspected}");
        let evaluated = instdisc("knn --k 5 --split val").of_run(&run).json();
        assert_eq!((evaluated["queries"].as_u64(), evaluated["step"].as_u64()), (Some(40), Some(1000)));
    }
}
