mod appended;
mod exported;
mod hostile_images;
mod hostile_sources;
mod resumed;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use turbojpeg::{Compressor, PixelFormat, Subsamp};

use super::*;
use crate::dataset::{Manifest, Row, ShardReader, verify};
use crate::image::tests::detailed;
use crate::image::{DecodedImage, encode_jpeg, encode_png, entry_points};
use crate::progress::Quiet;
use crate::storage::PublishMode;

fn location(path: &Path) -> Location {
    Location::from_path(path).expect("a location")
}

fn jpeg(number: u8) -> Vec<u8> {
    let rgb = (0..20 * 16 * 3).map(|at| (at as u8).wrapping_mul(number)).collect();
    encode_jpeg(&DecodedImage { width: 20, height: 16, rgb }, 90).expect("encoded")
}

fn png() -> Vec<u8> {
    encode_png(&DecodedImage { width: 2, height: 2, rgb: vec![9; 12] }).expect("encoded")
}

/// Makes an ImageFolder of 2 classes with 6 images each; one is a PNG named as a JPEG.
fn folder(root: &Path) {
    for (class, first) in [("cat", 1), ("dog breed", 50)] {
        for number in 0..6 {
            write(root.join(class).join(format!("{number}.jpg")), jpeg(first + number));
        }
    }
    fs::write(root.join("cat/3.jpg"), png()).expect("a file");
}

/// Writes images of these numbers to the folder of the class `cat`.
fn images(root: &Path, numbers: std::ops::Range<u8>) {
    numbers.for_each(|number| write(root.join(format!("cat/{number}.jpg")), jpeg(number)));
}

fn tar_of(root: &Path, tar: &Path) {
    let mut builder = tar::Builder::new(fs::File::create(tar).expect("a file"));
    builder.append_dir_all("images", root).expect("packed");
    builder.into_inner().expect("finished");
}

fn options(source: &Path, dest: &Path) -> IngestOptions {
    let base = IngestOptions::new(location(source), location(dest));
    IngestOptions { shard_bytes: 2000, row_group: 2, ..base }
}

fn appending(source: &Path, dest: &Path) -> IngestOptions {
    IngestOptions { append: true, ..options(source, dest) }
}

fn into_split(name: &str, base: IngestOptions) -> IngestOptions {
    IngestOptions { split: Some(name.into()), ..base }
}

/// Replaces a file by other bytes of the same size, and keeps its modification time.
fn replace_unnoticed(path: &Path, bytes: &[u8]) {
    let before = fs::metadata(path).expect("a file");
    assert_eq!(before.len(), bytes.len() as u64);
    fs::write(path, bytes).expect("replaced");
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.set_modified(before.modified().expect("a time")).expect("set");
}

fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let list = location(root).list().expect("a list");
    list.into_iter()
        .map(|entry| (entry.name.clone(), fs::read(root.join(entry.name)).expect("a file")))
        .collect()
}

/// Reads the rows of the split `train` in the order of their ids.
fn rows(dataset: &Location, manifest: &Manifest) -> Vec<Row> {
    let split = &manifest.splits["train"];
    let mut rows = Vec::new();
    for entry in &split.shards {
        let reader =
            ShardReader::open(dataset, entry, manifest.classes.len(), split.instances).expect("a shard");
        (0..reader.row_groups()).for_each(|group| rows.extend(reader.read_row_group(group).expect("rows")));
    }
    rows.sort_by_key(|row| row.id);
    rows
}

struct Fixture {
    _dir: tempfile::TempDir,
    source: std::path::PathBuf,
    dest: std::path::PathBuf,
}

impl Fixture {
    fn options(&self) -> IngestOptions {
        options(&self.source, &self.dest)
    }

    fn ingest(&self) -> IngestReport {
        ingest(&self.options(), &Quiet).expect("ingested")
    }

    fn manifest(&self) -> Manifest {
        Manifest::read(&location(&self.dest)).expect("a manifest")
    }

    fn rows(&self) -> Vec<Row> {
        rows(&location(&self.dest), &self.manifest())
    }

    /// Checks that the dataset is whole.
    fn verify(&self) {
        verify(&location(&self.dest), &self.manifest(), &entry_points, &Quiet).expect("whole");
    }

    /// Reads the lines of the rejected images of `train`.
    fn rejects(&self) -> String {
        fs::read_to_string(self.dest.join("rejects/train.jsonl")).expect("rejects")
    }
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("a folder");
    let (source, dest) = (dir.path().join("source"), dir.path().join("dest"));
    fs::create_dir(&source).expect("a folder");
    Fixture { _dir: dir, source, dest }
}

/// Makes a fixture whose source is that of [`folder`].
fn with_folder() -> Fixture {
    let at = fixture();
    folder(&at.source);
    at
}

/// Makes the same fixture, with its source ingested.
fn ingested() -> Fixture {
    let at = with_folder();
    at.ingest();
    at
}

/// Writes a file, and creates its folder if it is missing.
fn write(file: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(file.as_ref().parent().expect("a folder")).expect("a folder");
    fs::write(file, bytes).expect("a file");
}

/// Allows any number of rejected images.
fn lenient(options: IngestOptions) -> IngestOptions {
    IngestOptions { max_reject_fraction: Fraction::new(1.0).expect("valid"), ..options }
}

/// Ingests images with these names and contents beside a good one; returns the accepted rows, and the name and reason
/// of each rejected image.
fn verdicts(
    images: &[(&str, Vec<u8>)],
    change: impl Fn(&mut IngestOptions),
) -> (Vec<Row>, Vec<(String, String)>) {
    let at = fixture();
    write(at.source.join("a/0-good.jpg"), jpeg(1));
    for (name, bytes) in images {
        fs::write(at.source.join("a").join(name), bytes).expect("a file");
    }
    let mut options = lenient(at.options());
    change(&mut options);
    ingest(&options, &Quiet).expect("ingested");
    let (accepted, text) = (at.rows(), at.rejects());
    let refused = text.lines().map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| value[name].as_str().expect("text").to_owned();
        (field("path"), field("reason"))
    });
    (accepted, refused.collect())
}

fn compressed(pixels: &[u8], format: PixelFormat, change: impl Fn(&mut Compressor)) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("a compressor");
    compressor.set_subsamp(Subsamp::None).expect("subsampling");
    compressor.set_quality(95).expect("quality");
    change(&mut compressor);
    let image = turbojpeg::Image { pixels, width: 16, pitch: 16 * format.size(), height: 16, format };
    compressor.compress_to_vec(image).expect("encoded")
}

fn progressive() -> Vec<u8> {
    compressed(&detailed(16, 16).rgb, PixelFormat::RGB, |compressor| {
        compressor.set_progressive(true).expect("progressive");
    })
}

/// Makes a Parquet table of encoded images and labels, without file names; optionally with Hugging Face class names.
fn parquet_table(images: &[(i64, Vec<u8>)], classes: Option<&[&str]>) -> Vec<u8> {
    use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(images.iter().map(|(_, bytes)| bytes)));
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values(images.iter().map(|(label, _)| *label)));
    let mut schema = Schema::new(vec![
        Field::new("image", DataType::Binary, true),
        Field::new("label", DataType::Int64, true),
    ]);
    if let Some(names) = classes {
        let entry =
            serde_json::json!({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}});
        schema.metadata.insert("huggingface", entry.to_string());
    }
    let batch = RecordBatch::try_new(Arc::new(schema), vec![bytes, labels]).expect("a batch");
    parquet_of(&batch)
}

/// Encodes these rows as a Parquet file.
fn parquet_of(batch: &arrow::array::RecordBatch) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), None).expect("a writer");
    writer.write(batch).expect("written");
    writer.close().expect("written");
    file
}

#[test]
fn a_folder_becomes_a_dataset_that_verifies() {
    let at = with_folder();
    let report = at.ingest();
    let split = &report.splits["train"];
    assert_eq!((split.instances, split.rejected, report.classes), (12, 0, 2));
    assert_eq!(split.found.kinds["png rgb"], 1);
    assert!(split.shards > 1);
    let manifest = at.manifest();
    assert_eq!(manifest.classes, ["cat", "dog breed"]);
    at.verify();
}

#[test]
fn ids_follow_the_sorted_folder_and_rows_keep_their_images() {
    let at = ingested();
    let rows = at.rows();
    let expected = (0..12).map(|id| {
        let class = if id < 6 { "cat" } else { "dog breed" };
        format!("{class}/{}.jpg", id % 6)
    });
    assert_eq!(rows.iter().map(|row| row.path.clone()).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    for row in rows {
        assert_eq!(row.bytes, fs::read(at.source.join(&row.path)).expect("the image"));
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let at = with_folder();
    let other = at.dest.with_file_name("other");
    ingest(&IngestOptions { threads: 1, ..at.options() }, &Quiet).expect("ingested");
    ingest(&IngestOptions { threads: 3, ..options(&at.source, &other) }, &Quiet).expect("ingested");
    assert_eq!(files(&at.dest), files(&other));
}

#[test]
fn a_second_run_finds_its_work_done_and_another_source_is_refused() {
    let at = ingested();
    let before = files(&at.dest);
    assert!(ingest(&at.options(), &Quiet).expect("again").already_done);
    fs::write(at.source.join("cat/9.jpg"), jpeg(99)).expect("one more");
    let error = ingest(&at.options(), &Quiet).expect_err("another dataset");
    assert!(error.to_string().contains("it already holds another dataset"), "{error}");
    assert_eq!(files(&at.dest), before);
}

#[test]
fn another_split_is_added_and_the_first_stays() {
    let at = ingested();
    let before = at.manifest();
    ingest(&into_split("val", at.options()), &Quiet).expect("added");
    let after = at.manifest();
    assert_eq!(after.splits["train"], before.splits["train"]);
    assert_eq!(after.splits["val"].instances, 12);
    at.verify();
}

#[test]
fn a_bad_image_is_rejected_with_its_reason_and_leaves_no_gap() {
    let at = with_folder();
    fs::write(at.source.join("cat/2.jpg"), &jpeg(3)[..100]).expect("cut");
    let error = ingest(&at.options(), &Quiet).expect_err("1 of 12 is too many");
    assert!(
        matches!(&error, IngestError::TooManyRejects { rejected: 1, first, .. } if first.contains("cat/2.jpg"))
    );
    let none_left = fixture();
    write(none_left.source.join("cat/1.jpg"), &jpeg(3)[..100]);
    let text = ingest(&lenient(none_left.options()), &Quiet).expect_err("nothing is left").to_string();
    assert!(text.contains("1 of 1 images were rejected, so none is left; the first: cat/1.jpg"), "{text}");
    let advice = "share of 0.01 that is allowed; `--max-reject-fraction 0.09`";
    assert!(error.to_string().contains(advice), "{error}");
    assert!(!at.dest.join("manifest.json").exists());
    let report = ingest(&lenient(at.options()), &Quiet).expect("ingested");
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (11, 1));
    let rejects = at.rejects();
    assert!(rejects.contains("cat/2.jpg") && rejects.lines().count() == 1, "{rejects}");
    at.verify();
}

#[test]
fn a_destination_with_images_in_it_is_refused_and_they_stay() {
    let at = with_folder();
    write(at.dest.join("holiday/1.JPG"), jpeg(3));
    let error = ingest(&at.options(), &Quiet).expect_err("a folder of images");
    assert!(error.to_string().contains("it holds images, such as `holiday/1.JPG`"), "{error}");
    assert_eq!(fs::read_dir(&at.dest).expect("the folder").count(), 1, "nothing was written");
}

#[test]
fn a_truncated_tar_is_refused_wherever_it_is_cut() {
    let at = with_folder();
    let tar = at.dest.with_extension("tar");
    tar_of(&at.source, &tar);
    let whole = fs::read(&tar).expect("a tar");
    for cut in [700, whole.len() / 2, whole.len() - 1500] {
        fs::write(&tar, &whole[..cut]).expect("cut");
        let error = ingest(&options(&tar, &at.dest), &Quiet).expect_err("cut");
        assert!(matches!(error, IngestError::Tar { .. }), "{cut}: {error}");
        assert!(!at.dest.exists());
    }
}

#[test]
fn links_devices_and_names_that_lead_outside_are_rejected_with_their_reasons() {
    let at = fixture();
    let tar = at.dest.with_extension("tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar).expect("a file"));
    let mut add = |path: &str, kind: tar::EntryType, contents: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        builder.append(&header, contents).expect("packed");
    };
    add("a/1.jpg", tar::EntryType::Regular, &jpeg(1));
    add("../a/2.jpg", tar::EntryType::Regular, &jpeg(2));
    add("/a/3.jpg", tar::EntryType::Regular, &jpeg(3));
    add("a/4.jpg", tar::EntryType::Symlink, b"");
    add("a/5.jpg", tar::EntryType::Char, b"");
    builder.into_inner().expect("finished");
    let error = ingest(&options(&tar, &at.dest), &Quiet).expect_err("4 of 5 cannot be taken");
    assert!(matches!(error, IngestError::TooManyRejects { rejected: 4, total: 5, .. }), "{error}");
    let report = ingest(&lenient(options(&tar, &at.dest)), &Quiet).expect("ingested");
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (1, 4));
    let reasons: Vec<&str> = report.plan.rejected.keys().map(String::as_str).collect();
    assert_eq!(reasons.len(), 3, "a link, a device, names that lead outside: {reasons:?}");
}

#[test]
fn a_missing_source_and_a_file_that_is_no_tar_are_told_apart() {
    let at = fixture();
    // A missing source is missing at a retry, too, in a store as well.
    for missing in [location(&at.source.join("nowhere")), Location::in_memory().join("nowhere")] {
        let job = IngestOptions { sources: vec![missing], ..at.options() };
        let error = ingest(&job, &Quiet).expect_err("missing");
        assert_eq!(error.failure(), crate::failure::Failure::Data);
        assert!(error.to_string().ends_with("/nowhere: no such source"), "{error}");
    }
    let text = at.source.join("x.tar");
    fs::write(&text, "no tar").expect("a file");
    let error = ingest(&options(&text, &at.dest), &Quiet).expect_err("no tar");
    assert!(error.to_string().contains("neither a folder, a tar, a Parquet file nor a list"), "{error}");
}

#[test]
fn the_drawn_set_is_a_function_of_its_seed_and_can_be_ingested() {
    let at = fixture();
    let options = SynthOptions {
        dest: at.source.clone(),
        train_per_class: 3,
        val_per_class: 2,
        ..SynthOptions::default()
    };
    let other = SynthOptions { dest: at.source.with_file_name("other"), ..options.clone() };
    assert!(!synth(&options, &Quiet).expect("drawn").already_done);
    synth(&other, &Quiet).expect("drawn");
    assert_eq!(files(&options.dest), files(&other.dest));
    assert!(synth(&options, &Quiet).expect("again").already_done);
    let elsewhere = SynthOptions { seed: 1, ..options };
    assert!(matches!(synth(&elsewhere, &Quiet), Err(SynthError::NotEmpty { .. })));
    let report = at.ingest();
    assert_eq!((report.splits["train"].instances, report.splits["val"].instances), (30, 20));
}

/// Copies the files of a folder of this machine into a store.
fn upload(from: &Path, to: &Location) {
    for (name, bytes) in files(from) {
        to.join(&name).publish(bytes, PublishMode::Create).expect("uploaded");
    }
}

#[test]
fn a_folder_and_a_tar_in_a_store_give_the_dataset_of_the_local_folder() {
    let at = with_folder();
    let local = at.ingest();
    let store = Location::in_memory();
    upload(&at.source, &store.join("images"));
    let tar = at.dest.with_extension("tar");
    tar_of(&at.source, &tar);
    let packed = store.join("packed/images.tar");
    packed.publish(fs::read(&tar).expect("a tar"), PublishMode::Create).expect("uploaded");
    for (source, dest) in [(store.join("images"), "from-folder"), (packed, "from-tar")] {
        let remote = IngestOptions { sources: vec![source], dest: store.join(dest), ..at.options() };
        let report = ingest(&remote, &Quiet).expect("ingested");
        assert_eq!(report.dataset_digest, local.dataset_digest, "{dest}");
        let manifest = Manifest::read(&remote.dest).expect("a manifest");
        verify(&remote.dest, &manifest, &entry_points, &Quiet).expect("whole");
        let names: Vec<String> =
            remote.dest.list().expect("a list").into_iter().map(|entry| entry.name).collect();
        let expected: Vec<String> = files(&at.dest).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected, "nothing else is left");
        assert!(ingest(&remote, &Quiet).expect("again").already_done);
    }
}

/// Returns the shards of the split, by name.
fn shards(at: &Fixture) -> Vec<(String, Vec<u8>)> {
    files(&at.dest).into_iter().filter(|(name, _)| name.starts_with("train/")).collect()
}

/// Ingests twice: with one pass as far as it gets, and with two passes from the start.
fn both_ways(change: impl Fn(&Path)) -> [Vec<(String, Vec<u8>)>; 2] {
    [false, true].map(|drop_leaks| {
        let at = with_folder();
        change(&at.source);
        ingest(&IngestOptions { drop_leaks, ..lenient(at.options()) }, &Quiet).expect("ingested");
        at.verify();
        let manifest = at.manifest();
        let shards = shards(&at);
        let named: Vec<&String> = manifest.splits["train"].shards.iter().map(|shard| &shard.path).collect();
        assert_eq!(shards.iter().map(|(name, _)| name).collect::<Vec<_>>(), named, "no strays");
        shards
    })
}

#[test]
fn every_baseline_jpeg_gets_its_entry_points_unless_no_pixel_is_decoded() {
    for check in [CheckDepth::Full, CheckDepth::Header] {
        let at = with_folder();
        ingest(&IngestOptions { check, ..at.options() }, &Quiet).expect("ingested");
        for row in at.rows() {
            let expected = entry_points(&row.bytes).filter(|_| check == CheckDepth::Full);
            assert_eq!(row.entry_points.as_deref(), expected.as_deref(), "{}", row.path);
        }
    }
}

#[test]
fn wherever_an_image_is_rejected_the_shards_are_those_of_two_passes() {
    let [one, two] = both_ways(|_| {});
    assert!(one.len() > 2 && one == two, "none is rejected");
    for bad in 0..6 {
        let [one, two] = both_ways(|source| {
            fs::write(source.join(format!("cat/{bad}.jpg")), &jpeg(3)[..100]).expect("cut");
        });
        assert!(one == two, "{bad}");
    }
}

#[test]
fn a_failed_ingest_leaves_no_shards() {
    let at = with_folder();
    fs::write(at.source.join("cat/5.jpg"), &jpeg(3)[..100]).expect("cut");
    ingest(&at.options(), &Quiet).expect_err("1 of 12 is too many");
    assert_eq!(shards(&at), []);
    // Results of the first pass are not computed again: the images may be gone.
    replace_unnoticed(&at.source.join("cat/5.jpg"), &[0; 100]);
    ingest(&lenient(at.options()), &Quiet).expect("ingested");
    assert!(at.rejects().contains("JPEG: "), "{}", at.rejects());
}

#[test]
fn appended_images_are_numbered_on_either_way() {
    let [one, two] = [false, true].map(|is_bad| {
        let at = ingested();
        let more = at.source.with_file_name("more");
        images(&more, 10..15);
        if is_bad {
            write(more.join("cat/99.jpg"), b"bad");
        }
        ingest(&lenient(appending(&more, &at.dest)), &Quiet).expect("appended");
        at.verify();
        at.rows().into_iter().map(|row| (row.id, row.path)).collect::<Vec<_>>()
    });
    assert_eq!(one, two);
}

#[test]
fn a_measurement_of_images_without_bytes_ends_with_an_error() {
    let at = fixture();
    write(at.source.join("cat/0.jpg"), b"");
    let (source, scratch) = (location(&at.source), location(&at.dest));
    let error =
        bench(&BenchOptions { source, scratch, bytes: 1, threads: 1, check: CheckDepth::Full, rounds: 1 })
            .expect_err("nothing to measure");
    assert!(error.to_string().contains("its images have 0 bytes"), "{error}");
}

#[test]
fn results_of_several_threads_have_the_order_of_a_loop_and_its_error() {
    let waits = |number: usize| {
        // The first numbers finish last.
        std::thread::sleep(std::time::Duration::from_millis(5_u64.saturating_sub(number as u64)));
        if number < 90 { Ok(number) } else { Err(number) }
    };
    for threads in [0, 1, 8, 200] {
        assert_eq!(work_through(90, threads, waits), Ok((0..90).collect()), "{threads} threads");
        assert_eq!(work_through(100, threads, waits), Err(90), "{threads} threads");
        assert_eq!(work_through(0, threads, waits), Ok(Vec::new()));
    }
}
