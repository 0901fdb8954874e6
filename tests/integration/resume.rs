//! A run that is interrupted ends as one that is not.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::{contents, dataset, scratch, train};

/// Enough steps that a signal comes in between.
const OPTIONS: &str = "--epochs 12 --checkpoint-every-steps 5 --keep 0 --no-monitor";

fn start(run: &Path) -> Child {
    train(dataset(), run, OPTIONS)
        .command()
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts")
}

/// Waits until the run has published the checkpoint of a step, then sends the signal; the exit code.
fn signal_after(run: &Path, step: u32, signal: &str) -> Option<i32> {
    let mut child = start(run);
    let marker = run.join(format!("checkpoints/step-{step:08}/checkpoint.json"));
    let deadline = Instant::now() + Duration::from_secs(120);
    while !marker.exists() {
        assert!(Instant::now() < deadline, "no checkpoint at step {step}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
    child.wait().expect("ends").code()
}

/// The files of the last checkpoint that training determines.
fn last(run: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    contents(&run.join("checkpoints/step-00000096"))
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    let dir = scratch();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    train(dataset(), &whole, OPTIONS).ok();

    // A signal saves where it comes; a kill loses the steps since the checkpoint before.
    assert_eq!(signal_after(&broken, 10, "-TERM"), Some(75));
    assert_eq!(signal_after(&broken, 25, "-USR1"), Some(75));
    assert_eq!(signal_after(&broken, 45, "-KILL"), None);
    train(dataset(), &broken, OPTIONS).ok();

    let (expected, actual) = (last(&whole), last(&broken));
    assert_eq!(expected.len(), 5);
    for ((name, expected), (_, actual)) in expected.iter().zip(&actual) {
        assert!(expected == actual, "{} differs", name.display());
    }
    assert_eq!(expected.len(), actual.len());
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over() {
    let dir = scratch();
    let (whole, damaged) = (dir.path().join("whole"), dir.path().join("damaged"));
    train(dataset(), &whole, OPTIONS).ok();
    assert_eq!(signal_after(&damaged, 20, "-KILL"), None);
    let newest = std::fs::read_dir(damaged.join("checkpoints"))
        .expect("checkpoints")
        .map(|entry| entry.expect("an entry").path())
        .filter(|folder| folder.join("checkpoint.json").exists())
        .max()
        .expect("one");
    let model = newest.join("model.safetensors");
    let mut bytes = std::fs::read(&model).expect("weights");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&model, bytes).expect("changed");
    train(dataset(), &damaged, OPTIONS).ok();
    assert_eq!(last(&whole), last(&damaged));
}

#[test]
fn a_split_added_later_does_not_keep_a_run_from_going_on() {
    let dir = scratch();
    let (data, run) = (dir.path().join("data"), dir.path().join("run"));
    let ingest = |split: &str| {
        let source = super::support::pictures().join(split);
        let call = super::support::instdisc(&format!("ingest --split {split}"));
        call.arg("--source", source).arg("--dest", &data).ok();
    };
    ingest("train");
    train(&data, &run, "--epochs 1").ok();
    ingest("val");
    let report = train(&data, &run, "--epochs 2").json();
    assert_eq!(report["step"], 16);
}
