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

/// All vectors of a table, read in ranges of at most so many rows.
fn read_in_ranges(table: &dyn Table, longest: usize) -> Result<Vec<f32>, TableError> {
    let mut features = Vec::new();
    for range in table.ranges(longest) {
        let vectors = table.start_read(range.clone()).finish()?;
        let middle = range.start + range.len() / 2;
        features.extend_from_slice(&vectors.rows(range.start..middle)?);
        features.extend_from_slice(&vectors.rows(middle..range.end)?);
    }
    Ok(features)
}

#[test]
fn a_stored_table_gives_what_a_whole_read_gives() {
    let (_dir, location) = location();
    for rows in [0, 1, 77, 70_000] {
        let written = table(rows);
        written.write(&location).expect("written");
        let stored = StoredTable::open(&location).expect("opened");
        assert_eq!(
            (stored.meta(), stored.ids(), stored.labels()),
            (&written.meta, &written.ids[..], &written.labels[..])
        );
        for longest in [1 << 20, 10_001, rows.div_ceil(3).max(1)] {
            assert_eq!(read_in_ranges(&stored, longest).expect("read"), written.features, "{rows} {longest}");
            assert_eq!(read_in_ranges(&written, longest).expect("read"), written.features);
        }
    }
}

#[test]
fn a_stored_table_that_is_cut_or_foreign_is_refused() {
    let (_dir, location) = location();
    table(1000).write(&location).expect("written");
    let bytes = location.read().expect("bytes");
    for cut in [0, 7, 20, bytes.len() / 2, bytes.len() - 1] {
        location.publish(bytes.slice(..cut), PublishMode::Overwrite).expect("cut");
        assert!(matches!(StoredTable::open(&location), Err(TableError::Malformed { .. })), "{cut}");
    }
    // The end is there, the rows before it are not.
    location.publish(bytes.slice(5000..), PublishMode::Overwrite).expect("cut");
    assert!(StoredTable::open(&location).is_err());
}

#[test]
fn a_wrong_row_of_a_stored_table_is_named_with_its_file() {
    let (_dir, location) = location();
    let mut wrong = table(70_000);
    wrong.features[2 * 66_000] = f32::NAN;
    wrong.write(&location).expect("written");
    let error =
        read_in_ranges(&StoredTable::open(&location).expect("opened"), 1000).expect_err("not a number");
    assert_eq!(error.to_string(), format!("{location} row 66000: the feature is not finite"));
    wrong.features[2 * 66_000] = 9.0;
    wrong.write(&location).expect("written");
    let error = read_in_ranges(&StoredTable::open(&location).expect("opened"), 1000).expect_err("not unit");
    assert!(matches!(error, TableError::NotUnit { row: 66_000, .. }));
    let mut wrong = table(10);
    wrong.ids.swap(4, 5);
    wrong.write(&location).expect("written");
    assert!(matches!(StoredTable::open(&location), Err(TableError::Id { row: 5, .. })));
}

#[test]
fn half_precision_vectors_are_read_either_way() {
    use arrow::array::{ArrayRef, FixedSizeListArray, Float16Array, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use std::sync::Arc;

    let (_dir, location) = location();
    let plain = table(5);
    let schema = Schema::new_with_metadata(schema::fields(2, DataType::Float16), plain.meta.to_metadata());
    let halves: Vec<half::f16> = plain.features.iter().map(|x| half::f16::from_f32(*x)).collect();
    let item = Arc::new(Field::new("item", DataType::Float16, false));
    let values = Arc::new(Float16Array::from(halves.clone()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(0..5)),
        Arc::new(FixedSizeListArray::new(item, 2, values, None)),
        Arc::new(Int64Array::from(vec![None, Some(1), Some(0), None, Some(0)])),
        Arc::new(Int64Array::from(vec![None::<i64>; 5])),
    ];
    let batch = RecordBatch::try_new(Arc::new(schema.clone()), columns).expect("a batch");
    let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &schema).expect("a writer");
    writer.write(&batch).and_then(|()| writer.finish()).expect("written");
    location.publish(writer.into_inner().expect("bytes"), PublishMode::Overwrite).expect("published");
    let expected: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
    assert_eq!(FeatureTable::read(&location).expect("read").features, expected);
    let stored = StoredTable::open(&location).expect("opened");
    assert_eq!(read_in_ranges(&stored, 2).expect("read"), expected);
    assert_eq!(stored.labels()[..3], [None, Some(ClassId(1)), Some(ClassId(0))]);
}
