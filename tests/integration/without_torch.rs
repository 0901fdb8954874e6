//! What the build without libtorch can do: everything from images to votes, given feature tables.
//!
//! These tests run in either build and use only the commands that both have.

use std::path::Path;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array};
use arrow::datatypes::{DataType, Field};
use instdisc::feature_table::{FeatureTable, Kind};
use instdisc::ids::{ClassId, InstanceId};
use serde_json::{Value, json};

use super::support::bucket::{Bucket, Faults};
use super::support::{
    INSTDISC, contents, copy, damage, dataset, entries, feature_table, images, ingest, instdisc, knn,
    location, read_json, root, scratch, skip, write_parquet, write_table,
};

/// A table of unit vectors on a circle, two classes on opposite sides.
fn table(kind: Kind, rows: usize, dataset_digest: &str) -> FeatureTable {
    let angle = |row: usize| (row % 2) as f32 * std::f32::consts::PI + row as f32 * 0.001;
    let labels = (0..rows).map(|row| ClassId::from_stored((row % 2) as i64).flatten()).collect();
    let features = (0..rows).flat_map(|row| [angle(row).cos(), angle(row).sin()]).collect();
    let mut table = feature_table(kind, 2, labels, features);
    table.meta.dataset_digest = dataset_digest.into();
    table
}

/// The libraries that the loader finds for a program of this build.
fn libraries(program: &Path) -> String {
    let output = std::process::Command::new("ldd").arg(program).output().expect("ldd runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// rust-lld leaves out what nothing refers to; other linkers keep libtorch, and the program starts more slowly.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_program_that_starts_is_not_linked_to_libtorch() {
    let comment =
        std::process::Command::new("readelf").args(["-p", ".comment", INSTDISC]).output().expect("readelf");
    if !String::from_utf8_lossy(&comment.stdout).contains("LLD") {
        return skip(
            "the_program_that_starts_is_not_linked_to_libtorch",
            "Rust links with another linker than its own",
        );
    }
    let found = libraries(Path::new(INSTDISC));
    // An address may have the letters c10.
    let found = found.lines().filter_map(|line| line.rsplit_once(" (0x")).map(|(name, _)| name);
    let found = found.collect::<Vec<_>>().join("\n");
    assert!(found.contains("libc.so"), "{found}");
    for library in ["torch", "c10", "gomp", "cuda"] {
        assert!(!found.contains(library), "{library} is needed:\n{found}");
    }
    #[cfg(feature = "torch")]
    assert!(libraries(&Path::new(INSTDISC).with_file_name("instdisc-torch")).contains("libtorch_cpu.so"));
}

#[test]
fn half_an_installation_says_what_is_missing() {
    let dir = scratch();
    let program = dir.path().join("instdisc");
    std::fs::hard_link(INSTDISC, &program)
        .or_else(|_| std::fs::copy(INSTDISC, &program).map(drop))
        .expect("a program");
    let run = |words: &[&str]| std::process::Command::new(&program).args(words).output().expect("it runs");
    assert!(
        run(&["synth", "--dest", dir.path().join("x").to_str().expect("UTF-8"), "--train-per-class", "1"])
            .status
            .success()
    );
    let output = run(&["knn", "--run", "run", "--dataset", "data"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.starts_with("error: this command computes with libtorch, by ")
            && said.contains("instdisc-torch"),
        "{said}"
    );
}

#[test]
fn a_vote_over_two_tables_needs_no_dataset() {
    let dir = scratch();
    let (bank, queries) = (dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    write_table(&table(Kind::Bank, 40, "d"), &bank);
    write_table(&table(Kind::Embedding, 3, "d"), &queries);
    let report = dir.path().join("knn.json");
    let said = knn("--k 5,1", &bank, &queries).arg("--output", &report).ok();
    assert_eq!(
        said,
        "step 1: top-1 100.00 % of 3 queries (k = 5, τ = 0.07, bank as stored, projection, 2-d; always \
         naming the most frequent class: 66.67 %); recall@1 100.00 %, recall@5 100.00 %, mAP@5 100.00 %\n"
    );
    let scores = read_json(&report);
    assert_eq!((&scores["top1"], &scores["k"], &scores["queries"]), (&1.0.into(), &5.into(), &3.into()));
    assert!(dir.path().join("knn.html").exists());
}

/// Ids and vectors alone, as pyarrow writes them from two columns.
#[test]
fn an_arrow_file_with_ids_and_vectors_is_a_feature_table() {
    let dir = scratch();
    let path = dir.path().join("foreign.arrow");
    let values: ArrayRef = std::sync::Arc::new(Float32Array::from(vec![1.0, 0.0]));
    let field = std::sync::Arc::new(Field::new("item", DataType::Float32, true));
    let feature: ArrayRef = std::sync::Arc::new(FixedSizeListArray::new(field, 2, values, None));
    let ids: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![0]));
    let batch =
        arrow::array::RecordBatch::try_from_iter([("key", ids), ("feature", feature)]).expect("a batch");
    let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).and_then(|()| writer.finish()).expect("written");
    std::fs::write(&path, writer.into_inner().expect("bytes")).expect("written");
    let error = instdisc("inspect").arg("", &path).fails(65);
    assert!(error.contains("foreign.arrow: column `instance_id` is missing, the table has `key`"), "{error}");
    let queries = dir.path().join("queries.arrow");
    write_table(&table(Kind::Embedding, 3, "d"), &queries);
    let report = knn("--k 1 --id-column key", &path, &queries).json();
    assert!(report["top1"].is_null() && report["queries"] == 0, "{report}");
    let note = report["notes"][0].as_str().expect("a note");
    assert!(note.contains("the bank has no labels, so there are neighbours and no scores"), "{note}");
}

#[test]
fn a_split_that_is_ingested_later_leaves_a_bank_as_useful_as_before() {
    let dir = scratch();
    let (data, bank, queries) =
        (dir.path().join("data"), dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    let add = |split: &str| {
        ingest(&format!("--split {split}"), images().join(split), &data).ok();
        inspected("", &data)
    };
    let table_of = |summary: &Value, kind, split: &str| {
        let text = |value: &Value| value.as_str().expect("a digest").to_owned();
        let mut table = table(kind, 16, &text(&summary["dataset_digest"]));
        table.meta.split = split.into();
        table.meta.split_digest = Some(text(&summary["splits"][split]["digest"]));
        table
    };
    write_table(&table_of(&add("train"), Kind::Bank, "train"), &bank);
    let now = add("val");
    write_table(&table_of(&now, Kind::Embedding, "val"), &queries);
    let output = dir.path().join("knn.json");
    let call = || knn("--k 3", &bank, &queries);
    call().arg("--dataset", &data).arg("--output", &output).ok();
    assert!(dir.path().join("knn.html").exists());
    // Another training split is another dataset.
    let mut other = table_of(&now, Kind::Embedding, "train");
    other.meta.dataset_digest = "another".into();
    other.meta.split_digest = Some("another".into());
    write_table(&other, &queries);
    assert!(call().fails(65).contains("split `train`"));
}

#[test]
fn a_map_of_more_points_than_a_page_can_show_is_wrong_usage() {
    let (_, output) = instdisc("knn --map-points 200000 --bank a --queries b").output();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("200000"));
}

#[test]
fn rendering_from_a_damaged_shard_is_wrong_data() {
    let dir = scratch();
    let data = dir.path().join("data");
    copy(dataset(), &data);
    for path in entries(&data.join("val")) {
        let mut bytes = std::fs::read(&path).expect("a shard");
        let end = bytes.len() - 8000.min(bytes.len() / 2);
        bytes[8..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&path, bytes).expect("damaged");
    }
    let call = instdisc("render --split val --instance 3 --image-size 16").arg("--dataset", &data);
    let error = call.arg("--output", dir.path().join("x.png")).fails(65);
    assert!(error.contains("shard"), "{error}");
    assert!(!dir.path().join("x.png").exists());
}

fn inspected(words: &str, place: impl AsRef<Path>) -> Value {
    instdisc(&format!("inspect {words}")).arg("", place).json()
}

/// Some values of a summary, in this order.
fn values(summary: &Value, keys: &[&str]) -> Value {
    keys.iter().map(|key| summary[*key].clone()).collect()
}

#[test]
fn the_files_of_a_dataset_are_known_by_their_contents() {
    let dir = scratch();
    let data = dataset();
    let whole = inspected("", data);
    assert_eq!((&whole["classes"], whole["first_classes"].as_array().map(Vec::len)), (&10.into(), Some(10)));
    let split = &whole["splits"]["train"];
    assert_eq!(split["shards"], 1);
    let place = data.join("train/shard-00000.parquet");

    let shard = inspected("", &place);
    let found = values(&shard, &["kind", "rows", "row_groups", "labelled", "format_version", "classes"]);
    assert_eq!(found, json!(["shard", 120, 8, 120, 1, 10]));
    assert_eq!(shard["columns"], json!(["instance_id", "image", "label", "width", "height", "entry_points"]));
    assert_eq!(values(&shard["instance_ids"], &["smallest", "largest"]), json!([0, 119]));
    assert!(shard["instance_ids"]["first"].is_u64() && shard["instance_ids"]["last"].is_u64());
    assert_eq!((&shard["bytes"], &shard["first_classes"]), (&split["shard_bytes"], &whole["first_classes"]));
    assert!(shard["image_column_bytes"].as_u64() > split["image_bytes"].as_u64(), "{shard}");
    assert!(shard.get("verified").is_none() && shard.get("image_bytes").is_none(), "{shard}");

    let shard = inspected("--verify", &place);
    let found = values(&shard, &["image_bytes", "split", "dataset_digest", "verified", "verified_by"]);
    let by = "the digests of its dataset's manifest";
    assert_eq!(found, json!([split["image_bytes"], "train", whole["dataset_digest"], true, by]));
    // Under another name, away from its dataset.
    let copied = dir.path().join("something");
    std::fs::copy(&place, &copied).expect("copied");
    let found = values(&inspected("--verify", &copied), &["kind", "image_bytes", "verified_by"]);
    let by = "reading it whole; no manifest has its digest";
    assert_eq!(found, json!(["shard", split["image_bytes"], by]));

    let index = inspected("--verify", data.join("index/train.parquet"));
    let found = values(&index, &["kind", "rows", "labelled", "split", "format_version"]);
    assert_eq!(found, json!(["index", 120, 120, "train", 1]));
    assert_eq!(values(&index["instance_ids"], &["first", "last"]), json!([0, 119]));
    let duplicates = inspected("--verify", data.join("duplicates.parquet"));
    assert_eq!((&duplicates["kind"], &duplicates["columns"][0]), (&"duplicates".into(), &"group".into()));

    let manifest = data.join("manifest.json");
    assert_eq!(inspected("--verify", &manifest), inspected("--verify", data));
    let copied = dir.path().join("another.json");
    std::fs::copy(&manifest, &copied).expect("copied");
    let found = values(&inspected("", &copied), &["kind", "dataset_digest"]);
    assert_eq!(found, json!(["manifest", whole["dataset_digest"]]));
}

#[test]
fn a_damaged_shard_is_named() {
    let dir = scratch();
    let data = dir.path().join("data");
    copy(dataset(), &data);
    let shard = data.join("train/shard-00000.parquet");
    damage(&shard);
    let error = instdisc("inspect --verify").arg("", &shard).fails(65);
    assert!(error.contains("train/shard-00000.parquet"), "{error}");
    let bytes = std::fs::read(&shard).expect("a shard");
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).expect("cut");
    let error = instdisc("inspect").arg("", &shard).fails(65);
    assert!(error.contains("train/shard-00000.parquet: damaged: its footer: "), "{error}");
}

#[test]
fn a_file_in_a_store_is_what_it_is_on_this_machine() {
    let bucket = Bucket::start(Faults::default());
    for (name, bytes) in contents(dataset()) {
        bucket.put(&format!("data/{}", name.display()), &bytes);
    }
    for name in ["train/shard-00000.parquet", "index/val.parquet", "duplicates.parquet", "manifest.json"] {
        for words in ["", "--verify"] {
            let call = instdisc(&format!("inspect {words}"));
            let call = bucket.of(call.arg("", bucket.url(&format!("data/{name}"))));
            assert_eq!(call.json(), inspected(words, dataset().join(name)), "{name} {words}");
        }
    }
}

#[test]
fn what_knn_and_export_write_is_known_by_its_contents() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    write_table(&table(Kind::Bank, 40, "d"), &at("bank.arrow"));
    write_table(&table(Kind::Embedding, 3, "d"), &at("queries.arrow"));
    let call = knn("--k 5", &at("bank.arrow"), &at("queries.arrow"));
    call.arg("--neighbours", at("neighbours.parquet")).arg("--output", at("knn.json")).ok();
    let report = inspected("", at("knn.json"));
    let found = values(&report, &["kind", "k", "top1", "queries", "step", "dataset_digest", "split"]);
    assert_eq!(found, json!(["knn_report", 5, 1.0, 3, 1, "d", "train"]));
    assert!(report.get("grid").is_none(), "{report}");
    let neighbours = inspected("--verify", at("neighbours.parquet"));
    let found = values(&neighbours, &["kind", "rows", "columns"]);
    assert_eq!(found, json!(["neighbours", 3, ["query_id", "neighbour_ids", "similarities"]]));

    let call = instdisc("export parquet").arg("--table", at("queries.arrow"));
    call.arg("--output", at("queries.parquet")).ok();
    let exported = inspected("--verify", at("queries.parquet"));
    let columns = ["instance_id", "feature", "label", "class", "updated_step"];
    assert_eq!(values(&exported, &["kind", "rows", "columns"]), json!(["feature_table", 3, columns]));

    let (ids, labels) = ([7, 2, 9].map(InstanceId), [Some(ClassId(1)), None, Some(ClassId(0))]);
    let folder = location(dir.path());
    instdisc::dataset::write_label_subset(&folder, "labels.parquet", &ids, &labels).expect("written");
    let subset = inspected("--verify", at("labels.parquet"));
    assert_eq!(values(&subset, &["kind", "rows", "labelled"]), json!(["label_subset", 3, 2]));
    assert_eq!(subset["instance_ids"], json!({"first": 7, "last": 9, "smallest": 2, "largest": 9}));
}

#[test]
fn the_text_files_of_a_run_are_known_by_their_contents() {
    let dir = scratch();
    let told = |text: &str| {
        let path = dir.path().join("file");
        std::fs::write(&path, text).expect("written");
        inspected("", path)
    };
    let finished = told("{\"step\":16}\n");
    assert_eq!(finished, json!({"kind": "finished", "step": 16}));
    let config = std::fs::read_to_string(root().join("jobs/runs/demo.toml")).expect("a configuration");
    assert_eq!(values(&told(&config), &["kind", "arch", "epochs"]), json!(["config", "resnet20-cifar", 40]));
    let linear = json!({
        "top1": 0.5, "feature": "pooled, 64-d", "train_rows": 120, "solver": "lbfgs", "lr": null, "step": 8,
        "sweep": [], "other_features": [{"top1": 0.25, "feature": "conv5", "sweep": []}],
    });
    let linear = told(&linear.to_string());
    assert_eq!(values(&linear, &["kind", "solver", "top1"]), json!(["linear_report", "lbfgs", 0.5]));
    assert_eq!(linear["other_features"], json!([{"feature": "conv5", "top1": 0.25}]));
    assert!(linear.get("lr").is_none() && linear.get("sweep").is_none(), "{linear}");
    let classifier =
        json!({"top1": 0.5, "top5": 1.0, "top1_interval": [0.4, 0.6], "queries": 40, "split": "val"});
    let classifier = told(&classifier.to_string());
    assert_eq!(values(&classifier, &["kind", "split", "top5"]), json!(["classifier_report", "val", 1.0]));
    let rejects = told("{\"path\":\"a/b.jpg\",\"reason\":\"it is empty\"}\n");
    assert_eq!(values(&rejects, &["kind", "lines"]), json!(["rejects", 1]));
    assert_eq!(rejects["first"], json!({"path": "a/b.jpg", "reason": "it is empty"}));
}

#[test]
fn metrics_are_told_in_short_and_a_torn_last_line_is_no_error() {
    let dir = scratch();
    let path = dir.path().join("metrics.jsonl");
    let lines = [
        json!({"scope": "start", "time": 1.5, "step": 0, "epoch": 0, "knn_sample_top1": 0.1, "knn_chance": 0.1}),
        json!({"scope": "interval", "time": 2.5, "step": 3, "epoch": 0, "loss": 4.0}),
        json!({"scope": "epoch", "time": 3.5, "step": 8, "epoch": 0, "loss": 3.5, "knn1_top1": 0.3}),
        json!({"scope": "interval", "time": 4.5, "step": 9, "epoch": 1, "loss": 3.25}),
    ];
    let whole: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, &whole).expect("written");
    let metrics = inspected("", &path);
    let found = values(&metrics, &["kind", "lines", "torn_last_line", "step", "epochs", "time"]);
    assert_eq!(found, json!(["metrics", 4, false, 9, 1, 4.5]));
    assert_eq!(values(&metrics, &["first_loss", "last_loss", "monitor_step"]), json!([4.0, 3.25, 8]));
    assert_eq!(metrics["monitor"], json!({"knn1_top1": 0.3}));
    let shown = instdisc("inspect --print lines").arg("", &path).ok();
    assert!(
        shown.lines().any(|line| line.starts_with("monitor.knn1_top1 ") && line.ends_with(" 0.3")),
        "{shown}"
    );

    std::fs::write(&path, &whole[..whole.len() - 12]).expect("cut");
    let found = values(&inspected("--verify", &path), &["lines", "torn_last_line", "step", "last_loss"]);
    assert_eq!(found, json!([3, true, 8, 3.5]));
    // Elsewhere it is damage.
    std::fs::write(&path, whole.replacen("\"step\":3,", "\"step\":", 1)).expect("damaged");
    let error = instdisc("inspect").arg("", &path).fails(65);
    assert!(error.contains("metrics.jsonl line 2: "), "{error}");
}

#[test]
fn a_file_of_another_program_is_refused_with_what_it_begins_with() {
    let dir = scratch();
    let files = [
        ("notes.txt", "hello\n", "not a file of this program (it begins with `hello\\n`)"),
        ("empty", "", "not a file of this program (it is empty)"),
        ("half.json", "{\"top1\": 0.", "begins like JSON and is not whole"),
        ("other.json", "{\"a\": 1}", "not a file of this program"),
        ("other.toml", "[package]\nname = \"x\"\n", "not a file of this program"),
    ];
    for (name, text, expected) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        let error = instdisc("inspect").arg("", &path).fails(65);
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
    let column: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![1]));
    let batch = arrow::array::RecordBatch::try_from_iter([("price", column)]).expect("a batch");
    let path = dir.path().join("prices.parquet");
    write_parquet(&batch, &path);
    let found = inspected("--verify", &path);
    assert_eq!(
        values(&found, &["kind", "rows", "columns", "types"]),
        json!(["parquet", 1, ["price"], ["Int64"]])
    );
    std::fs::write(&path, b"PAR1 and no more").expect("written");
    assert!(instdisc("inspect").arg("", &path).fails(65).contains("prices.parquet"));
}

#[test]
fn names_of_classes_are_inspected_as_ingest_reads_them() {
    let dir = scratch();
    let path = dir.path().join("wnids.txt");
    let of = |text: &str| {
        std::fs::write(&path, text).expect("written");
    };
    of("\u{FEFF}n01440764\r\ntench, Tinca tinca\n n01443537 \n\n");
    let found = inspected("--verify", &path);
    let expected = json!(["class_list", 3, ["n01440764", "tench, Tinca tinca", "n01443537"]]);
    assert_eq!(values(&found, &["kind", "classes", "first_classes"]), expected);
    assert!(found["read_as"].as_str().is_some_and(|text| text.contains("ingest --classes")));
    // The last has one name composed and decomposed, as `ingest` refuses it.
    let refused = ["cat\n\ndog\n", "cat\ndog\ncat\n", "0 cat\n1,dog\n", "cat\n", "\u{e9}\ne\u{301}\n"];
    for refused in refused {
        of(refused);
        assert!(instdisc("inspect").arg("", &path).fails(65).contains("class lists"), "{refused}");
    }
}

/// In the build without libtorch; the command exists, and says what is missing.
#[cfg(not(feature = "torch"))]
#[test]
fn knn_of_a_run_says_that_it_needs_libtorch() {
    let call = instdisc("knn --run somewhere").arg("--dataset", dataset());
    assert!(call.fails(78).contains("libtorch"));
}
