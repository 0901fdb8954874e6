//! Fine-tuning: few labels, the same machinery as training.

use std::path::Path;

use serde_json::Value;

use super::support::{
    Call, checkpoint, checkpoint_steps, contents, embed, instdisc, metrics, python, scratch, signal_at, skip,
    trained,
};

/// A small run.
const RUN: &str = "--epochs 1 --no-monitor";

fn finetune(from: &Path, run: &Path, more: &str) -> Call {
    let call = instdisc(&format!("finetune --device cpu --label-fraction 0.5 {more}"));
    call.arg("--checkpoint", from).of_run(run)
}

#[test]
fn a_stopped_fine_tuning_goes_on_to_the_same_weights() {
    let dir = scratch();
    let from = trained(&dir, RUN);
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let report = finetune(&from, &whole, "--batch-size 16 --epochs 4").json();
    // Half of 120 labels: six of each of ten classes, in four batches.
    assert_eq!((&report["step"], &report["labels"]["subset"]["rows"]), (&16.into(), &60.into()));
    assert_eq!(report["labels"]["subset"]["rows_per_class"], 6);
    finetune(&from, &parts, "--batch-size 16 --epochs 2").ok();
    let resumed = finetune(&from, &parts, "--batch-size 16 --epochs 4").json();
    assert_eq!((&resumed["top1"], &resumed["top5"]), (&report["top1"], &report["top5"]));
    let last = checkpoint(&whole, 16);
    for name in ["model.safetensors", "optimizer.safetensors", "../../labels.parquet"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).expect("a file");
        assert!(read(&last) == read(&checkpoint(&parts, 16)), "{name} differs");
    }
    let epochs: Vec<Value> = metrics(&whole).into_iter().filter(|line| line["scope"] == "epoch").collect();
    assert_eq!(epochs.len(), 4);
    assert!(epochs[3]["loss"].as_f64() < epochs[0]["loss"].as_f64(), "{epochs:?}");
    assert_eq!(epochs[3]["top1"], report["top1"]);

    let checked = python(
        "a_stopped_fine_tuning_goes_on_to_the_same_weights",
        "tests/python/check_classifier.py",
        &[&last],
    );
    assert!(checked.is_none_or(|output| output.trim() == "10 classes"));

    let swapped = dir.path().join("swapped");
    let other =
        finetune(&from, &swapped, "--batch-size 16 --epochs 1 --train-split val --split train").json();
    assert_eq!((&other["split"], &other["queries"]), (&"train".into(), &120.into()), "{other}");

    let seen = instdisc("inspect --verify").arg("", &last).json();
    assert_eq!(
        (&seen["kind"], &seen["step"], &seen["bank"]),
        (&"checkpoint".into(), &16.into(), &Value::Null)
    );

    // A classifier has no bank that could vote.
    let said = embed("val", &last, &dir.path().join("val.arrow")).said();
    assert!(!said.contains("knn --bank"), "{said}");

    // Finished: the same command says so, and changes nothing.
    let before = contents(&whole);
    assert_eq!(finetune(&from, &whole, "--batch-size 16 --epochs 4").json()["top1"], report["top1"]);
    assert_eq!(contents(&whole), before);
    let error = finetune(&from, &whole, "--batch-size 16 --epochs 4 --label-seed 7").fails(78);
    assert!(error.contains("finetune"), "{error}");
}

/// Kills lose the steps since the checkpoint before, or meet one that is being written; a signal saves where it comes.
#[test]
fn a_killed_fine_tuning_goes_on_to_the_weights_of_an_undisturbed_one() {
    let dir = scratch();
    let from = trained(&dir, RUN);
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let call = |run: &Path, every: u32| {
        finetune(
            &from,
            run,
            &format!("--batch-size 16 --epochs 16 --keep 2 --checkpoint-every-steps {every}"),
        )
    };
    let report = call(&whole, 1).json();
    assert_eq!(report["step"], 64);
    for (every, step, signal, code) in [
        (3, 3, "-KILL", None),
        (1, 7, "-KILL", None),
        (3, 9, "-TERM", Some(75)),
        (1, 14, "-KILL", None),
        (5, 20, "-USR1", Some(75)),
        (1, 25, "-KILL", None),
    ] {
        let ended = signal_at(call(&broken, every), &broken, step, signal);
        assert_eq!(ended, code, "{signal} at step {step}");
    }
    // The last one: it is killed before or while the classifier is evaluated, or comes too late.
    let ended = signal_at(call(&broken, 1), &broken, 64, "-KILL");
    assert!(matches!(ended, None | Some(0)), "{ended:?}");
    if ended.is_some() {
        skip("a_killed_fine_tuning", "its last kill came too late");
    }
    let resumed = call(&broken, 1).json();
    assert_eq!((&resumed["top1"], &resumed["labels"]), (&report["top1"], &report["labels"]));
    let [ended, expected] = [&broken, &whole].map(|run| contents(&checkpoint(run, 64)));
    assert!(ended.len() == 4 && ended == expected);
    let (kept, has_others) = checkpoint_steps(&broken);
    assert!(!has_others, "killed writers left something");
    // The first and the two newest; the last kill may have come before the third was removed.
    assert!((3..=4).contains(&kept.len()), "{kept:?}");
}

#[test]
fn a_fine_tuning_keeps_its_options_and_refuses_fewer_epochs_than_are_done() {
    let dir = scratch();
    let from = trained(&dir, RUN);
    let run = dir.path().join("tuned");
    let tune = |more: &str| finetune(&from, &run, more);
    let first = tune("--batch-size 16 --epochs 4 --checkpoint-every-steps 1");
    assert_eq!(signal_at(first, &run, 9, "-TERM"), Some(75));
    let before = contents(&run);
    let error = tune("--epochs 1").fails(78);
    assert!(error.contains("epochs are done and the run is not finished; `--epochs 1` is fewer"), "{error}");
    assert_eq!(contents(&run), before);
    assert_eq!(tune("").json()["step"], 16, "four epochs of four steps, as the run was begun");
    assert_eq!(tune("--epochs 5").json()["step"], 20);
    assert_eq!(tune("").json()["step"], 20);
    let config = std::fs::read_to_string(run.join("config.toml")).expect("the configuration");
    assert!(config.contains("epochs = 5\n"), "{config}");
}

/// The first checkpoint has the encoder's backbone and a new last layer; with random weights, neither.
#[test]
fn a_fine_tuning_begins_with_the_backbone_alone() {
    let dir = scratch();
    let from = trained(&dir, RUN);
    let read = |folder: &Path| {
        let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensor = |name: &str| file.tensor(name).map(|view| (view.shape().to_vec(), view.data().to_vec()));
        (tensor("layer2.0.conv1.weight").expect("a kernel"), tensor("fc.weight").expect("the classifier"))
    };
    let (kernel, projection) = read(&checkpoint(&from, 8));
    let begin = |name: &str, more: &str| {
        let run = dir.path().join(name);
        finetune(&from, &run, &format!("--batch-size 16 --epochs 1 --keep 0 --no-monitor {more}")).ok();
        read(&checkpoint(&run, 0))
    };
    let (tuned_kernel, classifier) = begin("tuned", "");
    assert!(tuned_kernel == kernel && classifier.0 == [10, 64] && classifier.1 != projection.1);
    assert!(begin("scratch", "--from-scratch").0 != kernel);
}
