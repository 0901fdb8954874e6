//! Lists and tables with random damage: every image ends in the dataset or among the rejects, or there is one error.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field};
use parquet::file::reader::FileReader;

use super::*;
use crate::rng::{Purpose, Stream};

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
        assert_eq!(Some(found), rows(&file), "{round}: no row is lost");
    }
    assert!(taken > rounds / 20, "some are still read: {taken} of {rounds}");
}

/// The rows of a list or table, counted by its format's own reader.
fn rows(file: &Path) -> Option<u64> {
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
    let mut file = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("written");
    file
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
