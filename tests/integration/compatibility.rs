//! Our files in other programs, exports among them, and a checkpoint of lemniscate.pytorch in ours.

use super::support::{dataset, python};

#[test]
fn pyarrow_datasets_and_duckdb_read_a_shard() {
    let test = "pyarrow_datasets_and_duckdb_read_a_shard";
    let Some(output) = python(test, "tests/python/check_dataset.py", &[dataset()]) else { return };
    assert_eq!(output.trim(), "read 120 rows and 10 classes");
}

#[cfg(feature = "torch")]
mod trained {
    use std::path::Path;

    use super::*;
    use crate::support::{images, instdisc, python_fails, scratch, train};

    #[test]
    fn pyarrow_reads_the_bank_and_pytorch_votes_the_same() {
        let test = "pyarrow_reads_the_bank_and_pytorch_votes_the_same";
        let dir = scratch();
        let run = dir.path().join("run");
        train(dataset(), &run, "--epochs 2 --no-monitor").ok();
        let checkpoint = run.join("checkpoints/step-00000016");
        let (bank, queries) = (checkpoint.join("bank.arrow"), dir.path().join("val.arrow"));
        instdisc("embed --split val --device cpu")
            .arg("--checkpoint", &checkpoint)
            .arg("--dataset", dataset())
            .arg("--output", &queries)
            .ok();
        for (k, temperature) in [(1, 0.07), (7, 0.07), (50, 0.1), (120, 1.0)] {
            let scores = instdisc(&format!("knn --k {k} --temperature {temperature}"))
                .arg("--bank", &bank)
                .arg("--queries", &queries)
                .json();
            let (k, temperature) = (k.to_string(), temperature.to_string());
            let args = [bank.as_path(), queries.as_path(), k.as_ref(), temperature.as_ref()];
            let Some(output) = python(test, "tests/python/vote.py", &args) else { return };
            let expected: serde_json::Value = serde_json::from_str(&output).expect("JSON");
            assert_eq!(scores["top1"], expected["top1"], "k = {k}");
            assert_eq!(scores["top5"], expected["top5"], "k = {k}");
        }
    }

    #[test]
    fn torchvision_loads_the_model() {
        let dir = scratch();
        let run = dir.path().join("run");
        let call = instdisc("train --arch resnet18 --dim 128 --image-size 32 --batch-size 40 --limit 40")
            .arg("--dataset", dataset())
            .arg("--run", &run);
        let mut command = call.command();
        command.args(["--negatives", "8", "--epochs", "1", "--device", "cpu", "--no-monitor"]);
        assert!(command.output().expect("starts").status.success());
        let checkpoint = run.join("checkpoints/step-00000001");
        let script = "tests/python/load_model.py";
        let Some(output) = python("torchvision_loads_the_model", script, &[&checkpoint]) else { return };
        assert_eq!(output.trim(), "loaded 102 tensors");
    }

    #[test]
    fn exports_open_in_torchvision_duckdb_and_the_projector() {
        let dir = scratch();
        let run = dir.path().join("run");
        // A network that torchvision has.
        instdisc("train --arch resnet18 --image-size 32 --dim 24 --batch-size 32 --negatives 32 --device cpu --epochs 1 --limit 64 --no-monitor")
            .arg("--dataset", dataset())
            .arg("--run", &run)
            .ok();
        let checkpoint = run.join("checkpoints/step-00000002");
        let bank = checkpoint.join("bank.arrow");
        let file = |name: &str| dir.path().join(name);
        let weights = |more: &str, name: &str| {
            let call = instdisc(&format!("export torchvision {more}"));
            call.arg("--checkpoint", &checkpoint).arg("--output", file(name)).json()
        };
        let whole = weights("", "whole.safetensors")["tensors"].as_u64().expect("a number");
        assert_eq!(weights("--without-projection", "backbone.safetensors")["tensors"], whole - 2);
        // For the scores of the card.
        instdisc("knn --split val --k 5").arg("--run", &run).arg("--dataset", dataset()).ok();
        for form in ["timm", "huggingface"] {
            let call = instdisc(&format!("export {form}"));
            let exported = call.arg("--run", &run).arg("--output", file(form)).json();
            assert_eq!(exported["tensors"], whole, "{form}");
            let again = instdisc(&format!("export {form}")).arg("--checkpoint", &run);
            assert!(again.arg("--output", file(form)).fails(2).contains("a folder that is new or empty"));
        }
        instdisc("train --arch resnet20-cifar --recipe cifar --image-size 32 --dim 24 --batch-size 32 --device cpu --epochs 1 --no-monitor")
            .arg("--dataset", dataset())
            .arg("--run", file("cifar"))
            .ok();
        let small = instdisc("export timm").arg("--checkpoint", file("cifar"));
        assert!(small.arg("--output", file("small")).fails(65).contains("`export torchvision`"));
        let pickle = instdisc("export torchvision").arg("--checkpoint", &checkpoint);
        let error = pickle.arg("--output", file("whole.pth")).fails(2);
        assert!(error.contains("safetensors, not a pickle") && !file("whole.pth").exists(), "{error}");
        std::fs::write(file("weights.pth"), b"PK\x03\x04").expect("a file");
        let begun = instdisc("train --arch resnet18 --image-size 32 --device cpu --epochs 1 --no-monitor");
        let begun = begun.arg("--dataset", dataset()).arg("--run", file("begun"));
        let error = begun.arg("--init", file("weights.pth")).fails(65);
        assert!(error.contains("weights.pth") && error.contains("a PyTorch pickle"), "{error}");
        let parquet =
            instdisc("export parquet").arg("--table", &bank).arg("--output", file("table.parquet")).json();
        assert_eq!(parquet["rows"], 64);
        let inside = checkpoint.join("more.parquet");
        let call = instdisc("export parquet").arg("--table", &bank).arg("--output", &inside);
        assert!(call.fails(2).contains("is a checkpoint") && !inside.exists());
        // A run stands for its newest checkpoint, and that for its bank.
        for place in [&run, &checkpoint] {
            let call =
                instdisc("export parquet").arg("--table", place).arg("--output", file("again.parquet"));
            assert_eq!(call.json()["rows"], 64);
            assert_eq!(std::fs::read(file("again.parquet")).ok(), std::fs::read(file("table.parquet")).ok());
        }
        let of_run =
            instdisc("export projector --limit 50").arg("--table", &run).arg("--output", file("of_run"));
        assert_eq!(of_run.json()["rows"], 50);
        let projector =
            instdisc("export projector --limit 50").arg("--table", &bank).arg("--dataset", dataset());
        assert_eq!(projector.arg("--output", file("projector")).json()["rows"], 50);
        let again = instdisc("export projector --limit 50").arg("--table", &run);
        let (_, output) = again.arg("--output", file("of_run")).output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("of_run holds `metadata.tsv`") && said.contains("replaced"), "{said}");
        let embed = instdisc("embed --split val --device cpu").arg("--checkpoint", file("cifar"));
        embed.arg("--dataset", dataset()).arg("--output", file("val.arrow")).ok();
        let test = "exports_open_in_torchvision_duckdb_and_the_projector";
        let arguments = [dir.path(), Path::new("resnet18"), Path::new("24"), dataset()];
        let Some(output) = python(test, "tests/python/check_export.py", &arguments) else { return };
        assert_eq!(output.trim(), "checked 64 rows, 50 points");
    }

    #[test]
    fn a_checkpoint_of_lemniscate_keeps_its_rows_and_its_network() {
        let test = "a_checkpoint_of_lemniscate_keeps_its_rows_and_its_network";
        let converter = "jobs/tools/lemniscate_to_checkpoint.py";
        let dir = scratch();
        let [file, weights] = ["lemniscate.pth.tar", "weights.safetensors"].map(|name| dir.path().join(name));
        let train = images().join("train");
        let made = [train.as_path(), &file, &weights];
        let Some(_) = python(test, "tests/python/make_lemniscate.py", &made) else { return };
        let run = dir.path().join("run");
        let checkpoint = run.join("checkpoints/step-00001000");
        let flags = ["--arch", "resnet18", "--image-size", "32", "--output"].map(Path::new);
        let mut arguments = vec![file.as_path(), Path::new("--dataset"), dataset()];
        arguments.extend(flags);
        arguments.push(&checkpoint);

        // Rows of other images.
        let mut wrong = arguments.clone();
        wrong.extend(["--split", "val"].map(Path::new));
        let error = python_fails(test, converter, &wrong, 1).expect("there is a Python");
        assert!(error.contains("120 rows") && error.contains("40 images"), "{error}");
        assert!(!run.exists());

        python(test, converter, &arguments).expect("there is a Python");
        let error = python_fails(test, converter, &arguments, 2).expect("there is a Python");
        assert!(error.contains("is a checkpoint already"), "{error}");
        let read = |path: &Path| std::fs::read(path).expect("readable");
        assert!(read(&checkpoint.join("model.safetensors")) == read(&weights));
        let bank = checkpoint.join("bank.arrow");
        let knn = instdisc("knn --leave-one-out --k 5").arg("--bank", &bank).arg("--queries", &bank);
        assert_eq!(knn.json()["top1"], 1.0);
        let inspected = instdisc("inspect --print lines").arg("", &checkpoint).ok();
        assert!(inspected.contains("bank.never_updated                 120"), "{inspected}");
        let evaluated =
            instdisc("knn --k 5 --split val").arg("--run", &run).arg("--dataset", dataset()).json();
        assert_eq!((evaluated["queries"].as_u64(), evaluated["step"].as_u64()), (Some(40), Some(1000)));
    }
}
