//! Tests of a second ingest into a dataset: the same images again, near-duplicates, and reuse of the first results.
//!
//! Also tests of plans: a plan fails if the ingest would, and describes the effect on the destination.

use super::*;
use crate::dataset::{DuplicateRow, read_duplicates};
use crate::progress::Progress;

/// Makes a folder with a second source, of the class `cat`.
fn more(at: &Fixture, name: &str, images: &[(&str, Vec<u8>)]) -> std::path::PathBuf {
    let root = at.source.with_file_name(name);
    images.iter().for_each(|(name, bytes)| write(root.join("cat").join(name), bytes));
    root
}

#[test]
fn images_that_are_there_under_other_options_are_refused_by_the_names_of_these() {
    let at = ingested();
    let before = files(&at.dest);
    for append in [false, true] {
        let base = || IngestOptions { append, ..at.options() };
        let error = |options: IngestOptions| ingest(&options, &Quiet).expect_err("other options").to_string();
        let text = error(IngestOptions { max_pixels: 500, row_group: 7, ..base() });
        assert!(text.contains("`max_pixels` was 100000000 and is 500 now"), "{text}");
        assert!(text.contains("`row_group` was 2 and is 7 now"), "{text}");
        let text = error(IngestOptions { max_side: Some(9), ..base() });
        assert!(text.contains("`max_side` was not given and is 9 now"), "{text}");
        let text = error(IngestOptions { near_duplicates: false, ..base() });
        assert!(text.contains("`near_duplicates` was not given and is \"off\" now"), "{text}");
        assert!(ingest(&base(), &Quiet).expect("the same options").already_done);
    }
    assert_eq!(files(&at.dest), before);
}

#[test]
fn appended_images_that_are_there_already_are_counted() {
    let at = ingested();
    let source = more(&at, "more", &[("new.jpg", jpeg(200)), ("old.jpg", jpeg(3)), ("same.jpg", jpeg(2))]);
    let report = ingest(&appending(&source, &at.dest), &Quiet).expect("appended");
    let there = report.splits["train"].already_there.clone().expect("two are there");
    assert_eq!(there.images, 2);
    assert_eq!(there.example, "cat/old.jpg (id 13) is cat/2.jpg (id 2)");
    assert!(report.lines().iter().any(|line| line.contains("already there")), "{:?}", report.lines());
    let other = more(&at, "other", &[("other.jpg", jpeg(201))]);
    let report = ingest(&appending(&other, &at.dest), &Quiet).expect("appended");
    assert_eq!(report.splits["train"].already_there, None);
}

/// Makes an image, and the same one with stronger compression.
fn near(seed: u32) -> [Vec<u8>; 2] {
    let image = detailed(8, 8);
    let rgb = (0..64 * 64)
        .flat_map(|at: u32| {
            let (x, y) = (at % 64 / 8, at / 64 / 8);
            let grey = image.rgb[((y * 8 + x) * 3 + seed) as usize % image.rgb.len()];
            [grey, grey, grey]
        })
        .collect();
    let image = DecodedImage { width: 64, height: 64, rgb };
    [95, 60].map(|quality| encode_jpeg(&image, quality).expect("encoded"))
}

#[test]
fn duplicates_after_appending_and_another_split_are_those_found_from_scratch() {
    let at = fixture();
    let [a, a_near] = near(0);
    let [b, b_near] = near(40);
    let [c, c_near] = near(101);
    let first = more(&at, "first", &[("a.jpg", a.clone()), ("b.jpg", b), ("same.jpg", a.clone())]);
    let second = more(&at, "second", &[("a.jpg", a_near), ("c.jpg", c), ("d.jpg", jpeg(4))]);
    let third = more(&at, "third", &[("a.jpg", a), ("b.jpg", b_near), ("c.jpg", c_near)]);
    let steps = |dest: &Path| {
        ingest(&options(&first, dest), &Quiet).expect("ingested");
        ingest(&appending(&second, dest), &Quiet).expect("appended");
        into_split("val", options(&third, dest))
    };
    let last = steps(&at.dest);
    ingest(&last, &Quiet).expect("a split more");
    let found = read_duplicates(&location(&at.dest)).expect("duplicates");
    let groups: Vec<Vec<&str>> = found
        .chunk_by(|a, b| a.group == b.group)
        .map(|group| group.iter().map(|row: &DuplicateRow| row.path.as_str()).collect())
        .collect();
    let expected = [
        vec!["cat/a.jpg", "cat/same.jpg", "cat/a.jpg", "cat/a.jpg"],
        vec!["cat/b.jpg"; 2],
        vec!["cat/c.jpg"; 2],
    ];
    assert_eq!(groups, expected);
    // Without the file, or with one that a killed ingest left, all images are compared again.
    let damages: [&dyn Fn(&Path); 3] = [
        &|file| fs::remove_file(file).expect("removed"),
        &|file| fs::write(file, b"no table").expect("a file"),
        &|file| {
            let mut rows = read_duplicates(&location(file.parent().expect("a folder"))).expect("rows");
            rows.iter_mut().for_each(|row| row.group = 0);
            crate::dataset::write_duplicates(&location(file.parent().expect("a folder")), &rows)
                .expect("written");
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        let other = at.dest.with_file_name(format!("scratch-{number}"));
        let last = steps(&other);
        damage(&other.join("duplicates.parquet"));
        ingest(&last, &Quiet).expect("a split more");
        assert_eq!(files(&other), files(&at.dest), "{number}");
    }
}

#[test]
fn without_near_duplicates_only_equal_bytes_are_found_and_the_hashes_stay_for_later() {
    let at = fixture();
    let [a, a_near] = near(0);
    let first = more(&at, "first", &[("a.jpg", a.clone()), ("near.jpg", a_near), ("same.jpg", a)]);
    let off = IngestOptions { near_duplicates: false, ..options(&first, &at.dest) };
    let report = ingest(&off, &Quiet).expect("ingested");
    assert_eq!((report.duplicates.identical_groups, report.duplicates.visual_groups), (1, 0));
    let manifest = at.manifest();
    assert_eq!(manifest.splits["train"].ingest[0].options["near_duplicates"], "off");
    // A later ingest compares all images.
    let second = more(&at, "second", &[("d.jpg", jpeg(4))]);
    let report = ingest(&appending(&second, &at.dest), &Quiet).expect("appended");
    assert_eq!((report.duplicates.identical_groups, report.duplicates.visual_groups), (0, 1));
    assert_eq!(report.duplicates.images, 3);
}

#[test]
fn leaks_without_near_duplicates_are_equal_bytes_alone() {
    for (near_duplicates, dropped) in [(true, 2), (false, 1)] {
        let at = fixture();
        let [a, a_near] = near(0);
        let val = more(&at, "val", &[("a.jpg", a.clone())]);
        let train = more(&at, "train", &[("near.jpg", a_near), ("other.jpg", jpeg(4)), ("same.jpg", a)]);
        ingest(&into_split("val", options(&val, &at.dest)), &Quiet).expect("val");
        let job = IngestOptions { near_duplicates, drop_leaks: true, ..lenient(options(&train, &at.dest)) };
        let report = ingest(&job, &Quiet).expect("train");
        assert_eq!(report.splits["train"].found.dropped_leaks, dropped);
        assert!(at.rejects().contains("a near-duplicate of val cat/a.jpg"), "{}", at.rejects());
    }
}

#[test]
fn a_source_that_is_there_is_verified_image_by_image() {
    for smaller in [None, Some(10)] {
        let at = with_folder();
        fs::write(at.source.join("cat/1.jpg"), &jpeg(3)[..100]).expect("cut");
        let first = IngestOptions { max_side: smaller, ..lenient(at.options()) };
        ingest(&first, &Quiet).expect("ingested");
        let verify = IngestOptions { verify_source: true, ..first };
        let before = files(&at.dest);
        let verified = ingest(&verify, &Quiet).expect("verified").verified_source.expect("it is there");
        let rewritten = if smaller.is_some() { 10 } else { 0 };
        assert_eq!(verified, VerifiedSource { images: 11, rewritten, rejected: 1 });
        // Another image of the same size, which names and sizes do not reveal.
        let path = at.source.join("dog breed/4.jpg");
        let old = fs::read(&path).expect("an image");
        let mut new = jpeg(99);
        new.resize(old.len(), 0);
        let end = new.len() - 2;
        new[end..].copy_from_slice(&[0xFF, 0xD9]);
        fs::write(&path, &new).expect("changed");
        let unverified = IngestOptions { verify_source: false, ..verify.clone() };
        assert!(ingest(&unverified, &Quiet).expect("by names and sizes").already_done);
        let error = ingest(&verify, &Quiet).expect_err("it changed");
        assert!(
            matches!(&error, IngestError::SourceChanged { image, .. } if image == "dog breed/4.jpg"),
            "{error}"
        );
        assert_eq!(error.failure(), crate::failure::Failure::Data);
        assert_eq!(files(&at.dest), before);
        fs::write(&path, old).expect("as before");
        fs::write(at.source.join("dog breed/5.jpg"), vec![0; jpeg(55).len()]).expect("damaged");
        let error = ingest(&verify, &Quiet).expect_err("it is damaged").to_string();
        assert!(error.contains("`dog breed/5.jpg`") && error.contains("it is rejected now: "), "{error}");
    }
}

/// A leak is an image that can be decoded; a corrupt one is not a leak.
#[test]
fn a_source_with_leaks_that_were_dropped_is_verified_and_an_image_that_was_mended_named() {
    let at = fixture();
    let good = jpeg(4);
    let val = more(&at, "val", &[("a.jpg", jpeg(1))]);
    let train = [("0.jpg", vec![0; good.len()]), ("b.jpg", jpeg(1)), ("c.jpg", jpeg(3))];
    let train = more(&at, "train", &train);
    ingest(&into_split("val", options(&val, &at.dest)), &Quiet).expect("val");
    let job = IngestOptions { drop_leaks: true, ..lenient(options(&train, &at.dest)) };
    assert_eq!(ingest(&job, &Quiet).expect("train").splits["train"].found.dropped_leaks, 1);
    let verify = IngestOptions { verify_source: true, ..job };
    let verified = ingest(&verify, &Quiet).expect("verified").verified_source;
    assert_eq!(verified, Some(VerifiedSource { images: 2, rewritten: 0, rejected: 1 }));
    fs::write(train.join("cat/0.jpg"), good).expect("mended");
    let error = ingest(&verify, &Quiet).expect_err("it changed").to_string();
    assert!(error.contains("`cat/0.jpg`") && error.contains("it was rejected then: "), "{error}");
}

/// Makes the folder, with an image that takes 3.3 MiB of memory to decode.
fn with_a_large_image() -> Fixture {
    let at = with_folder();
    let large = DecodedImage { width: 700, height: 700, rgb: vec![3; 700 * 700 * 3] };
    fs::write(at.source.join("cat/large.png"), encode_png(&large).expect("encoded")).expect("a file");
    at
}

#[test]
fn an_image_over_the_memory_limit_is_rejected_and_the_limit_recorded() {
    let at = with_a_large_image();
    let base = lenient(at.options());
    let strict = IngestOptions { max_reject_fraction: Fraction::new(0.0).expect("valid"), ..base.clone() };
    let limited = |memory_limit, base: &IngestOptions| IngestOptions { memory_limit, ..base.clone() };
    let error = ingest(&limited(Some(1 << 20), &strict), &Quiet).expect_err("one is too many").to_string();
    assert!(error.contains("cat/large.png: decoding needs 3.3 MiB, `--memory-limit` is 1.0 MiB"), "{error}");
    // The same work under a higher limit: rejected images are checked again.
    let report = ingest(&limited(Some(1 << 30), &strict), &Quiet).expect("it goes on");
    assert_eq!((report.splits["train"].instances, report.splits["train"].rejected), (13, 0));
    let whole = at.dest.with_file_name("whole");
    fs::rename(&at.dest, &whole).expect("moved");
    ingest(&limited(Some(1 << 20), &base), &Quiet).expect("ingested");
    let manifest = at.manifest();
    let record = &manifest.splits["train"].ingest[0];
    assert_eq!((record.instances, &record.options["memory_limit"]), (12, &(1_u64 << 20).into()));
    assert_eq!(record.report.refused["over the memory limit"], 1);
    assert!(ingest(&limited(Some(1 << 20), &base), &Quiet).expect("again").already_done);
    let error = ingest(&limited(None, &base), &Quiet).expect_err("it would hold one more").to_string();
    assert!(error.contains("`memory_limit` was 1048576 and is not given now"), "{error}");
    // A limit that rejects nothing changes nothing.
    let unlimited = at.dest.with_file_name("unlimited");
    ingest(&IngestOptions { dest: location(&unlimited), ..base }, &Quiet).expect("ingested");
    assert_eq!(files(&unlimited), files(&whole));
}

/// Ends the ingest like a kill, after the second shard of the second pass is written.
#[derive(Default)]
struct Kill {
    stage: std::sync::Mutex<String>,
    shards: std::sync::atomic::AtomicU32,
}

impl Progress for Kill {
    fn begin(&self, stage: &str, _total: u64) {
        *self.stage.lock().expect("no panic") = stage.to_owned();
    }

    fn advance(&self, _items: u64) {
        let is_second_pass = self.stage.lock().expect("no panic").starts_with("write");
        let before = self.shards.fetch_add(u32::from(is_second_pass), std::sync::atomic::Ordering::SeqCst);
        assert!(!is_second_pass || before < 2, "killed");
    }

    fn finish(&self) {}
}

#[test]
fn shards_written_under_another_memory_limit_are_written_again() {
    let at = with_a_large_image();
    let limited = |memory_limit, dest: &Path| IngestOptions {
        memory_limit: Some(memory_limit),
        uploads: 1,
        ..lenient(options(&at.source, dest))
    };
    let kill = Kill::default();
    let killed = std::panic::AssertUnwindSafe(|| ingest(&limited(1 << 20, &at.dest), &kill));
    std::panic::catch_unwind(killed).expect_err("killed");
    let shards = fs::read_dir(at.dest.join("train")).expect("a folder").count();
    assert!(shards >= 2, "some are there: {shards}");
    ingest(&limited(1 << 30, &at.dest), &Quiet).expect("it goes on");
    let whole = at.dest.with_file_name("whole");
    ingest(&limited(1 << 30, &whole), &Quiet).expect("at once");
    assert_eq!(files(&at.dest), files(&whole));
}

fn source(at: &Fixture, name: &str, classes: &[&str]) -> std::path::PathBuf {
    let root = at.source.with_file_name(name);
    (100..).zip(classes).for_each(|(number, class)| write(root.join(class).join("1.jpg"), jpeg(number)));
    root
}

/// Returns the error of a plan, which equals that of the ingest; neither writes.
fn fails(options: &IngestOptions, dest: &Path) -> IngestError {
    let before = files(dest);
    let planned = plan(options, &Quiet).expect_err("the plan");
    assert_eq!(files(dest), before);
    let error = ingest(options, &Quiet).expect_err("the ingest");
    assert_eq!((planned.to_string(), planned.failure()), (error.to_string(), error.failure()));
    assert_eq!(files(dest), before);
    error
}

#[test]
fn a_plan_fails_where_the_ingest_would_fail_before_its_first_write() {
    let at = ingested();
    let base = || at.options();
    let append = || IngestOptions { append: true, ..base() };
    let other = source(&at, "other", &["cat", "ant"]);
    let of_other = || IngestOptions { sources: vec![location(&other)], ..base() };
    let error = fails(&IngestOptions { max_pixels: 5, ..append() }, &at.dest).to_string();
    assert!(error.contains("`max_pixels` was 100000000 and is 5 now"), "{error}");
    let error = fails(&of_other(), &at.dest).to_string();
    assert!(error.contains("was made from other images"), "{error}");
    let error = fails(&into_split("val", of_other()), &at.dest).to_string();
    assert!(error.contains("it has no class \"ant\""), "{error}");
    let error = fails(&into_split("val", append()), &at.dest).to_string();
    assert!(error.contains("no split `val` to append to"), "{error}");
    let verify = IngestOptions { verify_source: true, append: true, ..of_other() };
    assert!(fails(&verify, &at.dest).to_string().contains("there is nothing to verify"));
    let inside = IngestOptions { dest: location(&at.source.join("dataset")), ..base() };
    assert!(matches!(fails(&inside, &at.dest), IngestError::Overlap { .. }));
    write(at.dest.join("val/notes.txt"), b"somebody else's");
    let error = fails(&into_split("val", base()), &at.dest).to_string();
    assert!(error.contains("`val/notes.txt` is not a file that an ingest has recorded"), "{error}");
}

#[test]
fn a_plan_says_what_the_destination_holds_and_gets() {
    let at = with_folder();
    let base = at.options();
    let planned = |options: &IngestOptions| plan(options, &Quiet).expect("a plan");
    let first = planned(&base).destination;
    assert_eq!((first.new, first.held, first.held_by), (vec!["train".to_owned()], vec![], None));
    assert!(!at.dest.exists(), "nothing is written");
    ingest(&base, &Quiet).expect("ingested");
    let before = files(&at.dest);
    let held = planned(&base);
    assert_eq!(held.destination.held, ["train"]);
    assert_eq!(held.destination.held_by, Some(HeldBy::Times));
    let lines = held.lines();
    assert!(lines.iter().any(|line| line.contains("holds already, by the names")), "{lines:?}");
    let other = source(&at, "other", &["cat", "ant", "bee"]);
    let append = appending(&other, &at.dest);
    let appended = planned(&append);
    assert_eq!(appended.destination.appended, ["train"]);
    assert_eq!(appended.destination.new_classes, ["ant", "bee"]);
    let lines = appended.lines();
    assert!(lines.contains(&"  new classes: 2 (`ant`, `bee`)".to_owned()), "{lines:?}");
    assert_eq!(files(&at.dest), before);
    ingest(&append, &Quiet).expect("appended");
    assert_eq!(at.manifest().classes, ["cat", "dog breed", "ant", "bee"]);
}

#[test]
fn a_plan_of_a_parquet_table_knows_what_the_destination_holds() {
    let at = fixture();
    let table = at.source.join("images.parquet");
    fs::write(&table, parquet_table(&[(0, jpeg(1)), (1, jpeg(2))], Some(&["ant", "bee"]))).expect("a table");
    let base = options(&table, &at.dest);
    ingest(&base, &Quiet).expect("ingested");
    assert_eq!(plan(&base, &Quiet).expect("a plan").destination.held, ["train"]);
    let error = fails(&IngestOptions { max_pixels: 5, ..base }, &at.dest).to_string();
    assert!(error.contains("`max_pixels` was 100000000 and is 5 now"), "{error}");
}

#[test]
fn numbers_without_names_are_not_appended_to_classes_with_names_nor_names_to_numbers() {
    let at = fixture();
    let named = source(&at, "named", &["ant", "bee"]);
    ingest(&options(&named, &at.dest), &Quiet).expect("ingested");
    let table = at.source.join("images.parquet");
    fs::write(&table, parquet_table(&[(0, jpeg(1)), (1, jpeg(2))], None)).expect("a table");
    let append = appending(&table, &at.dest);
    let error = fails(&append, &at.dest);
    assert_eq!(error.failure(), crate::failure::Failure::Data);
    let text = error.to_string();
    assert!(text.contains("names (`ant`, `bee`)") && text.contains("numbers (`0`, `1`)"), "{text}");
    assert!(text.contains("`--classes FILE` names the numbers"), "{text}");
    // The solution that the error names.
    let classes = at.source.join("classes.txt");
    fs::write(&classes, "bee\nant\n").expect("a file");
    ingest(&IngestOptions { classes: Some(location(&classes)), ..append }, &Quiet).expect("appended");
    assert_eq!(at.manifest().classes, ["ant", "bee"]);
    let numbers = at.dest.with_file_name("numbers");
    ingest(&options(&table, &numbers), &Quiet).expect("ingested");
    let error = fails(&appending(&named, &numbers), &numbers).to_string();
    assert!(error.contains("its classes are numbers (`0`, `1`)"), "{error}");
    assert!(error.contains("`--classes FILE`"), "{error}");
}

#[test]
fn drop_leaks_without_a_training_split_is_an_error_that_names_the_splits() {
    let at = fixture();
    folder(&at.source.join("left"));
    folder(&at.source.join("right"));
    let split =
        |name: &str, to: &str| (to.to_owned(), PathGlob::new(&format!("{name}/**")).expect("a pattern"));
    let splits = |left: &str| vec![split("left", left), split("right", "held_out")];
    let job = |left| IngestOptions { drop_leaks: true, splits: splits(left), ..at.options() };
    let error = fails(&job("training"), &at.dest);
    assert_eq!(error.failure(), crate::failure::Failure::Config);
    assert!(error.to_string().contains("the source has `held_out`, `training` only"), "{error}");
    assert!(source_plan(&job("training")).is_err());
    let report = ingest(&lenient(job("train")), &Quiet).expect("ingested");
    assert_eq!(report.splits["train"].found.dropped_leaks, 12);
}
