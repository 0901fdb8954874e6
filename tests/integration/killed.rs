//! An ingest that is killed goes on, and what comes out is what an uninterrupted one gives, byte for byte.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use instdisc::rng::{Purpose, Stream};

use super::support::{contents, copy, images, instdisc, scratch, send, skip};

/// Kills that must have met a living process.
const KILLS: usize = 50;

/// Many small shards, so that a kill meets every kind of step.
fn command(source: &Path, dest: &Path) -> Command {
    let words = "ingest --shard-size 8KiB --row-group 4 --threads 2 --max-reject-fraction 0.5 --log error";
    instdisc(words).arg("--source", source).arg("--dest", dest).command()
}

fn run(source: &Path, dest: &Path) -> Duration {
    let started = Instant::now();
    let output = command(source, dest).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    started.elapsed()
}

#[test]
fn an_ingest_killed_at_any_moment_goes_on_to_the_same_bytes() {
    killed_again_and_again(images(), KILLS);
}

/// One refused image ends the way that checks and writes in one pass.
#[test]
fn an_ingest_with_a_refused_image_killed_at_any_moment_goes_on_to_the_same_bytes() {
    let dir = scratch();
    copy(images(), dir.path());
    let entries = walkdir::WalkDir::new(dir.path().join("train")).sort_by_file_name();
    let files = entries.into_iter().filter_map(Result::ok).filter(|entry| entry.file_type().is_file());
    let image = files.last().expect("an image").into_path();
    let bytes = std::fs::read(&image).expect("readable");
    std::fs::write(&image, &bytes[..bytes.len() / 2]).expect("cut");
    killed_again_and_again(dir.path(), KILLS / 2);
}

fn killed_again_and_again(source: &Path, wanted: usize) {
    let dir = scratch();
    let whole = dir.path().join("whole");
    let mut duration = run(source, &whole);
    let expected = contents(&whole);
    assert!(expected.len() > 20, "there are many files");
    let mut moments = Stream::new(std::process::id().into(), Purpose::Test, 0, 0);
    let (mut kills, mut tries) = (0, 0);
    while kills < wanted {
        let dest = dir.path().join(format!("killed-{tries}"));
        // Several kills of one ingest, then it may finish.
        for _ in 0..5 {
            let mut child =
                command(source, &dest).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
            std::thread::sleep(duration.mul_f64(moments.unit()));
            let finished = child.try_wait().expect("a child").is_some();
            child.kill().expect("killed");
            child.wait().expect("ended");
            kills += usize::from(!finished);
            // The machine may be busier or idler than before: most kills shall meet a living process.
            duration = duration.mul_f64(if finished { 0.8 } else { 1.05 });
        }
        run(source, &dest);
        let found = contents(&dest);
        let names =
            |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected));
        assert!(found == expected, "the names agree, the bytes do not");
        std::fs::remove_dir_all(&dest).expect("removed");
        tries += 1;
        assert!(tries < 20 * wanted, "kills meet the process now and then");
    }
}

/// Starts an ingest and kills it as soon as `mark` is there; whether it died with work left to do.
fn killed_at(source: &Path, dest: &Path, mark: &Path) -> bool {
    let mut child =
        command(source, dest).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    while !mark.exists() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    mark.exists() && !dest.join("manifest.json").exists()
}

/// A destination whose ingest was killed at this mark; a process may be faster than the eye, so several tries.
fn killed_midway(source: &Path, dir: &Path, mark: &str) -> PathBuf {
    let dests = (0..50).map(|number| dir.join(format!("midway-{number}")));
    let mut killed = dests.filter(|dest| killed_at(source, dest, &dest.join(mark)));
    killed.next().expect("one of fifty is killed in time")
}

/// Whether this process, and so its children, ignore Ctrl-C, as those that a shell starts in the background do.
fn ignores_ctrl_c() -> bool {
    const SIGINT: u32 = 2;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .is_some_and(|mask| mask & (1 << (SIGINT - 1)) != 0)
}

#[test]
fn an_ingest_that_ctrl_c_ends_says_no_error_and_resumes() {
    if ignores_ctrl_c() {
        return skip("an_ingest_that_ctrl_c_ends_says_no_error_and_resumes", "SIGINT is ignored here");
    }
    let dir = scratch();
    let whole = dir.path().join("whole");
    run(images(), &whole);
    for number in 0..50 {
        let dest = dir.path().join(format!("ended-{number}"));
        let mut child =
            command(images(), &dest).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        while !dest.join(".work").exists() && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        send("-INT", &child);
        let output = child.wait_with_output().expect("ends");
        if output.status.success() {
            continue;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.signal(), said.contains("error")), (Some(2), false), "{said}");
        run(images(), &dest);
        assert!(contents(&dest) == contents(&whole));
        return;
    }
    panic!("one of fifty is ended in time");
}

#[test]
fn finished_shards_are_not_written_again() {
    let dir = scratch();
    let dest = killed_midway(images(), dir.path(), ".work/0000-val/whole-00000.json");
    let shard = dest.join("val/shard-00000.parquet");
    let changed = || std::fs::metadata(&shard).and_then(|meta| meta.modified()).expect("the shard");
    let before = changed();
    run(images(), &dest);
    assert_eq!(changed(), before);
}

#[test]
fn a_source_that_changed_after_a_kill_gives_the_dataset_of_the_new_files() {
    let dir = scratch();
    let (source, fresh) = (dir.path().join("source"), dir.path().join("fresh"));
    copy(images(), &source);
    let dest = killed_midway(&source, dir.path(), ".work/0000-val/whole-00000.json");
    // Other bytes under the same names, as many as before.
    for (name, bytes) in contents(&source).into_iter().filter(|(name, _)| name.starts_with("val")) {
        let mut turned = bytes.clone();
        let middle = bytes.len() / 2;
        turned[middle] ^= 1;
        std::fs::write(source.join(name), turned).expect("changed");
    }
    let lenient = |dest: &Path| {
        let words = "ingest --shard-size 8KiB --row-group 4 --threads 2 --max-reject-fraction 0.5";
        let (_, output) = instdisc(words).arg("--source", &source).arg("--dest", dest).output();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    let text = lenient(&dest);
    assert_eq!(
        text.matches("the source's files changed after an ingest was interrupted").count(),
        1,
        "{text}"
    );
    lenient(&fresh);
    assert!(contents(&dest) == contents(&fresh), "nothing of the old files is left");
}

#[test]
fn work_with_other_options_is_thrown_away() {
    let dir = scratch();
    let dest = killed_midway(images(), dir.path(), ".work/0000-val/whole-00000.json");
    let other = |dest: &Path| {
        let call = instdisc("ingest --shard-size 40KiB --row-group 16 --log error");
        call.arg("--source", images()).arg("--dest", dest).ok()
    };
    other(&dest);
    other(&dir.path().join("fresh"));
    assert!(contents(&dest) == contents(&dir.path().join("fresh")), "nothing of the first is left");
}

#[test]
fn of_two_ingests_at_once_one_works_and_the_other_is_told_or_finds_it_done() {
    let dir = scratch();
    let (whole, dest) = (dir.path().join("whole"), dir.path().join("out"));
    run(images(), &whole);
    for _ in 0..5 {
        let start =
            || command(images(), &dest).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        let children = [start(), start(), start()];
        let mut done = 0;
        for child in children {
            let output = child.wait_with_output().expect("ended");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => done += 1,
                Some(69) => assert!(text.contains("another process works here (process "), "{text}"),
                other => panic!("{other:?}: {text}"),
            }
        }
        assert!(done > 0, "one of them works");
        assert!(contents(&dest) == contents(&whole), "not a mixture");
        std::fs::remove_dir_all(&dest).expect("removed");
    }
}
