//! Sources that somebody made badly or with bad intent: names, tars and Parquet files.

use super::*;

#[test]
fn names_with_spaces_unicode_and_line_breaks_are_kept() {
    let at = fixture();
    let classes = ["a line\nbreak", "españa", "with space", "日本"];
    for class in classes {
        fs::create_dir_all(at.source.join(class)).expect("a folder");
        fs::write(at.source.join(class).join("a \"b\"\n.jpg"), jpeg(3)).expect("a file");
    }
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let dataset = location(&at.dest);
    let manifest = Manifest::read(&dataset).expect("a manifest");
    assert_eq!(manifest.classes, classes);
    let paths: Vec<String> = rows(&dataset, &manifest).into_iter().map(|row| row.path).collect();
    assert_eq!(paths, classes.map(|class| format!("{class}/a \"b\"\n.jpg")));
}

#[test]
#[cfg(unix)]
fn a_name_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let at = fixture();
    folder(&at.source);
    let name = std::ffi::OsStr::from_bytes(b"cat/\xFF\xFE.jpg");
    fs::write(at.source.join(name), jpeg(3)).expect("a file");
    let error = ingest(&options(&at.source, &at.dest), &Quiet).expect_err("1 of 13 is too many");
    assert!(error.to_string().contains("its name is not UTF-8"), "{error}");
    let half = Fraction::new(0.5).expect("valid");
    let lenient = IngestOptions { max_reject_fraction: half, ..options(&at.source, &at.dest) };
    let report = ingest(&lenient, &Quiet).expect("ingested");
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (12, 1));
    let rejects = fs::read_to_string(at.dest.join("rejects/train.jsonl")).expect("rejects");
    assert!(rejects.contains("its name is not UTF-8"), "{rejects}");
}

#[test]
fn a_tar_header_with_a_wrong_size_is_an_error_that_names_the_place() {
    let at = fixture();
    folder(&at.source);
    let tar = at.dest.with_extension("tar");
    tar_of(&at.source, &tar);
    let whole = fs::read(&tar).expect("a tar");
    let member = (0..whole.len()).step_by(512).find(|&start| whole[start..].starts_with(b"images/cat/0.jpg"));
    let start = member.expect("the member");
    for size in ["77777777777", "00000000000"] {
        let mut changed = whole.clone();
        changed[start + 124..start + 135].copy_from_slice(size.as_bytes());
        changed[start + 148..start + 156].fill(b' ');
        let sum: u32 = changed[start..start + 512].iter().map(|&byte| u32::from(byte)).sum();
        changed[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        fs::write(&tar, changed).expect("a tar");
        let error = ingest(&options(&tar, &at.dest), &Quiet).expect_err("a wrong size");
        assert!(matches!(error, IngestError::Tar { .. }), "{size}: {error}");
        assert!(!at.dest.exists());
    }
}

#[test]
fn a_parquet_file_of_other_columns_is_refused_with_their_types() {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let at = fixture();
    let file = at.source.join("x.parquet");
    let text: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["no image"]));
    let number: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![1]));
    for (name, column, reason) in [
        ("image", text.clone(), "its column `image` holds paths, not bytes"),
        ("other", number, "no column of images; its columns are `other`"),
    ] {
        let batch = RecordBatch::try_from_iter([(name, column)]).expect("a batch");
        let mut bytes = Vec::new();
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("written");
        writer.close().expect("written");
        fs::write(&file, bytes).expect("a file");
        let error = ingest(&options(&file, &at.dest), &Quiet).expect_err("no images");
        assert!(error.to_string().contains(reason), "{error}");
    }
    fs::write(&file, b"PAR1 and nothing else PAR1").expect("a file");
    let error = ingest(&options(&file, &at.dest), &Quiet).expect_err("damaged");
    assert_eq!(error.failure(), crate::failure::Failure::Data);
}

#[test]
fn a_split_with_the_name_of_another_folder_is_refused() {
    let at = fixture();
    folder(&at.source);
    for name in ["index", "rejects", ".work", "..", "a/b", ""] {
        let named = IngestOptions { split: Some(name.into()), ..options(&at.source, &at.dest) };
        let error = ingest(&named, &Quiet).expect_err("no name of a split");
        assert!(error.to_string().contains(&format!("a split cannot be called `{name}`")), "{error}");
        assert!(!at.dest.exists());
    }
}

#[test]
fn a_broken_link_below_folders_that_are_passed_through_makes_no_class() {
    let at = fixture();
    folder(&at.source.join("sets/mine"));
    std::os::unix::fs::symlink("nowhere", at.source.join("sets/mine/cat/9.jpg")).expect("a link");
    let half = Fraction::new(0.5).expect("valid");
    let lenient = IngestOptions { max_reject_fraction: half, ..options(&at.source, &at.dest) };
    let report = ingest(&lenient, &Quiet).expect("ingested");
    assert_eq!(Manifest::read(&location(&at.dest)).expect("a manifest").classes, ["cat", "dog breed"]);
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (12, 1));
    let strict =
        IngestOptions { dest: location(&at.dest.with_file_name("strict")), ..options(&at.source, &at.dest) };
    let error = ingest(&strict, &Quiet).expect_err("1 of 13 is too many");
    assert!(error.to_string().contains("a link that leads nowhere"), "{error}");
}
