//! What the build without libtorch can do: everything from pictures to votes, given feature tables.
//!
//! These tests run in either build and use only the commands that both have.

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array};
use arrow::datatypes::{DataType, Field};
use instdisc::feature_table::{FeatureTable, Kind, TableMeta};
use instdisc::ids::{ClassId, InstanceId};
use instdisc::storage::Location;

use super::support::{copy, dataset, instdisc, pictures, scratch};

/// A table of unit vectors on a circle, two classes on opposite sides.
fn table(kind: Kind, rows: usize, dataset_digest: &str) -> FeatureTable {
    let angle = |row: usize| (row % 2) as f32 * std::f32::consts::PI + row as f32 * 0.001;
    FeatureTable {
        meta: TableMeta {
            kind,
            layer: "projection".into(),
            dim: 2,
            dataset_digest: dataset_digest.into(),
            split: "train".into(),
            split_digest: None,
            device: None,
            precision: None,
            step: 1,
            unit_length: true,
            classes: vec!["left".into(), "right".into()],
        },
        ids: (0..rows as u32).map(InstanceId).collect(),
        labels: (0..rows).map(|row| ClassId::from_stored((row % 2) as i64).flatten()).collect(),
        updated_step: vec![None; rows],
        features: (0..rows).flat_map(|row| [angle(row).cos(), angle(row).sin()]).collect(),
    }
}

fn write(table: &FeatureTable, path: &std::path::Path) {
    table.write(&Location::from_path(path).expect("a location")).expect("written");
}

#[test]
fn a_vote_over_two_tables_needs_no_dataset() {
    let dir = scratch();
    let (bank, queries) = (dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    write(&table(Kind::Bank, 40, "d"), &bank);
    write(&table(Kind::Embedding, 3, "d"), &queries);
    let report = dir.path().join("knn.json");
    let said =
        instdisc("knn --k 5,1").arg("--bank", &bank).arg("--queries", &queries).arg("--output", &report).ok();
    assert_eq!(
        said,
        "step 1: top-1 100.00 %, top-5 100.00 % (k = 5, τ = 0.07, bank as stored, projection, 2-d)\n"
    );
    let scores = std::fs::read(&report).expect("the report");
    let scores: serde_json::Value = serde_json::from_slice(&scores).expect("JSON");
    assert_eq!((&scores["top1"], &scores["k"], &scores["queries"]), (&1.0.into(), &5.into(), &3.into()));
    assert!(dir.path().join("knn.html").exists() && report.exists());
}

#[test]
fn tables_of_different_datasets_do_not_vote() {
    let dir = scratch();
    let (bank, queries) = (dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    write(&table(Kind::Bank, 40, "one"), &bank);
    write(&table(Kind::Embedding, 4, "another"), &queries);
    let error = instdisc("knn --k 5").arg("--bank", &bank).arg("--queries", &queries).fails(65);
    assert!(error.contains("one") && error.contains("another"), "{error}");
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
    write(&table(Kind::Embedding, 3, "d"), &queries);
    let call = instdisc("knn --k 1 --id-column key").arg("--bank", &path).arg("--queries", &queries);
    let (_, output) = call.output();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success() && report["top1"].is_null() && report["queries"] == 0, "{report}");
    let note = report["notes"][0].as_str().expect("a note");
    assert!(note.contains("the bank has no labels, so there are neighbours and no scores"), "{note}");
}

#[test]
fn a_split_that_is_ingested_later_leaves_a_bank_as_useful_as_before() {
    let dir = scratch();
    let (data, bank, queries) =
        (dir.path().join("data"), dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    let ingest = |split: &str| {
        let source = pictures().join(split);
        instdisc(&format!("ingest --split {split}")).arg("--source", source).arg("--dest", &data).ok();
        instdisc("inspect --format json").arg("", &data).json()
    };
    let table_of = |summary: &serde_json::Value, kind, split: &str| {
        let text = |value: &serde_json::Value| value.as_str().expect("a digest").to_owned();
        let mut table = table(kind, 16, &text(&summary["dataset_digest"]));
        table.meta.split = split.into();
        table.meta.split_digest = Some(text(&summary["splits"][split]["digest"]));
        table
    };
    write(&table_of(&ingest("train"), Kind::Bank, "train"), &bank);
    let now = ingest("val");
    write(&table_of(&now, Kind::Embedding, "val"), &queries);
    let output = dir.path().join("knn.json");
    let call = || instdisc("knn --k 3").arg("--bank", &bank).arg("--queries", &queries);
    call().arg("--dataset", &data).arg("--output", &output).ok();
    assert!(dir.path().join("knn.html").exists());
    // Another training split is another dataset.
    let mut other = table_of(&now, Kind::Embedding, "train");
    other.meta.dataset_digest = "another".into();
    other.meta.split_digest = Some("another".into());
    write(&other, &queries);
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
    for entry in std::fs::read_dir(data.join("val")).expect("a folder") {
        let path = entry.expect("an entry").path();
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

#[test]
fn inspect_verifies_a_dataset() {
    let summary = instdisc("inspect --verify --format json").arg("", dataset()).json();
    assert_eq!(summary["verified"], true);
}

/// In the build without libtorch; the command exists, and says what is missing.
#[cfg(not(feature = "torch"))]
#[test]
fn knn_of_a_run_says_that_it_needs_libtorch() {
    let call = instdisc("knn --run somewhere").arg("--dataset", dataset());
    assert!(call.fails(2).contains("libtorch"));
}
