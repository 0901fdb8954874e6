//! What a training step starts on the device and waits for, as `bench step` counts it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::support::instdisc;

fn operators(options: &str) -> Value {
    let step = "bench step --device cpu --batch-size 4 --steps 1 --warmup-steps 1 --dim 128";
    instdisc(&format!("{step} {options}")).json()["operators"].take()
}

fn launches(operators: &Value, phases: &[&str]) -> f64 {
    phases.iter().map(|phase| operators["phases"][*phase]["launches"].as_f64().expect("a count")).sum()
}

#[test]
fn a_step_keeps_its_books_in_few_launches_and_waits_for_the_device_once() {
    let mut bookkeeping = Vec::new();
    for arch in ["resnet20-cifar", "resnet18"] {
        for objective in ["nce", "infonce", "softmax"] {
            let options = format!("--arch {arch} --image-size 32 --instances 2000 --objective {objective}");
            let operators = operators(&(options + " --negatives 64 --partition fixed"));
            assert_eq!(
                (&operators["reads"], &operators["waits"]),
                (&0.0.into(), &1.0.into()),
                "{arch} {objective}"
            );
            bookkeeping.push(launches(&operators, &["data", "optimizer", "bank"]));
        }
    }
    assert!(bookkeeping.iter().all(|&count| count <= 40.0), "{bookkeeping:?}");
    // Nor more of them with more parameters.
    assert!(bookkeeping.iter().all(|count| *count == bookkeeping[0]), "{bookkeeping:?}");
}

/// Of a tile's logits the product is written (1), its exponential takes its place (2 and 3), is summed (4)
/// and multiplied with the rows (5).
#[test]
fn an_exact_softmax_passes_over_its_logits_five_times() {
    // 8,192 rows of 128 numbers are a tile on the CPU.
    let counts = |tiles: usize| -> BTreeMap<String, f64> {
        let options =
            format!("--arch resnet20-cifar --image-size 16 --objective softmax --instances {}", tiles * 8192);
        let names = operators(&options)["phases"]["objective"]["by_name"].take();
        serde_json::from_value(names).expect("counts by name")
    };
    let (one, five) = (counts(1), counts(5));
    let mut of_a_tile: BTreeMap<&str, f64> = five
        .iter()
        .map(|(name, count)| (name.as_str(), (count - one.get(name).unwrap_or(&0.0)) / 4.0))
        .filter(|(_, count)| *count > 0.0)
        .collect();
    // A query's own row is taken out where it is, in at most as many tiles as there are queries.
    for name in ["aten::_index_put_impl_", "aten::full", "aten::sub"] {
        assert!(of_a_tile.remove(name).unwrap_or(0.0) < 1.0, "{five:?}");
    }
    // Both sums over the tiles, of [batch] and of [batch, dim], grow by one addition.
    let expected = [("aten::add_", 2.0), ("aten::exp_", 1.0), ("aten::mm", 2.0), ("aten::sum", 1.0)];
    assert_eq!(of_a_tile, BTreeMap::from(expected));
}
