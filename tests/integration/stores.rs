//! The jobs with everything in an object store, whole and faulty.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use super::support::bucket::{Bucket, Faults};
use super::support::{self, Call, contents, dataset, images, instdisc, jpeg, scratch};

const WRONG_DATA: i32 = 65;
const UNAVAILABLE: i32 = 69;
const CONFIG: i32 = 78;

/// A network as bad as an ingest has to bear here; `make test-cluster` is as hard on the whole path.
pub(super) fn bad_network() -> Faults {
    Faults { refused: 0.3, cut: 0.05, lost: 0.05, late: 0.05, ..Faults::default() }
}

fn ingest(bucket: &Bucket) -> Call {
    bucket.of(support::ingest("--row-group 16", images(), bucket.url("data")))
}

/// The files of a folder by name, as a bucket gives them.
fn local(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let name = |path: std::path::PathBuf| path.to_str().expect("text").to_owned();
    contents(folder).into_iter().map(|(path, bytes)| (name(path), bytes)).collect()
}

fn names(files: &[(String, Vec<u8>)]) -> Vec<&str> {
    files.iter().map(|(name, _)| name.as_str()).collect()
}

fn assert_same(found: &[(String, Vec<u8>)], expected: &[(String, Vec<u8>)]) {
    assert_eq!(names(found), names(expected));
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{name} differs");
    }
}

#[test]
fn an_ingest_into_a_store_over_a_bad_network_gives_the_bytes_of_one_into_a_folder() {
    let bucket = Bucket::start(bad_network());
    let stderr = ingest(&bucket).said();
    assert!(stderr.contains("faults met by retries: "), "{stderr}");
    assert_same(&bucket.contents("data"), &local(dataset()));
    let stderr = bucket.of(instdisc("inspect --verify").arg("", bucket.url("data"))).said();
    assert!(stderr.contains("object store: "), "{stderr}");
    assert_eq!(ingest(&bucket).json()["already_done"], true);
    assert_same(&bucket.contents("data"), &local(dataset()));
}

#[test]
fn two_ingests_at_one_destination_of_a_store_give_one_dataset() {
    let bucket = Bucket::start(Faults { lost: 0.1, late: 0.1, ..Faults::default() });
    let results: Vec<Output> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| ingest(&bucket).output().1);
        [start(), start()].map(|thread| thread.join().expect("no panic")).into()
    });
    let codes: Vec<_> = results.iter().map(|output| output.status.code()).collect();
    // The second waits until the first is done, or is told that another works there.
    assert!(codes.contains(&Some(0)), "{results:?}");
    assert!(codes.iter().all(|code| [Some(0), Some(UNAVAILABLE)].contains(code)), "{results:?}");
    assert_same(&bucket.contents("data"), &local(dataset()));
}

#[test]
fn a_store_that_overwrites_silently_is_for_a_single_writer() {
    let bucket = Bucket::start(Faults { overwrites: true, ..Faults::default() });
    let error = ingest(&bucket).fails(CONFIG);
    assert!(error.contains("no conditional create") && error.contains("--single-writer"), "{error}");
    assert!(bucket.contents("data").is_empty());
    ingest(&bucket).word("--single-writer").ok();
    assert_same(&bucket.contents("data"), &local(dataset()));
}

#[test]
fn a_store_that_is_gone_ends_a_job_with_one_error_within_its_time() {
    let bucket = Bucket::start(Faults::default());
    let call = ingest(&bucket).word("--retry-seconds=3").word("--log=error");
    bucket.stop();
    let started = Instant::now();
    let error = call.fails(UNAVAILABLE);
    assert!(error.contains("s3://bucket/data/manifest.json: read failed"), "{error}");
    assert!(error.contains(" tries in ") && error.contains("Connection refused"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
}

#[test]
fn a_store_that_only_refuses_is_asked_as_often_as_allowed() {
    let bucket = Bucket::start(Faults { refused: 1.0, ..Faults::default() });
    let call = ingest(&bucket).word("--retry-tries=2").word("--log=error");
    let error = call.fails(UNAVAILABLE);
    assert!(error.contains("s3://bucket/data/manifest.json: read failed"), "{error}");
    assert!(error.contains("503") && error.contains("SlowDown") && error.contains("3 tries"), "{error}");
    assert_eq!(bucket.requests(), ["GET data/manifest.json"; 3]);
}

#[test]
fn an_ingest_whose_store_goes_away_publishes_no_dataset() {
    let whole = Bucket::start(Faults::default());
    ingest(&whole).ok();
    let half = Some(whole.requests().len() / 2);
    let bucket = Bucket::start(Faults { refused_after: half, ..Faults::default() });
    let error = ingest(&bucket).word("--retry-seconds=2").word("--log=error").fails(UNAVAILABLE);
    assert!(error.contains("s3://bucket/data") && error.contains("503"), "{error}");
    assert!(!bucket.contents("data").iter().any(|(name, _)| name == "manifest.json"));
}

#[test]
fn bytes_that_were_damaged_on_their_way_are_read_once_more() {
    let bucket = Bucket::start(Faults::default());
    ingest(&bucket).ok();
    let verify = || bucket.of(instdisc("inspect --verify").arg("", bucket.url("data")));
    // The index, a footer, a shard: whichever is read first.
    for ending in ["index/train.parquet", "val/shard-00000.parquet", ".parquet"] {
        bucket.set_faults(Faults { damaged: Some((ending, 1)), ..Faults::default() });
        let stderr = verify().said();
        assert!(stderr.contains("once more"), "{ending}: {stderr}");
    }
    bucket.set_faults(Faults { damaged: Some((".parquet", usize::MAX)), ..Faults::default() });
    let error = verify().fails(WRONG_DATA);
    assert!(error.contains(".parquet"), "{error}");
}

#[test]
fn no_secret_is_told_even_where_the_store_repeats_it() {
    const SECRETS: [&str; 2] = ["a-planted-secret", "a-planted-token"];
    let bucket = Bucket::start(Faults { denies: true, ..Faults::default() });
    for level in ["--log=trace", "--log=error"] {
        let (_, output) = ingest(&bucket).word(level).env("AWS_SESSION_TOKEN", SECRETS[1]).output();
        assert_eq!(output.status.code(), Some(CONFIG));
        let told = format!("{output:?}");
        assert!(told.contains("SignatureDoesNotMatch"), "{told}");
        assert!(SECRETS.iter().all(|secret| !told.contains(secret)), "{told}");
    }
    bucket.set_faults(Faults::default());
    let (printed, said) = ingest(&bucket).word("--log=trace").env("AWS_SESSION_TOKEN", SECRETS[1]).run();
    let published = bucket.contents("data").into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>();
    for told in [&printed, &said, &*String::from_utf8_lossy(&published)] {
        assert!(SECRETS.iter().all(|secret| !told.contains(secret)));
    }
}

#[test]
fn a_secret_on_the_command_line_is_refused_without_being_repeated() {
    let call = instdisc("inspect --storage-option aws_secret_access_key=a-planted-secret s3://bucket/data");
    let error = call.fails(2);
    assert!(error.contains("aws_secret_access_key=@FILE") && !error.contains("a-planted"), "{error}");
}

/// A call with the settings of the store, but for some that are set otherwise or, with `None`, not at all.
fn with(call: Call, settings: &[(&str, Option<&str>)]) -> Call {
    let mut command = call.command();
    for (name, value) in settings {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Call::from(command)
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_passed_over() {
    use std::os::unix::ffi::OsStrExt;

    let bucket = Bucket::start(Faults::default());
    ingest(&bucket).env("AWS_ODD_TOKEN", std::ffi::OsStr::from_bytes(b"not\xe9")).ok();
}

fn inspect(bucket: &Bucket) -> Call {
    bucket.of(instdisc("inspect --log=error").arg("", bucket.url("data")))
}

#[test]
fn a_mistyped_url_makes_no_folder_and_the_error_says_what_was_meant() {
    let dir = scratch();
    for (text, meant) in [
        ("s3:/bucket/ds", "s3://bucket/ds"),
        ("s3:bucket/ds", "s3://bucket/ds"),
        ("https://bucket.s3.amazonaws.com/ds", "s3://bucket/ds"),
        ("file:/tmp/x", "file:///tmp/x"),
        ("gs:/bucket/ds", "gs://bucket/ds"),
        ("~/ds", "./~/ds"),
        ("$HOME/ds", "file:///"),
    ] {
        for words in [["ingest", "--dest"], ["export images --dataset data", "--dest"], ["synth", "--dest"]] {
            let call = instdisc(words[0]).arg(words[1], text);
            let call = if words[0] == "ingest" { call.arg("--source", images()) } else { call };
            let mut command = call.command();
            command.current_dir(dir.path());
            // What clap refuses has its hints on further lines.
            let output = command.output().expect("starts");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{text}: {stderr}");
            assert!(stderr.contains(meant), "{text}: {stderr}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0, "{text}");
    }
}

#[test]
fn the_endpoint_is_found_under_each_of_its_names() {
    let bucket = Bucket::start(Faults::default());
    ingest(&bucket).ok();
    let address = bucket.address();
    let nowhere = Some("http://127.0.0.1:9");
    for settings in [
        [("AWS_ENDPOINT", None), ("AWS_ENDPOINT_URL", Some(address.as_str()))],
        [("AWS_ENDPOINT", None), ("AWS_ENDPOINT_URL_S3", Some(address.as_str()))],
        [("AWS_ENDPOINT", nowhere), ("AWS_ENDPOINT_URL_S3", Some(address.as_str()))],
    ] {
        with(inspect(&bucket), &settings).ok();
    }
    // An option wins over them all.
    let option = format!("--storage-option=aws_endpoint={address}");
    with(inspect(&bucket).word(&option), &[("AWS_ENDPOINT", nowhere), ("AWS_ENDPOINT_URL_S3", nowhere)]).ok();
}

#[test]
fn wrong_settings_are_told_from_a_store_that_is_away() {
    let bucket = Bucket::start(Faults::default());
    let error = with(inspect(&bucket), &[("AWS_ALLOW_HTTP", None)]).fails(CONFIG);
    assert!(error.contains("AWS_ALLOW_HTTP=true"), "{error}");
    let error = with(inspect(&bucket), &[("AWS_SECRET_ACCESS_KEY", None)]).fails(CONFIG);
    assert!(error.to_lowercase().contains("secret"), "{error}");
    let metadata = format!("{}/169.254.169.254", bucket.address());
    let none = [
        ("AWS_ACCESS_KEY_ID", None),
        ("AWS_SECRET_ACCESS_KEY", None),
        ("AWS_METADATA_ENDPOINT", Some(metadata.as_str())),
        ("AWS_PROFILE", Some("work")),
    ];
    let quick = || inspect(&bucket).word("--retry-tries=0").word("--retry-seconds=1");
    let error = with(quick(), &none).fails(CONFIG);
    assert!(error.contains("no credentials") && error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    assert!(error.contains("profiles of ~/.aws are not read"), "{error}");
    bucket.set_faults(Faults { absent: true, ..Faults::default() });
    let error = inspect(&bucket).fails(CONFIG);
    assert!(error.contains("NoSuchBucket"), "{error}");
    bucket.set_faults(Faults { token: Some("another"), ..Faults::default() });
    let error = inspect(&bucket).fails(CONFIG);
    assert!(error.contains("ExpiredToken"), "{error}");
}

#[test]
fn a_refusal_in_the_middle_of_a_job_is_worth_a_retry() {
    let whole = Bucket::start(Faults::default());
    ingest(&whole).ok();
    let denied_after = |requests| Bucket::start(Faults { denied_after: Some(requests), ..Faults::default() });
    let bucket = denied_after(whole.requests().len() / 2);
    let error = ingest(&bucket).word("--log=error").fails(UNAVAILABLE);
    // An answer to HEAD has no text.
    assert!(error.contains("AccessDenied") || error.contains("403 Forbidden"), "{error}");
    // The rights to write may be missing where those to read are not.
    let first_put = whole.requests().iter().position(|line| line.starts_with("PUT")).expect("it writes");
    ingest(&denied_after(first_put)).word("--log=error").fails(CONFIG);
}

#[test]
fn a_token_that_was_rotated_in_its_file_is_read_again() {
    let bucket = Bucket::start(Faults::default());
    ingest(&bucket).ok();
    bucket.set_faults(Faults { token: Some("the-second-token"), ..Faults::default() });
    let dir = scratch();
    let file = dir.path().join("token");
    std::fs::write(&file, "the-first-token").expect("a file");
    let option = format!("--storage-option=aws_session_token=@{}", file.display());
    let error = inspect(&bucket).word(&option).fails(CONFIG);
    assert!(error.contains("ExpiredToken") && !error.contains("the-first-token"), "{error}");
    // A pipe gives the first token once, and then the second: as a file that is replaced meanwhile.
    std::fs::remove_file(&file).expect("removed");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo").success());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for token in ["the-first-token", "the-second-token"] {
                std::fs::write(&file, token).expect("read by the program");
                // Until the reader has closed it.
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        inspect(&bucket).word(&option).ok();
    });
}

#[test]
fn an_unsupported_key_is_named() {
    for (key, shown) in
        [("cat//7.jpg", "cat//7.jpg"), ("cat/./7.jpg", "cat/./7.jpg"), ("cat/7\t.jpg", "7\\t.jpg")]
    {
        let bucket = Bucket::start(Faults::default());
        for key in [key, "cat/1.jpg", "dog/1.jpg"] {
            bucket.put(&format!("images/{key}"), &jpeg());
        }
        let call = support::ingest("", bucket.url("images"), bucket.url("data"));
        let error = bucket.of(call).fails(WRONG_DATA);
        assert!(error.contains(shown) && error.contains("unsupported key"), "{error}");
    }
}

#[test]
fn a_bucket_itself_is_a_source() {
    let bucket = Bucket::start(Faults::default());
    for (path, bytes) in contents(images()).into_iter().filter(|(path, _)| path.starts_with("train")) {
        bucket.put(path.to_str().expect("text"), &bytes);
    }
    for (number, source) in ["s3://bucket", "s3://bucket/"].into_iter().enumerate() {
        let dir = scratch();
        let report = bucket.of(support::ingest("", source, dir.path().join("data"))).json();
        assert_eq!(report["splits"]["train"]["instances"], 120, "{number}");
    }
}

#[test]
fn what_is_named_and_not_there_is_absent_data_as_on_this_machine() {
    let bucket = Bucket::start(Faults::default());
    let none = bucket.url("none.arrow");
    let dir = scratch();
    for call in [
        instdisc("knn").arg("--bank", &none).arg("--queries", &none),
        instdisc("export parquet").arg("--table", &none).arg("--output", dir.path().join("x.parquet")),
        instdisc("export images").arg("--dataset", bucket.url("none")).arg("--dest", dir.path().join("x")),
        instdisc("inspect").arg("", bucket.url("none")),
        support::ingest("", bucket.url("none"), dir.path().join("data")),
        support::ingest("", bucket.url("a-{0..1}.tar"), dir.path().join("data")),
    ] {
        bucket.of(call).fails(WRONG_DATA);
    }
}

#[cfg(feature = "torch")]
mod training {
    use super::*;
    use crate::support::{embed, train, trained};

    fn checkpoints(files: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
        files.into_iter().filter(|(name, _)| name.starts_with("checkpoints/")).collect()
    }

    #[test]
    fn a_run_in_a_store_over_a_bad_network_equals_one_in_a_folder_and_is_evaluated_the_same() {
        let dir = scratch();
        let more = "--epochs 1 --keep 0 --no-monitor";
        let run = trained(&dir, more);
        let knn = "knn --watch --split val --k 5 --poll-interval 1";
        instdisc(knn).of_run(&run).ok();

        let bucket = Bucket::start(Faults::default());
        ingest(&bucket).ok();
        bucket.set_faults(Faults { refused: 0.1, ..bad_network() });
        let (data, place) = (bucket.url("data"), bucket.url("run"));
        let stderr = bucket.of(train(Path::new(&data), Path::new(&place), more)).said();
        assert!(stderr.contains("faults met by retries: "), "{stderr}");
        bucket.of(instdisc(knn).arg("--run", &place).arg("--dataset", &data)).ok();

        assert_same(&checkpoints(bucket.contents("run")), &checkpoints(local(&run)));
        let top1 = |files: Vec<(String, Vec<u8>)>| -> Vec<serde_json::Value> {
            let reports = files.into_iter().filter(|(name, _)| name.ends_with(".json"));
            let report = |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&bytes).expect("JSON");
            reports.map(|(_, bytes)| report(bytes)["top1"].clone()).collect()
        };
        let expected = top1(local(&run.join("eval")));
        assert_eq!(expected.len(), 2);
        assert_eq!(top1(bucket.contents("run/eval")), expected);
    }

    #[test]
    fn a_watcher_opens_each_checkpoint_once_and_looks_up_no_file_of_it_but_the_bank() {
        let bucket = Bucket::start(Faults::default());
        ingest(&bucket).ok();
        let (data, run) = (bucket.url("data"), bucket.url("run"));
        bucket.of(train(Path::new(&data), Path::new(&run), "--epochs 1 --keep 0 --no-monitor")).ok();
        let before = bucket.requests().len();
        let knn = instdisc("knn --watch --split val --k 5 --poll-interval 1");
        bucket.of(knn.arg("--run", &run).arg("--dataset", &data)).ok();
        let asked = bucket.requests().split_off(before);
        let of = |step: u64, what: &str| {
            let place = format!("run/checkpoints/step-{step:08}/");
            let of_step = asked.iter().filter(|line| line.contains(&place) && line.starts_with(what));
            of_step.map(|line| line.rsplit('/').next().expect("a name")).collect::<Vec<_>>()
        };
        for step in [0, 8] {
            assert_eq!(of(step, "GET").iter().filter(|name| **name == "checkpoint.json").count(), 1);
            assert_eq!(of(step, "HEAD"), ["bank.arrow"]);
        }
    }

    #[test]
    fn images_that_are_evaluated_after_each_epoch_are_fetched_once() {
        let bucket = Bucket::start(Faults::default());
        ingest(&bucket).ok();
        let (dir, data) = (scratch(), bucket.url("data"));
        let fetched = |epochs: u32| {
            let (before, name) = (bucket.requests().len(), format!("run-{epochs}"));
            let more = format!("--epochs {epochs} --cache-size 64MiB");
            let call = train(Path::new(&data), Path::new(&bucket.url(&name)), &more);
            bucket.of(call.arg("--cache", dir.path().join(&name))).ok();
            let asked = bucket.requests().split_off(before);
            asked.iter().filter(|line| line.starts_with("GET") && line.contains("data/val/")).count()
        };
        let once = fetched(1);
        assert!(once > 0);
        assert_eq!(fetched(3), once);
    }

    #[test]
    fn exports_over_a_bad_network_equal_those_from_folders() {
        let dir = scratch();
        let run = trained(&dir, "--epochs 1 --no-monitor");
        embed("val", &run, &dir.path().join("val.arrow")).ok();
        let bucket = Bucket::start(Faults::default());
        ingest(&bucket).ok();
        local(dir.path()).iter().for_each(|(name, bytes)| bucket.put(name, bytes));
        bucket.set_faults(Faults { refused: 0.1, ..bad_network() });

        let calls: [(&str, &[(&str, &str)]); 4] = [
            ("torchvision", &[("--run", "run"), ("--output", "out/weights.safetensors")]),
            ("parquet", &[("--table", "val.arrow"), ("--output", "out/val.parquet")]),
            ("projector", &[("--table", "val.arrow"), ("--dataset", "data"), ("--output", "out/projector")]),
            ("images --split val", &[("--dataset", "data"), ("--dest", "images")]),
        ];
        for (words, places) in calls {
            let [here, there] = [false, true].map(|remote| {
                places.iter().fold(instdisc(&format!("export {words}")), |call, (flag, place)| {
                    match (remote, *place) {
                        (true, place) => call.arg(flag, bucket.url(place)),
                        (false, "data") => call.arg(flag, dataset()),
                        (false, place) => call.arg(flag, dir.path().join(place)),
                    }
                })
            });
            let (here, there) = (here.json(), bucket.of(there).json());
            for key in ["rows", "tensors", "splits"] {
                assert_eq!(there[key], here[key], "{words}: {key}");
            }
        }
        for folder in ["out", "images"] {
            let found = bucket.contents(folder);
            assert!(!found.is_empty(), "{folder}");
            assert_same(&found, &local(&dir.path().join(folder)));
        }
    }
}
