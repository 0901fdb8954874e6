//! A run that was trained without labels, evaluated on two other datasets with other classes: by one process
//! from folders, and by three from a store.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::distributed::Ranks;
use super::stores::bad_network;
use super::support::bucket::{Bucket, Faults};
use super::support::{Call, contents, copy, dataset, entries, ingest, instdisc, scratch};

/// A rate so low that few steps do not make all features alike.
const OPTIONS: &str = "--sync-batch-norm --epochs 1 --keep 0 --lr 0.001 --monitor-every 5steps";

/// Where the jobs find their files, and by how many processes they run.
struct Place<'a> {
    folder: &'a Path,
    bucket: Option<&'a Bucket>,
    ranks: usize,
}

impl Place<'_> {
    fn at(&self, name: &str) -> String {
        match self.bucket {
            Some(bucket) => bucket.url(name),
            None => self.folder.join(name).to_str().expect("text").to_owned(),
        }
    }

    /// The call by all processes, with places for flags.
    fn call(&self, words: &str, places: &[(&str, &str)]) -> Ranks {
        let call = |_| -> Call {
            let call =
                places.iter().fold(instdisc(words), |call, (flag, name)| call.arg(flag, self.at(name)));
            match self.bucket {
                Some(bucket) => bucket.of(call),
                None => call,
            }
        };
        Ranks::start(self.ranks, call)
    }

    fn json(&self, words: &str, places: &[(&str, &str)]) -> Value {
        self.call(words, places).json()
    }

    /// A file below the places.
    fn bytes(&self, name: &str) -> Vec<u8> {
        let Some(bucket) = self.bucket else {
            return std::fs::read(self.folder.join(name)).expect(name);
        };
        let (folder, file) = name.split_once('/').expect("a file in a folder");
        let found = bucket.contents(folder).into_iter().find(|(found, _)| found == file);
        found.unwrap_or_else(|| panic!("{name} is missing")).1
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).expect("text")
    }
}

/// Images of six classes that the usual dataset lacks, in the splits `train` and `test`.
fn kinds(folder: &Path) {
    let images = folder.join("kinds-images");
    instdisc("synth --seed 5 --train-per-class 9 --val-per-class 4 --image-size 24")
        .arg("--dest", &images)
        .ok();
    for split in ["train", "val"] {
        for (number, class) in entries(&images.join(split)).iter().enumerate() {
            if number < 6 {
                std::fs::rename(class, class.with_file_name(format!("kind {number}"))).expect("renamed");
            } else {
                std::fs::remove_dir_all(class).expect("removed");
            }
        }
    }
    std::fs::rename(images.join("val"), images.join("test")).expect("renamed");
    ingest("--row-group 16", &images, folder.join("kinds")).ok();
}

/// All that a report says of scores, without times and places.
fn scores(mut report: Value) -> Value {
    const OTHERS: [&str; 5] = ["timing", "seconds", "iterations", "run", "checkpoint"];
    let timeless = |report: &mut Value| {
        report.as_object_mut().expect("an object").retain(|name, _| !OTHERS.contains(&name.as_str()));
    };
    timeless(&mut report);
    if let Some(others) = report["other_features"].as_array_mut() {
        others.iter_mut().for_each(timeless);
    }
    report
}

/// Every evaluation of the run on the two datasets.
fn evaluations(place: &Place<'_>) -> Vec<(&'static str, Value)> {
    let of = |data: &'static str| [("--run", "run"), ("--dataset", data)];
    let knn = "knn --k 1,5 --train-split train --feature projection,pooled";
    let linear = "linear --device cpu --train-split train --feature pooled --weight-decay 1e-2";
    let mut found = vec![
        ("knn of shapes", place.json(knn, &of("shapes"))),
        ("knn of kinds", place.json(knn, &of("kinds"))),
        ("linear of shapes", place.json(linear, &of("shapes"))),
        ("linear of kinds", place.json(linear, &of("kinds"))),
    ];
    for split in ["train", "test"] {
        let table = format!("kinds-{split}.arrow");
        let words = format!("embed --device cpu --split {split}");
        let places = [("--checkpoint", "run"), ("--dataset", "kinds"), ("--output", table.as_str())];
        place.call(&words, &places).ok();
    }
    let tables = [("--bank", "kinds-train.arrow"), ("--queries", "kinds-test.arrow"), ("--dataset", "kinds")];
    place.call("knn --k 1,5", &[&tables[..], &[("--output", "reports/tables.json")]].concat()).ok();
    assert!(place.read("reports/tables.html").contains("kinds"));
    let report = serde_json::from_str(&place.read("reports/tables.json")).expect("JSON");
    found.push(("knn of tables", report));
    let finetune = "finetune --device cpu --epochs 1 --batch-size 16 --sync-batch-norm --lr 0.001";
    let places = [("--checkpoint", "run"), ("--dataset", "kinds"), ("--run", "tuned")];
    found.push(("finetune", place.json(finetune, &places)));
    found.into_iter().map(|(name, report)| (name, scores(report))).collect()
}

/// The scores of the monitors by step and name, from the record of a run.
fn monitored(record: &str) -> Vec<(u64, String, f64)> {
    let lines = record.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let of_line = |line: Value| {
        let step = line["step"].as_u64().expect("a step");
        let fields: Vec<_> = line.as_object().expect("an object").clone().into_iter().collect();
        fields
            .into_iter()
            .filter(|(name, _)| name.contains("/knn"))
            .map(move |(name, value)| (step, name, value.as_f64().expect("a number")))
    };
    lines.flat_map(of_line).collect()
}

#[test]
fn a_run_without_labels_is_evaluated_on_two_other_datasets_alike_from_folders_and_by_three_from_a_store() {
    let dir = scratch();
    let here = Place { folder: dir.path(), bucket: None, ranks: 1 };
    let images = dir.path().join("images");
    instdisc("synth --seed 9 --train-per-class 8 --val-per-class 1 --image-size 20")
        .arg("--dest", &images)
        .ok();
    ingest("--unlabelled --row-group 16", &images, dir.path().join("blind")).ok();
    kinds(dir.path());
    copy(dataset(), &dir.path().join("shapes"));
    let bucket = Bucket::start(Faults::default());
    let upload = |name: &str| {
        let put =
            |(file, bytes): &(PathBuf, Vec<u8>)| bucket.put(&format!("{name}/{}", file.display()), bytes);
        contents(&dir.path().join(name)).iter().for_each(put);
    };
    ["blind", "shapes", "kinds"].into_iter().for_each(upload);
    let there = Place { folder: dir.path(), bucket: Some(&bucket), ranks: 3 };

    let train = format!(
        "train --arch resnet20-cifar --image-size 16 --dim 16 --batch-size 16 --objective softmax --device \
         cpu {OPTIONS}"
    );
    let places =
        |run| [("--dataset", "blind"), ("--monitor", "shapes"), ("--monitor", "kinds"), ("--run", run)];
    here.call(&train, &places("run")).ok();
    there.call(&train, &places("together")).ok();
    let (alone, together) =
        (monitored(&here.read("run/metrics.jsonl")), monitored(&there.read("together/metrics.jsonl")));
    // At steps 0 and 5 of five: one and most neighbours, and guessing, of two datasets.
    assert_eq!(alone.len(), 2 * 2 * 3, "{alone:?}");
    for ((step, name, one), (of, same, three)) in alone.iter().zip(&together) {
        assert_eq!((step, name), (of, same));
        assert!((one - three).abs() < 0.051, "step {step}, {name}: {one} and {three}, one query or two");
    }

    // The same run for both, from a store over a bad network.
    upload("run");
    bucket.set_faults(Faults { refused: 0.1, ..bad_network() });
    let (own, others) = (evaluations(&here), evaluations(&there));
    for ((name, one), (_, three)) in own.iter().zip(&others) {
        assert_eq!(one, three, "{name}");
        assert!(one["top1"].is_number(), "{name}: {one}");
    }
    assert_eq!(here.bytes("tuned/labels.parquet"), there.bytes("tuned/labels.parquet"));
    let report = &own[1].1;
    let found: Value =
        ["queries", "bank_rows", "classes", "split"].map(|key| report[key].clone()).into_iter().collect();
    assert_eq!(found, json!([24, 54, 6, "test"]));
    assert_eq!(report["other_features"][0]["feature"], "re-encoded, pooled, 64-d");
    assert_eq!(own[4].1["grid"], report["grid"], "the tables of the run are those of embed");
    // Each dataset has its folder, and the page of the second one shows both and what the run measured of them.
    for place in [here, there] {
        let digest = report["dataset_digest"].as_str().expect("a digest");
        let name =
            format!("run/eval/on-{}/knn-test-from-train-projection_pooled-k1_5-step-00000005", &digest[..12]);
        let kept: Value = serde_json::from_str(&place.read(&format!("{name}.json"))).expect("JSON");
        assert_eq!(kept["dataset"], "kinds");
        let page = place.read(&format!("{name}.html"));
        for dataset in ["kinds, test", "shapes, val", "kinds_test", "shapes_val"] {
            assert!(page.contains(&format!("<h3>{dataset}</h3>")), "{dataset}");
        }
    }
}
