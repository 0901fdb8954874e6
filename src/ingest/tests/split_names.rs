//! Splits whose names come near the names of files.

use super::*;

/// A folder of one class with images of these numbers.
fn images(root: &Path, numbers: std::ops::Range<u8>) {
    fs::create_dir_all(root.join("cat")).expect("a folder");
    for number in numbers {
        fs::write(root.join(format!("cat/{number}.jpg")), jpeg(number + 1)).expect("a file");
    }
}

fn split(name: &str, pattern: &str) -> (String, PathGlob) {
    (name.into(), PathGlob::new(pattern).expect("a pattern"))
}

#[test]
fn appending_to_a_split_leaves_the_files_of_a_split_that_is_called_like_its_parts() {
    let at = fixture();
    images(&at.source.join("train"), 0..3);
    images(&at.source.join("train-0001"), 3..6);
    fs::write(at.source.join("train-0001/cat/bad.jpg"), b"bad").expect("a file");
    let splits = vec![split("train", "train/**"), split("train-0001", "train-0001/**")];
    ingest(&lenient(IngestOptions { splits, ..options(&at.source, &at.dest) }), &Quiet).expect("ingested");
    let before = files(&at.dest);
    let more = at.source.with_file_name("more");
    images(&more, 6..9);
    fs::write(more.join("cat/worse.jpg"), b"worse").expect("a file");
    let append =
        IngestOptions { append: true, split: Some("train".into()), ..lenient(options(&more, &at.dest)) };
    ingest(&append, &Quiet).expect("appended");
    let after = files(&at.dest);
    let replaced = ["manifest.json", "duplicates.parquet"];
    for file in before.iter().filter(|(name, _)| !replaced.contains(&name.as_str())) {
        assert!(after.contains(file), "{} has changed", file.0);
    }
    let manifest = Manifest::read(&location(&at.dest)).expect("a manifest");
    verify(&location(&at.dest), &manifest, &entry_points, &Quiet).expect("whole");
    let rejects = |name: &str| fs::read_to_string(at.dest.join(name)).expect("rejects");
    assert!(rejects("rejects/train-0001.jsonl").contains("cat/bad.jpg"));
    assert!(rejects("rejects/0001/train.jsonl").contains("cat/worse.jpg"));
    let verify = IngestOptions { verify_source: true, ..append };
    assert_eq!(ingest(&verify, &Quiet).expect("verified").held_by, Some(HeldBy::Contents));
}

/// Gives an appended part the names that earlier versions gave it.
fn rename_as_before(dest: &Path) {
    let mut manifest = Manifest::read(&location(dest)).expect("a manifest");
    let part = &mut manifest.splits.get_mut("train").expect("a split").ingest[1];
    part.index.path = "index/train-0001.parquet".into();
    for (new, old) in [
        ("index/0001/train.parquet", "index/train-0001.parquet"),
        ("rejects/0001/train.jsonl", "rejects/train-0001.jsonl"),
    ] {
        fs::rename(dest.join(new), dest.join(old)).expect("renamed");
    }
    manifest.publish(&location(dest), crate::storage::PublishMode::Overwrite).expect("published");
}

#[test]
fn files_that_the_manifest_names_otherwise_are_read_and_never_written_over() {
    let at = fixture();
    images(&at.source, 0..3);
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let more = at.source.with_file_name("more");
    images(&more, 3..6);
    fs::write(more.join("cat/bad.jpg"), b"bad").expect("a file");
    let append = lenient(IngestOptions { append: true, ..options(&more, &at.dest) });
    ingest(&append, &Quiet).expect("appended");
    rename_as_before(&at.dest);
    let verify = IngestOptions { verify_source: true, ..append };
    assert_eq!(ingest(&verify, &Quiet).expect("verified").held_by, Some(HeldBy::Contents));
    let before = files(&at.dest);
    let other = IngestOptions { split: Some("train-0001".into()), ..options(&more, &at.dest) };
    let error = ingest(&lenient(other), &Quiet).expect_err("the name is taken").to_string();
    assert!(error.contains("`index/train-0001.parquet` is of another split than `train-0001`"), "{error}");
    assert_eq!(files(&at.dest), before);
}

#[test]
fn splits_of_odd_names_are_ingested_and_appended_to() {
    let at = fixture();
    let names = ["0001", "a b", "a#1", "a%20b", "index.parquet", "lock", "plan", "テスト"];
    let mut splits = Vec::new();
    for (number, name) in (0..).zip(names) {
        images(&at.source.join(format!("s{number}")), number..number + 1);
        splits.push(split(name, &format!("s{number}/**")));
    }
    ingest(&IngestOptions { splits, ..options(&at.source, &at.dest) }, &Quiet).expect("ingested");
    let more = at.source.with_file_name("more");
    images(&more, 20..22);
    for name in names {
        let append = IngestOptions { append: true, split: Some(name.into()), ..options(&more, &at.dest) };
        ingest(&append, &Quiet).expect(name);
    }
    let manifest = Manifest::read(&location(&at.dest)).expect("a manifest");
    assert_eq!(manifest.splits.keys().map(String::as_str).collect::<Vec<_>>(), names);
    assert!(manifest.splits.values().all(|split| split.instances == 3));
    verify(&location(&at.dest), &manifest, &entry_points, &Quiet).expect("whole");
    assert!(!at.dest.join(".work").exists());
}

#[test]
fn a_split_that_is_called_like_a_file_of_a_dataset_is_an_error_before_anything_is_written() {
    let at = fixture();
    images(&at.source, 0..2);
    let long = "x".repeat(101);
    for name in ["manifest.json", "duplicates.parquet", "index", "rejects", ".work", "a\u{7}b", &long] {
        let named = IngestOptions { split: Some(name.into()), ..options(&at.source, &at.dest) };
        let error = ingest(&named, &Quiet).expect_err("no name of a split");
        assert_eq!(error.failure(), crate::failure::Failure::Data);
        assert!(error.to_string().contains("a split cannot be called `"), "{error}");
        let list = at.source.join("list.csv");
        fs::write(&list, format!("path,label,split\ncat/0.jpg,cat,{name}\n")).expect("a list");
        let error = ingest(&options(&list, &at.dest), &Quiet).expect_err("no name of a split");
        assert!(error.to_string().contains("a split cannot be called `"), "{error}");
        assert!(!at.dest.exists());
    }
}

#[test]
fn a_column_of_too_many_splits_is_one_error_that_names_the_first() {
    let at = fixture();
    images(&at.source, 0..1);
    let list = at.source.join("list.csv");
    // More than 16 bits count.
    for count in [1_001, 66_000] {
        let rows: String = (0..count).map(|row| format!("cat/0.jpg,c{row},s{row:05}\n")).collect();
        fs::write(&list, format!("path,label,split\n{rows}")).expect("a list");
        let error = ingest(&options(&list, &at.dest), &Quiet).expect_err("too many").to_string();
        assert!(error.contains("more than 1000 splits (`s00000`, `s00001`"), "{error}");
        assert!(!at.dest.exists());
    }
}

#[test]
fn many_splits_without_common_classes_are_one_warning() {
    let at = fixture();
    images(&at.source, 0..40);
    let list = at.source.join("list.csv");
    let rows: String = (0..40).map(|row| format!("cat/{row}.jpg,c{row},s{row}\n")).collect();
    fs::write(&list, format!("path,label,split\n{rows}")).expect("a list");
    let plan = source_plan(&options(&list, &at.dest)).expect("a plan");
    let lines: Vec<_> = plan.warnings.iter().filter(|line| line.contains("no class in common")).collect();
    assert_eq!(lines, ["the splits `s0` and `s1` have no class in common, nor have 779 other pairs"]);
}
