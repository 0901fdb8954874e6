//! A plan fails where the ingest would, and says what the destination gets.

use super::*;

fn source(at: &Fixture, name: &str, classes: &[&str]) -> std::path::PathBuf {
    let root = at.source.with_file_name(name);
    for (number, class) in (100..).zip(classes) {
        fs::create_dir_all(root.join(class)).expect("a folder");
        fs::write(root.join(class).join("1.jpg"), jpeg(number)).expect("a file");
    }
    root
}

/// The error of a plan, which is that of the ingest; neither writes.
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
    let at = fixture();
    folder(&at.source);
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let base = || options(&at.source, &at.dest);
    let append = || IngestOptions { append: true, ..base() };
    let other = source(&at, "other", &["cat", "ant"]);
    let of_other = || IngestOptions { sources: vec![location(&other)], ..base() };
    let error = fails(&IngestOptions { max_pixels: 5, ..append() }, &at.dest).to_string();
    assert!(error.contains("`max_pixels` was 100000000 and is 5 now"), "{error}");
    let error = fails(&of_other(), &at.dest).to_string();
    assert!(error.contains("was made from other images"), "{error}");
    let error = fails(&IngestOptions { split: Some("val".into()), ..of_other() }, &at.dest).to_string();
    assert!(error.contains("it has no class \"ant\""), "{error}");
    let error = fails(&IngestOptions { split: Some("val".into()), ..append() }, &at.dest).to_string();
    assert!(error.contains("no split `val` to append to"), "{error}");
    let verify = IngestOptions { verify_source: true, append: true, ..of_other() };
    assert!(fails(&verify, &at.dest).to_string().contains("there is nothing to verify"));
    let inside = IngestOptions { dest: location(&at.source.join("dataset")), ..base() };
    assert!(matches!(fails(&inside, &at.dest), IngestError::Overlap { .. }));
    fs::create_dir_all(at.dest.join("val")).expect("a folder");
    fs::write(at.dest.join("val/notes.txt"), b"somebody else's").expect("a file");
    let val = IngestOptions { split: Some("val".into()), ..base() };
    assert!(matches!(fails(&val, &at.dest), IngestError::NotOurs { file, .. } if file == "val/notes.txt"));
}

#[test]
fn a_plan_says_what_the_destination_holds_and_gets() {
    let at = fixture();
    folder(&at.source);
    let base = options(&at.source, &at.dest);
    let planned = |options: &IngestOptions| plan(options, &Quiet).expect("a plan");
    let first = planned(&base).destination;
    assert_eq!((first.new, first.held, first.held_by), (vec!["train".to_owned()], vec![], None));
    assert!(!at.dest.exists(), "nothing is written");
    ingest(&base, &Quiet).expect("ingested");
    let before = files(&at.dest);
    let held = planned(&base);
    assert_eq!(
        (&held.destination.held, held.destination.held_by),
        (&vec!["train".to_owned()], Some(HeldBy::Times))
    );
    assert!(
        held.lines().iter().any(|line| line.contains("holds already, by the names")),
        "{:?}",
        held.lines()
    );
    let other = source(&at, "other", &["cat", "ant", "bee"]);
    let append = IngestOptions { append: true, ..options(&other, &at.dest) };
    let appended = planned(&append);
    assert_eq!(appended.destination.appended, ["train"]);
    assert_eq!(appended.destination.new_classes, ["ant", "bee"]);
    assert!(
        appended.lines().contains(&"  new classes: 2 (`ant`, `bee`)".to_owned()),
        "{:?}",
        appended.lines()
    );
    assert_eq!(files(&at.dest), before);
    ingest(&append, &Quiet).expect("appended");
    let manifest = Manifest::read(&append.dest).expect("a manifest");
    assert_eq!(manifest.classes, ["cat", "dog breed", "ant", "bee"]);
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
    let append = IngestOptions { append: true, ..options(&table, &at.dest) };
    let error = fails(&append, &at.dest);
    assert_eq!(error.failure(), crate::failure::Failure::Data);
    let text = error.to_string();
    assert!(text.contains("names (`ant`, `bee`)") && text.contains("numbers (`0`, `1`)"), "{text}");
    assert!(text.contains("`--classes FILE` names the numbers"), "{text}");
    // The way out.
    let classes = at.source.join("classes.txt");
    fs::write(&classes, "bee\nant\n").expect("a file");
    ingest(&IngestOptions { classes: Some(location(&classes)), ..append }, &Quiet).expect("appended");
    assert_eq!(Manifest::read(&location(&at.dest)).expect("a manifest").classes, ["ant", "bee"]);
    let numbers = at.dest.with_file_name("numbers");
    ingest(&options(&table, &numbers), &Quiet).expect("ingested");
    let error = fails(&IngestOptions { append: true, ..options(&named, &numbers) }, &numbers).to_string();
    assert!(
        error.contains("its classes are numbers (`0`, `1`)") && error.contains("`--classes FILE`"),
        "{error}"
    );
}

#[test]
fn drop_leaks_without_a_training_split_is_an_error_that_names_the_splits() {
    let at = fixture();
    folder(&at.source.join("left"));
    folder(&at.source.join("right"));
    let split =
        |name: &str, to: &str| (to.to_owned(), PathGlob::new(&format!("{name}/**")).expect("a pattern"));
    let splits = |left: &str| vec![split("left", left), split("right", "held_out")];
    let job =
        |left| IngestOptions { drop_leaks: true, splits: splits(left), ..options(&at.source, &at.dest) };
    let error = fails(&job("training"), &at.dest);
    assert_eq!(error.failure(), crate::failure::Failure::Config);
    assert!(error.to_string().contains("the source has `held_out`, `training` only"), "{error}");
    assert!(source_plan(&job("training")).is_err());
    let max_reject_fraction = Fraction::new(1.0).expect("valid");
    let report = ingest(&IngestOptions { max_reject_fraction, ..job("train") }, &Quiet).expect("ingested");
    assert_eq!(report.splits["train"].found.dropped_leaks, 12);
}
