//! What an interrupted ingest has left, and what its source's files were then.

use super::*;
use crate::storage::PublishMode;

/// Images of the class `cat`, the last of which is not one.
fn with_a_bad_one(root: &Path) {
    fs::create_dir_all(root.join("cat")).expect("a folder");
    for number in 10..16 {
        fs::write(root.join(format!("cat/{number}.jpg")), jpeg(number)).expect("a file");
    }
    fs::write(root.join("cat/99.jpg"), b"bad").expect("a file");
}

#[test]
fn a_command_that_has_nothing_to_do_leaves_unfinished_work_to_the_command_that_began_it() {
    let at = fixture();
    folder(&at.source);
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let more = at.source.with_file_name("more");
    with_a_bad_one(&more);
    let append = IngestOptions { append: true, ..options(&more, &at.dest) };
    ingest(&append, &Quiet).expect_err("too many are rejected");
    // As a kill leaves them: shards that were recorded before they were written.
    let recorded = fs::read_to_string(at.dest.join(".work/0001-train/files.json")).expect("a record");
    let recorded: Vec<String> = serde_json::from_str(&recorded).expect("names");
    let shards: Vec<&String> = recorded.iter().filter(|file| file.starts_with("train/")).collect();
    assert!(!shards.is_empty());
    for shard in &shards {
        fs::write(at.dest.join(shard), b"a shard").expect("a file");
    }
    assert!(ingest(&options(&at.source, &at.dest), &Quiet).expect("again").already_done);
    assert!(shards.iter().all(|shard| at.dest.join(shard).exists()) && at.dest.join(".work/plan").exists());
    let max_reject_fraction = Fraction::new(0.9).expect("valid");
    let append = IngestOptions { max_reject_fraction, ..append };
    ingest(&append, &Quiet).expect("the append again");
    assert!(!at.dest.join(".work/plan").exists());
    // As a kill after the manifest leaves it: a record of files that are published.
    let after = files(&at.dest);
    fs::create_dir_all(at.dest.join(".work/0001-train")).expect("a folder");
    let published = serde_json::to_string(&["index/0001/train.parquet"]).expect("text");
    fs::write(at.dest.join(".work/0001-train/files.json"), published).expect("a record");
    assert!(ingest(&append, &Quiet).expect("again").already_done);
    assert_eq!(files(&at.dest), after);
}

/// An ingest that is given up: `5.jpg` is cut.
fn given_up(at: &Fixture) {
    folder(&at.source);
    fs::write(at.source.join("cat/5.jpg"), &jpeg(3)[..100]).expect("cut");
    ingest(&options(&at.source, &at.dest), &Quiet).expect_err("1 of 12 is too many");
}

#[test]
fn a_source_that_changed_since_an_interruption_is_looked_at_anew() {
    let at = fixture();
    given_up(&at);
    // Of the same name and size.
    fs::write(at.source.join("cat/5.jpg"), [0; 100]).expect("changed");
    let max_reject_fraction = Fraction::new(0.9).expect("valid");
    let lenient = IngestOptions { max_reject_fraction, ..options(&at.source, &at.dest) };
    ingest(&lenient, &Quiet).expect("ingested");
    let rejects = fs::read_to_string(at.dest.join("rejects/train.jsonl")).expect("rejects");
    assert!(rejects.contains("not an image of a known kind"), "the verdict is of the new file: {rejects}");
}

#[test]
fn an_object_that_changed_since_an_interruption_is_looked_at_anew() {
    let at = fixture();
    let store = Location::in_memory();
    folder(&at.source);
    for (name, bytes) in files(&at.source) {
        store.join("images").join(&name).publish(bytes, PublishMode::Create).expect("uploaded");
    }
    let object = store.join("images/cat/5.jpg");
    object.publish(jpeg(3)[..100].to_vec(), PublishMode::Overwrite).expect("cut");
    let base = IngestOptions { sources: vec![store.join("images")], ..options(&at.source, &at.dest) };
    ingest(&base, &Quiet).expect_err("1 of 12 is too many");
    object.publish(vec![0; 100], PublishMode::Overwrite).expect("changed");
    let max_reject_fraction = Fraction::new(0.9).expect("valid");
    ingest(&IngestOptions { max_reject_fraction, ..base.clone() }, &Quiet).expect("ingested");
    let rejects = fs::read_to_string(at.dest.join("rejects/train.jsonl")).expect("rejects");
    assert!(rejects.contains("not an image of a known kind"), "the verdict is of the new object: {rejects}");
    let again = IngestOptions { max_reject_fraction, ..base };
    assert_eq!(ingest(&again, &Quiet).expect("again").held_by, Some(HeldBy::Times));
}

#[test]
fn what_a_dataset_holds_already_rests_on_times_where_there_are_any() {
    use std::time::{Duration, SystemTime};
    let at = fixture();
    folder(&at.source);
    let tar = at.dest.with_extension("tar");
    tar_of(&at.source, &tar);
    let times = |source: &Path, time: SystemTime| {
        let of_folder = files(source).into_iter().map(|(name, _)| source.join(name));
        let all: Vec<_> = if source.is_dir() { of_folder.collect() } else { vec![source.to_owned()] };
        for file in all {
            fs::File::options().write(true).open(file).expect("a file").set_modified(time).expect("set");
        }
    };
    for (number, source) in [at.source.clone(), tar].iter().enumerate() {
        let dest = at.dest.with_file_name(format!("dest-{number}"));
        let held_by = || ingest(&options(source, &dest), &Quiet).expect("ingested").held_by;
        let [now, later] = [1_000_000_000, 1_000_000_001].map(Duration::from_secs);
        times(source, SystemTime::UNIX_EPOCH + now);
        assert_eq!(held_by(), None, "it is made");
        let before = files(&dest);
        assert_eq!(held_by(), Some(HeldBy::Times));
        times(source, SystemTime::UNIX_EPOCH + later);
        assert_eq!(held_by(), Some(HeldBy::OtherTimes));
        // What file systems without times show.
        times(source, SystemTime::UNIX_EPOCH);
        assert_eq!(held_by(), Some(HeldBy::NamesAndSizes));
        assert_eq!(files(&dest), before);
    }
}

#[test]
fn times_of_the_source_change_no_shard_and_no_digest() {
    let at = fixture();
    folder(&at.source);
    let first = ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let copy = at.source.with_file_name("copy");
    for (name, bytes) in files(&at.source) {
        let file = copy.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(&file, bytes).expect("a file");
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::options().write(true).open(file).expect("a file").set_modified(old).expect("set");
    }
    let other = at.dest.with_file_name("other");
    let second = ingest(&options(&copy, &other), &Quiet).expect("ingested");
    assert_eq!(first.dataset_digest, second.dataset_digest);
    let but_the_manifest =
        |dest: &Path| files(dest).into_iter().filter(|(name, _)| name != "manifest.json").collect::<Vec<_>>();
    assert_eq!(but_the_manifest(&at.dest), but_the_manifest(&other));
    assert_eq!(ingest(&options(&copy, &at.dest), &Quiet).expect("a copy").held_by, Some(HeldBy::OtherTimes));
}

#[test]
fn verifying_a_source_that_was_never_ingested_is_an_error_unless_its_ingest_was_interrupted() {
    let at = fixture();
    folder(&at.source);
    let verify = IngestOptions { verify_source: true, ..options(&at.source, &at.dest) };
    let error = ingest(&verify, &Quiet).expect_err("nothing to verify");
    assert_eq!(error.failure(), crate::failure::Failure::Config);
    assert!(error.to_string().contains("there is nothing to verify"), "{error}");
    assert!(!at.dest.exists());
    given_up(&at);
    let max_reject_fraction = Fraction::new(0.9).expect("valid");
    let report =
        ingest(&IngestOptions { max_reject_fraction, ..verify.clone() }, &Quiet).expect("it goes on");
    assert_eq!((report.already_done, report.verified_source), (false, None));
    let verified = ingest(&IngestOptions { max_reject_fraction, ..verify }, &Quiet).expect("verified");
    assert_eq!(verified.verified_source.expect("it is there").images, 11);
}
