//! What a run scores while it trains: its own bank, other datasets, at which steps.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use instdisc::commands::Monitor;
use instdisc::distributed::Rendezvous;
use instdisc::progress::{Progress, Quiet};
use instdisc::run_config::{Architecture, DeviceChoice, TrainConfig};
use instdisc::train::{Evaluation, HookError, Hooks, StopFlag, TrainError, TrainJob, train as train_job};
use serde_json::{Map, Value};

use super::support::{
    Call, checkpoint, contents, copy, dataset, embed, images, ingest, knn, location, metrics as lines,
    read_json, read_table, scratch, tensors, train,
};

/// Two epochs of eight steps.
const OPTIONS: &str = "--epochs 2 --keep 0 --checkpoint-every-steps 5";

fn call(run: &Path, more: &str) -> Call {
    train(dataset(), run, &format!("{OPTIONS} {more}"))
}

/// Step and scores of the lines that have some.
fn curve(run: &Path) -> Vec<(u64, Vec<(String, f64)>)> {
    let scores = |line: Value| {
        let is_score = |name: &str| name.rsplit('/').next().is_some_and(|name| name.starts_with("knn"));
        let fields = line.as_object().expect("an object").clone().into_iter();
        let scores: Vec<_> = fields
            .filter(|(name, _)| is_score(name))
            .map(|(name, value)| (name, value.as_f64().expect("a number")))
            .collect();
        (!scores.is_empty()).then(|| (line["step"].as_u64().expect("a step"), scores))
    };
    lines(run).into_iter().filter_map(scores).collect()
}

fn steps(run: &Path) -> Vec<u64> {
    curve(run).into_iter().map(|(step, _)| step).collect()
}

/// The lines without what depends on the clock; of an epoch, which after a resume has its last steps alone, the scores.
fn without_times(run: &Path) -> Vec<Value> {
    const TIMES: [&str; 6] =
        ["time", "images_per_second", "data_wait", "checkpoint_stall", "monitor_seconds", "probe_seconds"];
    let mut lines = lines(run);
    for line in &mut lines {
        let is_epoch = line["scope"] == "epoch";
        let is_kept = |name: &str| {
            let is_score = name == "step" || name.contains("knn") || name == "probe_top1";
            if is_epoch { is_score } else { !TIMES.contains(&name) }
        };
        line.as_object_mut().expect("an object").retain(|name, _| is_kept(name));
    }
    lines
}

/// A file of a checkpoint.
fn file(run: &Path, step: u32, name: &str) -> Vec<u8> {
    std::fs::read(checkpoint(run, step).join(name)).expect(name)
}

/// The files of the last checkpoint.
fn last(run: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    contents(&checkpoint(run, 16))
}

/// Stopped after the checkpoint of step 5.
fn stopped(whole: &Path, broken: &Path) {
    copy(whole, broken);
    for step in [8, 10, 15, 16] {
        std::fs::remove_dir_all(checkpoint(broken, step)).expect("removed");
    }
    std::fs::remove_file(broken.join("finished.json")).expect("removed");
}

/// The training images without their classes, in two splits.
fn unlabelled(folder: &Path) -> std::path::PathBuf {
    let (flat, data) = (folder.join("flat"), folder.join("unlabelled"));
    std::fs::create_dir(&flat).expect("a folder");
    for (number, (path, bytes)) in contents(&images().join("train")).into_iter().enumerate() {
        let ending = path.extension().expect("an ending").to_string_lossy().into_owned();
        std::fs::write(flat.join(format!("{number}.{ending}")), bytes).expect("written");
    }
    ingest("--unlabelled --hold-out val=0.25", &flat, &data).ok();
    data
}

/// The default number of images covers both splits, so the scores are those of `knn` with all of them.
#[test]
fn a_run_without_labels_is_scored_on_another_dataset_as_knn_scores_it() {
    let dir = scratch();
    let (data, run) = (unlabelled(dir.path()), dir.path().join("run"));
    let options = format!("{OPTIONS} --monitor-every 1");
    train(&data, &run, &options).arg("--monitor", dataset()).ok();
    let curve = curve(&run);
    assert_eq!(curve.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 6, 12]);
    for (step, scores) in &curve {
        let mut names: Vec<&str> = scores.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let expected = ["dataset_val/knn12_top1", "dataset_val/knn1_top1", "dataset_val/knn_chance"];
        assert_eq!(names, expected, "step {step}: its own bank has no labels");
    }
    let table = |split: &str| {
        let table = dir.path().join(format!("{split}.arrow"));
        embed(split, &checkpoint(&run, 12), &table).ok();
        table
    };
    let call = knn("--k 1,12 --temperature 0.07", &table("train"), &table("val"));
    let report = call.arg("--dataset", dataset()).json();
    for cell in report["grid"].as_array().expect("a grid") {
        let name = format!("dataset_val/knn{}_top1", cell["k"]);
        let (_, score) = curve[2].1.iter().find(|(found, _)| *found == name).expect("a score");
        assert_eq!(cell["top1"].as_f64(), Some(*score), "{name}");
    }
}

#[test]
fn a_dataset_that_cannot_be_monitored_ends_the_run_before_it_starts() {
    let dir = scratch();
    let run = dir.path().join("run");
    let refused = |code: i32, monitored: &[&str]| {
        let calls =
            monitored.iter().fold(call(&run, "--monitor-every 1"), |call, text| call.arg("--monitor", text));
        let error = calls.fails(code);
        assert!(!run.exists(), "{error}");
        error
    };
    let data = dataset().to_string_lossy().into_owned();
    let of = |splits: &str| format!("{data}{splits}");
    assert!(refused(65, &["nowhere"]).contains("nowhere"));
    assert!(refused(78, &[&of(":other")]).contains("`other`"));
    assert!(refused(2, &[&of(":train:train")]).contains("would vote on themselves"));
    assert!(refused(2, &[&of(":a:b:c")]).contains("ends with a slash"));
    assert!(refused(2, &[&data, &of(":train:val")]).contains("the name `dataset_val`"));
    let error = call(&run, "--no-monitor").arg("--monitor", &data).fails(2);
    assert!(error.contains("--monitor asks") && error.contains("--no-monitor") && !run.exists(), "{error}");
    let blind = unlabelled(dir.path());
    assert!(refused(65, &[&blind.to_string_lossy()]).contains("no labels"));
    // A folder whose name has a colon, beside one without.
    let colon = dir.path().join("dataset:val");
    copy(dataset(), &colon);
    let both = colon.to_string_lossy().into_owned();
    let error = refused(2, &[&both]);
    assert!(error.contains("two readings") && error.contains("dataset:val/`"), "{error}");
    call(&run, "--monitor-every 1").arg("--monitor", format!("{both}/:train:val")).ok();
    assert!(curve(&run)[0].1.iter().any(|(name, _)| name == "dataset_val_val/knn1_top1"));
}

#[test]
fn a_resumed_run_is_monitored_at_the_steps_of_an_uninterrupted_one_and_trains_the_same_bits() {
    let dir = scratch();
    let [whole, bare, broken] = ["whole", "bare", "broken"].map(|name| dir.path().join(name));
    let monitored = |run: &Path| call(run, "--monitor-every 5steps").arg("--monitor", dataset());
    monitored(&whole).ok();
    assert_eq!(steps(&whole), [0, 5, 10, 15, 16]);
    let scopes: Vec<Value> = lines(&whole)
        .iter()
        .filter(|line| line["scope"] != "interval")
        .map(|line| line["scope"].clone())
        .collect();
    assert_eq!(scopes, ["start", "monitor", "epoch", "monitor", "monitor", "epoch"]);
    call(&bare, "--no-monitor").ok();
    for name in ["model.safetensors", "optimizer.safetensors", "bank.arrow"] {
        assert!(file(&whole, 16, name) == file(&bare, 16, name), "{name}");
    }
    // Stopped after the checkpoint of step 5, once with its scores and once before they were there.
    for is_evaluated in [true, false] {
        stopped(&whole, &broken);
        if !is_evaluated {
            let kept = |line: &&Value| line["step"] != 5;
            let kept: String = lines(&broken).iter().filter(kept).map(|line| format!("{line}\n")).collect();
            std::fs::write(broken.join("metrics.jsonl"), kept).expect("written");
        }
        monitored(&broken).ok();
        assert_eq!(curve(&broken), curve(&whole), "{is_evaluated}");
        assert!(last(&broken) == last(&whole), "the last checkpoint is the same");
        std::fs::remove_dir_all(&broken).expect("removed");
    }
}

#[test]
fn a_bound_on_the_time_leaves_out_all_but_the_first_and_the_last_evaluation() {
    let dir = scratch();
    let run = dir.path().join("run");
    let said = call(&run, "--monitor-every 2steps --monitor-share 0.000001").said();
    assert_eq!(steps(&run), [0, 16]);
    assert!(
        said.contains("monitor: step 2 is left out") && said.contains("more than --monitor-share"),
        "{said}"
    );
    assert!(lines(&run)[0]["monitor_seconds"].as_f64() > Some(0.0));
    assert_eq!(lines(&run)[0]["monitor_split"], "val");
}

#[test]
fn a_resumed_probe_has_every_number_of_an_uninterrupted_one_and_changes_nothing_else() {
    let dir = scratch();
    let [whole, bare, broken, still] = ["whole", "bare", "broken", "still"].map(|name| dir.path().join(name));
    let options = "--log-every-steps 1 --monitor-every 5steps";
    let call = |run: &Path, more: &str| call(run, &format!("{options} {more}")).arg("--monitor", dataset());
    call(&whole, "--probe").ok();
    call(&bare, "").ok();
    for name in ["model.safetensors", "optimizer.safetensors", "bank.arrow"] {
        assert!(file(&whole, 16, name) == file(&bare, 16, name), "{name}");
    }
    let curve = without_times(&whole);
    let has = |scope: &str, name: &str| {
        let lines = curve.iter().filter(|line| line["scope"] == scope && line[name].is_number());
        lines.map(|line| line["step"].as_u64().expect("a step")).collect::<Vec<_>>()
    };
    assert_eq!(has("monitor", "probe_top1"), [5, 10, 15], "an untrained one has no score");
    assert_eq!(has("interval", "probe_train_top1"), (1..=16).collect::<Vec<_>>());
    let first = &curve[1];
    let classes = tensors(&file(&whole, 5, "probe.safetensors"))[0].2[0] as f64;
    let loss = first["probe_train_loss"].as_f64().expect("a loss");
    assert!((loss - classes.ln()).abs() < 1e-5, "it begins at zero: {first}");

    // The run keeps its probe.
    stopped(&whole, &broken);
    call(&broken, "").ok();
    assert_eq!(without_times(&broken), curve);
    assert!(last(&broken) == last(&whole), "the last checkpoint is the same");

    // Without the state of its optimiser it would be another.
    stopped(&whole, &still);
    let at = checkpoint(&still, 5);
    let mut bytes = file(&still, 5, "probe.safetensors");
    let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let before = digest(&bytes);
    for (name, range, _) in tensors(&bytes) {
        if name.ends_with("momentum") {
            bytes[range].fill(0);
        }
    }
    let manifest = std::fs::read_to_string(at.join("checkpoint.json")).expect("a manifest");
    assert!(manifest.contains(&before));
    std::fs::write(at.join("checkpoint.json"), manifest.replace(&before, &digest(&bytes))).expect("written");
    std::fs::write(at.join("probe.safetensors"), bytes).expect("written");
    call(&still, "").ok();
    assert_ne!(without_times(&still), curve);
}

/// From the checkpoint's files alone, by plain loops.
#[test]
fn a_probe_scores_the_queries_as_its_checkpoint_does() {
    let dir = scratch();
    let run = dir.path().join("run");
    call(&run, "--monitor-every 1 --probe").ok();
    let table = dir.path().join("val.arrow");
    embed("val --feature pooled --dtype f32", &checkpoint(&run, 16), &table).ok();
    let table = read_table(&table);
    let bytes = file(&run, 16, "probe.safetensors");
    let tensor = |wanted: &str| -> Vec<f32> {
        let (_, range, _) = tensors(&bytes).into_iter().find(|(name, ..)| name == wanted).expect(wanted);
        bytes[range].as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let (weight, bias) = (tensor("weight"), tensor("bias"));
    let hits = table.features.chunks(table.meta.dim).zip(&table.labels).filter(|(feature, label)| {
        let logit = |class: usize| {
            let row = &weight[class * feature.len()..][..feature.len()];
            f64::from(bias[class])
                + row.iter().zip(*feature).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>()
        };
        let best = (0..bias.len()).max_by(|&a, &b| logit(a).total_cmp(&logit(b)));
        best == label.map(|class| usize::from(class.0))
    });
    let expected = hits.count() as f64 / table.labels.len() as f64;
    let lines = lines(&run);
    assert_eq!(lines.last().expect("a line")["probe_top1"].as_f64(), Some(expected));
}

#[test]
fn a_probe_needs_labels_may_come_later_and_is_never_lost() {
    let dir = scratch();
    let run = dir.path().join("run");
    let error = train(&unlabelled(dir.path()), &run, &format!("{OPTIONS} --probe")).fails(78);
    assert!(error.contains("split `train` of") && error.contains("ingest it with its classes"), "{error}");
    assert!(!run.exists(), "{error}");

    let options = "--log-every-steps 1 --no-monitor --keep 0";
    train(dataset(), &run, &format!("{options} --epochs 1")).ok();
    assert!(!checkpoint(&run, 8).join("probe.safetensors").exists());
    train(dataset(), &run, &format!("{options} --epochs 2 --probe")).ok();
    let of_probe = lines(&run).into_iter().filter(|line| line["probe_train_loss"].is_number());
    let steps: Vec<_> = of_probe.map(|line| line["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, [9, 10, 11, 12, 13, 14, 15, 16, 16]);

    let manifest = checkpoint(&run, 16).join("checkpoint.json");
    let mut contents = read_json(&manifest);
    contents["files"].as_array_mut().expect("files").retain(|file| file["name"] != "probe.safetensors");
    std::fs::write(&manifest, contents.to_string()).expect("written");
    // The checkpoint before is used, from which the run had no probe.
    let said = train(dataset(), &run, &format!("{options} --epochs 3")).said();
    assert!(said.contains("step-00000016/probe.safetensors: missing"), "{said}");
    assert!(said.contains("the run had none until step 8"), "{said}");
    assert!(checkpoint(&run, 24).join("probe.safetensors").exists());
}

/// Asks the run to stop at the first images that are embedded, and counts these and what follows.
struct StopsAtOnce<'a> {
    stop: &'a StopFlag,
    images: &'a AtomicU64,
}

impl Progress for StopsAtOnce<'_> {
    fn advance(&self, images: u64) {
        self.images.fetch_add(images, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

struct Monitored<'a> {
    job: &'a TrainJob,
    images: AtomicU64,
}

impl Hooks for Monitored<'_> {
    fn evaluate(&mut self, state: Evaluation<'_>) -> Result<Map<String, Value>, HookError> {
        let monitor = Monitor::open(&self.job.dataset, &self.job.config, &Quiet)?;
        monitor.evaluate(state, &StopsAtOnce { stop: state.stop, images: &self.images })
    }
}

/// Of 40 queries.
#[test]
fn a_stop_in_the_monitor_waits_for_sixteen_images_on_a_cpu() {
    let dir = scratch();
    let config = TrainConfig {
        arch: Architecture::ResNet20Cifar,
        image_size: 16,
        dim: 16,
        batch_size: 16,
        device: DeviceChoice::Cpu,
        ..TrainConfig::default()
    };
    let job = TrainJob {
        dataset: location(dataset()),
        run: location(&dir.path().join("run")),
        init: None,
        config,
        rendezvous: Rendezvous::alone(),
        collective_timeout: Duration::from_secs(60),
        on_lost: |error| panic!("{error}"),
    };
    let (stop, mut hooks) = (StopFlag::new(false), Monitored { job: &job, images: AtomicU64::new(0) });
    let ended = train_job(&job, &mut hooks, &stop);
    assert!(matches!(ended, Err(TrainError::Stopped { .. })), "{ended:?}");
    assert_eq!(hooks.images.into_inner(), 16);
}

/// Of 36 images four are of each class but one, which has none: naming a class that is there hits four.
#[test]
fn chance_is_that_of_the_most_frequent_class_among_the_queries() {
    let dir = scratch();
    let (data, run) = (dir.path().join("data"), dir.path().join("run"));
    ingest("--ignore val/checked_disc/*", images(), &data).ok();
    let said = train(&data, &run, "--epochs 1 --limit 20 --monitor-every 1").said();
    assert!(
        said.contains("the untrained encoder: kNN among the queries") && said.contains("(chance 11.1 %)"),
        "{said}"
    );
    let start = &lines(&run)[0];
    assert_eq!((&start["scope"], &start["knn_chance"]), (&"start".into(), &(4.0 / 36.0).into()));
}
