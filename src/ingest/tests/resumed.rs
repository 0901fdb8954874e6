//! Tests of interrupted ingests: their leftovers, changes of the source's files, and other files at the destination.

use super::*;

/// Makes images of the class `cat`, the last of which is invalid.
fn with_a_bad_one(root: &Path) {
    images(root, 10..16);
    write(root.join("cat/99.jpg"), b"bad");
}

#[test]
fn a_command_that_has_nothing_to_do_leaves_unfinished_work_to_the_command_that_began_it() {
    let at = ingested();
    let before = files(&at.dest);
    let more = at.source.with_file_name("more");
    with_a_bad_one(&more);
    let append = appending(&more, &at.dest);
    ingest(&append, &Quiet).expect_err("too many are rejected");
    // State after a kill: shards that were recorded but not written completely.
    let recorded = fs::read_to_string(at.dest.join(".work/0001-train/files.json")).expect("a record");
    let recorded: Vec<String> = serde_json::from_str(&recorded).expect("names");
    let shards: Vec<&String> = recorded.iter().filter(|file| file.starts_with("train/")).collect();
    assert!(!shards.is_empty());
    for shard in &shards {
        fs::write(at.dest.join(shard), b"a shard").expect("a file");
    }
    assert!(ingest(&at.options(), &Quiet).expect("again").already_done);
    assert!(shards.iter().all(|shard| at.dest.join(shard).exists()) && at.dest.join(".work/plan").exists());
    let after = files(&at.dest);
    assert!(before.iter().all(|file| after.contains(file)), "the dataset is as it was");
    let append = lenient(append);
    ingest(&append, &Quiet).expect("the append again");
    assert!(!at.dest.join(".work/plan").exists());
    // State after a kill that follows the manifest: a record of published files.
    let after = files(&at.dest);
    write(at.dest.join(".work/0001-train/files.json"), br#"["index/0001/train.parquet"]"#);
    assert!(ingest(&append, &Quiet).expect("again").already_done);
    assert_eq!(files(&at.dest), after);
}

/// Runs an ingest that fails, since it rejects too many images: `5.jpg` is cut. The work folder remains.
fn given_up(at: &Fixture) {
    folder(&at.source);
    fs::write(at.source.join("cat/5.jpg"), &jpeg(3)[..100]).expect("cut");
    ingest(&at.options(), &Quiet).expect_err("1 of 12 is too many");
    assert!(at.dest.join(".work/plan").exists());
}

/// A journal of a version without entry points names shards that lack them.
#[test]
fn shards_that_a_journal_names_without_entry_points_are_written_again() {
    let at = fixture();
    let whole = at.dest.with_file_name("whole");
    folder(&at.source.join("val"));
    with_a_bad_one(&at.source.join("train"));
    ingest(&lenient(options(&at.source, &whole)), &Quiet).expect("ingested");
    ingest(&at.options(), &Quiet).expect_err("of train, 1 of 7 is too many");
    let mut changed = 0;
    for (name, text) in files(&at.dest.join(".work")) {
        let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let Some(written) = record.get_mut("written").and_then(|written| written.as_object_mut()) else {
            continue;
        };
        let shard = at.dest.join(written["entry"]["path"].as_str().expect("a path"));
        // The shards of train were removed when an image was rejected.
        let Ok(found) = fs::metadata(&shard) else { continue };
        assert!(written.remove("entry_points").is_some(), "{name}");
        let len = found.len() as usize;
        fs::write(&shard, vec![0; len]).expect("another of the same size");
        fs::write(at.dest.join(".work").join(&name), record.to_string()).expect("a record");
        changed += 1;
    }
    assert!(changed > 2, "{changed}");
    ingest(&lenient(at.options()), &Quiet).expect("resumed");
    assert_eq!(files(&at.dest), files(&whole));
    at.verify();
}

/// A journal of a version with other records of images that were made smaller.
#[test]
fn images_whose_records_another_version_saved_are_checked_again() {
    let at = fixture();
    let whole = at.dest.with_file_name("whole");
    let smaller = |options: IngestOptions| IngestOptions { max_side: Some(8), ..options };
    folder(&at.source);
    fs::write(at.source.join("cat/5.jpg"), &jpeg(3)[..100]).expect("cut");
    ingest(&smaller(lenient(options(&at.source, &whole))), &Quiet).expect("ingested");
    ingest(&smaller(at.options()), &Quiet).expect_err("1 of 12 is too many");
    let mut changed = 0;
    for (name, text) in files(&at.dest.join(".work")) {
        let Ok(text) = String::from_utf8(text) else { continue };
        let before = text.replace(r#""change":"Smaller""#, r#""changes":{"smaller":true,"baseline":false}"#);
        changed += usize::from(before != text);
        fs::write(at.dest.join(".work").join(&name), before).expect("a record");
    }
    assert!(changed > 0, "records are found");
    ingest(&smaller(lenient(at.options())), &Quiet).expect("resumed");
    assert_eq!(files(&at.dest), files(&whole));
    at.verify();
}

#[test]
fn an_object_that_changed_since_an_interruption_is_looked_at_anew() {
    let at = with_folder();
    let store = Location::in_memory();
    upload(&at.source, &store.join("images"));
    let object = store.join("images/cat/5.jpg");
    object.publish(jpeg(3)[..100].to_vec(), PublishMode::Overwrite).expect("cut");
    let base = IngestOptions { sources: vec![store.join("images")], ..at.options() };
    ingest(&base, &Quiet).expect_err("1 of 12 is too many");
    object.publish(vec![0; 100], PublishMode::Overwrite).expect("changed");
    ingest(&lenient(base.clone()), &Quiet).expect("ingested");
    let rejects = at.rejects();
    assert!(rejects.contains("not an image of a known kind"), "the verdict is of the new object: {rejects}");
    assert_eq!(ingest(&lenient(base), &Quiet).expect("again").held_by, Some(HeldBy::Times));
}

#[test]
fn what_a_dataset_holds_already_rests_on_times_where_there_are_any() {
    use std::time::{Duration, SystemTime};
    let at = with_folder();
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
        // The time that file systems without times report.
        times(source, SystemTime::UNIX_EPOCH);
        assert_eq!(held_by(), Some(HeldBy::NamesAndSizes));
        assert_eq!(files(&dest), before);
    }
}

#[test]
fn times_of_the_source_change_no_shard_and_no_digest() {
    let at = with_folder();
    let first = at.ingest();
    let copy = at.source.with_file_name("copy");
    for (name, bytes) in files(&at.source) {
        let file = copy.join(name);
        write(&file, bytes);
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
    let at = with_folder();
    let verify = IngestOptions { verify_source: true, ..at.options() };
    let error = ingest(&verify, &Quiet).expect_err("nothing to verify");
    assert_eq!(error.failure(), crate::failure::Failure::Config);
    assert!(error.to_string().contains("there is nothing to verify"), "{error}");
    assert!(!at.dest.exists());
    given_up(&at);
    let verify = lenient(verify);
    let report = ingest(&verify, &Quiet).expect("it goes on");
    assert_eq!((report.already_done, report.verified_source), (false, None));
    let verified = ingest(&verify, &Quiet).expect("verified");
    assert_eq!(verified.verified_source.expect("it is there").images, 11);
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
        let at = with_folder();
        let file = at.dest.join(name);
        write(&file, b"somebody else's");
        let error = ingest(&at.options(), &Quiet).expect_err("in the way");
        let reason = format!("`{name}` is not a file that an ingest has recorded; move or delete it");
        assert!(error.to_string().contains(&reason), "{error}");
        assert_eq!(files(&at.dest), [(name.to_owned(), b"somebody else's".to_vec())]);
        fs::remove_file(&file).expect("moved away");
        at.ingest();
    }
}

#[test]
fn files_that_only_look_like_unfinished_ones_stay() {
    let at = with_folder();
    for name in ["photo#1", "rejects/list#20", "index/x.parquet#3"] {
        write(at.dest.join(name), b"kept");
    }
    at.ingest();
    assert!(ingest(&at.options(), &Quiet).expect("again").already_done);
    for name in ["photo#1", "rejects/list#20", "index/x.parquet#3"] {
        assert_eq!(fs::read(at.dest.join(name)).expect("it stays"), b"kept", "{name}");
    }
}

#[test]
fn work_of_another_plan_goes_with_the_files_that_it_has_recorded_and_no_others() {
    let at = fixture();
    given_up(&at);
    // Possible leftovers of a kill: a finished file, and one that was being written.
    for name in ["train/shard-00001.parquet", "train/shard-00001.parquet#7", "index/train.parquet#1"] {
        write(at.dest.join(name), b"half");
    }
    let other = IngestOptions { row_group: 3, ..lenient(at.options()) };
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
    write(at.dest.join("train/shard-00099.parquet"), b"somebody else's");
    let error = ingest(&lenient(at.options()), &Quiet).expect_err("in the way");
    assert!(error.to_string().contains("`train/shard-00099.parquet` is not a file that"), "{error}");
    fs::remove_file(at.dest.join("train/shard-00099.parquet")).expect("moved away");
    ingest(&lenient(at.options()), &Quiet).expect("it goes on");
    assert!(!at.dest.join(".work").exists());
}

#[test]
fn what_no_ingest_has_written_stays_in_a_folder_called_work() {
    let at = with_folder();
    let note = at.dest.join(".work/thesis/chapter1.txt");
    write(&note, b"words");
    at.ingest();
    assert_eq!(fs::read(&note).expect("still there"), b"words");
    let left: Vec<String> = files(&at.dest.join(".work")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["thesis/chapter1.txt"], "the work itself is gone");
}
