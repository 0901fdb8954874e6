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

/// An ImageFolder of 2 classes with 6 images each; one is a PNG that calls itself a JPEG.
fn folder(root: &Path) {
    for (class, first) in [("cat", 1), ("dog breed", 50)] {
        fs::create_dir_all(root.join(class)).expect("a folder");
        for number in 0..6 {
            fs::write(root.join(class).join(format!("{number}.jpg")), jpeg(first + number)).expect("a file");
        }
    }
    let png = encode_png(&DecodedImage { width: 2, height: 2, rgb: vec![9; 12] }).expect("encoded");
    fs::write(root.join("cat/3.jpg"), png).expect("a file");
}

fn tar_of(root: &Path, tar: &Path) {
    let mut builder = tar::Builder::new(fs::File::create(tar).expect("a file"));
    builder.append_dir_all("images", root).expect("packed");
    builder.into_inner().expect("finished");
}

fn options(source: &Path, dest: &Path) -> IngestOptions {
    let tight = |base: IngestOptions| IngestOptions { shard_bytes: 2000, row_group: 2, ..base };
    tight(IngestOptions::new(location(source), location(dest)))
}

/// Writes other bytes of the same size into a file, which keeps its modification time.
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

/// The rows of the split `train` in the order of their ids.
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

    /// Checks that the dataset is whole.
    fn verify(&self) {
        verify(&location(&self.dest), &self.manifest(), &entry_points, &Quiet).expect("whole");
    }

    /// The lines of the rejected images of `train`.
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

/// The folder of [`folder`], and the dataset that was made of it.
fn ingested() -> Fixture {
    let at = fixture();
    folder(&at.source);
    at.ingest();
    at
}

/// Writes a file into a folder that is made where it is not there.
fn write(file: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(file.as_ref().parent().expect("a folder")).expect("a folder");
    fs::write(file, bytes).expect("a file");
}

/// The same options, under which any number of images may be rejected.
fn lenient(options: IngestOptions) -> IngestOptions {
    IngestOptions { max_reject_fraction: Fraction::new(1.0).expect("valid"), ..options }
}

/// Ingests images with these names and contents beside a good one; what was accepted and why the rest was
/// rejected, by name.
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
    let accepted = rows(&location(&at.dest), &at.manifest());
    let text = at.rejects();
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

/// A Parquet table of encoded images and labels, without names of files; perhaps with Hugging Face's names of classes.
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

/// A Parquet file of these rows.
fn parquet_of(batch: &arrow::array::RecordBatch) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, batch.schema(), None).expect("a writer");
    writer.write(batch).expect("written");
    writer.close().expect("written");
    file
}

#[test]
fn a_folder_becomes_a_dataset_that_verifies() {
    let at = fixture();
    folder(&at.source);
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
    let dataset = location(&at.dest);
    let manifest = Manifest::read(&dataset).expect("a manifest");
    let source = rows(&dataset, &manifest);
    let expected = (0..12).map(|id| {
        let class = if id < 6 { "cat" } else { "dog breed" };
        format!("{class}/{}.jpg", id % 6)
    });
    assert_eq!(source.iter().map(|row| row.path.clone()).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    for row in source {
        assert_eq!(row.bytes, fs::read(at.source.join(&row.path)).expect("the image"));
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let at = fixture();
    folder(&at.source);
    let other = at.dest.with_file_name("other");
    ingest(&IngestOptions { threads: 1, ..at.options() }, &Quiet).expect("ingested");
    ingest(&IngestOptions { threads: 3, ..options(&at.source, &other) }, &Quiet).expect("ingested");
    assert_eq!(files(&at.dest), files(&other));
}

#[test]
fn a_tar_of_the_folder_gives_the_same_images() {
    let at = fixture();
    folder(&at.source.join("train"));
    let tar = at.dest.with_extension("tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar).expect("a file"));
    builder.append_dir_all("train", at.source.join("train")).expect("packed");
    builder.into_inner().expect("finished");
    let from_tar = ingest(&options(&tar, &at.dest), &Quiet).expect("ingested");
    let other = at.dest.with_file_name("other");
    let from_folder = ingest(&options(&at.source, &other), &Quiet).expect("ingested");
    assert_eq!(from_tar.dataset_digest, from_folder.dataset_digest);
}

#[test]
fn a_second_run_finds_its_work_done_and_another_source_is_refused() {
    let at = ingested();
    let before = files(&at.dest);
    assert!(ingest(&at.options(), &Quiet).expect("again").already_done);
    fs::write(at.source.join("cat/9.jpg"), jpeg(99)).expect("one more");
    let error = ingest(&at.options(), &Quiet).expect_err("another dataset");
    assert!(matches!(error, IngestError::OtherDataset { .. }), "{error}");
    assert_eq!(files(&at.dest), before);
}

#[test]
fn another_split_is_added_and_the_first_stays() {
    let at = ingested();
    let before = at.manifest();
    let val = IngestOptions { split: Some("val".into()), ..at.options() };
    ingest(&val, &Quiet).expect("added");
    let after = at.manifest();
    assert_eq!(after.splits["train"], before.splits["train"]);
    assert_eq!(after.splits["val"].instances, 12);
    at.verify();
}

#[test]
fn a_bad_image_is_rejected_with_its_reason_and_leaves_no_gap() {
    let at = fixture();
    folder(&at.source);
    fs::write(at.source.join("cat/2.jpg"), &jpeg(3)[..100]).expect("cut");
    let error = ingest(&at.options(), &Quiet).expect_err("1 of 12 is too many");
    assert!(
        matches!(&error, IngestError::TooManyRejects { rejected: 1, first, .. } if first.contains("cat/2.jpg"))
    );
    assert!(
        error.to_string().contains("share of 0.01 that is allowed; `--max-reject-fraction 0.09`"),
        "{error}"
    );
    assert!(!at.dest.join("manifest.json").exists());
    let report = ingest(&lenient(at.options()), &Quiet).expect("ingested");
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (11, 1));
    let rejects = at.rejects();
    assert!(rejects.contains("cat/2.jpg") && rejects.lines().count() == 1, "{rejects}");
    at.verify();
}

#[test]
fn where_every_image_is_refused_the_error_says_that_none_is_left() {
    let at = fixture();
    write(at.source.join("cat/1.jpg"), &jpeg(3)[..100]);
    let lenient = lenient(at.options());
    let error = ingest(&lenient, &Quiet).expect_err("nothing is left").to_string();
    assert!(error.contains("1 of 1 images were rejected, so none is left; the first: cat/1.jpg"), "{error}");
}

#[test]
fn a_destination_with_images_in_it_is_refused_and_they_stay() {
    let at = fixture();
    folder(&at.source);
    write(at.dest.join("holiday/1.JPG"), jpeg(3));
    let error = ingest(&at.options(), &Quiet).expect_err("a folder of images");
    assert!(
        matches!(&error, IngestError::ImagesAtDestination { image, .. } if image == "holiday/1.JPG"),
        "{error}"
    );
    assert_eq!(fs::read_dir(&at.dest).expect("the folder").count(), 1, "nothing was written");
}

#[test]
fn a_destination_that_holds_the_images_themselves_is_refused_and_they_stay() {
    let at = fixture();
    folder(&at.source.join("train"));
    let before = files(&at.source);
    for dest in [at.source.clone(), at.source.join("dataset"), at.source.with_file_name(".")] {
        let error = ingest(&options(&at.source, &dest), &Quiet).expect_err("one holds the other");
        assert!(matches!(&error, IngestError::Overlap { .. }), "{error}");
        assert_eq!(error.failure(), crate::failure::Failure::Data);
        assert!(error.to_string().contains(&at.source.display().to_string()), "{error}");
    }
    assert_eq!(files(&at.source), before);
}

#[test]
fn a_truncated_tar_is_refused_wherever_it_is_cut() {
    let at = fixture();
    folder(&at.source);
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
    let lenient = lenient(options(&tar, &at.dest));
    let report = ingest(&lenient, &Quiet).expect("ingested");
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (1, 4));
    let reasons: Vec<&str> = report.plan.rejected.keys().map(String::as_str).collect();
    assert_eq!(reasons.len(), 3, "a link, a device, names that lead outside: {reasons:?}");
}

#[test]
fn a_missing_source_and_a_file_that_is_no_tar_are_told_apart() {
    let at = fixture();
    let missing = ingest(&options(&at.source.join("nowhere"), &at.dest), &Quiet).expect_err("missing");
    assert_eq!(missing.failure(), crate::failure::Failure::Data);
    assert!(missing.to_string().ends_with("nowhere: no such source"), "{missing}");
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
    let report = ingest(&super::IngestOptions::new(location(&at.source), location(&at.dest)), &Quiet)
        .expect("ingested");
    assert_eq!((report.splits["train"].instances, report.splits["val"].instances), (30, 20));
}

/// Copies a folder of this machine into a store.
fn upload(from: &Path, to: &Location) {
    for (name, bytes) in files(from) {
        to.join(&name).publish(bytes, PublishMode::Create).expect("uploaded");
    }
}

#[test]
fn a_folder_and_a_tar_in_a_store_give_the_dataset_of_the_local_folder() {
    let at = fixture();
    folder(&at.source);
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

#[test]
fn a_place_where_nothing_is_is_said_so() {
    let at = fixture();
    let store = Location::in_memory();
    let nothing = IngestOptions { sources: vec![store.join("nothing")], ..at.options() };
    let error = ingest(&nothing, &Quiet).expect_err("nothing there");
    // Another try would find no more.
    assert_eq!(error.failure(), crate::failure::Failure::Data);
    assert!(error.to_string().contains("memory://test/nothing: no such source"), "{error}");
}

/// The shards of the split, by name.
fn shards(at: &Fixture) -> Vec<(String, Vec<u8>)> {
    files(&at.dest).into_iter().filter(|(name, _)| name.starts_with("train/")).collect()
}

/// Ingests twice over: with one pass as far as it goes, and with two from the start.
fn both_ways(change: impl Fn(&Path)) -> [Vec<(String, Vec<u8>)>; 2] {
    [false, true].map(|drop_leaks| {
        let at = fixture();
        folder(&at.source);
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
fn one_pass_gives_the_shards_that_two_give() {
    let [one, two] = both_ways(|_| {});
    assert!(one.len() > 2 && one == two);
}

#[test]
fn every_baseline_jpeg_gets_its_entry_points_unless_no_pixel_is_decoded() {
    for check in [CheckDepth::Full, CheckDepth::Header] {
        let at = fixture();
        folder(&at.source);
        ingest(&IngestOptions { check, ..at.options() }, &Quiet).expect("ingested");
        let manifest = at.manifest();
        for row in rows(&location(&at.dest), &manifest) {
            let expected = entry_points(&row.bytes).filter(|_| check == CheckDepth::Full);
            assert_eq!(row.entry_points.as_deref(), expected.as_deref(), "{}", row.path);
        }
    }
}

#[test]
fn wherever_an_image_is_rejected_the_shards_are_those_of_two_passes() {
    for bad in 0..6 {
        let [one, two] = both_ways(|source| {
            fs::write(source.join(format!("cat/{bad}.jpg")), &jpeg(3)[..100]).expect("cut");
        });
        assert!(one == two, "{bad}");
    }
}

#[test]
fn a_failed_ingest_leaves_no_shards() {
    let at = fixture();
    folder(&at.source);
    fs::write(at.source.join("cat/5.jpg"), &jpeg(3)[..100]).expect("cut");
    ingest(&at.options(), &Quiet).expect_err("1 of 12 is too many");
    assert_eq!(shards(&at), []);
    // What was found out is not found out again: the images may be gone.
    replace_unnoticed(&at.source.join("cat/5.jpg"), &[0; 100]);
    ingest(&lenient(at.options()), &Quiet).expect("ingested");
    let rejects = at.rejects();
    assert!(rejects.contains("JPEG: "), "{rejects}");
}

#[test]
fn appended_images_are_numbered_on_either_way() {
    let [one, two] = [false, true].map(|is_bad| {
        let at = ingested();
        let more = at.source.with_file_name("more");
        fs::create_dir_all(more.join("cat")).expect("a folder");
        (10..15).for_each(|number| {
            fs::write(more.join(format!("cat/{number}.jpg")), jpeg(number)).expect("a file")
        });
        if is_bad {
            fs::write(more.join("cat/99.jpg"), b"bad").expect("a file");
        }
        let append = IngestOptions { append: true, ..lenient(options(&more, &at.dest)) };
        ingest(&append, &Quiet).expect("appended");
        let dataset = append.dest.clone();
        let manifest = Manifest::read(&dataset).expect("a manifest");
        verify(&dataset, &manifest, &entry_points, &Quiet).expect("whole");
        rows(&dataset, &manifest).into_iter().map(|row| (row.id, row.path)).collect::<Vec<_>>()
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
        // The first ones end last.
        std::thread::sleep(std::time::Duration::from_millis(5_u64.saturating_sub(number as u64)));
        if number < 90 { Ok(number) } else { Err(number) }
    };
    for threads in [0, 1, 8, 200] {
        assert_eq!(work_through(90, threads, waits), Ok((0..90).collect()), "{threads} threads");
        assert_eq!(work_through(100, threads, waits), Err(90), "{threads} threads");
        assert_eq!(work_through(0, threads, waits), Ok(Vec::new()));
    }
}
