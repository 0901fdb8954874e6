//! An export has a file for every row, whatever the rows' paths are.

use super::*;
use crate::dataset::{
    ContentDigest, IndexRow, IngestRecord, PartReport, ShardWriter, Split, WriterOptions, write_index,
};
use crate::ids::InstanceId;
use crate::storage::{Digest, PublishMode};

/// A dataset with rows of these paths, each with other bytes.
fn dataset(at: &Fixture, paths: &[String]) -> Location {
    let dataset = location(&at.dest);
    let layout = WriterOptions { row_group: 2, classes: vec!["a".into()] };
    let mut writer = ShardWriter::start(&dataset, "train/shard-00000.parquet", &layout).expect("started");
    let (mut digest, mut rows) = (ContentDigest::default(), Vec::new());
    for (id, path) in (0..).map(InstanceId).zip(paths) {
        let bytes = bytes::Bytes::from(jpeg(id.0 as u8));
        digest.add(id, None, Digest::of(&bytes));
        let place = crate::dataset::Place {
            shard: 0,
            row: id.0,
            offset: 0,
            bytes: bytes.len() as u32,
            width: 20,
            height: 16,
            ..Default::default()
        };
        let image = Digest::of(&bytes);
        rows.push(IndexRow { id, label: None, path: path.clone(), place, image, view: None });
        let path = path.clone();
        writer
            .push(Row { id, label: None, bytes, path, width: 20, height: 16, entry_points: None })
            .expect("pushed");
    }
    let written = writer.finish().expect("published");
    for (row, &offset) in rows.iter_mut().zip(&written.offsets) {
        row.place.offset = offset;
    }
    let shards = vec![written.entry];
    let index = write_index(&dataset, "index/train.parquet", &rows).expect("written");
    let record = IngestRecord {
        program: String::new(),
        format: "parquet".into(),
        source_fingerprint: Digest::of(b""),
        options: Default::default(),
        instances: paths.len() as u64,
        index,
        report: PartReport::default(),
    };
    let split = Split {
        instances: paths.len() as u64,
        labelled: 0,
        image_bytes: 1,
        rejected: 0,
        digest: digest.finish(),
        shards,
        ingest: vec![record],
    };
    let manifest = Manifest::new(layout.classes, [("train".to_owned(), split)].into());
    manifest.publish(&dataset, PublishMode::Create).expect("published");
    dataset
}

/// The names of the exported files by id, and how many are not the rows' paths.
fn exported(paths: &[&str]) -> Result<(Vec<String>, u64), IngestError> {
    let at = fixture();
    let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
    let dataset = dataset(&at, &paths);
    let target = at.source.join("exported");
    let job = ExportOptions { dataset, dest: location(&target), split: None };
    let report = export(&job, &Quiet)?;
    assert_eq!(export(&job, &Quiet)?, report, "the same export again changes nothing");
    let files = walk(&target.join("train"));
    assert_eq!(files.len(), paths.len(), "a file for each row");
    let name = |id: usize| {
        let bytes = jpeg(id as u8);
        files.iter().find(|(_, found)| *found == bytes).expect("its file").0.clone()
    };
    Ok(((0..paths.len()).map(name).collect(), report.splits["train"].renamed))
}

/// Files with their contents; unlike a store's list, all of them.
fn walk(root: &Path) -> Vec<(String, Vec<u8>)> {
    let files = walkdir::WalkDir::new(root).into_iter().filter_map(Result::ok);
    let files = files.filter(|entry| entry.file_type().is_file());
    let name = |path: &Path| path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
    files.map(|entry| (name(entry.path()), fs::read(entry.path()).expect("a file"))).collect()
}

#[test]
fn rows_with_one_path_get_files_of_their_own() {
    let paths = ["a/1.jpg", "a/1.jpg", "./a//1.jpg", "b/1.jpg", "noend", "noend"];
    let (names, renamed) = exported(&paths).expect("exported");
    assert_eq!(names, ["a/1.jpg", "a/1-1.jpg", "a/1-2.jpg", "b/1.jpg", "noend.jpg", "noend-5.jpg"]);
    assert_eq!(renamed, 4);
}

#[test]
fn a_name_that_another_row_has_is_not_given_twice() {
    let (names, _) = exported(&["a/1.jpg", "a/1.jpg", "a/1-1.jpg", "a/1-1-1.jpg"]).expect("exported");
    assert_eq!(names, ["a/1.jpg", "a/1-1-1-1.jpg", "a/1-1.jpg", "a/1-1-1.jpg"]);
}

#[test]
fn a_path_that_is_a_folder_of_another_row_gets_another_name() {
    let (names, _) = exported(&["x.jpg", "x.jpg/y.jpg", "x.jpg/y.jpg/z.jpg"]).expect("exported");
    assert_eq!(names, ["x-0.jpg", "x.jpg/y-1.jpg", "x.jpg/y.jpg/z.jpg"]);
}

#[test]
fn names_that_file_systems_do_not_take_are_cut_or_cleaned() {
    let long = format!("a/{}.jpg", "é".repeat(150));
    let folder = format!("{}/1.jpg", "b".repeat(300));
    let paths = ["a/line\nbreak\0.jpg", "a/shot#12", "a/shot#x", "a\\b.jpg", &long, &folder];
    let (names, renamed) = exported(&paths).expect("exported");
    assert_eq!(names[..4], ["a/line%0Abreak%00.jpg", "a/shot%2312.jpg", "a/shot#x.jpg", "a\\b.jpg"]);
    assert_eq!(names[4], format!("a/{}-4.jpg", "é".repeat(122)));
    assert_eq!(names[5], format!("{}/1-5.jpg", "b".repeat(255)));
    assert_eq!(renamed, 5);
}

#[test]
fn a_path_that_leads_outside_is_an_error_before_the_first_file() {
    for bad in ["../x.jpg", "a/../../x.jpg", "a\\..\\..\\x.jpg", "/", ""] {
        let at = fixture();
        let dataset = dataset(&at, &["a/1.jpg".into(), bad.into()]);
        let job = ExportOptions { dataset, dest: location(&at.source), split: None };
        let error = export(&job, &Quiet).expect_err("it leads outside");
        assert!(error.to_string().contains("leads outside of the split"), "{bad}: {error}");
        assert_eq!(walk(&at.source), [], "{bad}");
    }
}

#[test]
fn an_export_into_the_dataset_is_refused() {
    let at = fixture();
    let dataset = dataset(&at, &["a/1.jpg".into()]);
    let before = walk(&at.dest);
    for dest in [dataset.clone(), dataset.join("images")] {
        let job = ExportOptions { dataset: dataset.clone(), dest, split: None };
        let error = export(&job, &Quiet).expect_err("it overlaps").to_string();
        assert!(error.contains("it overlaps the dataset"), "{error}");
    }
    assert_eq!(walk(&at.dest), before);
}
