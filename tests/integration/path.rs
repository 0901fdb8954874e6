//! The whole path, as the README shows it.

use super::support::{contents, dataset, images, ingest, instdisc, scratch};

#[test]
fn ingesting_again_changes_nothing_and_says_so() {
    let before = contents(dataset());
    let report = ingest("--row-group 16", images(), dataset()).json();
    assert_eq!(report["already_done"], true);
    assert_eq!(contents(dataset()), before);
}

#[test]
fn inspect_says_what_is_there_and_verify_reads_it() {
    let summary = instdisc("inspect --verify").arg("", dataset()).json();
    assert_eq!(summary["splits"]["train"]["instances"], 120);
    assert_eq!(summary["splits"]["val"]["instances"], 40);
    assert_eq!(summary["verified"], true);
    let table = instdisc("inspect --print lines").arg("", dataset()).ok();
    assert!(table.lines().any(|line| line.starts_with("splits.train.instances") && line.ends_with(" 120")));
}

#[cfg(feature = "torch")]
#[test]
fn a_run_says_at_its_start_what_it_takes_and_what_is_odd() {
    let dir = scratch();
    let said = |name: &str, words: &str| {
        let few = "train --arch resnet20-cifar --image-size 16 --dim 16 --device cpu --epochs 1 --limit 20";
        instdisc(&format!("{few} {words}")).of_run(&dir.path().join(name)).said()
    };
    let plain = said("plain", "--batch-size 64 --monitor-every 1 --stats");
    for words in [
        "objective softmax, the default up to 100000 images",
        "20 instances (ln n = 3.00)",
        "images of `val` look for their classes in the bank",
        "the untrained encoder: kNN among the queries",
        "(chance 10.0 %)",
        "a batch of 64 holds all 20 images",
        // One numbering of epochs, from 1.
        "epoch 1: data wait ",
        "\nepoch 1: loss ",
    ] {
        assert!(plain.contains(words), "{words}: {plain}");
    }
    assert!(!plain.contains("epoch 0"), "{plain}");
    let nce = said("nce", "--batch-size 16 --no-monitor --negatives 64");
    assert!(nce.contains("64 rows are sampled of 20: `--objective softmax` takes each once"), "{nce}");
    let every = nce.split("monitor_every = ").nth(1).expect("a setting");
    let unit = every.trim_start_matches(|c: char| c.is_ascii_digit());
    assert!(unit.len() < every.len() && unit.starts_with(" epochs"), "{every}");
}

#[test]
fn synth_draws_the_same_images_for_the_same_seed() {
    let dir = scratch();
    let draw = |name: &str, seed: u32| {
        let call =
            instdisc(&format!("synth --train-per-class 2 --val-per-class 1 --image-size 24 --seed {seed}"));
        call.arg("--dest", dir.path().join(name)).ok();
        contents(&dir.path().join(name))
    };
    let first = draw("a", 1);
    assert_eq!(first.len(), 31, "thirty images and the mark");
    assert_eq!(draw("b", 1), first);
    assert_ne!(draw("c", 2), first);
}

#[test]
fn help_of_a_command_has_its_example_and_headings_without_libtorch() {
    let programs: &[&str] =
        if cfg!(feature = "torch") { &["ingest", "knn", "train"] } else { &["ingest", "knn"] };
    for name in programs {
        let help = instdisc(name).word("--help").ok();
        assert!(help.contains(&format!("Example:\n  instdisc {name}")), "{help}");
        let (own, stores) = help.split_once("\nObject storage:\n").expect("a heading");
        assert!(stores.contains("--retry-tries") && !own.contains("--retry-tries"), "{help}");
        assert!(help.contains("\nOutput:\n"), "{help}");
    }
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = instdisc(&format!("completions {shell}")).ok();
        assert!(["ingest", "inspect", "knn", "synth"].iter().all(|name| script.contains(name)), "{shell}");
    }
}

#[cfg(feature = "torch")]
mod trained {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::support::{
        checkpoint, copy, embed, entries, knn, metrics, read_json, read_table, train, trained,
    };

    /// Changes the text of a report.
    fn replace(file: &Path, from: &str, to: &str) {
        let text = std::fs::read_to_string(file).expect("text");
        std::fs::write(file, text.replace(from, to)).expect("marked");
    }

    #[test]
    fn from_images_to_a_page() {
        let dir = scratch();
        let run = dir.path().join("run");
        let finished = train(dataset(), &run, "--epochs 2 --log-every-steps 3").json();
        assert_eq!(finished["finished"], true);
        assert_eq!(finished["step"], 16);

        let lines = metrics(&run);
        let steps: Vec<_> =
            lines.iter().map(|line| (line["step"].as_u64(), line["scope"].as_str())).collect();
        let expected = [(0, "start"), (3, "interval"), (6, "interval"), (8, "epoch"), (9, "interval")];
        assert_eq!(steps[..5], expected.map(|(step, scope)| (Some(step), Some(scope))));
        assert!(lines[0]["loss"].is_null() && lines[0]["knn_sample_top1"].is_number());
        assert!(lines[1..].iter().all(|line| line["loss"].as_f64() > Some(0.0)));
        let epochs: Vec<_> = lines.iter().filter(|line| line["scope"] == "epoch").collect();
        assert_eq!(epochs.len(), 2);
        for epoch in epochs {
            assert!(epoch["knn1_top1"].is_number());
            assert!(epoch["bank"]["effective_rank"].as_f64() > Some(1.0));
            assert!(epoch["bank"]["ln_partition_true"].is_number());
            assert_eq!(epoch["bank"]["never_written"], 0);
        }

        let again = train(dataset(), &run, "--epochs 2").json();
        assert_eq!(again["step"], 16);

        let checkpoint = checkpoint(&run, 16);
        let summary = instdisc("inspect --verify").arg("", &checkpoint).json();
        assert_eq!((&summary["kind"], &summary["step"]), (&"checkpoint".into(), &16.into()));

        let (queries, report) = (dir.path().join("val.arrow"), dir.path().join("knn.json"));
        let embed = |split: &str| embed(split, &checkpoint, &queries);
        embed("val").ok();
        // The same again is kept, another split is not put in its place.
        let changed = || queries.metadata().and_then(|file| file.modified()).expect("a table");
        let before = changed();
        assert_eq!(embed("val").json()["kept"], true);
        let refused = embed("train").fails(2);
        assert!(refused.contains("remove it or choose another --output"), "{refused}");
        assert_eq!(before, changed());
        let call = knn("--k 5,120 --temperature 0.07,0.5", &checkpoint.join("bank.arrow"), &queries);
        let said = call.arg("--dataset", dataset()).arg("--output", &report).ok();
        assert!(said.starts_with("step 16: top-1 ") && said.lines().count() == 1, "{said}");
        let scores = read_json(&report);
        assert_eq!((&scores["queries"], &scores["bank_rows"]), (&40.into(), &120.into()));
        assert_eq!(scores["grid"].as_array().map(Vec::len), Some(4));
        assert_eq!((&scores["device"], &scores["precision"]), (&"cpu".into(), &"f32".into()));
        // An encoder of 16 steps still sees all images nearly alike.
        let notes = scores["notes"].as_array().expect("notes");
        assert!(notes[0].as_str().is_some_and(|note| note.contains("mean cosine")), "{notes:?}");

        let of_file = |place: &Path, keys: &[&str]| -> Value {
            let told = instdisc("inspect --verify").arg("", place).json();
            keys.iter().map(|key| told[*key].clone()).collect()
        };
        let metrics = of_file(&run.join("metrics.jsonl"), &["kind", "lines", "step", "epochs"]);
        assert_eq!(metrics, json!(["metrics", lines.len(), 16, 2]));
        assert_eq!(of_file(&run.join("config.toml"), &["kind", "epochs"]), json!(["config", 2]));
        assert_eq!(of_file(&run.join("finished.json"), &["kind", "step"]), json!(["finished", 16]));
        let state = of_file(&checkpoint.join("state.json"), &["kind", "step", "instances", "objective"]);
        assert_eq!(state, json!(["state", 16, 120, "nce"]));
        let manifest = of_file(&checkpoint.join("checkpoint.json"), &["kind", "step", "bank"]);
        assert_eq!(manifest, json!(["checkpoint", 16, summary["bank"]]));
        let weights = of_file(&checkpoint.join("model.safetensors"), &["kind", "verified"]);
        assert_eq!(weights, json!(["weights", true]));

        let page = std::fs::read_to_string(dir.path().join("knn.html")).expect("page");
        assert!(page.contains("data:image/jpeg;base64,"));
        for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
            assert!(!page.contains(outside), "the page needs the network: {outside}");
        }
    }

    /// Ids follow the classes, 12 of each: so the label of instance i is i / 12.
    #[test]
    fn a_sample_covers_the_classes_and_its_rows_keep_their_ids() {
        let dir = scratch();
        let run = trained(&dir, "--epochs 1 --limit 40");
        let bank = read_table(&checkpoint(&run, 3).join("bank.arrow"));
        assert_eq!(bank.len(), 40);
        let classes: std::collections::BTreeSet<_> = bank.labels.iter().flatten().copied().collect();
        assert!(classes.len() >= 8, "{classes:?}");
        for (id, label) in bank.ids.iter().zip(&bank.labels) {
            assert_eq!(label.map(|class| class.index()), Some(id.row() / 12), "{id}");
        }
        let table = dir.path().join("train.arrow");
        embed("train --limit 40", &checkpoint(&run, 3), &table).ok();
        let table = read_table(&table);
        assert_eq!((table.ids, table.labels), (bank.ids, bank.labels));
    }

    #[test]
    fn a_run_is_evaluated_by_its_newest_checkpoint() {
        let dir = scratch();
        let run = trained(&dir, "--epochs 1 --no-monitor");
        let call = |words: &str| instdisc(words).of_run(&run);
        let scores = call("knn --k 5 --split val").json();
        assert_eq!(scores["step"], 8);
        assert!(run.join("eval/knn-val-k5-step-00000008.html").exists());
        // The same call finds it; other options have another name.
        replace(&run.join("eval/knn-val-k5-step-00000008.json"), "\"step\": 8", "\"step\": 77");
        assert_eq!(call("knn --k 5").json()["step"], 77, "it is not made again");
        let left_out = call("knn --split train --k 1,5 --leave-one-out");
        assert_eq!(left_out.json()["k"], 5, "the largest is the headline");
        assert!(run.join("eval/knn-train-k1_5-leave-one-out-step-00000008.json").exists());
        let refused = call("knn --leave-one-out").fails(2);
        assert!(refused.contains("`val`") && refused.contains("`train`"), "{refused}");
        let newest = checkpoint(&run, 8);
        let scores = instdisc("knn --k 3").of_run(&newest).json();
        assert!(scores["k"] == 3 && run.join("eval/knn-val-k3-step-00000008.json").exists());
        assert!(!newest.join("eval").exists(), "a checkpoint stays as it was published");
    }

    /// Of 120 rows a tenth votes by default, and 200 neighbours are too many.
    #[test]
    fn a_report_is_kept_for_the_neighbours_that_were_asked_for() {
        let dir = scratch();
        let run = trained(&dir, "--epochs 1 --no-monitor");
        let call = |words: &str| instdisc(words).of_run(&run);
        assert_eq!(call("knn").json()["k"], 12);
        let output = dir.path().join("knn.json");
        let refused = call("knn --k 200").arg("--output", &output).fails(2);
        assert!(refused.contains("k = 200 is larger than the bank") && !output.exists(), "{refused}");
        // Under the default's name an earlier version kept what was asked for by `--k 200`.
        let report = run.join("eval/knn-val-step-00000008.json");
        replace(&report, "\"k\": 12", "\"k\": 11");
        assert_eq!(call("knn").json()["k"], 12);
        // Nor is a report kept that an earlier version made without recall and precision.
        let mut old = read_json(&report);
        assert!(old.as_object_mut().expect("an object").remove("retrieval").is_some());
        std::fs::write(&report, old.to_string()).expect("written");
        assert!(call("knn").json()["retrieval"]["map"].is_number());
    }

    /// The file's name has no digest of the dataset, so the report's own decides.
    #[test]
    fn a_report_is_kept_for_the_dataset_that_was_evaluated() {
        let dir = scratch();
        let at = |name: &str| dir.path().join(name);
        let (source, other, grown, run) = (at("images"), at("other"), at("grown"), at("run"));
        copy(images(), &source);
        // Two classes of `val` change their images; `train` stays.
        let classes = entries(&source.join("val"));
        for (from, to) in [(&classes[0], &at("0")), (&classes[1], &classes[0]), (&at("0"), &classes[1])] {
            std::fs::rename(from, to).expect("renamed");
        }
        ingest("--row-group 16", &source, &other).ok();
        train(dataset(), &run, "--epochs 1 --no-monitor").ok();
        let digest_of = |data: &Path| instdisc("inspect").arg("", data).json()["dataset_digest"].clone();
        let report =
            |words: &str, data: &Path| instdisc(words).arg("--run", &run).arg("--dataset", data).json();
        let words = ["knn --k 5", "linear --device cpu --feature pooled --weight-decay 1e-3"];
        for words in words {
            let scores = report(words, &other);
            assert_eq!(scores["dataset_digest"], digest_of(&other), "{words}");
            let own = report(words, dataset());
            assert_eq!(own["dataset_digest"], digest_of(dataset()), "{words}");
        }
        // A split that is added changes the dataset's digest: one evaluation more, and not one each time.
        copy(dataset(), &grown);
        ingest("--row-group 16 --split test", images().join("val"), &grown).ok();
        for words in words {
            let words = format!("{words} --split val");
            report(&words, &grown);
            let files = entries(&run.join("eval")).into_iter();
            for file in files.filter(|file| file.extension().is_some_and(|ending| ending == "json")) {
                replace(&file, "\"step\": 8", "\"step\": 77");
            }
            assert_eq!(report(&words, &grown)["step"], 77, "{words}: it is not made again");
        }
    }

    /// The bank has rows of the trained split only, so both splits of another dataset are embedded.
    #[test]
    fn a_run_is_evaluated_on_a_dataset_that_it_was_not_trained_on() {
        let dir = scratch();
        let data = dir.path().join("data");
        ingest("--split train", images().join("val"), &data).ok();
        let run = trained(&dir, "--epochs 1 --no-monitor");
        let digest_of = |dataset: &Path| {
            let summary = instdisc("inspect").arg("", dataset).json();
            summary["dataset_digest"].as_str().expect("a digest").to_owned()
        };
        let (own, other) = (digest_of(dataset()), digest_of(&data));
        let words = "knn --k 5 --feature projection --train-split train --split train --leave-one-out";
        instdisc(words).arg("--run", &run).arg("--dataset", &data).ok();
        let name = "knn-train-from-train-projection-k5-leave-one-out-step-00000008.json";
        let report = read_json(&run.join("eval").join(format!("on-{}", &other[..12])).join(name));
        assert_eq!((&report["queries"], &report["bank_rows"]), (&40.into(), &40.into()));
        assert_eq!(report["dataset_digest"], other);
        assert_eq!(report["trained_on"]["dataset_digest"], own);
        let table = dir.path().join("train.arrow");
        let call = instdisc("embed --split train --device cpu").arg("--checkpoint", &run);
        call.arg("--dataset", &data).arg("--output", &table).ok();
        let summary = instdisc("inspect").arg("", &table).json();
        assert_eq!((&summary["table"]["dataset_digest"], &summary["rows"]), (&json!(other), &40.into()));
    }

    #[test]
    fn what_a_run_needs_is_said_without_one() {
        let dir = scratch();
        let run = dir.path().join("run");
        let estimate = train(dataset(), &run, "--epochs 3 --estimate").json();
        assert_eq!((&estimate["steps"], &estimate["bank_bytes"]), (&24.into(), &(120 * 16 * 4).into()));
        let step = estimate["time"]["step_seconds"].as_f64().expect("measured");
        assert!(step > 0.0 && estimate["time"]["measured_images"] == 16, "{estimate}");
        let lines = train(dataset(), &run, "--estimate --print lines").ok();
        assert!(lines.contains("s a step on cpu") && lines.contains(": begun now, the run ends "), "{lines}");
        // Ten classes by 64 features and a bias.
        let probed = train(dataset(), &run, "--epochs 3 --estimate --probe").json();
        assert_eq!(probed["probe_bytes"], 3 * 4 * 10 * 65);
        let data = dir.path().join("unlabelled");
        ingest("--unlabelled", images(), &data).ok();
        assert!(train(&data, &run, "--estimate --probe").fails(78).contains("--probe learns from labels"));
        assert!(lines.contains("checkpoint: ") && !lines.contains('{'), "{lines}");
        assert!(train(dataset(), &run, "--estimate --accumulate 0").fails(78).contains("accumulate"));
        let ranks = "--estimate --cuda-graphs --rank 0 --world-size 1 --master localhost:29500";
        let error = train(dataset(), &run, ranks).fails(78);
        assert!(error.contains("--cuda-graphs does not work with ranks"), "{error}");
        assert!(!run.exists());
    }

    #[test]
    fn an_estimate_refuses_what_the_run_would() {
        let dir = scratch();
        let run = dir.path().join("run");
        // One option is refused for a run of this device, others once the run has begun.
        let refused = |more: &str| {
            let estimate = train(dataset(), &run, &format!("{more} --estimate")).fails(78);
            let began = train(dataset(), &run, more).fails(78);
            assert_eq!(estimate, began, "{more}");
            estimate
        };
        assert!(refused("--cuda-graphs").contains("--cuda-graphs needs a CUDA device"));
        assert!(!run.join("checkpoints").exists());
        train(dataset(), &run, "--epochs 2 --no-monitor").ok();
        assert!(refused("--epochs 2 --seed 3").contains("seed = 0 (now 3)"));
        assert!(refused("--epochs 2 --objective softmax").contains("objective"));
        train(dataset(), &run, "--epochs 3 --estimate").ok();
        // What is planned for another machine can be planned here, and nothing is made for it.
        let cache = dir.path().join("cache");
        let elsewhere = train(dataset(), &run, "--epochs 3 --estimate --cache-size 1GiB");
        elsewhere.arg("--cache", &cache).ok();
        assert!(!cache.exists());
        let checkpoints = entries(&run.join("checkpoints"));
        let count = checkpoints.len();
        for checkpoint in checkpoints {
            std::fs::remove_file(checkpoint.join("model.safetensors")).expect("gone");
        }
        let call = |more: &str| train(dataset(), &run, &format!("--epochs 3 {more}")).fails(65);
        assert!(call("--estimate").contains(&format!("{count} of {count} checkpoints cannot be used")));
        assert_eq!(call("--estimate"), call(""));
    }

    #[test]
    fn a_run_may_not_write_into_its_dataset_and_unreasonable_numbers_are_refused() {
        let dir = scratch();
        let dataset = dir.path().join("dataset");
        copy(super::dataset(), &dataset);
        for run in [dataset.clone(), dataset.join("runs/r")] {
            for more in ["", "--estimate"] {
                let error = train(&dataset, &run, more).fails(78);
                assert!(error.contains("is within --dataset"), "{error}");
            }
        }
        assert!(!dataset.join("runs").exists() && !dataset.join("config.toml").exists());
        for (option, range) in [
            ("--dim 100000000", "dim must be from 1 to 65536"),
            ("--image-size 100000", "image_size must be from 8 to 4096"),
            ("--loader-threads 100000", "loader_threads must be from 0 to 1024"),
        ] {
            let call = instdisc(&format!("train --device cpu {option}")).arg("--dataset", &dataset);
            let error = call.arg("--run", dir.path().join("run")).fails(78);
            assert!(error.contains(range), "{error}");
        }
        let error = instdisc("finetune --label-fraction 0 --checkpoint c --dataset d --run r").fails(2);
        assert!(error.contains("no label would be used"), "{error}");
    }

    #[test]
    fn a_run_that_has_begun_is_estimated_and_exported_in_lines_for_people() {
        let dir = scratch();
        let run = trained(&dir, "--epochs 1 --no-monitor");
        let lines = train(dataset(), &run, "--epochs 3 --estimate --print lines").ok();
        assert!(lines.contains("3 epochs of together 24 steps: 8 are done, 16 are left\n"), "{lines}");
        assert!(lines.contains(" for the 16 steps that are left: resumed now, the run ends "), "{lines}");
        let estimate = train(dataset(), &run, "--epochs 3 --estimate").json();
        assert_eq!((&estimate["steps"], &estimate["done_steps"]), (&24.into(), &8.into()));
        let done = train(dataset(), &run, "--epochs 1 --estimate --print lines").ok();
        assert!(done.contains("all steps are done, and a larger --epochs goes on"), "{done}");

        let weights = dir.path().join("weights.safetensors");
        let export = |words: &str| instdisc(&format!("export {words}")).arg("--run", &run);
        let lines = export("torchvision --print lines").arg("--output", &weights).ok();
        assert!(lines.starts_with(&format!("{}: ", weights.display())) && !lines.contains('{'), "{lines}");
        // What the encoder was trained on: the recipe of small images.
        for words in [" tensors\n", "images: resized to 16 pixels", "the mean [0.4914, 0.4822, 0.4465]"] {
            assert!(lines.contains(words), "{words}: {lines}");
        }
        assert!(export("torchvision").arg("--output", &weights).json()["tensors"].is_u64());
        let call = instdisc("export images --split val --print lines").arg("--dataset", dataset());
        assert_eq!(call.arg("--dest", dir.path().join("files")).ok(), "     val  40 images\n");
    }

    /// Where a checkpoint is asked for, a run stands for its newest one.
    #[test]
    fn a_run_is_inspected_and_stands_for_its_newest_checkpoint() {
        let dir = scratch();
        let run = trained(&dir, "--epochs 2 --no-monitor --seed 7");
        let summary = instdisc("inspect --verify").arg("", &run).json();
        assert_eq!((&summary["kind"], &summary["finished"]), (&"run".into(), &true.into()));
        let names = serde_json::json!(["step-00000000", "step-00000008", "step-00000016"]);
        assert_eq!((&summary["step"], &summary["checkpoints"]), (&16.into(), &names));
        let newest = checkpoint(&run, 16);
        assert_eq!(summary["newest"].as_str().map(Path::new), Some(newest.as_path()));
        let [of_run, of_checkpoint] = ["a.arrow", "b.arrow"].map(|name| dir.path().join(name));
        instdisc("embed --split val --device cpu").of_run(&run).arg("--output", &of_run).ok();
        embed("val", &newest, &of_checkpoint).ok();
        assert_eq!(std::fs::read(&of_run).ok(), std::fs::read(&of_checkpoint).ok());
        let grid = |bank: &Path| knn("--k 5", bank, &of_run).json()["grid"].clone();
        assert_eq!(grid(&run), grid(&newest));
    }

    #[test]
    fn a_image_is_drawn_as_the_run_saw_it() {
        let dir = scratch();
        let run = trained(&dir, "--epochs 2 --no-monitor --seed 7 --recipe cifar");
        let drawn = |of_run: bool, words: &str| {
            let output = dir.path().join("x.png");
            let call = instdisc(&format!("render --instance 5 --epoch 1 {words}")).arg("--output", &output);
            let call = if of_run { call.arg("--run", &run) } else { call };
            (call.arg("--dataset", dataset()).json(), std::fs::read(output).expect("an image"))
        };
        let seen = drawn(true, "");
        assert_eq!(seen, drawn(false, "--seed 7 --recipe cifar --image-size 16 --split train"));
        assert_ne!(seen, drawn(true, "--seed 8"));
        assert!(seen.0["augmentation"].is_object() && seen.0["epoch"] == 1, "{}", seen.0);
        let beyond = instdisc("render --instance 5 --epoch 2 --output x.png").arg("--dataset", dataset());
        assert!(beyond.arg("--run", &run).fails(2).contains("here called 0 to 1"));
        let call = instdisc("render --instance 120 --output x.png").arg("--dataset", dataset());
        assert!(call.fails(2).contains("split train has 120 instances"));
        let data = dir.path().join("data");
        ingest("--split train", images().join("val"), &data).ok();
        let other = instdisc("render --instance 5 --output x.png").arg("--run", &run).arg("--dataset", &data);
        assert!(other.fails(65).contains("was trained on another train split"));
    }

    /// The fewest images that somebody tries, with no options but the dataset, the run and a processor.
    ///
    /// docs/performance.md has three seeds ("Plain defaults on a CPU"); last bits, and with them scores,
    /// differ between processors.
    #[test]
    fn forty_images_are_learned_from() {
        let dir = scratch();
        let [images, data, run] = ["images", "data", "run"].map(|name| dir.path().join(name));
        instdisc("synth --train-per-class 4 --val-per-class 40").arg("--dest", &images).ok();
        ingest("", &images, &data).ok();
        instdisc("train --device cpu").arg("--dataset", &data).arg("--run", &run).ok();
        let lines = metrics(&run);
        let scores: Vec<f64> = lines.iter().filter_map(|line| line["knn_sample_top1"].as_f64()).collect();
        let losses: Vec<f64> = lines
            .iter()
            .filter(|line| line["scope"] == "epoch")
            .skip(190)
            .filter_map(|line| line["loss"].as_f64())
            .collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        assert!(losses.len() == 10 && mean < 40_f64.ln() - 1.0, "{losses:?}");
        assert!(scores[scores.len() - 1] > scores[0] + 0.15, "{scores:?}");
    }

    /// Of n = 120 instances, a bank that says nothing gives ln n.
    #[test]
    fn the_exact_softmax_trains_too() {
        let dir = scratch();
        let options = "--epochs 6 --objective softmax --temperature 0.2 --bank-init uniform --no-monitor";
        let lines = metrics(&trained(&dir, options));
        let losses: Vec<f64> = lines.iter().map(|line| line["loss"].as_f64().expect("loss")).collect();
        assert!(losses[5] < losses[0] && losses[5] < 120_f64.ln() + 0.1, "{losses:?}");
    }
}
