use std::sync::Mutex;

use super::*;
use crate::checkpoint::{
    CheckpointError, CheckpointManifest, TrainedOn, checkpoint_name, mark_finished, remove_checkpoint,
};
use crate::storage::PublishMode;

fn run() -> (tempfile::TempDir, Location) {
    let dir = tempfile::tempdir().expect("a folder");
    let run = Location::from_path(dir.path()).expect("a location");
    (dir, run)
}

fn add_checkpoint(run: &Location, step: u64) {
    let trained_on =
        TrainedOn { dataset_digest: "d".into(), split: "train".into(), split_digest: "s".into() };
    let folder = run.join("checkpoints").join(&checkpoint_name(step));
    CheckpointManifest::new(step, 0, trained_on, Vec::new()).publish(&folder).expect("published");
}

fn options() -> WatchOptions {
    WatchOptions { poll: Duration::from_millis(5), idle_timeout: Some(Duration::from_millis(50)) }
}

fn damaged() -> CommandError {
    CheckpointError::Damaged { file: "bank.arrow".into() }.into()
}

/// Watches a run in which no failure is caused by a checkpoint.
fn watch_whole(
    run: &Location,
    options: &WatchOptions,
    evaluate: impl FnMut(u64, &Location, &Lock) -> Result<(), CommandError>,
) -> Result<WatchSummary, CommandError> {
    watch(run, |_| "knn-val".into(), options, |_| false, evaluate)
}

fn publish(run: &Location, step: u64) -> Result<(), CommandError> {
    Ok(report_location(&run.join(REPORTS), "knn-val", step).publish("{}", PublishMode::Create)?)
}

#[test]
fn checkpoints_are_evaluated_once_in_order_and_across_restarts() {
    let (_dir, run) = run();
    for step in [20, 5, 10] {
        add_checkpoint(&run, step);
    }
    let first = watch_whole(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(first, WatchSummary { evaluated: vec![5, 10, 20], failed: vec![], end: WatchEnd::Idle });
    add_checkpoint(&run, 30);
    mark_finished(&run, 30).expect("marked");
    let second = watch_whole(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(second, WatchSummary { evaluated: vec![30], failed: vec![], end: WatchEnd::Finished });
    let left = run.join("eval").list().expect("a list");
    assert_eq!(left.len(), 4, "no lock is left: {left:?}");
}

#[test]
fn a_checkpoint_that_appears_while_watching_is_evaluated() {
    let (_dir, run) = run();
    add_checkpoint(&run, 1);
    let summary = watch_whole(&run, &options(), |step, _, _| {
        publish(&run, step)?;
        if step < 4 {
            add_checkpoint(&run, step + 1);
        } else {
            mark_finished(&run, step)?;
        }
        Ok(())
    });
    let expected = WatchSummary { evaluated: vec![1, 2, 3, 4], failed: vec![], end: WatchEnd::Finished };
    assert_eq!(summary.expect("watched"), expected);
}

#[test]
fn two_watchers_do_each_checkpoint_once() {
    let (_dir, run) = run();
    for step in 0..12 {
        add_checkpoint(&run, step);
    }
    mark_finished(&run, 11).expect("marked");
    let calls = Mutex::new(Vec::new());
    // While one watcher evaluates the last checkpoint, the other has nothing to do.
    let options = WatchOptions { idle_timeout: Some(Duration::from_secs(60)), ..options() };
    let watcher = || {
        watch_whole(&run, &options, |step, _, _| {
            calls.lock().expect("no panic").push(step);
            std::thread::sleep(Duration::from_millis(3));
            publish(&run, step)
        })
        .expect("watched")
    };
    let ends = std::thread::scope(|scope| {
        let both = [scope.spawn(watcher), scope.spawn(watcher)];
        both.map(|watcher| watcher.join().expect("no panic").end)
    });
    let mut calls = calls.into_inner().expect("no panic");
    calls.sort_unstable();
    assert_eq!(calls, (0..12).collect::<Vec<u64>>());
    assert_eq!(ends, [WatchEnd::Finished; 2]);
}

#[test]
fn a_checkpoint_whose_lock_another_watcher_holds_is_left_to_it() {
    let (_dir, run) = run();
    add_checkpoint(&run, 7);
    let held = take_lock(&report_location(&run.join(REPORTS), "knn-val", 7))
        .expect("the store works")
        .expect("free");
    let summary = watch_whole(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(summary, WatchSummary { evaluated: vec![], failed: vec![], end: WatchEnd::Idle });
    drop(held);
    let summary = watch_whole(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(summary.evaluated, [7]);
}

/// Older versions wrote claims with an expiry time, and trusted clocks.
#[test]
fn a_claim_of_a_clock_that_is_ahead_stops_nobody() {
    let (_dir, run) = run();
    add_checkpoint(&run, 7);
    let claim = run.join("eval/knn-val-step-00000007.json.claim-0");
    claim.publish(r#"{"until": 99999999999.0}"#, PublishMode::Create).expect("a claim");
    let summary = watch_whole(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(summary.evaluated, [7]);
}

#[test]
fn a_damaged_checkpoint_is_reported_once_and_the_others_are_evaluated() {
    let (_dir, run) = run();
    for step in [5, 10, 15] {
        add_checkpoint(&run, step);
    }
    mark_finished(&run, 15).expect("marked");
    let mut calls = Vec::new();
    let summary = watch(
        &run,
        |_| "knn-val".into(),
        &options(),
        |error| matches!(error, CommandError::Checkpoint(_)),
        |step, _, _| {
            calls.push(step);
            if step == 10 {
                return Err(damaged());
            }
            publish(&run, step)
        },
    );
    let expected = WatchSummary { evaluated: vec![5, 15], failed: vec![10], end: WatchEnd::Finished };
    assert_eq!((summary.expect("watched"), calls), (expected, vec![5, 10, 15]));
}

#[test]
fn a_failure_gives_the_lock_back_and_a_removed_checkpoint_is_passed_over() {
    let (_dir, run) = run();
    add_checkpoint(&run, 1);
    add_checkpoint(&run, 2);
    assert!(watch_whole(&run, &options(), |_, _, _| Err(damaged())).is_err());
    let summary = watch_whole(&run, &options(), |step, folder, _| {
        if step == 1 {
            remove_checkpoint(folder)?;
            return Err(damaged());
        }
        publish(&run, step)
    });
    assert_eq!(summary.expect("watched").evaluated, [2]);
}
