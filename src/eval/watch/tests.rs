use std::sync::Mutex;

use super::*;
use crate::checkpoint::{CheckpointManifest, TrainedOn, checkpoint_name, mark_finished, remove_checkpoint};

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
    WatchOptions {
        poll: Duration::from_millis(5),
        idle_timeout: Some(Duration::from_millis(50)),
        lease: Duration::from_secs(60),
    }
}

fn publish(run: &Location, step: u64) -> Result<(), CheckpointError> {
    Ok(report_location(run, step).publish("{}", PublishMode::Create)?)
}

#[test]
fn checkpoints_are_judged_once_in_order_and_across_restarts() {
    let (_dir, run) = run();
    for step in [20, 5, 10] {
        add_checkpoint(&run, step);
    }
    let first = watch(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(first, WatchSummary { judged: vec![5, 10, 20], end: WatchEnd::Idle });
    add_checkpoint(&run, 30);
    mark_finished(&run, 30).expect("marked");
    let second = watch(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(second, WatchSummary { judged: vec![30], end: WatchEnd::Finished });
    let left = run.join("eval").list().expect("a list");
    assert_eq!(left.len(), 4, "no claim is left: {left:?}");
}

#[test]
fn a_checkpoint_that_appears_while_watching_is_judged() {
    let (_dir, run) = run();
    add_checkpoint(&run, 1);
    let summary = watch(&run, &options(), |step, _, _| {
        publish(&run, step)?;
        if step < 4 {
            add_checkpoint(&run, step + 1);
        } else {
            mark_finished(&run, step)?;
        }
        Ok::<_, CheckpointError>(())
    });
    let expected = WatchSummary { judged: vec![1, 2, 3, 4], end: WatchEnd::Finished };
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
    // While the other one judges the last there is nothing to do for one of them.
    let options = WatchOptions { idle_timeout: Some(Duration::from_secs(60)), ..options() };
    let watcher = || {
        watch(&run, &options, |step, _, _| {
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
fn a_claim_is_respected_until_its_lease_is_over() {
    let (_dir, run) = run();
    add_checkpoint(&run, 7);
    let report = report_location(&run, 7);
    let held = take_claim(&report, Duration::from_secs(60)).expect("the store works").expect("free");
    let summary = watch(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(summary, WatchSummary { judged: vec![], end: WatchEnd::Idle });
    held.file.publish(r#"{"until": 1.0}"#, PublishMode::Overwrite).expect("run out");
    let summary = watch(&run, &options(), |step, _, _| publish(&run, step)).expect("watched");
    assert_eq!(summary.judged, [7]);
    assert!(!held.file.exists().expect("a look"), "a dead watcher's claim goes with the report");
}

#[test]
fn a_claim_that_is_renewed_does_not_run_out() {
    let (_dir, run) = run();
    let report = report_location(&run, 7);
    let lease = Duration::from_secs(60);
    let held = take_claim(&report, lease).expect("the store works").expect("free");
    held.file.publish(r#"{"until": 1.0}"#, PublishMode::Overwrite).expect("run out");
    held.renew().expect("not due yet");
    assert!(held.file.read().expect("there").starts_with(br#"{"until": 1.0}"#));
    *held.renewed.lock().expect("no panic") -= lease / 3;
    held.renew().expect("renewed");
    assert!(take_claim(&report, lease).expect("the store works").is_none());
}

#[test]
fn a_failure_gives_the_claim_back_and_a_removed_checkpoint_is_passed_over() {
    let (_dir, run) = run();
    add_checkpoint(&run, 1);
    add_checkpoint(&run, 2);
    let damaged = || CheckpointError::Damaged { file: "x".into() };
    assert!(watch(&run, &options(), |_, _, _| Err::<(), _>(damaged())).is_err());
    let summary = watch(&run, &options(), |step, folder, _| {
        if step == 1 {
            remove_checkpoint(folder)?;
            return Err(damaged());
        }
        publish(&run, step)
    });
    assert_eq!(summary.expect("watched").judged, [2]);
}
