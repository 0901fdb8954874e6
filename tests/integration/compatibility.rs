//! Our files in other people's hands.

use super::support::{dataset, python};

#[test]
fn pyarrow_datasets_and_duckdb_read_a_shard() {
    let test = "pyarrow_datasets_and_duckdb_read_a_shard";
    let Some(output) = python(test, "tests/python/check_dataset.py", &[dataset()]) else { return };
    assert_eq!(output.trim(), "read 120 rows and 10 classes");
}

#[cfg(feature = "torch")]
mod trained {
    use super::*;
    use crate::support::{instdisc, scratch, train};

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
}
