use std::ops::Range;

use arrow::datatypes::DataType;

use super::*;
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Location, PublishMode};

/// Returns the metadata of a table of split `train` of a dataset `d` after a step, without classes.
pub(crate) fn meta(kind: Kind, dim: usize) -> TableMeta {
    TableMeta {
        kind,
        layer: "projection".into(),
        dim,
        dataset_digest: "d".into(),
        split: "train".into(),
        step: 1,
        unit_length: true,
        ..TableMeta::default()
    }
}

pub(super) fn table(rows: usize) -> FeatureTable {
    let classes = vec!["a \"quoted\" class".into(), "b".into()];
    FeatureTable {
        meta: TableMeta { step: 9, classes, ..meta(Kind::Bank, 2) },
        ids: (0..rows as u32).map(InstanceId).collect(),
        labels: (0..rows).map(|row| (row % 3 > 0).then_some(ClassId((row % 2) as u16))).collect(),
        updated_step: (0..rows).map(|row| (row % 2 == 0).then_some(row as u64 % 9)).collect(),
        features: (0..rows).flat_map(|row| [(row as f32).cos(), (row as f32).sin()]).collect(),
    }
}

/// Makes a folder, and returns the location of a file in it.
pub(crate) fn location() -> (tempfile::TempDir, Location) {
    let dir = tempfile::tempdir().expect("a folder");
    let location = Location::from_path(&dir.path().join("table.arrow")).expect("a location");
    (dir, location)
}

fn read_error(table: &FeatureTable) -> TableError {
    let (_dir, location) = location();
    table.write(&location).expect("written");
    FeatureTable::read(&location).expect_err("wrong")
}

/// Selects some rows of a table.
fn part(table: &FeatureTable, rows: Range<usize>) -> FeatureTable {
    let dim = table.meta.dim;
    FeatureTable {
        meta: table.meta.clone(),
        ids: table.ids[rows.clone()].to_vec(),
        labels: table.labels[rows.clone()].to_vec(),
        updated_step: table.updated_step[rows.clone()].to_vec(),
        features: table.features[rows.start * dim..rows.end * dim].to_vec(),
    }
}

/// Appends a table as one batch.
fn append_batch(writer: &mut TableWriter, batch: &FeatureTable, dtype: Dtype) {
    let columns = RowColumns { ids: &batch.ids, labels: &batch.labels, updated_steps: &batch.updated_step };
    writer.append(columns, dtype.encode(&batch.features)).expect("written");
}

/// Makes a writer that has all rows of a table, in batches.
pub(crate) fn written_in_batches(
    location: &Location,
    table: &FeatureTable,
    batch: usize,
    dtype: Dtype,
) -> TableWriter {
    let mut writer = TableWriter::start(location, &table.meta, dtype).expect("started");
    for rows in rows::split(0..table.len(), batch) {
        append_batch(&mut writer, &part(table, rows), dtype);
    }
    writer
}

#[test]
fn a_table_that_is_written_as_its_rows_come_has_the_bytes_of_one_that_is_written_whole() {
    let (_dir, location) = location();
    let whole = table(70_000);
    let expected = whole.write(&location).expect("written");
    let bytes = location.read().expect("bytes");
    let batch = TableWriter::batch_rows(2, Dtype::F32);
    let writer = written_in_batches(&location, &whole, batch, Dtype::F32);
    assert_eq!(writer.finish().expect("published"), expected);
    assert_eq!(location.read().expect("bytes"), bytes);
}

#[test]
fn a_table_of_16_bit_numbers_is_read_by_every_reader() {
    let (dir, location) = location();
    let exact = table(1000);
    let writer = written_in_batches(&location, &exact, 300, Dtype::F16);
    assert!(!location.exists().expect("a look"), "it appears when it is whole");
    writer.finish().expect("published");
    let rounded: Vec<f32> = exact.features.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
    let expected = FeatureTable { features: rounded, ..exact.clone() };
    assert_ne!(expected.features, exact.features);
    assert_eq!(FeatureTable::read(&location).expect("read"), expected);
    let stored = StoredTable::open(&location).expect("opened");
    assert_eq!((stored.dtype(), stored.meta()), (Dtype::F16, &exact.meta));
    for longest in [7, 1000] {
        assert_eq!(read_in_ranges(&stored, longest).expect("read"), expected.features);
    }
    // Part of a range.
    let vectors = stored.start_read(320..340).finish().expect("read");
    assert_eq!(&*vectors.rows(321..323).expect("rows"), &expected.features[642..646]);
    let other = Location::from_path(&dir.path().join("other.arrow")).expect("a location");
    drop(written_in_batches(&other, &exact, 300, Dtype::F16));
    assert_eq!(std::fs::read_dir(dir.path()).expect("the folder").count(), 1);
}

#[test]
fn a_table_of_many_batches_has_its_columns_in_their_order() {
    let (_dir, location) = location();
    let whole = table(1000);
    written_in_batches(&location, &whole, 30, Dtype::F32).finish().expect("published");
    let stored = StoredTable::open(&location).expect("opened");
    assert_columns(&stored, &whole);
    assert_eq!(read_in_ranges(&stored, 1000).expect("read"), whole.features);
}

#[test]
fn long_vectors_are_written_in_16_bits_and_small_batches() {
    assert_eq!([512, 513].map(Dtype::usual), [Dtype::F32, Dtype::F16]);
    assert_eq!(TableWriter::batch_rows(512, Dtype::F32), 65_536);
    assert_eq!(TableWriter::batch_rows(9216, Dtype::F16), 455);
    assert!("f64".parse::<Dtype>().is_err_and(|error| error.contains("expected f32 or f16")));
}

#[test]
fn a_row_that_is_not_finite_or_not_of_unit_length_is_named() {
    let mut wrong = table(10);
    wrong.features[7] = f32::NAN;
    assert!(matches!(read_error(&wrong), TableError::NotFinite { row: 3, .. }));
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
fn the_summary_tells_the_age_of_the_rows() {
    let summary = table(4).summary();
    // Rows 0 and 2 were written by steps 0 and 2; nine steps are done.
    assert_eq!((summary.never_updated, summary.mean_age_steps), (Some(2), Some(7.0)));
}

/// With INSTDISC_UPDATE_SCHEMAS=1 in the environment, the test writes the file instead.
#[test]
fn the_schema_file_is_that_of_the_code() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/feature_table.txt");
    if std::env::var_os("INSTDISC_UPDATE_SCHEMAS").is_some() {
        std::fs::write(file, schema_text()).expect("written");
    }
    assert_eq!(std::fs::read_to_string(file).expect("the schema file"), schema_text());
}

/// Checks that a table has the ids, labels and steps of another.
fn assert_columns(table: &dyn Table, whole: &FeatureTable) {
    assert_eq!(table.ids().collect::<Vec<_>>(), whole.ids);
    assert_eq!(table.labels().collect::<Vec<_>>(), whole.labels);
    for longest in [13, 1 << 20] {
        let steps =
            table.ranges(longest).into_iter().flat_map(|rows| table.updated_steps(rows).expect("read"));
        assert_eq!(steps.collect::<Vec<_>>(), whole.updated_step);
    }
}

#[test]
fn ids_that_follow_each_other_and_others_are_those_of_the_file() {
    let (_dir, location) = location();
    let mut whole = table(50_000);
    whole.meta.kind = Kind::Embedding;
    // Ids from another number than 0 on; with a gap; up to the largest; descending.
    let orders: [fn(u32) -> u32; 4] = [
        |row| row + 7,
        |row| row + u32::from(row > 40_000),
        |row| u32::MAX - 49_999 + row,
        |row| 60_000 - row,
    ];
    for id in orders {
        whole.ids = (0..50_000).map(|row| InstanceId(id(row))).collect();
        whole.write(&location).expect("written");
        assert_columns(&StoredTable::open(&location).expect("opened"), &whole);
        assert_eq!(FeatureTable::read(&location).expect("read").ids, whole.ids);
    }
}

#[test]
fn a_label_beyond_the_classes_is_named_with_its_row() {
    // In the second record batch.
    let mut wrong = table(70_000);
    wrong.labels[66_001] = Some(ClassId(wrong.meta.classes.len() as u16));
    let (_dir, location) = location();
    wrong.write(&location).expect("written");
    let expected = format!("{location} row 66001: label 2 is out of range, expected -1 or a class below 2");
    assert_eq!(FeatureTable::read(&location).expect_err("refused").to_string(), expected);
    assert_eq!(StoredTable::open(&location).expect_err("refused").to_string(), expected);
    // Beyond the range of a label, whatever the metadata says.
    let error = columns::label_of("t.arrow", 7, Some(69_999), 70_000).expect_err("refused");
    let expected = "t.arrow row 7: label 69999 is out of range, expected -1 or a class below 65536, as a table \
                    has that many classes at most";
    assert_eq!(error.to_string(), expected);
}

/// Reads all vectors of a table, in ranges of at most `longest` rows.
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
fn a_feature_that_is_not_finite_is_named_in_a_later_record_batch_too() {
    let mut wrong = table(70_000);
    wrong.features[2 * 66_001 + 1] = f32::NAN;
    let (_dir, location) = location();
    wrong.write(&location).expect("written");
    let stored = StoredTable::open(&location).expect("opened");
    let error = read_in_ranges(&stored, 10_000).expect_err("refused").to_string();
    assert_eq!(error, format!("{location} row 66001: the feature is not finite"));
}

#[test]
fn a_table_survives_the_file_bit_for_bit_read_whole_or_in_ranges() {
    let (_dir, location) = location();
    for rows in [0, 1, 77, 70_000] {
        let written = table(rows);
        written.write(&location).expect("written");
        assert_eq!(FeatureTable::read(&location).expect("read"), written);
        let stored = StoredTable::open(&location).expect("opened");
        assert_eq!(stored.meta(), &written.meta);
        assert_columns(&stored, &written);
        for longest in [1 << 20, 10_001, rows.div_ceil(3).max(1)] {
            assert_eq!(read_in_ranges(&stored, longest).expect("read"), written.features, "{rows} {longest}");
            assert_eq!(read_in_ranges(&written, longest).expect("read"), written.features);
        }
    }
}

#[test]
fn a_table_that_is_cut_is_refused() {
    let (_dir, location) = location();
    table(1000).write(&location).expect("written");
    let bytes = location.read().expect("bytes");
    for cut in [0, 7, 20, bytes.len() / 2, bytes.len() - 1] {
        location.publish(bytes.slice(..cut), PublishMode::Overwrite).expect("cut");
        assert!(matches!(FeatureTable::read(&location), Err(TableError::Malformed { .. })), "{cut}");
        assert!(matches!(StoredTable::open(&location), Err(TableError::Malformed { .. })), "{cut}");
    }
    // The end of the file exists, the rows before it do not.
    location.publish(bytes.slice(5000..), PublishMode::Overwrite).expect("cut");
    assert!(StoredTable::open(&location).is_err());
}

/// Returns the locations of two files in a folder.
fn two_locations() -> (tempfile::TempDir, [Location; 2]) {
    let dir = tempfile::tempdir().expect("a folder");
    let files = ["first.arrow", "second.arrow"]
        .map(|name| Location::from_path(&dir.path().join(name)).expect("a location"));
    (dir, files)
}

#[test]
fn a_wrong_row_of_several_files_is_named_by_its_file_and_its_row_there() {
    let (_dir, files) = two_locations();
    let whole = table(150);
    let second = |wrong: fn(&mut FeatureTable)| {
        let mut second = part(&whole, 100..150);
        wrong(&mut second);
        second
    };
    part(&whole, 0..100).write(&files[0]).expect("written");
    let error = |wrong: fn(&mut FeatureTable)| {
        second(wrong).write(&files[1]).expect("written");
        let stored = StoredTable::open_all(files.clone().map(|file| (file, None)));
        let read = stored.and_then(|table| read_in_ranges(&table, 1000));
        read.expect_err("refused").to_string()
    };
    let named = |reason| format!("{} row 7: {reason}", files[1]);
    let label = error(|table| table.labels[7] = Some(ClassId(2)));
    assert_eq!(label, named("label 2 is out of range, expected -1 or a class below 2"));
    assert_eq!(error(|table| table.features[15] = f32::NAN), named("the feature is not finite"));
    let length = error(|table| table.features[14..16].copy_from_slice(&[3.0, 4.0]));
    assert_eq!(length, named("the feature's length is 5, not 1 as the table says"));
    let twice: fn(&mut FeatureTable) = |table| table.ids[7] = InstanceId(3);
    assert_eq!(error(twice), named("invalid instance id 3: it occurs twice"));
    let parts = [(files[0].to_string(), part(&whole, 0..100)), (files[1].to_string(), second(twice))];
    let joined = FeatureTable::join(parts.map(Ok::<_, TableError>)).expect_err("refused");
    assert_eq!(joined.to_string(), named("invalid instance id 3: it occurs twice"));
}

#[test]
fn every_column_of_two_files_is_as_it_was_written() {
    let (_dir, files) = two_locations();
    let mut whole = table(70_110);
    whole.meta.kind = Kind::Embedding;
    whole.meta.classes = (0..=u16::MAX).map(|class| class.to_string()).collect();
    // The ids of the second file do not follow those of the first.
    whole.ids[70_040..].iter_mut().for_each(|id| id.0 += 5);
    // In the longest batch, the first null is not among the rows that are read first.
    for row in 0..66_003 {
        whole.labels[row] = Some(ClassId((7 * row % 65_536) as u16));
        whole.updated_step[row] = Some(row as u64);
    }
    for row in [3, 70_001, 70_109] {
        whole.labels[row] = Some(ClassId(u16::MAX));
    }
    assert!(
        whole.labels[66_003..70_000].contains(&None) && whole.updated_step[66_003..70_000].contains(&None)
    );
    // One of several batches has no rows.
    let batches = [vec![0..70_000, 70_000..70_000, 70_000..70_040], vec![70_040..70_073, 70_073..70_110]];
    for (file, batches) in files.iter().zip(batches) {
        let mut writer = TableWriter::start(file, &whole.meta, Dtype::F32).expect("started");
        batches.into_iter().for_each(|rows| append_batch(&mut writer, &part(&whole, rows), Dtype::F32));
        writer.finish().expect("published");
    }
    let stored = StoredTable::open_all(files.clone().map(|file| (file, None))).expect("opened");
    assert_columns(&stored, &whole);
    assert_eq!(read_in_ranges(&stored, 1000).expect("read"), whole.features);
    // Starts within a batch and within a byte of its validity.
    for rows in [65_999..66_100, 70_003..70_040, 70_045..70_073] {
        let expected = part(&whole, rows.clone());
        assert_eq!(stored.updated_steps(rows.clone()).expect("read"), expected.updated_step);
        let vectors = stored.start_read(rows.clone()).finish().expect("read");
        assert_eq!(*vectors.rows(rows).expect("rows"), expected.features);
    }
}

/// Tables of other programs.
mod foreign {
    use std::sync::Arc;

    use arrow::array::{
        Array, ArrayRef, DictionaryArray, Float64Array, Int32Array, Int32Builder, LargeListBuilder,
        ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::{DataType, Field, Int16Type, Schema};
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use bytes::Bytes;

    use super::super::foreign::of_bytes;
    use super::*;
    use crate::failure::Failure;

    /// Variations of other programs: names and types, lists, nullable fields, no metadata.
    fn columns(rows: usize) -> Vec<(&'static str, ArrayRef)> {
        let plain = table(rows);
        let item = Arc::new(Field::new("element", DataType::Float64, true));
        let values = Float64Array::from_iter_values(plain.features.iter().map(|&x| f64::from(x)));
        let lengths = OffsetBuffer::from_lengths(std::iter::repeat_n(2, rows));
        let labels = plain.labels.iter().map(|label| label.map(|class| i32::from(class.0)));
        vec![
            ("text", Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("row {row}"))))),
            ("pk", Arc::new(UInt32Array::from_iter_values(0..rows as u32))),
            ("emb", Arc::new(ListArray::new(item, lengths, Arc::new(values), None))),
            ("cls", Arc::new(Int32Array::from_iter(labels))),
        ]
    }

    fn batch(columns: Vec<(&'static str, ArrayRef)>) -> RecordBatch {
        let fields: Vec<_> = columns
            .iter()
            .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
            .collect();
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
    }

    fn file(batch: &RecordBatch, compression: Option<CompressionType>) -> Bytes {
        let options = IpcWriteOptions::default().try_with_compression(compression).expect("an option");
        let mut writer =
            FileWriter::try_new_with_options(Vec::new(), &batch.schema(), options).expect("a writer");
        writer.write(batch).and_then(|()| writer.finish()).expect("written");
        writer.into_inner().expect("bytes").into()
    }

    fn stream(batch: &RecordBatch) -> Bytes {
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
        writer.write(batch).and_then(|()| writer.finish()).expect("written");
        writer.into_inner().expect("bytes").into()
    }

    fn parquet(batch: &RecordBatch) -> Bytes {
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a writer");
        writer.write(batch).expect("written");
        writer.into_inner().expect("bytes").into()
    }

    fn names() -> ColumnNames {
        let name = |name: &str| Some(name.to_owned());
        ColumnNames { id: name("pk"), vector: name("emb"), label: name("cls") }
    }

    fn read(bytes: Bytes, names: &ColumnNames) -> Result<FeatureTable, TableError> {
        Ok(of_bytes("x", bytes, Some(names))?.0)
    }

    /// Returns the files of a batch in every supported format.
    fn forms(batch: &RecordBatch) -> Vec<Bytes> {
        vec![
            file(batch, None),
            file(batch, Some(CompressionType::ZSTD)),
            file(batch, Some(CompressionType::LZ4_FRAME)),
            stream(batch),
            parquet(batch),
        ]
    }

    #[test]
    fn whatever_holds_ids_and_vectors_is_taken_in_every_form() {
        let expected = table(40);
        for (form, bytes) in forms(&batch(columns(40))).into_iter().enumerate() {
            let (_dir, location) = location();
            location.publish(bytes.clone(), PublishMode::Overwrite).expect("published");
            let read = read(bytes, &names()).unwrap_or_else(|error| panic!("form {form}: {error}"));
            assert_eq!(
                (&read.ids, &read.labels, &read.features),
                (&expected.ids, &expected.labels, &expected.features)
            );
            let meta = &read.meta;
            assert_eq!((meta.dim, meta.unit_length, meta.kind), (2, true, Kind::Embedding));
            assert_eq!(
                (meta.classes.as_slice(), meta.split.as_str()),
                (&["0".to_owned(), "1".into()][..], "")
            );
            let (opened, foreign) = open_table(&location, Some(&names())).expect("opened");
            let foreign = foreign.expect("another program wrote it");
            assert_eq!((foreign.rows, foreign.labels), (RowNames::Ids, ForeignLabels::Numbers));
            assert_eq!(read_in_ranges(&*opened, 7).expect("read"), expected.features);
        }
    }

    #[test]
    fn a_column_that_does_not_fit_is_named_in_one_sentence() {
        let changed = |at: usize, name: &'static str, column: ArrayRef| {
            let mut columns = columns(4);
            columns[at] = (name, column);
            batch(columns)
        };
        let item = || Arc::new(Field::new("item", DataType::Float64, true));
        let list = |values: Vec<Option<f64>>, lengths: [usize; 4], is_there: Option<Vec<bool>>| {
            let values = Arc::new(Float64Array::from(values));
            let lengths = OffsetBuffer::from_lengths(lengths);
            Arc::new(ListArray::new(item(), lengths, values, is_there.map(Into::into))) as ArrayRef
        };
        let text = || Arc::new(StringArray::from(vec!["a"; 4])) as ArrayRef;
        let floats = || Arc::new(Float64Array::from(vec![1.0; 4])) as ArrayRef;
        let ids = |ids: Vec<Option<u32>>| Arc::new(UInt32Array::from(ids)) as ArrayRef;
        let whole = vec![Some(1.0); 8];
        let mut with_null = whole.clone();
        with_null[5] = None;
        let cases = [
            (
                changed(1, "other", ids(vec![Some(1); 4])),
                "column `pk` is missing, the table has `text`, `other`",
            ),
            (changed(1, "pk", text()), "column `pk` holds `a` in row 1, which occurs twice"),
            (changed(1, "pk", floats()), "column `pk` holds Float64, expected integers or text"),
            (changed(2, "emb", text()), "column `emb` holds Utf8, expected lists of float16"),
            (
                changed(3, "cls", list(whole.clone(), [2; 4], None)),
                "column `cls` holds List(Float64), expected integers, whole floats or text, or lists of \
                 integers or text",
            ),
            (
                changed(3, "cls", Arc::new(StringArray::from(vec!["a", "", "b", "b"]))),
                "column `cls` holds a class without a name in row 1",
            ),
            (changed(1, "pk", ids(vec![Some(1), Some(2), None, Some(3)])), "column `pk` is null in row 2"),
            (
                changed(2, "emb", list(whole.clone(), [2, 2, 2, 2], Some(vec![true, false, true, true]))),
                "column `emb` is null in row 1",
            ),
            (changed(2, "emb", list(with_null, [2; 4], None)), "column `emb` holds a null in row 2"),
            (
                changed(2, "emb", list(whole, [2, 2, 1, 3], None)),
                "column `emb` has 1 numbers in row 2, expected 2",
            ),
        ];
        for (batch, expected) in cases {
            for bytes in forms(&batch) {
                let error = read(bytes, &names()).expect_err(expected);
                assert!(error.to_string().contains(expected), "{error}");
                assert_eq!(error.failure(), Failure::Data);
            }
        }
    }

    /// Returns text ids, text classes in a dictionary, and lists of labels.
    fn with_texts(rows: usize) -> Vec<(&'static str, ArrayRef)> {
        let classes =
            (0..rows).map(|row| if row % 5 == 4 { None } else { Some(["dog", "cat", "ant"][row % 3]) });
        let classes: DictionaryArray<Int16Type> = classes.collect();
        let mut tags = LargeListBuilder::new(StringBuilder::new());
        for row in 0..rows {
            (0..row % 3).for_each(|at| tags.values().append_value(["sky", "sea", "sky"][(row + at) % 3]));
            tags.append(row % 4 != 3);
        }
        let mut columns = columns(rows);
        columns[0].0 = "path";
        columns[3] = ("class", Arc::new(classes));
        columns.push(("words", Arc::new(tags.finish())));
        columns
    }

    fn read_foreign(bytes: Bytes, names: &ColumnNames) -> (FeatureTable, Foreign) {
        let (table, foreign) = of_bytes("x", bytes, Some(names)).expect("a table");
        (table, foreign.expect("another program wrote it"))
    }

    /// Returns why a table is refused if its columns are not named.
    fn refused(batch: &RecordBatch) -> String {
        of_bytes("x", parquet(batch), Some(&ColumnNames::default())).expect_err("refused").to_string()
    }

    #[test]
    fn names_of_classes_and_rows_are_read_in_every_form() {
        let names = ColumnNames { id: Some("path".into()), ..ColumnNames::default() };
        for bytes in forms(&batch(with_texts(40))) {
            let (table, foreign) = read_foreign(bytes.clone(), &names);
            assert_eq!(table.meta.classes, ["ant", "cat", "dog"]);
            let expected = |row: usize| if row % 5 == 4 { None } else { Some(ClassId([2, 1, 0][row % 3])) };
            assert_eq!(table.labels, (0..40).map(expected).collect::<Vec<_>>());
            let texts = (0..40).map(|row| format!("row {row}")).collect();
            assert_eq!((foreign.rows, foreign.labels), (RowNames::Texts(texts), ForeignLabels::Names));
            assert_eq!(table.ids, (0..40).map(InstanceId).collect::<Vec<_>>());
            let about = "40 rows, vectors of 2 Float64 of `emb`, 3 class names of `class`, ids of `path`";
            assert_eq!(foreign.about, about);
            // Commands other than `knn` make no guess.
            let error = FeatureTable::from_bytes("x", bytes).expect_err("no columns of the format");
            assert!(error.to_string().contains("column `instance_id` is missing"), "{error}");
        }
    }

    #[test]
    fn lists_of_labels_are_sets_in_every_form() {
        let names = ColumnNames { label: Some("words".into()), ..ColumnNames::default() };
        for bytes in forms(&batch(with_texts(12))) {
            let (table, foreign) = read_foreign(bytes, &names);
            assert_eq!(table.meta.classes, ["sea", "sky"]);
            assert!(table.labels.iter().all(Option::is_none));
            let ForeignLabels::Sets { rows, are_names: true } = foreign.labels else {
                panic!("sets of names")
            };
            // Row 2: sky, sky; row 3 is null; row 5: sky, sky; row 8 too; row 10: sea.
            let expected: [&[u32]; 12] = [&[], &[0], &[1], &[], &[0], &[1], &[], &[], &[1], &[], &[0], &[]];
            assert_eq!(rows, expected);
        }
        let mut numbers = ListBuilder::new(Int32Builder::new());
        for labels in [vec![Some(7), Some(3), Some(7)], vec![], vec![Some(3)], vec![Some(900_000)]] {
            numbers.append_value(labels);
        }
        let mut columns = columns(4);
        columns[3] = ("tags", Arc::new(numbers.finish()));
        let (table, foreign) = read_foreign(parquet(&batch(columns.clone())), &ColumnNames::default());
        assert_eq!(table.meta.classes, ["3", "7", "900000"]);
        let rows = vec![vec![3, 7], vec![], vec![3], vec![900_000]];
        assert_eq!(foreign.labels, ForeignLabels::Sets { rows, are_names: false });
        let mut negative = ListBuilder::new(Int32Builder::new());
        (0..4).for_each(|row| negative.append_value([Some(1 - row)]));
        columns[3].1 = Arc::new(negative.finish());
        let error = refused(&batch(columns));
        assert!(error.contains("column `tags` holds -1 in row 2"), "{error}");
    }

    /// A stream may replace a dictionary between the batches of a table.
    #[test]
    fn batches_with_other_dictionaries_are_one_table() {
        let whole = batch(with_texts(30));
        let class = |names: &[&str]| -> ArrayRef {
            Arc::new(names.iter().copied().collect::<DictionaryArray<Int16Type>>())
        };
        let part = |from: usize, names: &[&str]| {
            let mut columns = whole.slice(from, names.len()).columns().to_vec();
            columns[3] = class(names);
            RecordBatch::try_new(whole.schema(), columns).expect("a batch")
        };
        let parts = [part(0, &["b", "a", "b"]), part(3, &["c", "a"]), part(5, &["a", "d", "d", "b"])];
        let mut writer = StreamWriter::try_new(Vec::new(), &whole.schema()).expect("a writer");
        parts.iter().for_each(|part| writer.write(part).expect("written"));
        writer.finish().expect("finished");
        let streamed = Bytes::from(writer.into_inner().expect("bytes"));
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(Vec::new(), whole.schema(), None).expect("a writer");
        parts.iter().for_each(|part| writer.write(part).and_then(|()| writer.flush()).expect("written"));
        let grouped = Bytes::from(writer.into_inner().expect("bytes"));
        for bytes in [streamed, grouped] {
            let (read, _) =
                read_foreign(bytes, &ColumnNames { id: Some("path".into()), ..ColumnNames::default() });
            assert_eq!(read.meta.classes, ["a", "b", "c", "d"]);
            let classes: Vec<u16> = read.labels.iter().map(|label| label.expect("a label").0).collect();
            assert_eq!(classes, [1, 0, 1, 2, 0, 0, 3, 3, 1]);
            assert_eq!(read.features, table(30).features[..18]);
        }
    }

    #[test]
    fn columns_that_can_be_meant_are_named_and_no_guess_is_made() {
        let mut several = with_texts(4);
        let vectors = several[2].1.clone();
        several.push(("emb2", vectors));
        several.push(("Image_ID", several[1].1.clone()));
        several.push(("target", several[1].1.clone()));
        let refused_by = |names: ColumnNames, expected: &str| {
            let error = of_bytes("x", parquet(&batch(several.clone())), Some(&names)).expect_err(expected);
            assert_eq!(error.to_string(), expected);
            assert_eq!(error.failure(), Failure::Data);
        };
        let name = |name: &str| Some(name.to_owned());
        let vector = ColumnNames { vector: name("emb2"), ..ColumnNames::default() };
        let id = ColumnNames { id: name("path"), ..vector.clone() };
        refused_by(
            ColumnNames::default(),
            "x: the vectors can be those of `emb` or `emb2`: name the column by --vector-column",
        );
        refused_by(vector, "x: the ids can be those of `path` or `Image_ID`: name the column by --id-column");
        refused_by(
            id.clone(),
            "x: the labels can be those of `class` or `target`: name the column by --label-column",
        );
        let all = ColumnNames { label: name("target"), ..id };
        let (_, foreign) = read_foreign(parquet(&batch(several.clone())), &all);
        assert_eq!(foreign.labels, ForeignLabels::Numbers);
        // An empty name omits ids and labels, and an explicitly named column has no second role.
        let none = ColumnNames { id: name(""), label: name(""), ..all.clone() };
        let (_, foreign) = read_foreign(parquet(&batch(several.clone())), &none);
        assert_eq!((foreign.rows, foreign.labels), (RowNames::Unnamed, ForeignLabels::None));
        let given = ColumnNames { id: None, label: name("path"), vector: name("emb2") };
        let (table, foreign) = read_foreign(parquet(&batch(several.clone())), &given);
        assert_eq!((table.meta.classes.len(), foreign.rows), (4, RowNames::Ids));
        // A column with the format's name takes precedence.
        several[2].0 = "feature";
        several[3].0 = "label";
        several[1].0 = "instance_id";
        let (table, foreign) = read_foreign(parquet(&batch(several.clone())), &ColumnNames::default());
        assert_eq!((table.meta.classes.len(), foreign.rows), (3, RowNames::Ids));
        // Without ids the rows are numbered; without vectors a table is invalid.
        let (_, foreign) = read_foreign(parquet(&batch(columns(4))), &ColumnNames::default());
        assert_eq!((foreign.rows, foreign.labels), (RowNames::Unnamed, ForeignLabels::None));
        let expected = "x: not a feature table: no column holds lists of float16, float32 or float64, it has \
                        `text` of Utf8, `pk` of UInt32";
        assert_eq!(refused(&batch(columns(4)[..2].to_vec())), expected);
        assert_eq!(refused(&batch(columns(0))), "x: the table has no rows");
        // A label takes two bytes.
        let rows = MOST_CLASSES + 5;
        let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("c{row}"))));
        let (item, ones) = (Field::new("item", DataType::Float64, true), Float64Array::from(vec![1.0; rows]));
        let one_each = OffsetBuffer::from_lengths(vec![1; rows]);
        let vectors = ListArray::new(Arc::new(item), one_each, Arc::new(ones), None);
        let many = batch(vec![("emb", Arc::new(vectors) as ArrayRef), ("class", names)]);
        let expected =
            "x: column `class` holds more than 65536 class names, the first beyond is `c65536` in row 65536";
        assert_eq!(refused(&many), expected);
    }

    /// Bytes from a stateless generator: the same in every run.
    fn damaged(bytes: &Bytes, round: u64) -> Bytes {
        let mut stream = crate::rng::Stream::new(round, crate::rng::Purpose::Test, 0, 0);
        let mut damaged = bytes.to_vec();
        for _ in 0..1 + round % 3 {
            let at = stream.below(damaged.len() as u64) as usize;
            damaged[at] = if round.is_multiple_of(2) {
                stream.below(256) as u8
            } else {
                damaged[at] ^ (1 << stream.below(8))
            };
        }
        damaged.into()
    }

    #[test]
    fn damaged_tables_are_an_error_or_a_table_and_never_a_panic() {
        let (_dir, location) = location();
        table(30).write(&location).expect("written");
        let own = location.read().expect("bytes");
        let mut refused = 0;
        let texts = batch(with_texts(30));
        for whole in forms(&batch(columns(30))).into_iter().chain(forms(&texts)).chain([own]) {
            for round in 0..400 {
                let bytes = damaged(&whole, round);
                for names in [names(), ColumnNames::default()] {
                    if let Err(error) = read(bytes.clone(), &names) {
                        assert_eq!(error.failure(), Failure::Data, "{round} {error}");
                        refused += 1;
                    }
                }
                location.publish(bytes, PublishMode::Overwrite).expect("published");
                let stored = StoredTable::open(&location).and_then(|table| read_in_ranges(&table, 8));
                if let Err(error) = stored {
                    assert_eq!(error.failure(), Failure::Data, "{round} {error}");
                }
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}

#[test]
fn tables_of_one_dataset_fit_whatever_was_added_to_it_later() {
    let meta = |dataset: &str, split: &str, digest: Option<&str>, classes: &[&str]| TableMeta {
        dataset_digest: dataset.into(),
        split: split.into(),
        split_digest: digest.map(Into::into),
        classes: classes.iter().map(|&class| class.into()).collect(),
        ..table(1).meta
    };
    let bank = meta("before", "train", Some("t"), &["a", "b"]);
    let fits = |other: &TableMeta| bank.conflict(other).is_none() && other.conflict(&bank).is_none();
    assert!(fits(&meta("after", "val", Some("v"), &["a", "b"])));
    assert!(fits(&meta("after", "val", Some("v"), &["a", "b", "c"])), "classes that came later follow");
    assert!(fits(&meta("after", "train", Some("t"), &["a", "b"])));
    assert!(!fits(&meta("after", "train", Some("other"), &["a", "b"])));
    assert!(!fits(&meta("after", "val", Some("v"), &["b", "a"])));
    // Tables of older versions know only the dataset; those of other programs may know nothing.
    assert!(fits(&meta("before", "val", None, &["a", "b"])));
    assert!(!fits(&meta("after", "val", None, &["a", "b"])));
    assert!(fits(&meta("", "", None, &["0", "1"])));
    assert!(!fits(&TableMeta { dim: 3, ..bank.clone() }));
}

#[test]
fn the_digest_of_a_stored_table_is_that_of_all_its_bytes() {
    let (_dir, location) = location();
    let mut written = table(70_000);
    let digest = written.write(&location).expect("written").digest;
    let open = || StoredTable::open_all([(location.clone(), Some(digest))]).expect("opened");
    for longest in [1 << 20, 10_001] {
        let whole = open();
        assert_eq!(read_in_ranges(&whole, longest).expect("read"), written.features);
        whole.verify().expect("the same bytes");
    }
    // Some rows, no rows, and all rows out of order.
    open().verify().expect("the same bytes");
    let some = open();
    let ranges = some.ranges(9_000);
    for range in [&ranges[3], &ranges[0], &ranges[0]] {
        some.start_read(range.clone()).finish().expect("read");
    }
    some.verify().expect("the same bytes");
    for change in [0, 69_999] {
        written.labels[change] = if written.labels[change].is_none() { Some(ClassId(1)) } else { None };
        written.write(&location).expect("written");
        let changed = open();
        read_in_ranges(&changed, 10_001).expect("a table all the same");
        assert!(matches!(changed.verify(), Err(TableError::Damaged { .. })));
    }
}

/// Returns the schema as text, as in `schemas/feature_table.txt`.
fn schema_text() -> String {
    let mut text = String::from("Feature table, version 1: an Arrow IPC file\n\ncolumns\n");
    for field in &schema::fields(128, DataType::Float32) {
        let null = if field.is_nullable() { "nullable" } else { "required" };
        let kind = match field.data_type() {
            DataType::FixedSizeList(..) => "FixedSizeList<Float32 or Float16, dim>".to_owned(),
            other => other.to_string(),
        };
        text += &format!("  {} {kind} {null}\n", field.name());
    }
    text += "\nschema metadata\n";
    let meta = TableMeta {
        kind: Kind::Embedding,
        layer: "projection".into(),
        dim: 128,
        dataset_digest: "blake3 of the dataset".into(),
        split: "train".into(),
        split_digest: Some("blake3 of the split's labels and images".into()),
        weights: Some("blake3 of the encoder's weights".into()),
        device: Some("cpu".into()),
        precision: Some("f32".into()),
        step: 5004,
        unit_length: true,
        classes: vec!["first".into(), "second".into()],
    };
    let mut entries: Vec<_> = meta.to_metadata().into_iter().collect();
    entries.sort();
    for (name, example) in entries {
        text += &format!("  {name} (for example: {example})\n");
    }
    text
}
