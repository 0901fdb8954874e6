use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tch::Tensor;

use super::*;

fn tensor(value: &Value) -> Tensor {
    let rows = |value: &Value| -> Vec<f32> {
        value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
    };
    match value[0] {
        Value::Array(_) => {
            let all: Vec<Vec<f32>> = value.as_array().expect("a list").iter().map(rows).collect();
            Tensor::from_slice2(&all)
        }
        _ => Tensor::from_slice(&rows(value)),
    }
}

fn config(golden: &Value, case: &Value) -> TrainConfig {
    let mut all = serde_json::to_value(TrainConfig::default()).expect("plain data");
    for (key, value) in case.as_object().expect("an object") {
        if key != "expected" {
            all[key] = value.clone();
        }
    }
    all["lr"] = golden["lr"].clone();
    all["weight_decay"] = golden["weight_decay"].clone();
    serde_json::from_value(all).expect("a configuration")
}

const KINDS: [OptimizerKind; 3] = [OptimizerKind::Sgd, OptimizerKind::Lars, OptimizerKind::Adamw];

fn of_kind(optimizer: OptimizerKind, clip_norm: f64) -> TrainConfig {
    TrainConfig { optimizer, clip_norm, lr: 0.1, weight_decay: 0.01, ..TrainConfig::default() }
}

fn set_gradient(parameter: &Tensor, gradient: &Tensor) {
    // There is no setter: the gradient of (parameter * g).sum() is g.
    (parameter * gradient).sum(Kind::Float).backward();
}

/// Runs every case like the trainer, and compares after each step.
fn check(golden: &Value) {
    for case in golden["cases"].as_array().expect("cases") {
        let config = config(golden, case);
        let names = ["matrix", "vector"];
        let parameters = names.map(|name| tensor(&golden["start"][name]).set_requires_grad(true));
        let named = names.iter().zip(&parameters).map(|(name, p)| ((*name).to_owned(), p.shallow_clone()));
        let mut optimizer = Optimizer::new(named.collect(), &config);
        let steps = golden["gradients"].as_array().expect("steps");
        for (gradients, expected) in steps.iter().zip(case["expected"].as_array().expect("steps")) {
            optimizer.drop_gradients();
            for (name, parameter) in names.iter().zip(&parameters) {
                set_gradient(parameter, &tensor(&gradients[name]));
            }
            let divisor = optimizer.divisor(&optimizer.gradient_norm(), 1.0);
            optimizer.step(config.lr, divisor.as_ref());
            for (name, parameter) in names.iter().zip(&parameters) {
                let expected = tensor(&expected[name]);
                let difference = (parameter - &expected).abs().max().double_value(&[]);
                let largest = expected.abs().max().double_value(&[]);
                assert!(difference <= 2e-6 * largest, "{:?} {name}: {difference}", config.optimizer);
            }
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn every_optimiser_follows_pytorchs() {
    let text = std::fs::read_to_string(folder().join("optimizers.json")).expect("golden");
    check(&serde_json::from_str(&text).expect("JSON"));
}

#[test]
fn every_optimiser_follows_pytorchs_on_other_numbers() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv-python/bin/python");
    if python.exists() {
        let script = folder().join("generate_optimizers.py");
        let output = Command::new(python).arg(script).arg("7").output().expect("Python starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        check(&serde_json::from_slice(&output.stdout).expect("JSON"));
    }
}

#[test]
fn buffers_and_steps_put_back_go_on_alike() {
    for optimizer in KINDS {
        let config = of_kind(optimizer, 0.0);
        let weight = || Tensor::from_slice(&[1.0_f32, -2.0]).view([1, 2]).set_requires_grad(true);
        let (whole, broken) = (weight(), weight());
        let new = |weight: &Tensor| Optimizer::new(vec![("w".into(), weight.shallow_clone())], &config);
        let step = |optimizer: &mut Optimizer, weight: &Tensor| {
            optimizer.drop_gradients();
            weight.square().sum(Kind::Float).backward();
            optimizer.step(0.1, None);
        };
        let (mut first, mut before) = (new(&whole), new(&broken));
        for _ in 0..2 {
            step(&mut first, &whole);
        }
        step(&mut before, &broken);
        let mut after = new(&broken);
        after.load(&before.buffers(), before.steps()).expect("its own buffers");
        step(&mut after, &broken);
        assert!(whole.equal(&broken), "{optimizer:?}");
    }
}

#[test]
fn gradients_that_have_a_factor_too_much_are_divided_by_it_and_clipped() {
    for optimizer in KINDS {
        let weight = || Tensor::from_slice(&[1.0_f32, -2.0]).view([1, 2]).set_requires_grad(true);
        let stepped = |factor: f64, clip: f64| {
            let config = of_kind(optimizer, clip);
            let weight = weight();
            let mut optimizer = Optimizer::new(vec![("w".into(), weight.shallow_clone())], &config);
            (weight.square().sum(Kind::Float) * factor).backward();
            let divisor = optimizer.divisor(&optimizer.gradient_norm(), factor);
            optimizer.step(0.1, divisor.as_ref());
            weight.detach()
        };
        let differ = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        for clip in [0.0, 0.5] {
            let (plain, scaled) = (stepped(1.0, clip), stepped(1024.0, clip));
            assert!(differ(&plain, &scaled) < 1e-6, "{optimizer:?} {clip}: {plain} {scaled}");
        }
        // Adam's first step depends only on the gradient's sign, and LARS divides by its length.
        if optimizer == OptimizerKind::Sgd {
            assert!(differ(&stepped(1.0, 0.0), &stepped(1.0, 0.5)) > 1e-3);
        }
    }
}

#[test]
fn kernels_with_the_channels_last_move_as_others_do() {
    for optimizer in KINDS {
        let config = of_kind(optimizer, 0.0);
        let values: Vec<f32> = (0..2 * 3 * 2 * 2).map(|value| value as f32 / 7.0 - 1.0).collect();
        let plain = Tensor::from_slice(&values).view([2, 3, 2, 2]);
        let last = plain.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let moved = |start: &Tensor| {
            let weight = start.detach().set_requires_grad(true);
            let mut optimizer = Optimizer::new(vec![("w".into(), weight.shallow_clone())], &config);
            for _ in 0..2 {
                optimizer.drop_gradients();
                (weight.square() * start).sum(Kind::Float).backward();
                optimizer.step(0.1, None);
            }
            weight.detach()
        };
        let (a, b) = (moved(&plain.copy()), moved(&last));
        assert!(a.allclose(&b, 1e-6, 1e-7, false), "{optimizer:?}: {a} {b}");
    }
}

const STEPS: u64 = 10;

fn rate(config: &TrainConfig, step: u64) -> f64 {
    let cursor = Cursor { step, epoch: step / STEPS, step_in_epoch: step % STEPS };
    learning_rate(config, cursor, STEPS)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn the_rate_falls_at_the_milestones_of_the_reference() {
    let config = TrainConfig::default();
    let epochs = [0, 119, 120, 159, 160, 199];
    let expected = [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003];
    assert!(
        epochs.iter().zip(expected).all(|(epoch, expected)| close(rate(&config, epoch * STEPS), expected))
    );
}

#[test]
fn the_warm_up_rises_step_by_step_and_meets_the_full_rate() {
    let config = TrainConfig { warmup_epochs: 2, lr: 0.4, ..TrainConfig::default() };
    assert!(close(rate(&config, 0), 0.4 / 20.0));
    assert!(close(rate(&config, 9), 0.2));
    assert!(close(rate(&config, 19), 0.4) && close(rate(&config, 20), 0.4));
}

#[test]
fn the_cosine_starts_full_is_half_in_the_middle_and_ends_at_its_final_rate() {
    let config = TrainConfig {
        lr_schedule: LrSchedule::Cosine,
        lr: 0.5,
        lr_final: 0.1,
        epochs: 12,
        warmup_epochs: 2,
        ..TrainConfig::default()
    };
    assert!(close(rate(&config, 20), 0.5));
    assert!(close(rate(&config, 70), 0.3));
    assert!(close(rate(&config, 120), 0.1));
}

#[test]
fn it_halves_on_an_overflow_and_doubles_after_two_thousand_steps_without() {
    let mut scale = LossScale::default();
    assert!(scale.overflowed());
    assert_eq!(scale.factor, 32_768.0);
    for _ in 0..2000 {
        scale.succeeded();
    }
    assert_eq!(scale, LossScale::default());
    let mut smallest = LossScale { factor: 1.0, good_steps: 0 };
    assert!(!smallest.overflowed(), "it is not to blame");
}
