//! What is in the folder of a destination and was not written by an ingest.

use super::*;

/// A destination with an ingest that was given up: it has rejected too much. The work folder stays.
fn given_up(at: &Fixture) {
    folder(&at.source);
    fs::write(at.source.join("cat/5.jpg"), &jpeg(3)[..100]).expect("cut");
    ingest(&options(&at.source, &at.dest), &Quiet).expect_err("1 of 12 is too many");
    assert!(at.dest.join(".work/plan").exists());
}

fn lenient(at: &Fixture) -> IngestOptions {
    let max_reject_fraction = Fraction::new(0.9).expect("valid");
    IngestOptions { max_reject_fraction, ..options(&at.source, &at.dest) }
}

#[test]
fn a_file_that_no_ingest_has_recorded_is_an_error_and_stays() {
    for name in [
        "train/shard-00000.parquet",
        "train/shard-00077.parquet",
        "train/cat/0.jpg",
        "index/train.parquet",
        "rejects/train.jsonl",
        "duplicates.parquet",
    ] {
        let at = fixture();
        folder(&at.source);
        let file = at.dest.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(&file, b"somebody else's").expect("a file");
        let error = ingest(&options(&at.source, &at.dest), &Quiet).expect_err("in the way");
        assert!(matches!(&error, IngestError::NotOurs { file, .. } if file == name), "{error}");
        assert!(error.to_string().contains("move or delete it"), "{error}");
        assert_eq!(files(&at.dest), [(name.to_owned(), b"somebody else's".to_vec())]);
        fs::remove_file(&file).expect("moved away");
        ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    }
}

#[test]
fn files_that_only_look_like_unfinished_ones_stay() {
    let at = fixture();
    folder(&at.source);
    for name in ["photo#1", "rejects/list#20", "index/x.parquet#3"] {
        let file = at.dest.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, b"kept").expect("a file");
    }
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    assert!(ingest(&options(&at.source, &at.dest), &Quiet).expect("again").already_done);
    for name in ["photo#1", "rejects/list#20", "index/x.parquet#3"] {
        assert_eq!(fs::read(at.dest.join(name)).expect("it stays"), b"kept", "{name}");
    }
}

#[test]
fn work_of_another_plan_goes_with_the_files_that_it_has_recorded_and_no_others() {
    let at = fixture();
    given_up(&at);
    // What a kill can leave: a finished file and one that was being written.
    for name in ["train/shard-00001.parquet", "train/shard-00001.parquet#7", "index/train.parquet#1"] {
        fs::create_dir_all(at.dest.join(name).parent().expect("a folder")).expect("a folder");
        fs::write(at.dest.join(name), b"half").expect("a file");
    }
    let other = IngestOptions { row_group: 3, ..lenient(&at) };
    ingest(&other, &Quiet).expect("ingested");
    let fresh = at.dest.with_file_name("fresh");
    ingest(&IngestOptions { dest: location(&fresh), ..other }, &Quiet).expect("ingested");
    assert_eq!(files(&at.dest), files(&fresh));
    assert!(!at.dest.join("train/shard-00001.parquet#7").exists());
    assert!(!at.dest.join("index/train.parquet#1").exists());
}

#[test]
fn an_interrupted_ingest_does_not_go_on_over_a_file_of_somebody_else() {
    let at = fixture();
    given_up(&at);
    fs::create_dir_all(at.dest.join("train")).expect("a folder");
    fs::write(at.dest.join("train/shard-00099.parquet"), b"somebody else's").expect("a file");
    let error = ingest(&lenient(&at), &Quiet).expect_err("in the way");
    assert!(
        matches!(&error, IngestError::NotOurs { file, .. } if file == "train/shard-00099.parquet"),
        "{error}"
    );
    fs::remove_file(at.dest.join("train/shard-00099.parquet")).expect("moved away");
    ingest(&lenient(&at), &Quiet).expect("it goes on");
    assert!(!at.dest.join(".work").exists());
}

#[test]
fn abandoned_appending_leaves_the_dataset_as_it_was() {
    let at = fixture();
    folder(&at.source);
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let before = files(&at.dest);
    let more = at.source.with_file_name("more");
    fs::create_dir_all(more.join("cat")).expect("a folder");
    (10..16).for_each(|number| {
        fs::write(more.join(format!("cat/{number}.jpg")), jpeg(number)).expect("a file");
    });
    fs::write(more.join("cat/99.jpg"), b"bad").expect("a file");
    let append = IngestOptions { append: true, ..options(&more, &at.dest) };
    ingest(&append, &Quiet).expect_err("too many are rejected");
    assert!(ingest(&options(&at.source, &at.dest), &Quiet).expect("again").already_done);
    let is_published = |(path, _): &(String, Vec<u8>)| before.iter().any(|(known, _)| known == path);
    let after: Vec<_> = files(&at.dest).into_iter().filter(is_published).collect();
    assert_eq!(after, before);
}

#[test]
fn what_no_ingest_has_written_stays_in_a_folder_called_work() {
    let at = fixture();
    folder(&at.source);
    let note = at.dest.join(".work/thesis/chapter1.txt");
    fs::create_dir_all(note.parent().expect("a folder")).expect("a folder");
    fs::write(&note, b"words").expect("a file");
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    assert_eq!(fs::read(&note).expect("still there"), b"words");
    let left: Vec<String> = files(&at.dest.join(".work")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["thesis/chapter1.txt"], "the work itself is gone");
}
