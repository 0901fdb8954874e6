use std::sync::atomic::{AtomicU64, Ordering};

use super::sgd::Cell;
use super::*;
use crate::feature_table::tests::meta;
use crate::feature_table::{FeatureTable, Kind};
use crate::ids::{ClassId, InstanceId};
use crate::progress::Quiet;
use crate::rng::{Purpose, Stream};

/// Classes around the corners of a cube, with noise; the magnitudes of the features differ a thousandfold.
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
            layer: "pooled".into(),
            unit_length: false,
            classes: ["a", "b", "c", "d"].map(str::to_owned).into(),
            ..meta(Kind::Embedding, 4)
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
        local_rank: 0,
        memory_limit: u64::MAX,
    }
}

fn tables<'a>(train: &'a dyn Table, test: &'a dyn Table) -> ProbeTables<'a> {
    ProbeTables { train, among: None, test, names: ["--train a", "--test b"], number: 0 }
}

fn try_run(train: &dyn Table, test: &dyn Table, options: &LinearOptions) -> Result<ProbeReport, EvalError> {
    let report = probe(tables(train, test), options, &ProcessGroup::alone(), &Quiet)?;
    Ok(report.expect("rank 0 reports"))
}

fn run(train: &dyn Table, test: &dyn Table, options: &LinearOptions) -> ProbeReport {
    try_run(train, test, options).expect("a probe")
}

/// Returns the report without its time.
fn timeless(report: ProbeReport) -> ProbeReport {
    ProbeReport { seconds: 0.0, ..report }
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

/// The resulting head is for plain features: at the minimum the mean error is zero.
#[test]
fn the_bias_is_such_that_each_class_is_predicted_as_often_as_it_occurs() {
    let train = table(3, 500, true);
    let rows = Examples::of(&train, None).expect("rows");
    let features = rows.batch(0..500).expect("features").features;
    let standardized = LinearOptions { standardize: true, ..options(Solver::Lbfgs) };
    let cell = Cell { lr: None, weight_decay: 1e-3 };
    let alone = ProcessGroup::alone();
    let fitting = Fitting {
        meta: &train.meta,
        options: &standardized,
        device: Device::Cpu,
        group: &alone,
        progress: &Quiet,
    };
    let (head, _) = fitting.fit(rows, &[cell]).expect("fitted");
    let predicted = (features.matmul(&head[0].weight) + &head[0].bias).softmax(1, tch::Kind::Double);
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

/// Counts announced items, done items, and finished stages.
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
    // Both settings, then the better one: the steps that each may take; five passes each for sgd.
    let steps = 3 * options(Solver::Lbfgs).iterations as u64;
    for (solver, items) in [(Solver::Lbfgs, steps), (Solver::Sgd, 10)] {
        let counted = Counted::default();
        let (train, test) = (table(1, 200, false), table(2, 100, false));
        probe(tables(&train, &test), &sweep(solver), &ProcessGroup::alone(), &counted).expect("a probe");
        assert_eq!(counted.0.map(AtomicU64::into_inner), [items, items, 2], "{solver:?}");
    }
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
fn a_sweep_without_a_setting_is_refused() {
    let train = table(7, 50, false);
    let none = LinearOptions { weight_decay: Vec::new(), ..options(Solver::Lbfgs) };
    assert!(matches!(try_run(&train, &train, &none), Err(EvalError::Options { .. })));
}

/// Returns a table of another split.
fn evaluated(seed: u64, rows: usize) -> FeatureTable {
    let mut table = table(seed, rows, false);
    table.meta.split = "val".into();
    table
}

/// Returns more rows than a chunk has, some of them without a label.
fn long_table(seed: u64) -> FeatureTable {
    let mut long = table(seed, 40_000, false);
    long.labels.iter_mut().step_by(7).for_each(|label| *label = None);
    long
}

#[test]
fn a_table_that_is_read_in_every_pass_gives_the_bits_of_one_that_is_held() {
    let (train, test) = (long_table(1), evaluated(2, 20_000));
    let held = LinearOptions { standardize: true, weight_decay: vec![1e-2, 1e-4], ..options(Solver::Lbfgs) };
    let streamed = LinearOptions { memory_limit: 0, ..held.clone() };
    let report = timeless(run(&train, &test, &held));
    assert_eq!(timeless(run(&train, &test, &streamed)), report);
    assert!(report.converged && report.notes.is_empty(), "{report:?}");
}

#[test]
fn rows_that_are_mixed_in_windows_teach_what_rows_mixed_as_a_whole_do() {
    let (train, test) = (long_table(3), evaluated(4, 4000));
    let held = LinearOptions { epochs: 3, batch_size: 100, ..options(Solver::Sgd) };
    let windowed = LinearOptions { memory_limit: 16 * 3050, ..held.clone() };
    let (whole, report) = (run(&train, &test, &held), timeless(run(&train, &test, &windowed)));
    assert_eq!(timeless(run(&train, &test, &windowed)), report, "the same seed gives the same report");
    assert!((whole.top1 - report.top1).abs() < 0.01, "{} {}", whole.top1, report.top1);
    let note = "by the memory limit of 48800, rows were mixed in windows of 3000";
    assert_eq!((whole.notes.len(), report.notes.as_slice()), (0, &[note.to_owned()][..]));
}

/// Each row must occur once in the passes, with its label.
#[test]
fn a_pass_over_windows_shows_each_row_once_with_its_label() {
    let mut train = long_table(5);
    for row in 0..train.len() {
        train.features[4 * row] = row as f32;
    }
    let rows = Examples::of(&train, None).expect("rows");
    let windowed = LinearOptions { memory_limit: 16 * 3050, batch_size: 100, ..options(Solver::Sgd) };
    let mut orders = Vec::new();
    for epoch in 0..2 {
        let (mut seen, mut sizes) = (Vec::new(), Vec::new());
        let mut passes = TablePasses { rows: &rows, options: &windowed, progress: &Quiet };
        let see = &mut |batches: &[examples::Batch]| {
            let numbers = Vec::<f32>::try_from(batches[0].features.select(1, 0)).expect("numbers");
            let labels = Vec::<i64>::try_from(&batches[0].labels).expect("labels");
            sizes.push(labels.len());
            seen.extend(numbers.into_iter().map(|row| row as usize).zip(labels));
        };
        sgd::Passes::epoch(&mut passes, epoch, see).expect("a pass");
        assert!(sizes[..sizes.len() - 1].iter().all(|&size| size == 100), "only the last batch is short");
        orders.push(seen.clone());
        seen.sort_unstable();
        let label = |row: usize| Some((row, i64::from(train.labels[row]?.0)));
        assert_eq!(seen, (0..train.len()).filter_map(label).collect::<Vec<_>>());
    }
    assert_ne!(orders[0], orders[1]);
}

#[test]
fn the_chunks_of_several_processes_are_those_of_one() {
    let train = long_table(6);
    let all = |ranks: usize| -> Vec<Vec<f32>> {
        let of_rank = |rank| {
            let rows = Examples::of(&train, None).expect("rows").shared(RankShare { rank, ranks });
            let chunks: Vec<_> = rows.chunks().map(|chunk| chunk.expect("a chunk").features).collect();
            chunks.into_iter().map(|chunk| Vec::try_from(chunk.flatten(0, -1)).expect("numbers"))
        };
        (0..ranks).flat_map(of_rank).collect()
    };
    assert_eq!(all(1).len(), 3);
    for ranks in [2, 3, 5] {
        assert_eq!(all(ranks), all(1));
    }
    // Only some of the table's rows.
    let among: Vec<usize> = (100..30_000).step_by(3).collect();
    let some = Examples::of(&train, Some(&among)).expect("rows");
    let expected = some.ids().flat_map(|id| train.feature(id.row())).copied();
    let read = some.chunks().flat_map(|chunk| {
        Vec::<f32>::try_from(chunk.expect("a chunk").features.flatten(0, -1)).expect("numbers")
    });
    assert!(read.eq(expected));
}
