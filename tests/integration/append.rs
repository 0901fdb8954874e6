//! A second ingest into a dataset, and what an ingest says of itself: what a second look rests on, what it refuses, and
//! what memory it takes.

use std::path::Path;

use super::support::{contents, dataset, images, instdisc, scratch};

fn ingest(source: &Path, dest: &Path, more: &str) -> super::support::Call {
    instdisc(&format!("ingest --row-group 16 {more}")).arg("--source", source).arg("--dest", dest)
}

/// The standard error of a call that succeeds.
fn said(call: super::support::Call) -> String {
    let (shown, output) = call.output();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{shown}\n{text}");
    text
}

#[test]
fn the_same_images_under_other_options_are_refused_by_the_names_of_the_options() {
    let dir = scratch();
    let dest = dir.path().join("dataset");
    super::support::copy(dataset(), &dest);
    let before = contents(&dest);
    let error = ingest(images(), &dest, "--append --max-pixels 9999").fails(65);
    assert!(error.contains("`max_pixels` was 100000000 and is 9999 now"), "{error}");
    assert!(contents(&dest) == before, "nothing came in twice");
}

#[test]
fn what_a_dataset_holds_already_is_said_with_what_that_rests_on() {
    let dir = scratch();
    let (source, dest) = (dir.path().join("source"), dir.path().join("dataset"));
    super::support::copy(images(), &source);
    ingest(&source, &dest, "").ok();
    let text = said(ingest(&source, &dest, ""));
    let basis = "by the names, classes and sizes of its images, and the modification times or ETags of the source; --verify-source";
    assert!(text.contains(basis), "{text}");
    let text = said(ingest(&source, &dest, "--verify-source"));
    assert!(text.contains("holds this dataset already, by the contents of its images"), "{text}");
    assert!(text.contains("verified: 160 images"), "{text}");
    // One byte of one image, which changes neither name nor size.
    let (name, mut bytes) = contents(&source).swap_remove(70);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(source.join(&name), bytes).expect("changed");
    let text = said(ingest(&source, &dest, ""));
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
    let error = ingest(images(), &dest, "--split val --drop-leaks").fails(78);
    assert!(error.contains("`--drop-leaks` leaves images out of the split `train`"), "{error}");
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
    super::support::copy(images(), &source);
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
        let text = std::fs::read(dir.path().join(dest).join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        manifest["splits"]["train"]["ingest"][0]["options"].clone()
    };
    assert_eq!(manifest("off")["near_duplicates"], "off");
    assert_eq!(manifest("on").get("near_duplicates"), None);
    assert!(contents(&dir.path().join("on")) == contents(&dir.path().join("default")));
}

/// The most memory that a call has held, in bytes, and its exit code.
#[cfg(target_os = "linux")]
fn peak_memory(call: super::support::Call) -> (u64, Option<i32>) {
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
