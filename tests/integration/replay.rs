//! `instdisc replay` against the reference's formulas, evaluated by PyTorch autograd in float64.

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

/// Writes the inputs of a golden as replay reads them.
fn write_input(golden: &Value, file: &Path) {
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
        add(format!("negatives_{step}"), &given["negatives"], true);
    }
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    std::fs::write(file, safetensors::serialize(views, None).expect("tensors")).expect("written");
}

fn numbers(view: &TensorView<'_>) -> Vec<f64> {
    match view.dtype() {
        Dtype::F32 => view
            .data()
            .chunks_exact(4)
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four"))))
            .collect(),
        Dtype::F64 => view
            .data()
            .chunks_exact(8)
            .map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight")))
            .collect(),
        other => panic!("a tensor of type {other:?}"),
    }
}

fn check(golden: &Value) {
    let dir = scratch();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    write_input(golden, &input);
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() == 2);
    for case in cases {
        let (temperature, momentum, eps) = (&golden["temperature"], &golden["bank_momentum"], &case["eps"]);
        instdisc(&format!(
            "replay --objective nce --temperature {temperature} --bank-momentum {momentum} --eps {eps}"
        ))
        .arg("--input", &input)
        .arg("--output", &output)
        .ok();
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
                    assert!(difference <= TOLERANCE * largest, "{name}_{step}: {actual} {expected}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 100);
    }
}

#[test]
fn replay_agrees_with_the_golden() {
    let text = std::fs::read_to_string(root().join("tests/golden/replay_nce.json")).expect("golden");
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
