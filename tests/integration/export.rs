//! Exported files, opened by the programs they are for.

use std::path::Path;

use super::support::{dataset, instdisc, python, scratch};

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
        let exported = call.arg("--checkpoint", &run).arg("--output", file(form)).json();
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
    // A run stands for its newest checkpoint, and that for its bank.
    for place in [&run, &checkpoint] {
        let call = instdisc("export parquet").arg("--table", place).arg("--output", file("again.parquet"));
        assert_eq!(call.json()["rows"], 64);
        assert_eq!(std::fs::read(file("again.parquet")).ok(), std::fs::read(file("table.parquet")).ok());
    }
    let of_run = instdisc("export projector --limit 50").arg("--table", &run).arg("--output", file("of_run"));
    assert_eq!(of_run.json()["rows"], 50);
    let projector = instdisc("export projector --limit 50").arg("--table", &bank).arg("--dataset", dataset());
    assert_eq!(projector.arg("--output", file("projector")).json()["rows"], 50);
    let embed = instdisc("embed --split val --device cpu").arg("--checkpoint", file("cifar"));
    embed.arg("--dataset", dataset()).arg("--output", file("val.arrow")).ok();
    let test = "exports_open_in_torchvision_duckdb_and_the_projector";
    let arguments = [dir.path(), Path::new("resnet18"), Path::new("24"), dataset()];
    let Some(output) = python(test, "tests/python/check_export.py", &arguments) else { return };
    assert_eq!(output.trim(), "checked 64 rows, 50 points");
}
