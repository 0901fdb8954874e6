use super::*;
use crate::storage::{Location, PublishMode};

fn table(rows: usize) -> FeatureTable {
    FeatureTable {
        meta: TableMeta {
            kind: Kind::Bank,
            layer: "projection".into(),
            dim: 2,
            dataset_digest: "d".into(),
            split: "train".into(),
            step: 9,
            unit_length: true,
            classes: vec!["a \"quoted\" class".into(), "b".into()],
        },
        ids: (0..rows as u32).map(InstanceId).collect(),
        labels: (0..rows).map(|row| (row % 3 > 0).then_some(ClassId((row % 2) as u16))).collect(),
        updated_step: (0..rows).map(|row| (row % 2 == 0).then_some(row as u64 % 9)).collect(),
        features: (0..rows).flat_map(|row| [(row as f32).cos(), (row as f32).sin()]).collect(),
    }
}

fn location() -> (tempfile::TempDir, Location) {
    let dir = tempfile::tempdir().expect("a folder");
    let location = Location::from_path(&dir.path().join("table.arrow")).expect("a location");
    (dir, location)
}

fn read_error(table: &FeatureTable) -> TableError {
    let (_dir, location) = location();
    table.write(&location).expect("written");
    FeatureTable::read(&location).expect_err("wrong")
}

#[test]
fn a_table_survives_the_file_bit_for_bit() {
    let (_dir, location) = location();
    for rows in [0, 1, 70_000] {
        let written = table(rows);
        written.write(&location).expect("written");
        assert_eq!(FeatureTable::read(&location).expect("read"), written);
    }
}

#[test]
fn equal_tables_give_equal_bytes() {
    let (_dir, location) = location();
    let first = table(100).write(&location).expect("written");
    assert_eq!(table(100).write(&location).expect("written"), first);
}

#[test]
fn a_truncated_file_is_no_table() {
    let (_dir, location) = location();
    table(1000).write(&location).expect("written");
    let bytes = location.read().expect("bytes");
    for cut in [0, 7, bytes.len() / 2, bytes.len() - 1] {
        location.publish(bytes.slice(..cut), PublishMode::Overwrite).expect("cut");
        assert!(matches!(FeatureTable::read(&location), Err(TableError::Malformed { .. })), "{cut}");
    }
}

#[test]
fn a_row_that_is_not_finite_is_named() {
    let mut wrong = table(10);
    wrong.features[7] = f32::NAN;
    assert!(matches!(read_error(&wrong), TableError::NotFinite { row: 3, .. }));
}

#[test]
fn a_row_that_is_not_of_unit_length_is_named() {
    let mut wrong = table(10);
    wrong.features[8] = 3.0;
    assert!(matches!(read_error(&wrong), TableError::NotUnit { row: 4, .. }));
    wrong.meta.unit_length = false;
    let (_dir, location) = location();
    wrong.write(&location).expect("written");
    assert!(FeatureTable::read(&location).is_ok());
}

#[test]
fn duplicate_and_misplaced_ids_are_named() {
    let mut wrong = table(10);
    wrong.ids.swap(4, 5);
    assert!(matches!(read_error(&wrong), TableError::Id { row: 5, .. }));
    wrong.meta.kind = Kind::Embedding;
    wrong.ids[9] = InstanceId(0);
    assert!(matches!(read_error(&wrong), TableError::Id { row: 9, id: 0, .. }));
}

#[test]
fn another_arrow_file_is_no_table() {
    let mut wrong = table(3);
    wrong.meta.dim = 2;
    let (_dir, location) = location();
    wrong.write(&location).expect("written");
    let bytes = location.read().expect("bytes").to_vec();
    let marker = b"instdisc.format_version";
    let other = b"someones.format_version";
    let mut changed = bytes.clone();
    for at in 0..bytes.len() - marker.len() {
        if bytes[at..].starts_with(marker) {
            changed[at..at + other.len()].copy_from_slice(other);
        }
    }
    location.publish(changed, PublishMode::Overwrite).expect("changed");
    assert!(matches!(FeatureTable::read(&location), Err(TableError::NotATable { .. })));
}

#[test]
fn the_summary_tells_the_age_of_the_rows() {
    let summary = table(4).summary();
    // Rows 0 and 2 were written by steps 0 and 2; nine steps are done.
    assert_eq!((summary.never_updated, summary.mean_age_steps), (Some(2), Some(7.0)));
}

/// With INSTDISC_UPDATE_SCHEMAS=1 in the environment, the file is written instead.
#[test]
fn the_schema_file_is_that_of_the_code() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/feature_table.txt");
    if std::env::var_os("INSTDISC_UPDATE_SCHEMAS").is_some() {
        std::fs::write(file, schema_text()).expect("written");
    }
    assert_eq!(std::fs::read_to_string(file).expect("the schema file"), schema_text());
}
