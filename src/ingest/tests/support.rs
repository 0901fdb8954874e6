//! What the tests of images share: ingesting a few made by hand.

use turbojpeg::{Compressor, PixelFormat, Subsamp};

use super::*;

/// Ingests images with these names and contents beside a good one; what was accepted and why the rest was
/// refused, by name.
pub(super) fn verdicts(
    images: &[(&str, Vec<u8>)],
    change: impl Fn(&mut IngestOptions),
) -> (Vec<Row>, Vec<(String, String)>) {
    let at = fixture();
    fs::create_dir_all(at.source.join("a")).expect("a folder");
    fs::write(at.source.join("a/0-good.jpg"), jpeg(1)).expect("a file");
    for (name, bytes) in images {
        fs::write(at.source.join("a").join(name), bytes).expect("a file");
    }
    let mut options = options(&at.source, &at.dest);
    options.max_reject_fraction = Fraction::new(1.0).expect("valid");
    change(&mut options);
    ingest(&options, &Quiet).expect("ingested");
    let dataset = location(&at.dest);
    let accepted = rows(&dataset, &Manifest::read(&dataset).expect("a manifest"));
    let text = fs::read_to_string(at.dest.join("rejects/train.jsonl")).expect("rejects");
    let refused = text.lines().map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| value[name].as_str().expect("text").to_owned();
        (field("path"), field("reason"))
    });
    (accepted, refused.collect())
}

pub(super) fn detailed(width: u32, height: u32) -> DecodedImage {
    let rgb = (0..width * height * 3).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    DecodedImage { width, height, rgb }
}

pub(super) fn compressed(pixels: &[u8], format: PixelFormat, change: impl Fn(&mut Compressor)) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("a compressor");
    compressor.set_subsamp(Subsamp::None).expect("subsampling");
    compressor.set_quality(95).expect("quality");
    change(&mut compressor);
    let image = turbojpeg::Image { pixels, width: 16, pitch: 16 * format.size(), height: 16, format };
    compressor.compress_to_vec(image).expect("encoded")
}

/// A Parquet table of encoded images and labels, without names of files; perhaps with Hugging Face's names of classes.
pub(super) fn parquet_table(images: &[(i64, Vec<u8>)], classes: Option<&[&str]>) -> Vec<u8> {
    use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    let bytes: ArrayRef =
        std::sync::Arc::new(BinaryArray::from_iter_values(images.iter().map(|(_, bytes)| bytes)));
    let labels: ArrayRef =
        std::sync::Arc::new(Int64Array::from_iter_values(images.iter().map(|(label, _)| *label)));
    let mut schema = Schema::new(vec![
        Field::new("image", DataType::Binary, true),
        Field::new("label", DataType::Int64, true),
    ]);
    if let Some(names) = classes {
        let entry =
            serde_json::json!({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}});
        schema.metadata.insert("huggingface", entry.to_string());
    }
    let batch = RecordBatch::try_new(std::sync::Arc::new(schema), vec![bytes, labels]).expect("a batch");
    let mut table = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut table, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("written");
    table
}
