use std::sync::atomic::{AtomicU64, Ordering};

use super::sgd::Cell;
use super::*;
use crate::feature_table::Kind;
use crate::ids::{ClassId, InstanceId};
use crate::progress::Quiet;
use crate::rng::{Purpose, Stream};

/// Classes around corners of a cube, with noise; the numbers differ in size a thousandfold.
fn table(seed: u64, rows: usize, stretched: bool) -> FeatureTable {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let classes: Vec<u16> = (0..rows).map(|_| stream.below(4) as u16).collect();
    let feature = |class: u16, stream: &mut Stream| {
        [0, 1, 2, 3].map(|at| {
            let corner = if u16::from(at == 3) + at == class { 1.5 } else { 0.0 };
            let size = if stretched { [1000.0, 1.0, 0.01, 30.0][usize::from(at)] } else { 1.0 };
            ((corner + stream.normal()) * size) as f32
        })
    };
    FeatureTable {
        meta: TableMeta {
            kind: Kind::Embedding,
            layer: "pooled".into(),
            dim: 4,
            dataset_digest: "d".into(),
            split: "train".into(),
            split_digest: None,
            weights: None,
            device: None,
            precision: None,
            step: 1,
            unit_length: false,
            classes: ["a", "b", "c", "d"].map(str::to_owned).into(),
        },
        ids: (0..rows as u32).map(InstanceId).collect(),
        labels: classes.iter().map(|&class| Some(ClassId(class))).collect(),
        updated_step: vec![None; rows],
        features: classes.iter().flat_map(|&class| feature(class, &mut stream)).collect(),
    }
}

fn options(solver: Solver) -> LinearOptions {
    LinearOptions {
        solver,
        lr: vec![0.5],
        weight_decay: vec![1e-3],
        epochs: 30,
        batch_size: 50,
        iterations: 500,
        standardize: false,
        seed: 0,
        device: DeviceChoice::Cpu,
    }
}

fn run(train: &FeatureTable, test: &FeatureTable, options: &LinearOptions) -> ProbeReport {
    probe(train, test, options, &Quiet).expect("a probe")
}

#[test]
fn both_solvers_find_the_same_minimum() {
    let (train, test) = (table(1, 600, false), table(2, 400, false));
    let (exact, stochastic) =
        (run(&train, &test, &options(Solver::Lbfgs)), run(&train, &test, &options(Solver::Sgd)));
    assert!(exact.converged && exact.top1 > 0.5, "{exact:?}");
    assert!((exact.top1 - stochastic.top1).abs() < 0.011, "{} {}", exact.top1, stochastic.top1);
}

#[test]
fn a_standardized_probe_does_not_see_the_size_of_the_numbers() {
    let standardized = LinearOptions { standardize: true, ..options(Solver::Lbfgs) };
    let plain = run(&table(1, 600, false), &table(2, 400, false), &standardized);
    let stretched = run(&table(1, 600, true), &table(2, 400, true), &standardized);
    assert_eq!((plain.top1, plain.top5), (stretched.top1, stretched.top5));
}

/// The head that comes out is for features as they are: at the minimum the mean error is nil.
#[test]
fn the_bias_is_such_that_each_class_is_predicted_as_often_as_it_occurs() {
    let train = table(3, 500, true);
    let rows = Examples::of(&train).expect("rows");
    let standardized = LinearOptions { standardize: true, ..options(Solver::Lbfgs) };
    let cell = Cell { lr: None, weight_decay: 1e-3 };
    let head = fit_cached(&rows, &[cell], 4, &standardized, Device::Cpu, &Quiet).expect("fitted");
    let predicted = (rows.features.matmul(&head[0].weight) + &head[0].bias).softmax(1, tch::Kind::Double);
    let predicted = predicted.mean_dim([0_i64].as_slice(), false, tch::Kind::Double);
    for class in 0..4 {
        let share =
            train.labels.iter().flatten().filter(|label| label.index() == class).count() as f64 / 500.0;
        assert!((predicted.double_value(&[class as i64]) - share).abs() < 1e-4);
    }
}

#[test]
fn of_several_settings_the_one_is_taken_that_does_best_on_rows_it_did_not_see() {
    let sweep = LinearOptions { lr: vec![1e-6, 0.5], weight_decay: vec![10.0, 1e-4], ..options(Solver::Sgd) };
    let report = run(&table(4, 800, false), &table(5, 200, false), &sweep);
    assert_eq!(report.sweep.len(), 4);
    assert_eq!(report.train_rows, 800);
    let best = report.sweep.iter().map(|cell| cell.validation_top1).fold(0.0, f64::max);
    let chosen =
        report.sweep.iter().find(|cell| (cell.lr, cell.weight_decay) == (report.lr, report.weight_decay));
    assert_eq!(chosen.map(|cell| cell.validation_top1), Some(best));
    assert_eq!(report.lr, Some(0.5));
}

/// Counts the items that were announced, those that were done, and the stages that were finished.
#[derive(Default)]
struct Counted([AtomicU64; 3]);

impl Progress for Counted {
    fn begin(&self, _stage: &str, total: u64) {
        self.0[0].fetch_add(total, Ordering::Relaxed);
    }

    fn advance(&self, items: u64) {
        self.0[1].fetch_add(items, Ordering::Relaxed);
    }

    fn finish(&self) {
        self.0[2].fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_probe_tells_how_far_it_is() {
    let sweep = |solver| LinearOptions { weight_decay: vec![1e-2, 1e-3], epochs: 5, ..options(solver) };
    // Both settings and then the better one: the steps that each may take; for sgd five passes each time.
    let steps = 3 * options(Solver::Lbfgs).iterations as u64;
    for (solver, items) in [(Solver::Lbfgs, steps), (Solver::Sgd, 10)] {
        let counted = Counted::default();
        probe(&table(1, 200, false), &table(2, 100, false), &sweep(solver), &counted).expect("a probe");
        assert_eq!(counted.0.map(AtomicU64::into_inner), [items, items, 2], "{solver:?}");
    }
}

#[test]
fn scores_that_are_not_finite_miss() {
    let rows = Examples::of(&table(6, 40, false)).expect("rows");
    let nothing = tch::Tensor::full([4, 4], f64::NAN, (tch::Kind::Float, Device::Cpu));
    let bias = tch::Tensor::zeros([4], (tch::Kind::Float, Device::Cpu));
    let head = Head { weight: nothing, bias, steps: 0, converged: false };
    let score = head.score(&rows, Device::Cpu);
    assert_eq!((score.top1, score.top5, score.rows), (0, 0, 40));
}

#[test]
fn a_report_names_the_dataset_that_was_evaluated() {
    let (mut train, mut test) = (table(1, 100, false), table(2, 50, false));
    train.meta.split_digest = Some("s".into());
    (test.meta.dataset_digest, test.meta.split) = ("e".into(), "val".into());
    test.meta.split_digest = Some("t".into());
    assert_eq!(run(&train, &test, &options(Solver::Lbfgs)).dataset_digest, "e");
}

#[test]
fn tables_that_do_not_belong_together_are_refused() {
    let train = table(7, 50, false);
    let mut other = table(8, 50, false);
    other.meta.layer = "projection".into();
    let error = probe(&train, &other, &options(Solver::Lbfgs), &Quiet).expect_err("another layer");
    assert!(error.to_string().contains("pooled and projection"), "{error}");
    let mut unlabelled = table(9, 50, false);
    unlabelled.labels.fill(None);
    assert!(probe(&train, &unlabelled, &options(Solver::Lbfgs), &Quiet).is_err());
    let none = LinearOptions { weight_decay: Vec::new(), ..options(Solver::Lbfgs) };
    assert!(probe(&train, &train, &none, &Quiet).is_err());
}
