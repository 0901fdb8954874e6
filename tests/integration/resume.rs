//! A run that is interrupted ends as one that is not.

use std::path::Path;
use std::process::Stdio;
use std::slice::from_mut;
use std::time::Duration;

use super::support::{
    Call, checkpoint, checkpoint_steps, contents, damage, dataset, images, ingest, instdisc, newest_step,
    read_json, scratch, send, signal_at, train, wait_until,
};

/// Enough steps that a signal comes in between.
const OPTIONS: &str = "--epochs 12 --checkpoint-every-steps 5 --keep 0 --no-monitor";

/// Every objective, with the options that add state: optimisers, moving averages, 16-bit rows, parts.
const VARIANTS: [&str; 6] = [
    "--objective nce",
    "--objective nce --partition ema --optimizer adamw --lr 0.001 --lr-schedule cosine --warmup-epochs 2",
    "--objective softmax --nesterov --accumulate 3 --clip-norm 1 --bank-init encode --proximal-weight 0.5 --probe",
    "--objective infonce --optimizer lars --lr 1 --decay-matrices-only --bank-dtype bf16 --exclude-positive",
    "--objective infonce --negative-sampling shared --bank-dtype f16 --bank-init normal --on-nonfinite skip",
    "--objective nce --precision bf16 --shuffle windowed --window 32 --loader-threads 2",
];

fn call(run: &Path, more: &str) -> Call {
    train(dataset(), run, &format!("{OPTIONS} {more}"))
}

fn signal_after(run: &Path, more: &str, step: u32, signal: &str) -> Option<i32> {
    signal_at(call(run, more), run, step, signal)
}

/// The files of the last checkpoint that training determines.
fn last(run: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    contents(&checkpoint(run, 96))
}

fn assert_same_end(whole: &Path, broken: &Path, more: &str) {
    let (expected, actual) = (last(whole), last(broken));
    let files = 5 + usize::from(more.contains("--probe"));
    assert_eq!((expected.len(), actual.len()), (files, files));
    for ((name, expected), (_, actual)) in expected.iter().zip(&actual) {
        assert!(expected == actual, "{more}: {} differs", name.display());
    }
}

#[test]
fn a_resume_without_options_has_those_of_the_run_and_ends_nothing_early() {
    let dir = scratch();
    let run = dir.path().join("run");
    let config = || std::fs::read_to_string(run.join("config.toml")).expect("the configuration");
    // Stopped within its third epoch of eight steps.
    let begun = "--epochs 500 --checkpoint-every-steps 5 --keep 2 --no-monitor";
    assert_eq!(signal_at(train(dataset(), &run, begun), &run, 18, "-TERM"), Some(75));
    let begun = config();
    let error = train(dataset(), &run, "--epochs 1 --no-monitor").fails(78);
    assert!(error.contains("the run is not finished; `--epochs 1` is fewer"), "{error}");
    assert_eq!((config(), run.join("finished.json").exists()), (begun, false));

    let four = train(dataset(), &run, "--epochs 4 --no-monitor").json();
    assert_eq!((&four["finished"], &four["step"]), (&true.into(), &32.into()));
    let kept = checkpoint_steps(&run);
    assert_eq!(kept.0.len(), 3, "the first and --keep 2, which was given only at the start");
    for more in ["", "--epochs 2"] {
        assert_eq!(train(dataset(), &run, &format!("{more} --no-monitor")).json()["step"], 32);
        assert!(
            config().contains("epochs = 4") && checkpoint_steps(&run) == kept,
            "{more}: nothing was changed"
        );
    }
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    for more in VARIANTS {
        let dir = scratch();
        let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
        call(&whole, more).ok();

        // A signal saves where it comes; a kill loses the steps since the checkpoint before.
        assert_eq!(signal_after(&broken, more, 10, "-TERM"), Some(75));
        assert_eq!(signal_after(&broken, more, 25, "-USR1"), Some(75));
        assert_eq!(signal_after(&broken, more, 45, "-KILL"), None);
        call(&broken, more).ok();
        assert_same_end(&whole, &broken, more);
    }
}

/// Set INSTDISC_KILLS for more than a dozen.
#[test]
fn a_run_killed_while_it_writes_checkpoints_always_goes_on() {
    let kills: u32 = std::env::var("INSTDISC_KILLS").map_or(12, |text| text.parse().expect("a number"));
    let dir = scratch();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let options = "--objective softmax --checkpoint-every-steps 1 --keep 2 --no-monitor";
    let mut newest = 0;
    let mut caught_writing = 0;
    for kill in 0..kills {
        let call = train(dataset(), &broken, &format!("{options} --epochs 10000"));
        let mut child = call.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        // A newer checkpoint than before, and then one that is under way.
        wait_until(&format!("kill {kill}"), from_mut(&mut child), || {
            let (published, is_writing) = checkpoint_steps(&broken);
            is_writing && published.last().is_some_and(|&last| last > newest)
        });
        // Spread over the time that writing takes.
        std::thread::sleep(Duration::from_micros(u64::from(kill * 977 % 4000)));
        child.kill().expect("killed");
        let output = child.wait_with_output().expect("ended");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let is_whole = !stderr.contains("damaged") && !stderr.contains(": missing, and the checkpoint");
        assert!(is_whole, "kill {kill}: what was published was not whole\n{stderr}");
        let (published, was_writing) = checkpoint_steps(&broken);
        newest = *published.last().expect("a checkpoint");
        caught_writing += u32::from(was_writing);
    }
    assert!(caught_writing > 0, "no kill came while a checkpoint was written");
    let epochs = newest / 8 + 2;
    for run in [&broken, &whole] {
        train(dataset(), run, &format!("{options} --epochs {epochs}")).ok();
    }
    let end = |run| contents(&checkpoint(run, epochs * 8));
    assert!(end(&whole) == end(&broken));
    assert!(!checkpoint_steps(&broken).1, "what killed writers left is gone");
}

#[test]
fn a_second_job_on_the_same_run_is_refused_while_the_first_is_alive() {
    let dir = scratch();
    let long = || train(dataset(), dir.path(), &OPTIONS.replace("--epochs 12", "--epochs 10000"));
    let mut first = long().start();
    wait_until("a checkpoint", from_mut(&mut first), || newest_step(dir.path()) >= Some(5));
    long().fails(69);
    assert!(first.try_wait().expect("a look").is_none(), "the first goes on");
    first.kill().expect("killed");
    first.wait().expect("ended");
    call(dir.path(), "").ok();
}

#[test]
fn checkpoints_are_kept_by_number_and_every_so_many_epochs_for_ever() {
    let dir = scratch();
    let options = "--epochs 5 --keep 1 --keep-every-epochs 2 --no-monitor --checkpoint-every-steps 3";
    train(dataset(), dir.path(), options).ok();
    assert_eq!(checkpoint_steps(dir.path()).0, [0, 16, 32, 40]);
}

#[test]
fn another_configuration_is_refused_key_by_key_and_a_harmless_one_goes_on() {
    let dir = scratch();
    train(dataset(), dir.path(), "--epochs 1 --no-monitor").ok();
    let error = train(dataset(), dir.path(), "--epochs 2 --temperature 0.5 --lr 0.2").fails(78);
    assert!(error.contains("temperature = 0.1 (now 0.5), lr = 0.03 (now 0.2)"), "{error}");
    assert!(error.ends_with("or another --run"), "{error}");
    let error = train(dataset(), dir.path(), "--epochs 2 --split val").fails(78);
    assert!(error.contains("split = \"train\" (now \"val\")"), "{error}");
    let later = train(dataset(), dir.path(), "--epochs 2 --keep 1 --no-monitor --init other.safetensors");
    let said = later.said();
    assert!(said.contains("has begun, and keeps its weights"), "{said}");
    assert_eq!(read_json(&checkpoint(dir.path(), 16).join("state.json"))["config"]["init"], "");
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over() {
    let dir = scratch();
    let (whole, damaged) = (dir.path().join("whole"), dir.path().join("damaged"));
    let options = OPTIONS.replace("--keep 0", "--keep 1");
    train(dataset(), &whole, &options).ok();
    assert_eq!(signal_after(&damaged, "", 20, "-KILL"), None);
    let newest = newest_step(&damaged).expect("a checkpoint");
    damage(&checkpoint(&damaged, newest).join("model.safetensors"));
    train(dataset(), &damaged, &options).ok();
    assert_eq!(last(&whole), last(&damaged));
    assert_eq!(checkpoint_steps(&damaged).0, [0, 96], "the damaged one does not count as newer");
}

#[test]
fn a_newest_checkpoint_that_lacks_a_file_is_passed_over() {
    let dir = scratch();
    for file in ["optimizer.safetensors", "probe.safetensors"] {
        let run = dir.path().join(file);
        train(dataset(), &run, "--epochs 1 --probe --no-monitor").ok();
        assert_eq!(checkpoint_steps(&run).0, [0, 8]);
        std::fs::remove_file(checkpoint(&run, 8).join(file)).expect("removed");
        train(dataset(), &run, "--epochs 2 --no-monitor").ok();
        assert_eq!(newest_step(&run), Some(16));
    }
}

#[test]
fn a_run_with_no_whole_checkpoint_is_not_begun_anew() {
    let dir = scratch();
    train(dataset(), dir.path(), "--epochs 1 --no-monitor").ok();
    for step in [0, 8] {
        let model = checkpoint(dir.path(), step).join("model.safetensors");
        std::fs::write(model, b"damaged").expect("written");
    }
    let error = train(dataset(), dir.path(), "--epochs 2 --no-monitor").fails(65);
    assert!(error.contains("step-00000008"), "{error}");
    assert_eq!(checkpoint_steps(dir.path()).0, [0, 8], "nothing is lost");
}

#[test]
fn a_split_added_later_does_not_keep_a_run_from_going_on() {
    let dir = scratch();
    let (data, run) = (dir.path().join("data"), dir.path().join("run"));
    let add = |split: &str| ingest(&format!("--split {split}"), images().join(split), &data).ok();
    add("train");
    train(&data, &run, "--epochs 1").ok();
    add("val");
    assert_eq!(train(&data, &run, "--epochs 2").json()["step"], 16);
}

/// The pass that makes the bank's first rows is not saved: the same command begins it anew.
#[test]
fn a_signal_while_the_bank_is_encoded_ends_the_run_before_its_first_checkpoint() {
    let dir = scratch();
    let run = dir.path().join("run");
    let large =
        "train --arch resnet20-cifar --image-size 224 --batch-size 16 --epochs 1 --device cpu --no-monitor";
    let mut child = instdisc(large).of_run(&run).start();
    wait_until("it begins", from_mut(&mut child), || run.join("config.toml").exists());
    send("-TERM", &child);
    assert_eq!(child.wait().expect("ends").code(), Some(75));
    assert!(!run.join("checkpoints").exists(), "nothing was saved");
    train(dataset(), &run, "--epochs 1 --no-monitor").ok();
}

/// A run that an earlier version began, with what were its defaults, goes on without options.
#[test]
fn a_run_keeps_the_defaults_with_which_it_was_begun() {
    let dir = scratch();
    let run = dir.path().join("run");
    let call = |more: &str| train(dataset(), &run, &format!("--objective nce --no-monitor {more}"));
    call("--epochs 1 --partition fixed --bank-init uniform --temperature 0.07").ok();
    call("--epochs 2").ok();
    let state = read_json(&checkpoint(&run, 16).join("state.json"));
    let kept = ["partition", "bank_init", "temperature"].map(|key| state["config"][key].to_string());
    assert_eq!(kept, ["\"fixed\"", "\"uniform\"", "0.07"]);
    let error = call("--epochs 3 --partition ema").fails(78);
    assert!(error.contains("partition = \"fixed\""), "{error}");
}
