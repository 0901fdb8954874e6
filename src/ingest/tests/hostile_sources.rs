//! Sources that are damaged, odd or made with bad intent: names, tars, lists and Parquet files.
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
    fs::create_dir(at.source.join("a")).expect("a folder");
    fs::write(at.source.join("a/0.jpg"), jpeg(3)).expect("a file");
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

const IMAGES: u8 = 6;

/// The same bytes with a few changed, moved, repeated or cut.
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
    fs::create_dir_all(&at.source).expect("a folder");
    for number in 0..IMAGES {
        fs::write(at.source.join(format!("{number}.jpg")), jpeg(number + 1)).expect("an image");
    }
    let file = at.source.join(name);
    let mut taken = 0;
    for round in 0..rounds {
        let mut stream = Stream::new(round, Purpose::Test, 0, 0);
        fs::write(&file, damaged(whole, &mut stream)).expect("a file");
        let _ = fs::remove_dir_all(&at.dest);
        let all = Fraction::new(1.0).expect("valid");
        let lenient = IngestOptions { max_reject_fraction: all, threads: 1, ..options(&file, &at.dest) };
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

/// The rows of a list or table, counted by its format's own reader.
fn rows_of(file: &Path) -> Option<u64> {
    let bytes = fs::read(file).ok()?;
    if file.extension()? == "csv" {
        // What separates columns separates no lines.
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

#[test]
fn damaged_lists_and_tables_lose_no_image_silently() {
    survive("x.csv", &csv(), 60);
    survive("x.parquet", &table(), 60);
}

#[test]
#[ignore = "a thousand of each, by hand"]
fn a_thousand_damaged_lists_and_tables_lose_no_image_silently() {
    survive("x.csv", &csv(), 1000);
    survive("x.parquet", &table(), 1000);
}
