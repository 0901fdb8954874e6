//! What a run scores while it trains: its own bank, other datasets, at which steps.

use std::path::Path;

use serde_json::Value;

use super::support::{Call, contents, copy, dataset, images, instdisc, scratch, train};

/// Two epochs of eight steps.
const OPTIONS: &str = "--epochs 2 --keep 0 --checkpoint-every-steps 5";

fn call(run: &Path, more: &str) -> Call {
    train(dataset(), run, &format!("{OPTIONS} {more}"))
}

fn lines(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
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

/// The training images without their classes, in two splits.
fn unlabelled(folder: &Path) -> std::path::PathBuf {
    let (flat, data) = (folder.join("flat"), folder.join("unlabelled"));
    std::fs::create_dir(&flat).expect("a folder");
    for (number, entry) in walkdir::WalkDir::new(images().join("train")).into_iter().enumerate() {
        let entry = entry.expect("readable");
        if entry.file_type().is_file() {
            let ending = entry.path().extension().expect("an ending").to_string_lossy().into_owned();
            std::fs::copy(entry.path(), flat.join(format!("{number}.{ending}"))).expect("copied");
        }
    }
    instdisc("ingest --unlabelled --hold-out val=0.25").arg("--source", &flat).arg("--dest", &data).ok();
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
    let checkpoint = run.join("checkpoints/step-00000012");
    let table = |split: &str| {
        let table = dir.path().join(format!("{split}.arrow"));
        let embed = instdisc("embed --device cpu --split").word(split).arg("--checkpoint", &checkpoint);
        embed.arg("--dataset", dataset()).arg("--output", &table).ok();
        table
    };
    let knn = instdisc("knn --k 1,12 --temperature 0.07").arg("--bank", table("train"));
    let report = knn.arg("--queries", table("val")).arg("--dataset", dataset()).json();
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
    let last = |run: &Path| contents(&run.join("checkpoints/step-00000016"));
    let differs = |name: &str| {
        let of =
            |run: &Path| last(run).into_iter().find(|(found, _)| found.ends_with(name)).expect("a file").1;
        of(&whole) != of(&bare)
    };
    assert!(
        ["model.safetensors", "optimizer.safetensors", "bank.arrow"].into_iter().all(|name| !differs(name))
    );
    // Stopped after the checkpoint of step 5, once with its scores and once before they were there.
    for is_evaluated in [true, false] {
        copy(&whole, &broken);
        for step in ["08", "10", "15", "16"] {
            std::fs::remove_dir_all(broken.join(format!("checkpoints/step-000000{step}"))).expect("removed");
        }
        std::fs::remove_file(broken.join("finished.json")).expect("removed");
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
    let (_, output) = call(&run, "--monitor-every 2steps --monitor-share 0.000001").output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(steps(&run), [0, 16]);
    assert!(
        said.contains("monitor: step 2 is left out") && said.contains("more than --monitor-share"),
        "{said}"
    );
    assert!(lines(&run)[0]["monitor_seconds"].as_f64() > Some(0.0));
}
