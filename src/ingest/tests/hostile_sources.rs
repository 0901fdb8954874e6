//! Tests of damaged, odd or malicious sources: names, including those of splits, tars, lists and Parquet files.
//!
//! Whatever the damage, every image ends in the dataset or among the rejects, or there is one error.

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field};
use parquet::file::reader::FileReader;

use super::*;
use crate::rng::{Purpose, Stream};

#[test]
fn names_with_spaces_unicode_and_line_breaks_are_kept() {
    let at = fixture();
    let classes = ["a line\nbreak", "españa", "with space", "日本"];
    classes.iter().for_each(|class| write(at.source.join(class).join("a \"b\"\n.jpg"), jpeg(3)));
    at.ingest();
    assert_eq!(at.manifest().classes, classes);
    let paths: Vec<String> = at.rows().into_iter().map(|row| row.path).collect();
    assert_eq!(paths, classes.map(|class| format!("{class}/a \"b\"\n.jpg")));
}

#[test]
#[cfg(unix)]
fn a_name_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let at = with_folder();
    let name = std::ffi::OsStr::from_bytes(b"cat/\xFF\xFE.jpg");
    fs::write(at.source.join(name), jpeg(3)).expect("a file");
    let error = ingest(&at.options(), &Quiet).expect_err("1 of 13 is too many");
    assert!(error.to_string().contains("its name is not UTF-8"), "{error}");
    let report = ingest(&lenient(at.options()), &Quiet).expect("ingested");
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (12, 1));
    assert!(at.rejects().contains("its name is not UTF-8"), "{}", at.rejects());
}

#[test]
fn a_tar_header_with_a_wrong_size_is_an_error_that_names_the_place() {
    let at = with_folder();
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
    let at = fixture();
    let file = at.source.join("x.parquet");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["no image"]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    for (name, column, reason) in [
        ("image", text.clone(), "its column `image` holds paths, not bytes"),
        ("other", number, "no column of images; its columns are `other`"),
    ] {
        let batch = RecordBatch::try_from_iter([(name, column)]).expect("a batch");
        fs::write(&file, parquet_of(&batch)).expect("a file");
        let error = ingest(&options(&file, &at.dest), &Quiet).expect_err("no images");
        assert!(error.to_string().contains(reason), "{error}");
    }
    fs::write(&file, b"PAR1 and nothing else PAR1").expect("a file");
    let error = ingest(&options(&file, &at.dest), &Quiet).expect_err("damaged");
    assert_eq!(error.failure(), crate::failure::Failure::Data);
}

#[test]
fn a_header_in_quotes_names_the_columns_that_csv_has() {
    let at = fixture();
    write(at.source.join("a/0.jpg"), jpeg(3));
    let list = at.source.join("list.csv");
    let images = |text: &str| {
        fs::write(&list, text).expect("a list");
        let plan = source_plan(&options(&list, &at.dest)).map_err(|error| error.to_string())?;
        Ok::<_, String>((plan.classes.count, plan.splits["train"].images))
    };
    assert_eq!(images("\"x,y\",path,label\n\"1,2\",a/0.jpg,cat\n"), Ok((1, 1)));
    assert_eq!(images("\u{FEFF}\"x\ty\"\t\"path\"\tlabel\r\n1\t\"a/0.jpg\"\tcat\r\n"), Ok((1, 1)));
    assert_eq!(images("\"x\ny\";label;path\n1;cat;a/0.jpg\n"), Ok((1, 1)));
    for (text, reason) in [
        ("\"a,path\",label\na/0.jpg,cat\n", "no column of paths, but `a,path`, `label`"),
        ("label, \"path\"\ncat, \"a/0.jpg\"\n", "no column of paths, but `label`, `\"path\"`"),
        ("path;label,path\na/0.jpg;cat,a/0.jpg\n", "both by ',' and by ';'"),
    ] {
        let error = images(text).expect_err("no header");
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_broken_link_below_folders_that_are_passed_through_makes_no_class() {
    let at = fixture();
    folder(&at.source.join("sets/mine"));
    std::os::unix::fs::symlink("nowhere", at.source.join("sets/mine/cat/9.jpg")).expect("a link");
    let report = ingest(&lenient(at.options()), &Quiet).expect("ingested");
    assert_eq!(at.manifest().classes, ["cat", "dog breed"]);
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (12, 1));
    let strict = IngestOptions { dest: location(&at.dest.with_file_name("strict")), ..at.options() };
    let error = ingest(&strict, &Quiet).expect_err("1 of 13 is too many");
    assert!(error.to_string().contains("a link that leads nowhere"), "{error}");
}

const IMAGES: u8 = 6;

/// Changes, moves, repeats or cuts a few of the bytes.
fn damaged(bytes: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let below = |stream: &mut Stream, end: usize| (stream.range(0.0, 1.0) * end as f64) as usize;
    for _ in 0..=below(stream, 4) {
        let at = below(stream, bytes.len());
        let len = below(stream, 16).min(bytes.len() - at);
        match below(stream, 5) {
            0 => bytes[at] ^= 1 << below(stream, 8),
            1 => bytes[at] = b",\n\"-0/{\\;"[below(stream, 9)],
            2 => bytes.truncate(at.max(1)),
            3 => {
                let part = bytes[at..at + len].to_vec();
                bytes.splice(at..at, part);
            }
            _ => drop(bytes.drain(at..at + len)),
        }
        if bytes.is_empty() {
            bytes.push(b'x');
        }
    }
    bytes
}

/// Ingests damaged copies of a file.
fn survive(name: &str, whole: &[u8], rounds: u64) {
    let at = fixture();
    (0..IMAGES).for_each(|number| write(at.source.join(format!("{number}.jpg")), jpeg(number + 1)));
    let file = at.source.join(name);
    let mut taken = 0;
    for round in 0..rounds {
        let mut stream = Stream::new(round, Purpose::Test, 0, 0);
        fs::write(&file, damaged(whole, &mut stream)).expect("a file");
        let _ = fs::remove_dir_all(&at.dest);
        let lenient = IngestOptions { threads: 1, ..lenient(options(&file, &at.dest)) };
        let Ok(report) = ingest(&lenient, &Quiet) else {
            assert!(!at.dest.join("manifest.json").exists(), "{round}: nothing is published");
            continue;
        };
        taken += 1;
        let found: u64 = report.splits.values().map(|split| split.instances + split.rejected).sum();
        let listed: u64 = report.plan.splits.values().map(|split| split.images).sum();
        let faulty: u64 = report.plan.rejected.values().map(|counted| counted.count).sum();
        assert_eq!(found, listed + faulty, "{round}: every image is somewhere");
        assert_eq!(Some(found), rows_of(&file), "{round}: no row is lost");
    }
    assert!(taken > rounds / 20, "some are still read: {taken} of {rounds}");
}

/// Counts the rows of a list or table by its format's own reader.
fn rows_of(file: &Path) -> Option<u64> {
    let bytes = fs::read(file).ok()?;
    if file.extension()? == "csv" {
        // The separator of columns does not separate lines.
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(bytes.as_slice());
        return u64::try_from(reader.records().count()).ok();
    }
    let reader = parquet::file::reader::SerializedFileReader::new(bytes::Bytes::from(bytes)).ok()?;
    u64::try_from(reader.metadata().file_metadata().num_rows()).ok()
}

fn csv() -> Vec<u8> {
    let line =
        |number: u8| format!("{number}.jpg,{},{}\n", number % 3, if number < 4 { "train" } else { "val" });
    ("path,label,split\n".to_owned() + &(0..IMAGES).map(line).collect::<String>()).into_bytes()
}

fn table() -> Vec<u8> {
    let images: Vec<Vec<u8>> = (0..IMAGES).map(|number| jpeg(number + 1)).collect();
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(&images));
    let paths: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..IMAGES).map(|number| format!("{number}.jpg"))));
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    let image: ArrayRef = Arc::new(StructArray::new(fields.into(), vec![bytes, paths], None));
    let labels: ArrayRef =
        Arc::new(Int64Array::from_iter_values((0..IMAGES).map(|number| i64::from(number % 3))));
    let batch = RecordBatch::try_from_iter([("image", image), ("label", labels)]).expect("a batch");
    parquet_of(&batch)
}

/// INSTDISC_ROUNDS in the environment sets the number of rounds of each.
#[test]
fn damaged_lists_and_tables_lose_no_image_silently() {
    let rounds = std::env::var("INSTDISC_ROUNDS").map_or(60, |rounds| rounds.parse().expect("a number"));
    survive("x.csv", &csv(), rounds);
    survive("x.parquet", &table(), rounds);
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
    ingest(&lenient(IngestOptions { splits, ..at.options() }), &Quiet).expect("ingested");
    let before = files(&at.dest);
    let more = at.source.with_file_name("more");
    images(&more, 6..9);
    fs::write(more.join("cat/worse.jpg"), b"worse").expect("a file");
    let append = lenient(into_split("train", appending(&more, &at.dest)));
    ingest(&append, &Quiet).expect("appended");
    let after = files(&at.dest);
    let replaced = ["manifest.json", "duplicates.parquet"];
    for file in before.iter().filter(|(name, _)| !replaced.contains(&name.as_str())) {
        assert!(after.contains(file), "{} has changed", file.0);
    }
    at.verify();
    let rejects = |name: &str| fs::read_to_string(at.dest.join(name)).expect("rejects");
    assert!(rejects("rejects/train-0001.jsonl").contains("cat/bad.jpg"));
    assert!(rejects("rejects/0001/train.jsonl").contains("cat/worse.jpg"));
    let verify = IngestOptions { verify_source: true, ..append };
    assert_eq!(ingest(&verify, &Quiet).expect("verified").held_by, Some(HeldBy::Contents));
}

/// Renames the files of an appended part as earlier versions named them.
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
    at.ingest();
    let more = at.source.with_file_name("more");
    images(&more, 3..6);
    fs::write(more.join("cat/bad.jpg"), b"bad").expect("a file");
    let append = lenient(appending(&more, &at.dest));
    ingest(&append, &Quiet).expect("appended");
    rename_as_before(&at.dest);
    let verify = IngestOptions { verify_source: true, ..append };
    assert_eq!(ingest(&verify, &Quiet).expect("verified").held_by, Some(HeldBy::Contents));
    let before = files(&at.dest);
    let other = lenient(into_split("train-0001", options(&more, &at.dest)));
    let error = ingest(&other, &Quiet).expect_err("the name is taken").to_string();
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
    ingest(&IngestOptions { splits, ..at.options() }, &Quiet).expect("ingested");
    let more = at.source.with_file_name("more");
    images(&more, 20..22);
    for name in names {
        ingest(&into_split(name, appending(&more, &at.dest)), &Quiet).expect(name);
    }
    let manifest = at.manifest();
    assert_eq!(manifest.splits.keys().map(String::as_str).collect::<Vec<_>>(), names);
    assert!(manifest.splits.values().all(|split| split.instances == 3));
    at.verify();
    assert!(!at.dest.join(".work").exists());
}

#[test]
fn a_split_that_is_called_like_a_file_of_a_dataset_is_an_error_before_anything_is_written() {
    let at = fixture();
    images(&at.source, 0..2);
    let long = "x".repeat(101);
    let files = ["manifest.json", "duplicates.parquet", "index", "rejects", ".work"];
    for name in files.into_iter().chain(["..", "a/b", "", "a\u{7}b", &long]) {
        let named = into_split(name, at.options());
        let error = ingest(&named, &Quiet).expect_err("no name of a split");
        assert_eq!(error.failure(), crate::failure::Failure::Data);
        assert!(error.to_string().contains("a split cannot be called `"), "{error}");
        assert!(!at.dest.exists());
        if name.is_empty() {
            // In a list, an empty name is no split.
            continue;
        }
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
    // More than 16 bits can count.
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
