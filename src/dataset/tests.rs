use std::collections::BTreeMap;

use super::*;
use crate::progress::Quiet;
use crate::storage::{Digest, Location, PublishMode};

fn row(id: u32, image: &'static [u8]) -> Row {
    Row {
        id: InstanceId(id),
        label: (id != 2).then_some(ClassId((id % 2) as u16)),
        bytes: Bytes::from_static(image),
        path: format!("class/{id}.jpg"),
        width: 3,
        height: 4,
        entry_points: (id > 1).then(|| Bytes::from(vec![id as u8; 3 * id as usize])),
    }
}

/// Returns the entry points that `row` has for an image of [`IMAGES`].
fn entry_points(image: &[u8]) -> Option<Vec<u8>> {
    let id = (0..).zip(IMAGES).find(|(_, other)| *other == image)?.0;
    row(id, b"").entry_points.map(Vec::from)
}

const IMAGES: [&[u8]; 5] = [b"zero", b"one", b"two", b"", b"four"];

/// Publishes a dataset with one split, `train`, with a shard for each list of rows, in row groups of `row_group`.
pub(crate) fn publish(
    dataset: &Location,
    shards: &[Vec<Row>],
    row_group: usize,
    classes: &[&str],
) -> Manifest {
    let classes = classes.iter().map(|&class| class.to_owned()).collect();
    let options = WriterOptions { row_group, classes };
    let (mut index, mut entries) = (Vec::new(), Vec::new());
    for (shard, rows) in (0..).zip(shards) {
        let path = format!("train/shard-{shard:05}.parquet");
        let mut writer = ShardWriter::start(dataset, &path, &options).expect("started");
        for row in rows {
            writer.push(row.clone()).expect("pushed");
        }
        let written = writer.finish().expect("published");
        let places = written.offsets.into_iter().zip(written.entry_points);
        index.extend((0..).zip(rows.iter().zip(places)).map(|(row, (of, (offset, points)))| IndexRow {
            id: of.id,
            label: of.label,
            path: of.path.clone(),
            place: Place {
                shard,
                row,
                offset,
                bytes: of.bytes.len() as u32,
                width: of.width,
                height: of.height,
                entry_points_offset: points.0,
                entry_points_bytes: points.1,
            },
            image: Digest::of(&of.bytes),
            view: None,
        }));
        entries.push(written.entry);
    }
    index.sort_by_key(|row| row.id);
    let mut digest = ContentDigest::default();
    for row in &index {
        digest.add(row.id, row.label, row.image);
    }
    let split = Split {
        instances: index.len() as u64,
        labelled: index.iter().filter(|row| row.label.is_some()).count() as u64,
        image_bytes: index.iter().map(|row| u64::from(row.place.bytes)).sum(),
        rejected: 0,
        digest: digest.finish(),
        shards: entries,
        ingest: vec![IngestRecord {
            program: "test".into(),
            format: "imagefolder".into(),
            source_fingerprint: Digest::of(b"source"),
            options: BTreeMap::new(),
            instances: index.len() as u64,
            index: write_index(dataset, "index/train.parquet", &index).expect("written"),
            report: PartReport::default(),
        }],
    };
    let manifest = Manifest::new(options.classes, BTreeMap::from([("train".into(), split)]));
    manifest.publish(dataset, PublishMode::Create).expect("published");
    manifest
}

/// Publishes a dataset of five rows in two shards, with row groups of two.
fn published() -> (tempfile::TempDir, Location, Manifest) {
    let dir = tempfile::tempdir().expect("a folder");
    let dataset = Location::from_path(dir.path()).expect("a location");
    let rows = |ids: &[u32]| ids.iter().map(|&id| row(id, IMAGES[id as usize])).collect();
    let manifest = publish(&dataset, &[rows(&[3, 0, 4]), rows(&[2, 1])], 2, &["a", "b"]);
    (dir, dataset, manifest)
}

fn change(location: &Location, at: usize) {
    let mut bytes = location.read().expect("bytes").to_vec();
    bytes[at] ^= 0x55;
    location.publish(bytes, PublishMode::Overwrite).expect("changed");
}

#[test]
fn rows_come_back_as_they_were_written() {
    let (_dir, dataset, written) = published();
    let manifest = Manifest::read(&dataset).expect("a manifest");
    assert_eq!(manifest, written);
    let split = manifest.split(&dataset, "train").expect("the split");
    let reader = ShardReader::open(&dataset, &split.shards[0], 2, 5).expect("a shard");
    assert_eq!(reader.row_groups(), 2);
    assert_eq!(reader.read_row_group(0).expect("rows"), [row(3, b""), row(0, b"zero")]);
    assert_eq!(reader.read_row_group(1).expect("rows"), [row(4, b"four")]);
    assert_eq!(published().2, written, "equal rows give equal bytes");
    verify(&dataset, &manifest, &entry_points, &Quiet).expect("whole");
}

#[test]
fn images_are_found_in_row_groups_of_many_pages() {
    let dir = tempfile::tempdir().expect("a folder");
    let dataset = Location::from_path(dir.path()).expect("a location");
    let options = WriterOptions { row_group: 3000, classes: vec!["a".into(), "b".into()] };
    let mut writer = ShardWriter::start(&dataset, "shard.parquet", &options).expect("started");
    // Parquet closes a page after several megabytes or several thousand rows.
    let image = |id: u32| -> Bytes { vec![id as u8; (id as usize * 37) % 4000].into() };
    for id in 0..5000 {
        writer.push(Row { bytes: image(id), ..row(id, b"") }).expect("pushed");
    }
    let written = writer.finish().expect("published");
    let file = dataset.join("shard.parquet").read().expect("bytes");
    for (id, offset) in (0..5000).zip(written.offsets) {
        let expected = image(id);
        assert_eq!(file.slice(offset as usize..offset as usize + expected.len()), expected);
    }
    for (id, (offset, bytes)) in (0..5000).zip(written.entry_points) {
        let stored = file.slice(offset as usize..offset as usize + bytes as usize);
        let points = if bytes > 0 { Some(unsealed(stored, &image(id)).expect("as written")) } else { None };
        assert_eq!(points, row(id, b"").entry_points);
    }
}

#[test]
fn a_changed_byte_in_a_shard_is_found_by_verify() {
    let (_dir, dataset, manifest) = published();
    change(&dataset.join("train/shard-00001.parquet"), 40);
    let error = verify(&dataset, &manifest, &entry_points, &Quiet).expect_err("changed");
    assert!(error.to_string().contains("shard-00001.parquet: damaged"), "{error}");
}

#[test]
fn entry_points_that_are_not_the_images_are_found_by_verify() {
    let (_dir, dataset, manifest) = published();
    let changed = |image: &[u8]| if image == b"four" { Some(vec![1; 12]) } else { entry_points(image) };
    let gone = |image: &[u8]| entry_points(image).filter(|_| image != b"four");
    let changed = verify(&dataset, &manifest, &changed, &Quiet);
    let gone = verify(&dataset, &manifest, &gone, &Quiet);
    for error in [changed, gone].map(|verified| verified.expect_err("others")) {
        assert!(error.to_string().contains("the entry points of instance 4 are not its image's"), "{error}");
    }
    let more = |image: &[u8]| entry_points(image).or(Some(vec![1]));
    verify(&dataset, &manifest, &more, &Quiet).expect("an ingest may leave them out");
}

#[test]
fn an_index_that_says_something_else_is_found_by_verify() {
    let (_dir, dataset, manifest) = published();
    let true_rows = read_index(&dataset, &manifest.splits["train"].ingest[0].index).expect("an index");
    let changes: [fn(&mut IndexRow); 8] = [
        |row| row.label = None,
        |row| row.place.shard = 1,
        |row| row.place.row += 1,
        |row| row.place.offset += 1,
        |row| row.place.bytes = 3,
        |row| row.place.width = 5,
        |row| row.id = InstanceId(1),
        |row| row.image = Digest::of(b"other"),
    ];
    for change in changes {
        let mut rows = true_rows.clone();
        change(&mut rows[0]);
        let mut changed = manifest.clone();
        let split = changed.splits.get_mut("train").expect("the split");
        split.ingest[0].index = write_index(&dataset, "index/train.parquet", &rows).expect("written");
        let error = verify(&dataset, &changed, &entry_points, &Quiet).expect_err("changed");
        assert!(error.to_string().contains("invalid entry for instance 0"), "{error}");
    }
}

#[test]
fn a_changed_byte_is_found_when_its_row_group_is_read() {
    let (_dir, dataset, manifest) = published();
    let entry = &manifest.splits["train"].shards[0];
    let open = || ShardReader::open(&dataset, entry, 2, 5).expect("open");
    let groups: Vec<usize> = (0..open().row_groups()).collect();
    assert!(groups.len() > 1 && groups.iter().all(|&group| open().read_row_group(group).is_ok()));
    change(&dataset.join(&entry.path), 60);
    let error = open().read_row_group(0).expect_err("changed");
    assert!(error.to_string().ends_with("row group 0: its bytes are not those that were written"), "{error}");
    assert!(open().read_row_group(1).is_ok());
}

#[test]
fn a_cut_a_missing_and_a_foreign_shard_are_named() {
    let (_dir, dataset, manifest) = published();
    let entry = &manifest.splits["train"].shards[0];
    let location = dataset.join(&entry.path);
    let bytes = location.read().expect("bytes");
    let open = || ShardReader::open(&dataset, entry, 2, 5);
    location.publish(bytes.slice(..bytes.len() - 9), PublishMode::Overwrite).expect("cut");
    assert!(matches!(open(), Err(DatasetError::Damaged { .. })));
    location.publish(vec![0; bytes.len()], PublishMode::Overwrite).expect("zeros");
    assert!(matches!(open(), Err(DatasetError::Damaged { .. })));
    location.delete().expect("deleted");
    let error = open().expect_err("missing");
    assert!(
        error.to_string().ends_with("shard-00000.parquet: missing, and the manifest names it"),
        "{error}"
    );
}

#[test]
fn ids_and_labels_out_of_range_are_named_with_shard_and_row_group() {
    let (_dir, dataset, manifest) = published();
    let entry = &manifest.splits["train"].shards[0];
    let error = ShardReader::open(&dataset, entry, 2, 4).expect("open").read_row_group(1).expect_err("id 4");
    assert!(
        error.to_string().ends_with("shard-00000.parquet row group 1: row 0: instance id 4 is out of range")
    );
    let error =
        ShardReader::open(&dataset, entry, 1, 5).expect("open").read_row_group(0).expect_err("label 1");
    assert!(error.to_string().contains("row group 0: row 0: label 1 is out of range"), "{error}");
}

#[test]
fn a_folder_without_manifest_is_no_dataset() {
    let dir = tempfile::tempdir().expect("a folder");
    let dataset = Location::from_path(dir.path()).expect("a location");
    assert!(matches!(Manifest::read(&dataset), Err(DatasetError::NotThere { .. })));
}

#[test]
fn a_manifest_that_was_edited_is_refused() {
    let (_dir, dataset, _) = published();
    let file = dataset.join("manifest.json");
    let text = String::from_utf8(file.read().expect("bytes").to_vec()).expect("text");
    file.publish(text.replace("\"instances\": 5", "\"instances\": 6"), PublishMode::Overwrite)
        .expect("edited");
    assert!(matches!(Manifest::read(&dataset), Err(DatasetError::Manifest { .. })));
}

/// The counts are known before any file is read, and must not make the reader allocate memory.
#[test]
fn counts_that_files_do_not_bear_out_are_refused() {
    let (_dir, dataset, manifest) = published();
    let counted = |instances: u64, parts: u64, rows: u64| {
        let mut splits = manifest.splits.clone();
        let split = splits.get_mut("train").expect("the split");
        split.instances = instances;
        split.ingest[0].instances = parts;
        split.shards[0].rows = rows.saturating_sub(2);
        Manifest::new(manifest.classes.clone(), splits)
    };
    let read = |manifest: &Manifest| {
        manifest.publish(&dataset, PublishMode::Overwrite).expect("published");
        Manifest::read(&dataset)
    };
    for (instances, parts, rows) in [(1 << 60, 5, 5), (1 << 60, 1 << 60, 5), (1 << 60, 1 << 60, 1 << 60)] {
        assert!(matches!(read(&counted(instances, parts, rows)), Err(DatasetError::Manifest { .. })));
    }
    let changed = read(&counted(1 << 31, 1 << 31, 1 << 31)).expect("it agrees with itself");
    let split = &changed.splits["train"];
    assert!(matches!(split.read_places(&dataset), Err(DatasetError::Damaged { .. })));
    assert!(matches!(verify(&dataset, &changed, &entry_points, &Quiet), Err(DatasetError::Damaged { .. })));
    let shard = ShardReader::open(&dataset, &split.shards[0], 2, 1 << 31);
    assert!(matches!(shard, Err(DatasetError::Damaged { .. })));
}

#[test]
fn every_damage_to_a_footer_is_found_before_it_is_parsed() {
    let (_dir, dataset, manifest) = published();
    let entry = &manifest.splits["train"].shards[0];
    let whole = dataset.join(&entry.path).read().expect("bytes");
    let footer = entry.footer.expect("the manifest names it").bytes as usize;
    let groups = ShardReader::open(&dataset, entry, 2, 5).expect("whole");
    let last = groups.row_group_range(groups.row_groups() - 1);
    assert_eq!(last.end, (whole.len() - footer) as u64, "it is all that follows the last row group");
    for at in whole.len() - footer..whole.len() {
        damage(&dataset, entry, &whole, at);
        let error = ShardReader::open(&dataset, entry, 2, 5).expect_err("damaged");
        assert!(error.to_string().contains("its bytes are not those that were written"), "{at}: {error}");
        assert_eq!(error.failure(), crate::failure::Failure::Data);
    }
}

/// Manifests of older versions do not have the footer's digest.
#[test]
fn a_damaged_footer_without_a_digest_is_an_error_and_never_a_panic() {
    let (_dir, dataset, manifest) = published();
    let entry = &ShardEntry { footer: None, ..manifest.splits["train"].shards[0].clone() };
    let whole = dataset.join(&entry.path).read().expect("bytes");
    assert!(ShardReader::open(&dataset, entry, 2, 5).is_ok());
    for at in whole.len() - 900.min(whole.len())..whole.len() {
        damage(&dataset, entry, &whole, at);
        let Ok(reader) = ShardReader::open(&dataset, entry, 2, 5) else { continue };
        for group in 0..reader.row_groups() {
            match reader.read_row_group(group) {
                Ok(rows) => assert!(rows.len() <= 3),
                Err(error) => assert_eq!(error.failure(), crate::failure::Failure::Data, "{at} {error}"),
            }
        }
    }
}

/// Changes one bit of a shard.
fn damage(dataset: &Location, entry: &ShardEntry, whole: &[u8], at: usize) {
    let mut bytes = whole.to_vec();
    bytes[at] ^= 1 << (at % 8);
    dataset.join(&entry.path).publish(bytes, PublishMode::Overwrite).expect("changed");
}

#[test]
fn the_digest_depends_on_content_alone() {
    let (_dir, _, manifest) = published();
    let mut splits = manifest.splits.clone();
    let split = splits.get_mut("train").expect("the split");
    split.shards.pop();
    split.ingest[0].program = "another".into();
    assert_eq!(
        Manifest::new(manifest.classes.clone(), splits.clone()).dataset_digest,
        manifest.dataset_digest
    );
    splits.get_mut("train").expect("the split").digest = Digest::of(b"other");
    assert_ne!(Manifest::new(manifest.classes.clone(), splits).dataset_digest, manifest.dataset_digest);
}

/// With INSTDISC_UPDATE_SCHEMAS=1 in the environment, the test writes the file instead.
#[test]
fn the_schema_file_is_that_of_the_code() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/dataset.txt");
    if std::env::var_os("INSTDISC_UPDATE_SCHEMAS").is_some() {
        std::fs::write(file, schema_text()).expect("written");
    }
    assert_eq!(std::fs::read_to_string(file).expect("the schema file"), schema_text());
}

/// Returns the schemas of the dataset's files as text, in the form of `schemas/dataset.txt`.
fn schema_text() -> String {
    fn lines(text: &mut String, fields: &Fields, indent: &str, nulls: bool) {
        for field in fields {
            let (kind, children) = match field.data_type() {
                DataType::Struct(children) => ("struct".to_owned(), Some(children)),
                other => (other.to_string(), None),
            };
            let nulls = if (nulls || field.name() == "entry_points") && field.is_nullable() {
                "nullable"
            } else {
                "without nulls"
            };
            *text += &format!("{indent}{} {kind} {nulls}\n", field.name());
            if let Some(children) = children {
                lines(text, children, &format!("{indent}  "), false);
            }
        }
    }
    let mut text =
        String::from("Dataset shard, version 1: a Parquet file, PLAIN and uncompressed\n\ncolumns\n");
    lines(&mut text, schema().fields(), "  ", false);
    text += "\nkey-value metadata\n  huggingface (for two classes a and b):\n    ";
    text += &writer::huggingface_entry(&["a".into(), "b".into()]);
    text += "\n\nindex/<split>.parquet: a Parquet file\n\ncolumns\n";
    lines(&mut text, index::schema().fields(), "  ", true);
    text += "\nduplicates.parquet: a Parquet file\n\ncolumns\n";
    lines(&mut text, index::duplicates_schema().fields(), "  ", true);
    text
}

#[test]
fn a_store_that_fails_while_a_shard_is_written_is_no_failure_of_this_machine() {
    let of = |source: std::io::Error| {
        DatasetError::Write { shard: "train/shard-00000.parquet".into(), source: source.into() }.failure()
    };
    let failed = |local| {
        let source = "503".into();
        StorageError::Failed { operation: "write", location: "x".into(), local, source }
    };
    assert_eq!(of(std::io::Error::other(failed(false))), Failure::Unavailable);
    assert_eq!(of(std::io::Error::other(failed(true))), Failure::Io);
    assert_eq!(of(std::io::Error::other("no space")), Failure::Io);
    let general = ParquetError::General("too long".into());
    let error = DatasetError::Write { shard: "x".into(), source: general };
    assert_eq!(error.failure(), Failure::Io);
}
