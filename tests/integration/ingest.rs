//! An ingest that was killed, a second one into a dataset, one on a file system that lacks what ext4 has;
//! what an ingest refuses, and what memory it takes.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use instdisc::rng::{Purpose, Stream};
use tempfile::TempDir;

use super::support::{
    self, Call, contents, copy, damage, dataset, images, instdisc, read_json, scratch, send, skip,
};

/// Kills that must have met a living process.
const KILLS: usize = 50;

/// Many small shards, so that a kill meets every kind of step.
const SMALL: &str = "--shard-size 8KiB --row-group 4 --threads 2 --max-reject-fraction 0.5";

fn call(source: &Path, dest: &Path) -> Call {
    support::ingest(SMALL, source, dest).word("--log=error")
}

fn run(source: &Path, dest: &Path) -> Duration {
    let started = Instant::now();
    call(source, dest).ok();
    started.elapsed()
}

/// Starts an ingest of which only errors are kept.
fn start(source: &Path, dest: &Path) -> Child {
    call(source, dest).command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts")
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
    let (image, bytes) = contents(&dir.path().join("train")).pop().expect("an image");
    std::fs::write(dir.path().join("train").join(image), &bytes[..bytes.len() / 2]).expect("cut");
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
            let mut child = call(source, &dest).start();
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
        assert!(found.iter().map(|(path, _)| path).eq(expected.iter().map(|(path, _)| path)), "other files");
        assert!(found == expected, "the names agree, the bytes do not");
        std::fs::remove_dir_all(&dest).expect("removed");
        tries += 1;
        assert!(tries < 20 * wanted, "kills meet the process now and then");
    }
}

/// Starts an ingest and kills it as soon as `mark` is there; whether it died with work left to do.
fn killed_at(source: &Path, dest: &Path, mark: &Path) -> bool {
    let mut child = call(source, dest).start();
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
        let mut child = start(images(), &dest);
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
    let text = support::ingest(SMALL, &source, &dest).said();
    assert_eq!(
        text.matches("the source's files changed after an ingest was interrupted").count(),
        1,
        "{text}"
    );
    run(&source, &fresh);
    assert!(contents(&dest) == contents(&fresh), "nothing of the old files is left");
}

#[test]
fn of_two_ingests_at_once_one_works_and_the_other_is_told_or_finds_it_done() {
    let dir = scratch();
    let (whole, dest) = (dir.path().join("whole"), dir.path().join("out"));
    run(images(), &whole);
    for _ in 0..5 {
        let children = [0, 1, 2].map(|_| start(images(), &dest));
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

fn ingest(source: &Path, dest: &Path, more: &str) -> Call {
    support::ingest(&format!("--row-group 16 {more}"), source, dest)
}

#[test]
fn the_same_images_under_other_options_are_refused_by_the_names_of_the_options() {
    let dir = scratch();
    let dest = dir.path().join("dataset");
    copy(dataset(), &dest);
    let before = contents(&dest);
    let error = ingest(images(), &dest, "--append --max-pixels 9999").fails(65);
    assert!(error.contains("`max_pixels` was 100000000 and is 9999 now"), "{error}");
    assert!(contents(&dest) == before, "nothing came in twice");
}

#[test]
fn what_a_dataset_holds_already_is_said_with_what_that_rests_on() {
    let dir = scratch();
    let (source, dest) = (dir.path().join("source"), dir.path().join("dataset"));
    copy(images(), &source);
    ingest(&source, &dest, "").ok();
    let text = ingest(&source, &dest, "").said();
    let basis = "by the names, classes and sizes of its images, and the modification times or ETags of the \
                 source; --verify-source";
    assert!(text.contains(basis), "{text}");
    let text = ingest(&source, &dest, "--verify-source").said();
    assert!(text.contains("holds this dataset already, by the contents of its images"), "{text}");
    assert!(text.contains("verified: 160 images"), "{text}");
    // One byte of one image, which changes neither name nor size.
    let name = contents(&source).swap_remove(70).0;
    damage(&source.join(&name));
    let text = ingest(&source, &dest, "").said();
    assert!(text.contains("modification times or ETags of the source are not those of the ingest"), "{text}");
    let error = ingest(&source, &dest, "--verify-source").fails(65);
    assert!(error.contains(name.file_name().expect("a name").to_str().expect("text")), "{error}");
}

#[test]
fn options_without_an_effect_are_errors_and_threads_have_a_limit() {
    let dir = scratch();
    let dest = dir.path().join("dataset");
    let error = ingest(images(), &dest, "--verify-source").fails(78);
    assert!(error.contains("`--verify-source`: there is nothing to verify"), "{error}");
    ingest(images(), &dest, "--threads 20000").fails(2);
    assert!(!dest.exists());
}

#[test]
fn a_plan_with_a_destination_looks_at_it_and_one_without_does_not() {
    let dir = scratch();
    let plan = ingest(images(), &dir.path().join("new"), "--plan=json").json();
    assert_eq!(plan["destination"]["new"], serde_json::json!(["train", "val"]));
    assert_eq!(plan["form"], "imagefolder");
    assert!(!dir.path().join("new").exists());
    let error = ingest(images(), dataset(), "--append --max-pixels 5 --plan").fails(65);
    assert!(error.contains("`max_pixels` was 100000000 and is 5 now"), "{error}");
    let plan = instdisc("ingest --plan=json --max-pixels 5").arg("--source", images()).json();
    assert_eq!(plan.get("destination"), None);
}

#[test]
fn a_source_that_overlaps_the_destination_is_refused_also_through_links() {
    let dir = scratch();
    let source = dir.path().join("source");
    copy(images(), &source);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&source, &link).expect("a link");
    let before = contents(&source);
    for dest in [source.clone(), source.join("new/dataset"), link.join("dataset"), dir.path().to_owned()] {
        let error = ingest(&source, &dest, "").fails(65);
        assert!(error.contains("overlap") && error.contains(dest.to_str().expect("text")), "{error}");
        assert!(error.contains(source.to_str().expect("text")), "{error}");
    }
    assert!(contents(&source) == before && !source.join(".work").exists(), "nothing is written");
    // A dataset is a source as well as any other.
    let dest = dir.path().join("again");
    ingest(&dataset().join("train"), &dest, "--split train").ok();
}

#[test]
fn near_duplicates_are_found_unless_they_are_off() {
    let dir = scratch();
    let of =
        |dest: &str, more: &str| ingest(images(), &dir.path().join(dest), more).json()["duplicates"].clone();
    let (on, off) = (of("on", "--near-duplicates on"), of("off", "--near-duplicates off"));
    assert_eq!(off["visual_groups"], 0, "{off}");
    assert_eq!(on, of("default", ""), "{on}");
    let manifest = |dest: &str| {
        let manifest = read_json(&dir.path().join(dest).join("manifest.json"));
        manifest["splits"]["train"]["ingest"][0]["options"].clone()
    };
    assert_eq!(manifest("off")["near_duplicates"], "off");
    assert_eq!(manifest("on").get("near_duplicates"), None);
    assert!(contents(&dir.path().join("on")) == contents(&dir.path().join("default")));
}

/// The most memory that a call has held, in bytes, and its exit code.
#[cfg(target_os = "linux")]
fn peak_memory(call: Call) -> (u64, Option<i32>) {
    let mut child = call.command().stdout(std::process::Stdio::null()).spawn().expect("starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kibibytes) = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        {
            peak = peak.max(kibibytes * 1024);
        }
        if let Some(status) = child.try_wait().expect("a look") {
            return (peak, status.code());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// PNGs of one colour: small files that are large when they are decoded.
fn large_images(root: &Path, count: u32, side: u32) {
    std::fs::create_dir_all(root.join("a")).expect("a folder");
    for number in 0..count {
        let image = image::RgbImage::from_pixel(side, side, image::Rgb([number as u8, 7, 9]));
        image.save(root.join(format!("a/{number}.png"))).expect("saved");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn threads_together_decode_within_the_memory_limit() {
    const MIB: u64 = 1 << 20;
    let dir = scratch();
    let source = dir.path().join("source");
    // 28 MiB each while they are decoded, brightness included.
    large_images(&source, 12, 2048);
    let run = |dest: &str, limit: &str| {
        peak_memory(ingest(&source, &dir.path().join(dest), &format!("--threads 8 {limit}")))
    };
    // What the program takes by itself, its libraries included.
    let small = dir.path().join("small");
    large_images(&small, 1, 16);
    let (base, code) = peak_memory(ingest(&small, &dir.path().join("base"), "--threads 8"));
    assert_eq!(code, Some(0));
    let (peak, code) = run("limited", "--memory-limit 48MiB");
    assert_eq!(code, Some(0));
    assert!(peak < base + (48 + 32) * MIB, "{} MiB, without images {} MiB", peak / MIB, base / MIB);
    let error = ingest(&source, &dir.path().join("none"), "--memory-limit 16MiB").fails(65);
    assert!(error.contains("a/0.png: decoding needs 28.0 MiB, `--memory-limit` is 16.0 MiB"), "{error}");
    let (_, code) = run("whole", "");
    assert_eq!(code, Some(0));
    assert!(contents(&dir.path().join("limited")) == contents(&dir.path().join("whole")));
}

/// Fails `flock` and hard links with the codes that the environment gives.
const SHIM: &str = "
#include <errno.h>
#include <stdlib.h>
static int fails(const char *name) {
    const char *code = getenv(name);
    errno = code ? atoi(code) : ENOSYS;
    return -1;
}
int flock(int file, int operation) { return fails(\"SHIM_FLOCK\"); }
int link(const char *from, const char *to) { return fails(\"SHIM_LINK\"); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return fails(\"SHIM_LINK\"); }
";

const NO_SUCH_CALL: i32 = 38;
const NOT_PERMITTED: i32 = 1;
const NOT_SUPPORTED: i32 = 95;
const NO_LOCKS: i32 = 37;

fn shim() -> &'static PathBuf {
    static SHIMMED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = SHIMMED.get_or_init(|| {
        let dir = scratch();
        let (source, library) = (dir.path().join("shim.c"), dir.path().join("shim.so"));
        std::fs::write(&source, SHIM).expect("a file");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.expect("a C compiler").success());
        (dir, library)
    });
    library
}

/// A call on a file system that answers so to `flock` and to hard links.
fn on(call: Call, flock: i32, link: i32) -> Call {
    let call = call.env("LD_PRELOAD", shim());
    call.env("SHIM_FLOCK", flock.to_string()).env("SHIM_LINK", link.to_string())
}

#[test]
fn an_ingest_without_locks_and_links_gives_the_same_dataset_and_leaves_nothing_else() {
    for (flock, link) in
        [(NO_SUCH_CALL, NOT_PERMITTED), (NOT_SUPPORTED, NOT_SUPPORTED), (NO_LOCKS, NO_SUCH_CALL)]
    {
        let dir = scratch();
        let data = dir.path().join("data");
        let call = || on(ingest(images(), &data, ""), flock, link);
        let said = call().said();
        assert!(said.contains("the file system has no locks"), "{said}");
        assert!(contents(&data) == contents(dataset()), "{flock} {link}");
        assert_eq!(call().json()["already_done"], true);
    }
}

#[test]
fn of_two_ingests_without_locks_one_works_at_a_time() {
    let dir = scratch();
    let data = dir.path().join("data");
    let ingest = || on(ingest(images(), &data, ""), NO_SUCH_CALL, NOT_PERMITTED).output().1;
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let threads = [scope.spawn(ingest), scope.spawn(ingest)];
        threads.map(|thread| thread.join().expect("no panic")).into()
    });
    let codes: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
    // The second waits until the first is done, or is told that another works there.
    assert!(
        codes.contains(&Some(0)) && codes.iter().all(|code| [Some(0), Some(69)].contains(code)),
        "{outputs:?}"
    );
    assert!(contents(&data) == contents(dataset()));
}

/// What is held out is said where the splits are, in one sentence.
#[test]
fn the_splits_of_a_source_of_which_some_is_held_out_are_said_once() {
    let call = instdisc("ingest --plan --hold-out test=25%").arg("--source", images().join("train"));
    let plan = call.ok();
    let splits: Vec<&str> = plan.lines().filter(|line| line.contains("splits")).collect();
    let said = "  splits: the source is one, `train`, by its own name (`--split` names it); `--hold-out \
                test=25%` moves 30 of the 120 images of `train` to `test`, 3 of each class";
    assert_eq!(splits, [said], "{plan}");
}
