//! Several processes do what one does: training, going on with another number of them, embedding, the vote.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use instdisc::checkpoint::Checkpoint;
use instdisc::feature_table::{FeatureTable, TableError};
use instdisc::storage::Location;
use serde_json::Value;

use super::linear;
use super::support::{
    Call, INSTDISC, checkpoint, contents, copy, dataset, embed, entries, instdisc, interpreter, knn,
    location, metrics, newest_step, read_json, read_table, scratch, send, wait_until, write_table,
};

/// Batch norm sees all images of a step, so that the mathematics does not depend on the processes. The steps are
/// small: at usual ones this network multiplies a rounding error tenfold in each, also in one process.
const OPTIONS: &str =
    "--sync-batch-norm --no-monitor --log-every-steps 1 --temperature 1 --epochs 3 --keep 0 --lr 0.000005";
/// A run that ends when it is told to.
const ENDLESS: &str = "--sync-batch-norm --no-monitor --objective softmax --epochs 100000";
/// How long processes that lost one may go on: three or four seconds, and what a busy machine takes.
const LOST_WITHIN: Duration = Duration::from_secs(10);

/// A call of `train`: with longer rows than other tests, whose numbers then differ less.
fn train(run: &Path, more: &str) -> Call {
    train_on(dataset(), run, more)
}

fn train_on(dataset: &Path, run: &Path, more: &str) -> Call {
    let base =
        "train --arch resnet20-cifar --image-size 16 --dim 64 --batch-size 16 --negatives 32 --device cpu";
    instdisc(&format!("{base} {more}")).arg("--dataset", dataset).arg("--run", run)
}

/// The processes of a job.
pub(super) struct Ranks(Vec<Child>);

impl Ranks {
    /// Starts `count` processes of a call.
    pub(super) fn start(count: usize, call: impl Fn(usize) -> Call) -> Self {
        Self::start_of(count, count, &free_address(), call)
    }

    /// Starts the `first` ones of `count` processes.
    fn start_of(first: usize, count: usize, master: &str, call: impl Fn(usize) -> Call) -> Self {
        let start = |rank: usize| {
            let mut command = call(rank).command();
            if count > 1 {
                let numbers = [rank, count].map(|number| number.to_string());
                command.args(["--rank", &numbers[0], "--world-size", &numbers[1], "--master", master]);
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
        };
        Self((0..first).map(start).collect())
    }

    /// Likewise, where that is JSON.
    pub(super) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("JSON")
    }

    fn signal(&self, rank: usize, signal: &str) {
        send(signal, &self.0[rank]);
    }

    /// Waits for all of them.
    fn end(mut self) -> Vec<Output> {
        // Each on a thread: one that fills its pipe must not wait for another.
        let threads: Vec<_> = std::mem::take(&mut self.0)
            .into_iter()
            .map(|child| std::thread::spawn(move || child.wait_with_output().expect("ends")))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("joined")).collect()
    }

    /// Waits for all of them, which must succeed; what process 0 prints.
    pub(super) fn ok(self) -> String {
        let outputs = self.end();
        for (rank, output) in outputs.iter().enumerate() {
            assert!(output.status.success(), "rank {rank}: {}\n{}", output.status, stderr(output));
            assert!(rank == 0 || output.stdout.is_empty(), "process 0 speaks for all");
        }
        String::from_utf8(outputs[0].stdout.clone()).expect("text")
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
    }
}

/// One with a port that is free now, below those that the system gives away.
fn free_address() -> String {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 8000;
    loop {
        let port = 15000 + (first + TRIED.fetch_add(1, Ordering::Relaxed)) % 16000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return format!("127.0.0.1:{port}");
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn trained_by(count: usize, run: &Path, more: &str) {
    Ranks::start(count, |_| train(run, &format!("{OPTIONS} {more}"))).ok();
}

/// Loss and gradient's norm of each step, from the record.
fn steps(run: &Path) -> Vec<(Value, [f64; 2])> {
    let steps = metrics(run).into_iter().filter(|line| line["scope"] == "interval");
    let numbers = |line: &Value| ["loss", "gradient_norm"].map(|key| line[key].as_f64().expect("a number"));
    steps.map(|line| (line["step"].clone(), numbers(&line))).collect()
}

/// The newest checkpoint.
fn newest(run: &Path) -> PathBuf {
    checkpoint(run, newest_step(run).expect("a checkpoint"))
}

/// The newest checkpoint's bank, whoever wrote which rows.
fn bank(run: &Path) -> (FeatureTable, usize) {
    let checkpoint = Checkpoint::open(&location(&newest(run))).expect("whole");
    checkpoint.verify().expect("undamaged");
    let files = checkpoint.bank().expect("a bank");
    let read = |file: &Location| Ok::<_, TableError>((file.to_string(), FeatureTable::read(file)?));
    (FeatureTable::join(files.iter().map(read)).expect("a bank"), files.len())
}

/// Whether two runs went the same way: losses and rows within 1e-5, gradients' norms within 2e-2, and every row
/// written in the same step.
fn assert_same_run(one: &Path, other: &Path, what: &str) {
    assert_same_steps(one, other, what);
    let ((expected, _), (actual, _)) = (bank(one), bank(other));
    assert_eq!((&expected.ids, &expected.labels), (&actual.ids, &actual.labels), "{what}");
    // Which image was in which step's batch.
    assert_eq!(expected.updated_step, actual.updated_step, "{what}");
    let largest = largest_difference(&expected.features, &actual.features);
    assert!(largest < 1e-5, "{what}: a row differs by {largest}");
    let (expected, actual) = (probe(one), probe(other));
    assert_eq!(expected.len(), actual.len(), "{what}");
    let largest = largest_difference(&expected, &actual);
    assert!(largest < 1e-4, "{what}: the probe differs by {largest}");
}

fn largest_difference(expected: &[f32], actual: &[f32]) -> f32 {
    expected.iter().zip(actual).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The numbers of the newest checkpoint's probe; none where the run has no probe.
fn probe(run: &Path) -> Vec<f32> {
    let Ok(bytes) = std::fs::read(newest(run).join("probe.safetensors")) else { return Vec::new() };
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[8 + header..].as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Whether the steps of two runs went the same way.
fn assert_same_steps(one: &Path, other: &Path, what: &str) {
    let (expected, actual) = (steps(one), steps(other));
    assert!(expected.len() > 20 && expected.len() == actual.len(), "{what}");
    for ((step, expected), (_, actual)) in expected.iter().zip(&actual) {
        // A gradient jumps where a unit is switched on or off.
        for (at, tolerance) in [(0, 1e-5), (1, 2e-2)] {
            let difference = (actual[at] / expected[at] - 1.0).abs();
            assert!(difference < tolerance, "{what}: step {step}: {actual:?}, not {expected:?}");
        }
    }
}

/// The untrained encoder is the same, so its scores are, but for images whose neighbours are equally near.
#[test]
fn processes_that_share_the_images_of_another_dataset_score_as_one_does() {
    let dir = scratch();
    let names = ["dataset_val/knn1_top1", "dataset_val/knn12_top1", "dataset_val/knn_chance"];
    let start_of = |count: usize, more: &str| {
        let run = dir.path().join(format!("of-{count}{more}"));
        let options = format!("--objective softmax --epochs 1 --limit 32 --monitor-every 1 {more}");
        Ranks::start(count, |_| train(&run, &options).arg("--monitor", dataset())).ok();
        metrics(&run).swap_remove(0)
    };
    let scores = |count| {
        let start = start_of(count, "");
        names.map(|name| start[name].as_f64().expect(name))
    };
    for (alone, together) in scores(1).into_iter().zip(scores(2)) {
        assert!((alone - together).abs() < 0.051, "at most two of 40 images: {alone} {together}");
    }
    let of_fewer_images_than_processes = start_of(2, "--monitor-images 1");
    assert!(of_fewer_images_than_processes[names[0]].is_number(), "{of_fewer_images_than_processes}");
}

/// 21 steps and more; of 114 images the last batch of an epoch has two, fewer than there are processes.
#[test]
fn any_number_of_processes_trains_as_one_does() {
    for (more, counts) in [
        ("--objective nce", &[2, 4][..]),
        ("--objective softmax --limit 114", &[4]),
        ("--objective softmax --accumulate 2 --probe", &[2]),
        ("--objective infonce --shuffle windowed --window 32 --bank-init encode --partition ema", &[3]),
        (
            "--objective nce --partition ema --optimizer adamw --weight-decay 0 --negative-sampling shared",
            &[2],
        ),
    ] {
        let dir = scratch();
        let one = dir.path().join("1");
        trained_by(1, &one, more);
        assert_eq!(bank(&one).1, 1);
        for &count in counts {
            let several = dir.path().join(count.to_string());
            trained_by(count, &several, more);
            assert_eq!(bank(&several).1, count);
            assert_same_run(&one, &several, &format!("{more}, {count} processes"));
        }
    }
}

/// Waits until a run has published a checkpoint of this step or a later one.
fn wait_for_checkpoint(run: &Path, step: u32, ranks: &mut Ranks) {
    wait_until(&format!("step {step}"), &mut ranks.0, || newest_step(run) >= Some(step));
}

#[test]
fn a_run_goes_on_with_another_number_of_processes_where_it_was_stopped() {
    let dir = scratch();
    let (whole, moved) = (dir.path().join("whole"), dir.path().join("moved"));
    let more = "--objective nce --checkpoint-every-steps 3";
    trained_by(1, &whole, more);
    let call = |_| train(&moved, &format!("{OPTIONS} {more}"));
    // Told to one of them, and each time in the middle of an epoch of eight steps.
    for (count, told, step) in [(2, 1, 3), (1, 0, 9), (4, 2, 15)] {
        // A new checkpoint shows that all are at work.
        let step = newest_step(&moved).map_or(step, |newest| step.max(newest + 1));
        let mut ranks = Ranks::start(count, call);
        wait_for_checkpoint(&moved, step, &mut ranks);
        ranks.signal(told, "-TERM");
        for (rank, output) in ranks.end().iter().enumerate() {
            let text = stderr(output);
            assert_eq!(output.status.code(), Some(75), "{count} processes, rank {rank}\n{text}");
        }
    }
    Ranks::start(2, call).ok();
    assert_same_run(&whole, &moved, "stopped three times");
}

/// Of 50 labels the last batch of an epoch has two, fewer than there are processes.
#[test]
fn any_number_of_processes_fine_tunes_as_one_does() {
    let dir = scratch();
    let run = dir.path().join("run");
    train(&run, "--epochs 1 --no-monitor --objective softmax").ok();
    let base = "finetune --device cpu --batch-size 16 --label-fraction 0.42 --sync-batch-norm --accumulate 2 \
                --epochs 6 --keep 0 --log-every-steps 1 --checkpoint-every-steps 3 --lr 0.000005";
    let call = |tuned: &Path| instdisc(base).arg("--checkpoint", &run).of_run(tuned);
    let [one, three, moved] = ["1", "3", "moved"].map(|name| dir.path().join(name));
    let expected = Ranks::start(1, |_| call(&one)).json();
    assert_eq!((&expected["step"], &expected["queries"]), (&24.into(), &40.into()), "{expected}");
    let actual = Ranks::start(3, |_| call(&three)).json();

    // Stopped by a signal to one of three, then finished by two.
    let mut ranks = Ranks::start(3, |_| call(&moved));
    wait_for_checkpoint(&moved, 6, &mut ranks);
    ranks.signal(1, "-TERM");
    for output in ranks.end() {
        assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    }
    let resumed = Ranks::start(2, |_| call(&moved)).json();

    for (run, actual) in [(&three, actual), (&moved, resumed)] {
        assert_same_steps(&one, run, "a fine-tuning");
        for key in ["step", "labels", "top1", "top5", "queries"] {
            assert_eq!(actual[key], expected[key], "{key}");
        }
        let labels = |run: &Path| std::fs::read(run.join("labels.parquet")).expect("a file");
        assert_eq!(labels(run), labels(&one));
    }
    // The score after each epoch, by the images of all processes together.
    let scores =
        |run: &Path| metrics(run).iter().filter_map(|line| line["top5"].as_f64()).collect::<Vec<_>>();
    assert_eq!((scores(&three), scores(&three).len()), (scores(&one), 6));

    // Other labels in one process than in the others are refused by all.
    let other = dir.path().join("other");
    let seeds = ["--label-seed=0", "--label-seed=1"];
    let differing = Ranks::start(2, |rank| call(&other).word(seeds[rank]));
    for output in differing.end() {
        let text = stderr(&output);
        assert!(output.status.code() == Some(78) && text.contains("the labels"), "{text}");
    }
}

/// Waits for all but the lost rank and gives what they say; they must end with code 69 within that time.
fn others(mut ranks: Ranks, lost: usize, within: Duration) -> Vec<String> {
    let began = Instant::now();
    for (rank, child) in ranks.0.iter_mut().enumerate().filter(|(rank, _)| *rank != lost) {
        while child.try_wait().expect("a look").is_none() {
            assert!(began.elapsed() < within, "rank {rank} goes on without rank {lost}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let _ = ranks.0[lost].kill();
    let ended = ranks.end().into_iter().enumerate().filter(|(rank, _)| *rank != lost);
    let said = |(rank, output): (usize, Output)| {
        assert_eq!(output.status.code(), Some(69), "rank {rank}\n{}", stderr(&output));
        stderr(&output)
    };
    ended.map(said).collect()
}

#[test]
fn the_loss_of_a_process_ends_all_others_at_once_and_names_it() {
    for lost in [2, 0] {
        let dir = scratch();
        let run = dir.path().join("run");
        let long = format!("{ENDLESS} --checkpoint-every-steps 2");
        let mut ranks = Ranks::start(4, |_| train(&run, &long));
        wait_for_checkpoint(&run, 4, &mut ranks);
        ranks.signal(lost, "-KILL");
        for text in others(ranks, lost, LOST_WITHIN) {
            assert!(text.contains(&format!("rank {lost} was lost")), "{text}");
        }
        // The same command goes on from the newest checkpoint.
        let mut again = Ranks::start(4, |_| train(&run, &long));
        let step = newest_step(&run).expect("a checkpoint");
        wait_for_checkpoint(&run, step + 2, &mut again);
        again.signal(0, "-TERM");
        assert!(again.end().iter().all(|output| output.status.code() == Some(75)));
    }
}

#[test]
fn a_process_that_stands_still_ends_the_others_within_the_timeout() {
    let dir = scratch();
    let run = dir.path().join("run");
    let call = |_| {
        train(&run, &format!("{ENDLESS} --checkpoint-every-steps 2")).word("--collective-timeout").word("16")
    };
    let mut ranks = Ranks::start(3, call);
    wait_for_checkpoint(&run, 2, &mut ranks);
    ranks.signal(1, "-STOP");
    for text in others(ranks, 1, Duration::from_secs(16 + 6)) {
        assert!(text.contains("rank 1 did not answer for"), "{text}");
    }
}

/// A copy of the dataset with damaged shards of a split.
fn damaged_dataset(dir: &Path, split: &str) -> PathBuf {
    let damaged = dir.join("damaged");
    copy(dataset(), &damaged);
    for shard in entries(&damaged.join(split)) {
        let mut bytes = std::fs::read(&shard).expect("its bytes");
        let quarter = bytes.len() / 4;
        bytes[quarter..3 * quarter].iter_mut().step_by(100).for_each(|byte| *byte ^= 0x40);
        std::fs::write(&shard, bytes).expect("damaged");
    }
    damaged
}

fn assert_all_end_with_wrong_data(outputs: &[Output], failed: usize, reason: &str) {
    for (rank, output) in outputs.iter().enumerate() {
        assert_eq!(output.status.code(), Some(65), "rank {rank}: {}", stderr(output));
        let told = format!("rank {failed} failed with exit code 65");
        let said = if rank == failed { reason } else { &told };
        assert!(stderr(output).contains(said), "rank {rank}: {}", stderr(output));
    }
}

#[test]
fn a_process_that_lacks_the_dataset_of_a_monitor_ends_the_others_with_its_exit_code() {
    let dir = scratch();
    let (run, absent) = (dir.path().join("run"), dir.path().join("absent"));
    let call = |rank| {
        let call = train(&run, "--objective nce --epochs 1");
        call.arg("--monitor", if rank == 1 { &absent } else { dataset() })
    };
    assert_all_end_with_wrong_data(&Ranks::start(2, call).end(), 1, "absent");
}

/// Whatever it is that keeps a process from joining: the others do not wait for it until a time limit.
#[test]
fn a_process_that_cannot_begin_ends_the_others_with_its_exit_code() {
    let dir = scratch();
    let (run, absent) = (dir.path().join("run"), dir.path().join("absent"));
    let data = |rank, failing| if rank == failing { absent.as_path() } else { dataset() };
    // Rank 0 has the store at which the others come together.
    for failing in [0, 1] {
        let call = |rank| train_on(data(rank, failing), &run, "--objective nce --epochs 1 --no-monitor");
        assert_all_end_with_wrong_data(&Ranks::start(2, call).end(), failing, "no dataset is there");
    }
    // Three, so that one may come after the error of another.
    let call = |rank| train_on(data(rank, 1), &run, "--objective nce --epochs 1 --no-monitor");
    assert_all_end_with_wrong_data(&Ranks::start(3, call).end(), 1, "no dataset is there");
    assert!(!run.exists());
    // Found by the library, after the command line was understood.
    let damaged = dir.path().join("without-index");
    copy(dataset(), &damaged);
    std::fs::remove_file(damaged.join("index/train.parquet")).expect("removed");
    let call = |rank| {
        let data = if rank == 1 { damaged.as_path() } else { dataset() };
        train_on(data, &run, "--objective nce --epochs 1 --no-monitor")
    };
    assert_all_end_with_wrong_data(&Ranks::start(2, call).end(), 1, "index/train.parquet: missing");
    trained_by(1, &run, "--objective nce");
    for (words, output) in [
        ("embed --device cpu --split val", "--output"),
        ("finetune --epochs 1 --label-fraction 1 --batch-size 16 --device cpu", "--run"),
    ] {
        let call = |rank| {
            let call = instdisc(words).arg("--checkpoint", &run).arg("--dataset", data(rank, 1));
            call.arg(output, dir.path().join("output"))
        };
        assert_all_end_with_wrong_data(&Ranks::start(2, call).end(), 1, "no dataset is there");
    }
}

#[test]
fn an_error_of_one_process_that_embeds_or_votes_ends_all_with_its_exit_code() {
    let dir = scratch();
    let run = dir.path().join("run");
    trained_by(1, &run, "--objective nce");
    let damaged = damaged_dataset(dir.path(), "val");
    let (val, bank) = (dir.path().join("val.arrow"), dir.path().join("bank.arrow"));
    let data = |rank| if rank == 1 { damaged.as_path() } else { dataset() };
    let call = |rank| {
        let call = instdisc("embed --device cpu --split val").arg("--checkpoint", &run);
        call.arg("--dataset", data(rank)).arg("--output", &val)
    };
    assert_all_end_with_wrong_data(&Ranks::start(2, call).end(), 1, "val/shard-");
    let call = |rank| instdisc("knn --k 5 --split val").arg("--run", &run).arg("--dataset", data(rank));
    assert_all_end_with_wrong_data(&Ranks::start(2, call).end(), 1, "val/shard-");
    // The second process searches the second half of the rows.
    embed("val", &run, &val).ok();
    embed("train", &run, &bank).ok();
    let mut table = read_table(&bank);
    *table.features.last_mut().expect("numbers") = f32::NAN;
    write_table(&table, &bank);
    let call = |_| knn("--k 5", &bank, &val);
    assert_all_end_with_wrong_data(&Ranks::start(2, call).end(), 1, "the feature is not finite");
}

/// So that nobody starts them all again for what no new start mends.
#[test]
fn what_one_process_cannot_read_ends_all_with_its_exit_code() {
    let dir = scratch();
    let run = dir.path().join("run");
    let damaged = damaged_dataset(dir.path(), "train");
    let call = |rank| train_on(if rank == 1 { &damaged } else { dataset() }, &run, ENDLESS);
    assert_all_end_with_wrong_data(&Ranks::start(3, call).end(), 1, "its bytes are not those");
}

#[test]
fn a_process_that_waits_for_another_heeds_a_signal() {
    let (dir, master) = (scratch(), free_address());
    let call = |_| train(&dir.path().join("run"), "--no-monitor");
    let mut ranks = Ranks::start_of(1, 2, &master, call);
    wait_until("it listens", &mut ranks.0, || TcpStream::connect(&master).is_ok());
    ranks.signal(0, "-TERM");
    let output = ranks.end().remove(0);
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped before all ranks had come"), "{}", stderr(&output));
}

#[test]
fn processes_that_do_not_fit_each_other_are_refused_with_the_difference() {
    let dir = scratch();
    let run = dir.path().join("run");
    let lr = |rank: usize| if rank == 1 { "--temperature 0.5" } else { "--temperature 0.07" };
    let outputs = Ranks::start(2, |rank| train(&run, lr(rank))).end();
    for output in &outputs {
        let text = stderr(output);
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains("the option temperature differs: rank 1 has 0.5, rank 0 has 0.07"), "{text}");
    }
    assert!(!run.join("checkpoints").exists());

    let text = train(&run, "--rank 1 --world-size 2 --master 127.0.0.1:1 --collective-timeout 2")
        .fails_as(69, "rank 1: error: ");
    assert!(text.contains("rank 0 did not listen at 127.0.0.1:1 within 2 s"), "{text}");
    let text = train(&run, "--epochs 1")
        .env("RANK", "0")
        .env("WORLD_SIZE", "3")
        .env("MASTER_ADDR", "127.0.0.1")
        .fails(78);
    assert!(text.contains("MASTER_PORT"), "{text}");
}

#[test]
fn several_processes_embed_and_vote_as_one_does() {
    let dir = scratch();
    let run = dir.path().join("run");
    trained_by(2, &run, "--objective nce");
    let checkpoint = newest(&run);
    let embedded = |count: usize, split: &str| {
        let output = dir.path().join(format!("{split}-{count}.arrow"));
        Ranks::start(count, |_| embed(split, &checkpoint, &output).word("--batch-size=7")).ok();
        output
    };
    let (val, train_split) = (embedded(1, "val"), embedded(1, "train"));
    let (one, three) = (read_table(&val), read_table(&embedded(3, "val")));
    assert_eq!((&one.ids, &one.labels, &one.meta), (&three.ids, &three.labels, &three.meta));
    // Batches of other sizes: a processor without AVX-512 adds up in another order then.
    assert!(largest_difference(&one.features, &three.features) < 1e-6);
    let vote = |count: usize, bank: &Path, more: &str| {
        let queries = if more.is_empty() { &val } else { &train_split };
        let call = |_| knn(&format!("--k 5,1,40 --temperature 0.07,1 {more}"), bank, queries);
        let mut report = Ranks::start(count, call).json();
        report.as_object_mut().expect("an object").remove("timing");
        report
    };
    for (bank, more) in [(&checkpoint, ""), (&train_split, ""), (&train_split, "--leave-one-out")] {
        let one = vote(1, bank, more);
        assert_eq!(one, vote(2, bank, more));
        assert_eq!(one, vote(3, bank, more));
    }
    // The parts are whole tables of their own, and the bank is what --run votes with.
    let evaluate = |count: usize| {
        let call = |_| instdisc("knn --k 5 --split val").of_run(&run);
        Ranks::start(count, call).json()["grid"].clone()
    };
    assert_eq!(evaluate(1), evaluate(2));
    let summary = instdisc("inspect").arg("", &checkpoint).json();
    assert_eq!(summary["bank"]["rows"], 120);
}

#[test]
fn vectors_in_a_temporary_file_are_written_as_those_in_memory_are() {
    let dir = scratch();
    let run = dir.path().join("run");
    trained_by(1, &run, "--objective nce");
    let embed = |name: &str, more: &str| {
        let output = dir.path().join(format!("{name}-{{feature}}.arrow"));
        embed(&format!("train --feature pooled,conv2 {more}"), &run, &output)
    };
    let files =
        |name: &str| ["pooled", "conv2"].map(|layer| dir.path().join(format!("{name}-{layer}.arrow")));
    let bytes = |name: &str| files(name).map(|file| std::fs::read(file).expect("a table"));
    let read = |name: &str| files(name).map(|file| read_table(&file));
    embed("memory", "").ok();
    embed("file", "--memory-limit 0").ok();
    assert_eq!(bytes("memory"), bytes("file"));
    Ranks::start(3, |_| embed("three", "--memory-limit 0")).ok();
    // The long vectors have 16 bits a number, unless the user wants more.
    embed("exact", "--dtype f32").ok();
    let [pooled, conv2] = bytes("memory");
    let [exact_pooled, exact_conv2] = bytes("exact");
    assert_eq!(pooled, exact_pooled);
    assert!(conv2.len() * 19 / 10 < exact_conv2.len(), "{} {}", conv2.len(), exact_conv2.len());
    for (at, whole) in read("memory").into_iter().enumerate() {
        for name in ["three", "exact"] {
            let other = &read(name)[at];
            assert_eq!((&whole.ids, &whole.labels, &whole.meta), (&other.ids, &other.labels, &other.meta));
            for (a, b) in whole.features.iter().zip(&other.features) {
                assert!((a - b).abs() <= 1e-3 * a.abs().max(1e-3), "{name}: {a} {b}");
            }
        }
    }
    let text = embed("memory", "--dtype f32").fails(2);
    assert!(
        text.contains("holds something else than conv2 of 120 images") && text.contains("as f32"),
        "{text}"
    );
    let text = embed("full", "--memory-limit 0").env("TMPDIR", "/nowhere").fails(74);
    assert!(text.contains("of features in a temporary file in `/nowhere`"), "{text}");
    assert!(files("full").iter().all(|file| !file.exists()));
}

/// The scores, and what they are of; not the steps, which rounding may change.
fn scores(ranks: Ranks) -> Value {
    let mut report = ranks.json();
    let fields = report.as_object_mut().expect("an object");
    fields.retain(|name, _| !["seconds", "iterations"].contains(&name.as_str()));
    report
}

#[test]
fn several_processes_fit_a_classifier_as_one_does() {
    let dir = scratch();
    let (train, evaluated) = (dir.path().join("train.arrow"), dir.path().join("test.arrow"));
    // Each of three processes has one of three chunks.
    let mut table = linear::table(1, 40_000, "train");
    write_table(&table, &train);
    write_table(&linear::table(2, 20_000, "val"), &evaluated);
    let call = |more: &str| {
        instdisc(&format!("linear --device cpu {more}")).arg("--train", &train).arg("--test", &evaluated)
    };
    for more in [
        "--weight-decay 1e-2,1e-3 --standardize",
        "--weight-decay 1e-3 --label-fraction 0.5",
        "--solver sgd --epochs 2 --lr 3,0.3,0.1 --weight-decay 1e-4",
    ] {
        let one = scores(Ranks::start(1, |_| call(more)));
        assert!(one["top1"].as_f64() > Some(0.3), "{one}");
        assert_eq!(scores(Ranks::start(3, |_| call(more))), one, "{more}");
        if !more.contains("sgd") {
            let streamed = format!("{more} --memory-limit 1MiB");
            assert_eq!(scores(Ranks::start(2, |_| call(&streamed))), one, "{streamed}");
        }
    }
    let outputs = Ranks::start(2, |rank| call(if rank == 0 { "--seed 1" } else { "" })).end();
    for output in outputs {
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains("the protocol differs"), "{}", stderr(&output));
    }
    // In the last chunk, which the third process reads.
    *table.features.last_mut().expect("numbers") = f32::NAN;
    write_table(&table, &train);
    let outputs = Ranks::start(3, |_| call("--weight-decay 1e-3")).end();
    assert_all_end_with_wrong_data(&outputs, 2, "the feature is not finite");
}

#[test]
fn several_processes_evaluate_a_run_by_a_classifier_as_one_does() {
    let dir = scratch();
    let run = dir.path().join("run");
    trained_by(1, &run, "--objective nce");
    for more in [
        "--feature pooled,conv2 --weight-decay 1e-2",
        "--feature pooled,conv1 --augment --epochs 3 --batch-size 32 --lr 0.1,0.01 --weight-decay 0",
    ] {
        let of = |count: usize| {
            let output = dir.path().join(format!("{count}.json"));
            let words = format!("linear --device cpu --split val {more}");
            Ranks::start(count, |_| instdisc(&words).of_run(&run).arg("--output", &output)).ok();
            // So that the next makes its own tables.
            std::fs::remove_dir_all(run.join("eval/features")).expect("removed");
            read_json(&output)
        };
        let (one, three) = (of(1), of(3));
        for key in ["feature", "queries", "train_rows", "augmented", "solver"] {
            assert_eq!(one[key], three[key], "{more}");
        }
        let close = |name: &str| {
            let numbers = [&one, &three].map(|report| report[name].as_f64().expect("a score"));
            assert!((numbers[0] - numbers[1]).abs() < 0.08, "{more}: {name} {numbers:?}");
        };
        ["top1", "top5"].into_iter().for_each(close);
        let settings = |report: &Value| report["sweep"].as_array().map(Vec::len);
        assert_eq!(settings(&one), settings(&three));
    }
}

#[test]
fn torchrun_starts_the_processes_with_the_same_command() {
    let Some(interpreter) = interpreter("torchrun") else { return };
    let dir = scratch();
    let (one, two) = (dir.path().join("1"), dir.path().join("2"));
    trained_by(1, &one, "--objective nce");
    let call = train(&two, &format!("{OPTIONS} --objective nce")).command();
    let mut torchrun = Command::new(interpreter);
    torchrun.args(["-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2"]);
    torchrun.args(["--master-addr", "127.0.0.1", "--master-port", "0", "--rdzv-backend", "c10d"]);
    // Its parser would take --run for its option `run`.
    torchrun.args(["--rdzv-endpoint", "127.0.0.1:0", "--", INSTDISC]).args(call.get_args());
    let output = torchrun.env("OMP_NUM_THREADS", "1").output().expect("torchrun");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&one, &two, "torchrun");
    assert_eq!(bank(&two).1, 2);
    assert!(contents(&two).len() > 10);
}
