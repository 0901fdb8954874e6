//! Fine-tuning: few labels, the same machinery as training.

use std::path::Path;

use super::support::{Call, contents, dataset, instdisc, python, scratch, signal_at, skip, train};

fn finetune(checkpoint: &Path, run: &Path, more: &str) -> Call {
    let base = "finetune --device cpu --batch-size 16 --label-fraction 0.5";
    instdisc(&format!("{base} {more}"))
        .arg("--checkpoint", checkpoint)
        .arg("--dataset", dataset())
        .arg("--run", run)
}

/// A small run and its last checkpoint.
fn trained(folder: &Path) -> std::path::PathBuf {
    let run = folder.join("run");
    train(dataset(), &run, "--epochs 1 --no-monitor").ok();
    run.join("checkpoints/step-00000008")
}

#[test]
fn a_stopped_fine_tuning_goes_on_to_the_same_weights() {
    let dir = scratch();
    let checkpoint = trained(dir.path());
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let report = finetune(&checkpoint, &whole, "--epochs 4").json();
    // Half of 120 labels: six of each of ten classes, in four batches.
    assert_eq!((&report["step"], &report["labels"]["subset"]["rows"]), (&16.into(), &60.into()));
    assert_eq!(report["labels"]["subset"]["rows_per_class"], 6);
    finetune(&checkpoint, &parts, "--epochs 2").ok();
    let resumed = finetune(&checkpoint, &parts, "--epochs 4").json();
    assert_eq!((&resumed["top1"], &resumed["top5"]), (&report["top1"], &report["top5"]));
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let read =
            |run: &Path| std::fs::read(run.join("checkpoints/step-00000016").join(name)).expect("a file");
        assert!(read(&whole) == read(&parts), "{name} differs");
    }
    assert_eq!(
        std::fs::read(whole.join("labels.parquet")).ok(),
        std::fs::read(parts.join("labels.parquet")).ok()
    );
    let metrics = std::fs::read_to_string(whole.join("metrics.jsonl")).expect("metrics");
    let epochs: Vec<serde_json::Value> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .filter(|line| line["scope"] == "epoch")
        .collect();
    assert_eq!(epochs.len(), 4);
    assert!(epochs[3]["loss"].as_f64() < epochs[0]["loss"].as_f64(), "{metrics}");
    assert_eq!(epochs[3]["top1"], report["top1"]);

    let checked = python(
        "a_stopped_fine_tuning_goes_on_to_the_same_weights",
        "tests/python/check_classifier.py",
        &[&whole.join("checkpoints/step-00000016")],
    );
    assert!(checked.is_none_or(|output| output.trim() == "10 classes"));

    let swapped = dir.path().join("swapped");
    let other = finetune(&checkpoint, &swapped, "--epochs 1 --train-split val --split train").json();
    assert_eq!((&other["split"], &other["queries"]), (&"train".into(), &120.into()), "{other}");

    let last = whole.join("checkpoints/step-00000016");
    let seen = instdisc("inspect --verify").arg("", &last).json();
    assert_eq!(
        (&seen["kind"], &seen["step"], &seen["bank"]),
        (&"checkpoint".into(), &16.into(), &serde_json::Value::Null)
    );

    // A classifier has no bank that could vote.
    let embed = instdisc("embed --split val --device cpu").arg("--run", &last).arg("--dataset", dataset());
    let (_, output) = embed.arg("--output", dir.path().join("val.arrow")).output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("knn --bank"), "{said}");

    // Finished: the same command says so, and changes nothing.
    let before = contents(&whole);
    assert_eq!(finetune(&checkpoint, &whole, "--epochs 4").json()["top1"], report["top1"]);
    assert_eq!(contents(&whole), before);
    let error = finetune(&checkpoint, &whole, "--epochs 4 --label-seed 7").fails(78);
    assert!(error.contains("finetune"), "{error}");
}

/// Kills lose the steps since the checkpoint before, or meet one that is being written; a signal saves where it comes.
#[test]
fn a_killed_fine_tuning_goes_on_to_the_weights_of_an_undisturbed_one() {
    let dir = scratch();
    let checkpoint = trained(dir.path());
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let call = |run: &Path, every: u32| {
        finetune(&checkpoint, run, &format!("--epochs 16 --keep 2 --checkpoint-every-steps {every}"))
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
    let end = "checkpoints/step-00000064";
    assert_eq!(contents(&broken.join(end)).len(), 4);
    assert!(contents(&broken.join(end)) == contents(&whole.join(end)));
    let folders = std::fs::read_dir(broken.join("checkpoints")).expect("checkpoints");
    let left: Vec<_> = folders.map(|entry| entry.expect("an entry").path()).collect();
    assert!(
        left.iter().all(|folder| folder.join("checkpoint.json").exists()),
        "killed writers left {left:?}"
    );
    // The first and the two newest; the last kill may have come before the third was removed.
    assert!((3..=4).contains(&left.len()), "{left:?}");
}

#[test]
fn a_fine_tuning_keeps_its_options_and_refuses_fewer_epochs_than_are_done() {
    let dir = scratch();
    let checkpoint = trained(dir.path());
    let run = dir.path().join("tuned");
    let tune = |more: &str| {
        instdisc(&format!("finetune --device cpu --label-fraction 0.5 {more}"))
            .arg("--checkpoint", &checkpoint)
            .arg("--dataset", dataset())
            .arg("--run", &run)
    };
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
    let checkpoint = trained(dir.path());
    let read = |folder: &Path| {
        let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensor = |name: &str| file.tensor(name).map(|view| (view.shape().to_vec(), view.data().to_vec()));
        (tensor("layer2.0.conv1.weight").expect("a kernel"), tensor("fc.weight").expect("the classifier"))
    };
    let (kernel, projection) = read(&checkpoint);
    let begin = |name: &str, more: &str| {
        let run = dir.path().join(name);
        finetune(&checkpoint, &run, &format!("--epochs 1 --keep 0 --no-monitor {more}")).ok();
        read(&run.join("checkpoints/step-00000000"))
    };
    let (tuned_kernel, classifier) = begin("tuned", "");
    assert!(tuned_kernel == kernel && classifier.0 == [10, 64] && classifier.1 != projection.1);
    assert!(begin("scratch", "--from-scratch").0 != kernel);
}
