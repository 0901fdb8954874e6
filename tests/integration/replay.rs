//! `instdisc replay` against the formulas of reference and paper, by PyTorch autograd in float64.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

use super::support::{instdisc, python, root, scratch};

/// Relative to the largest number of the expected tensor.
const TOLERANCE: f64 = 1e-5;

/// The numbers of a nested list with its shape.
fn flatten(value: &Value, shape: &mut Vec<usize>, depth: usize, numbers: &mut Vec<f64>) {
    match value {
        Value::Array(items) => {
            if shape.len() == depth {
                shape.push(items.len());
            }
            items.iter().for_each(|item| flatten(item, shape, depth + 1, numbers));
        }
        other => numbers.push(other.as_f64().expect("a number")),
    }
}

fn tensor(value: &Value) -> (Vec<usize>, Vec<f64>) {
    let (mut shape, mut numbers) = (Vec::new(), Vec::new());
    flatten(value, &mut shape, 0, &mut numbers);
    (shape, numbers)
}

/// Writes the inputs of a golden as replay reads them, with the negatives of this name.
fn write_input(golden: &Value, negatives: &str, file: &Path) {
    let mut parts: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |name: String, value: &Value, integers: bool| {
        let (shape, numbers) = tensor(value);
        let bytes = if integers {
            numbers.iter().flat_map(|&number| (number as i64).to_le_bytes()).collect()
        } else {
            numbers.iter().flat_map(|&number| (number as f32).to_le_bytes()).collect()
        };
        parts.push((name, if integers { Dtype::I64 } else { Dtype::F32 }, shape, bytes));
    };
    add("bank".into(), &golden["bank"], false);
    for (step, given) in golden["steps"].as_array().expect("steps").iter().enumerate() {
        add(format!("features_{step}"), &given["features"], false);
        add(format!("ids_{step}"), &given["ids"], true);
        add(format!("negatives_{step}"), &given[negatives], true);
    }
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    std::fs::write(file, safetensors::serialize(views, None).expect("tensors")).expect("written");
}

fn numbers(view: &TensorView<'_>) -> Vec<f64> {
    match view.dtype() {
        Dtype::F32 => {
            view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect()
        }
        Dtype::F64 => view.data().as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
        other => panic!("a tensor of type {other:?}"),
    }
}

/// The flags of a case, beside those that all cases share.
fn flags(golden: &Value, case: &Value) -> String {
    let mut words = vec!["replay".to_owned()];
    for name in ["temperature", "bank_momentum", "partition_decay"] {
        words.push(format!("--{} {}", name.replace('_', "-"), golden[name]));
    }
    for name in ["objective", "partition", "eps", "proximal_weight"] {
        match &case[name] {
            Value::Null => {}
            Value::String(text) => words.push(format!("--{name} {text}")),
            number => words.push(format!("--{} {number}", name.replace('_', "-"))),
        }
    }
    if case["exclude_positive"] == true {
        words.push("--exclude-positive".into());
    }
    words.join(" ")
}

/// Compares all cases, with the bank in one piece and in several.
fn check(golden: &Value) {
    let cases = golden["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 10);
    for case in cases {
        for blocks in [1, 5] {
            check_case(golden, case, blocks);
        }
    }
}

fn check_case(golden: &Value, case: &Value, blocks: usize) {
    let dir = scratch();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    write_input(golden, if case["shared"] == true { "shared" } else { "negatives" }, &input);
    let call = instdisc(&format!("{} --blocks {blocks}", flags(golden, case)));
    call.arg("--input", &input).arg("--output", &output).ok();
    let bytes = std::fs::read(&output).expect("output");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut compared = 0;
    for (step, expected) in case["expected"].as_array().expect("steps").iter().enumerate() {
        for (name, expected) in expected.as_object().expect("tensors") {
            let (shape, expected) = tensor(expected);
            let view = tensors.tensor(&format!("{name}_{step}")).expect("named so");
            assert_eq!(view.shape(), shape, "{name}_{step}");
            let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
            for (actual, expected) in numbers(&view).iter().zip(&expected) {
                let difference = (actual - expected).abs();
                let what = format!("{} {name}_{step}: {actual} {expected}", flags(golden, case));
                assert!(difference <= TOLERANCE * largest, "{what}");
                compared += 1;
            }
        }
    }
    assert!(compared > 100);
}

#[test]
fn replay_agrees_with_the_golden() {
    let text = std::fs::read_to_string(root().join("tests/golden/replay.json")).expect("golden");
    check(&serde_json::from_str(&text).expect("JSON"));
}

#[test]
fn replay_agrees_with_pytorch_on_other_numbers() {
    let test = "replay_agrees_with_pytorch_on_other_numbers";
    let seed = Path::new("7");
    if let Some(text) = python(test, "tests/golden/generate_replay.py", &[seed]) {
        check(&serde_json::from_str(&text).expect("JSON"));
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = scratch();
    let input = dir.path().join("in.safetensors");
    let bytes = 0.0_f32.to_le_bytes();
    let view = TensorView::new(Dtype::F32, vec![1, 1], &bytes).expect("a tensor");
    std::fs::write(&input, safetensors::serialize([("other", view)], None).expect("tensors"))
        .expect("written");
    let call = instdisc("replay").arg("--input", &input).arg("--output", dir.path().join("out"));
    let error = call.fails(65);
    assert!(error.contains("bank"), "{error}");
    assert!(!dir.path().join("out").exists());
}
