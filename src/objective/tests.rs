use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::bank::MemoryBank;
use crate::rng::{Purpose, Stream};
use crate::run_config::{BankDtype, Sampling};
use crate::units::Temperature;

#[path = "../../tests/integration/support/oracle.rs"]
mod oracle;

use oracle::{Problem, Settings};

fn prepare(
    objective: &mut Objective,
    queries: Queries<'_>,
    parts: &[BankShard],
    negatives: Option<&Negatives>,
) {
    objective.prepare(queries, parts, negatives, &ProcessGroup::alone()).expect("one waits for nobody");
}

fn evaluate(
    objective: &Objective,
    queries: Queries<'_>,
    parts: &[BankShard],
    negatives: Option<&Negatives>,
) -> Evaluation {
    objective.evaluate(queries, parts, negatives, &ProcessGroup::alone()).expect("one waits for nobody")
}

/// Moves Z by an estimate as the trainer does.
fn follow(objective: &mut Objective, ln_estimate: f64, at: (u64, u64)) {
    if let Some(ln_z) = objective.follow(&Tensor::from(ln_estimate), at) {
        objective.note_ln_z(ln_z.double_value(&[]));
    }
}

const DIM: usize = 8;

fn options(kind: ObjectiveKind, negatives: usize, temperature: f64) -> TrainConfig {
    TrainConfig {
        objective: kind,
        negatives,
        temperature: Temperature::new(temperature).expect("a temperature"),
        partition: PartitionChoice::Fixed,
        ..TrainConfig::default()
    }
}

fn draw(
    seed: u64,
    count: usize,
    sampling: Sampling,
    queries: std::ops::Range<usize>,
    instances: usize,
) -> Negatives {
    let config =
        TrainConfig { seed, negatives: count, negative_sampling: sampling, ..TrainConfig::default() };
    Negatives::draw(&config, 1, queries, instances)
}

/// Small case: bank, features, positions, negatives.
struct Case {
    bank: MemoryBank,
    features: Tensor,
    positions: Vec<BankRow>,
    negatives: Negatives,
}

impl Case {
    fn random(seed: u64, instances: usize, batch: usize, count: usize, sampling: Sampling) -> Self {
        let mut positions: Vec<_> = (0..instances as u32).map(BankRow).collect();
        Stream::new(seed, Purpose::Test, 0, 0).shuffle(&mut positions);
        positions.truncate(batch);
        Self {
            bank: MemoryBank::random(instances, DIM, seed, Device::Cpu),
            features: MemoryBank::random(batch, DIM, seed + 1, Device::Cpu).rows().shallow_clone(),
            positions,
            negatives: draw(seed, count, sampling, 0..batch, instances),
        }
    }

    fn queries(&self) -> Queries<'_> {
        Queries::whole(&self.features, &self.positions)
    }

    fn objective(&self, options: &TrainConfig) -> Objective {
        let mut objective = Objective::new(options, None);
        prepare(&mut objective, self.queries(), &self.bank.parts(1), Some(&self.negatives));
        objective
    }

    fn evaluate(&self, objective: &Objective, parts: usize) -> (f64, Tensor) {
        let parts = self.bank.parts(parts);
        let evaluation = evaluate(objective, self.queries(), &parts, Some(&self.negatives));
        (evaluation.loss.double_value(&[]), evaluation.gradient)
    }

    fn problem(&self) -> Problem {
        let rows =
            |tensor: &Tensor| Vec::<Vec<f64>>::try_from(tensor.to_kind(Kind::Double)).expect("a matrix");
        let drawn = self.negatives.all();
        let drawn = drawn.expand([self.positions.len() as i64, drawn.size()[1]], false);
        Problem {
            bank: rows(self.bank.rows()),
            features: rows(&self.features),
            own: self.positions.iter().map(|position| position.row()).collect(),
            negatives: rows(&drawn).iter().map(|row| row.iter().map(|&x| x as usize).collect()).collect(),
        }
    }
}

fn settings(options: &TrainConfig) -> Settings {
    Settings {
        objective: match options.objective {
            ObjectiveKind::Nce => "nce",
            ObjectiveKind::Softmax => "softmax",
            ObjectiveKind::InfoNce => "infonce",
        },
        temperature: options.temperature.get(),
        eps: options.eps,
        exclude_positive: options.exclude_positive,
        proximal_weight: options.proximal_weight,
    }
}

fn close(actual: f64, expected: f64) -> bool {
    (actual - expected).abs() <= 1e-5 * expected.abs().max(1e-3)
}

/// Returns whether a gradient matches the oracle's, relative to its largest number. It is a sum of rows over τ with
/// weights of sum 0: if the positive has nearly all weight, it is small, but the f32 rounding of its terms is not.
fn same_gradient(actual: &Tensor, expected: &[Vec<f64>], options: &TrainConfig) -> bool {
    let expected = Tensor::from_slice2(expected);
    let rounded_off = f64::from(f32::EPSILON) / options.temperature.get();
    let allowed = (1e-5 * expected.abs().max().double_value(&[])).max(2.0 * rounded_off);
    (actual.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) <= allowed
}

#[test]
fn nce_is_one_plus_k_times_ln_two_when_model_equals_noise() {
    // With u = 0 everywhere: one row for all instances, and Z = exp(s/τ) n / K.
    let row: Vec<f32> = [1.0].into_iter().chain([0.0; DIM - 1]).collect();
    let mut case = Case::random(0, 100, 2, 4096, Sampling::PerSample);
    case.bank = MemoryBank::from_rows(&row.repeat(100), DIM, vec![None; 100], Device::Cpu);
    case.features = case.bank.rows().narrow(0, 0, 2);
    let ln_z = 1.0 / 0.07 - (4096.0_f64 / 100.0).ln();
    let nce = Objective::new(&options(ObjectiveKind::Nce, 4096, 0.07), Some(ln_z));
    let (loss, _) = case.evaluate(&nce, 1);
    assert!(close(loss, 4097.0 * 2.0_f64.ln()), "{loss}");
}

#[test]
fn a_partition_once_set_stays_unless_it_is_a_moving_average() {
    let case = Case::random(3, 40, 4, 6, Sampling::PerSample);
    let mut fixed = Objective::new(&options(ObjectiveKind::Nce, 6, 0.1), Some(1.25));
    prepare(&mut fixed, case.queries(), &case.bank.parts(1), Some(&case.negatives));
    follow(&mut fixed, 9.0, (1, 1));
    assert_eq!(fixed.ln_z(), Some(1.25));
    let moving = TrainConfig { partition: PartitionChoice::Ema, ..options(ObjectiveKind::Nce, 6, 0.1) };
    let mut moving = Objective::new(&moving, Some(1.25));
    follow(&mut moving, 9.0, (1, 1));
    assert!(moving.ln_z().expect("set") > 1.25);
}

#[test]
fn the_average_is_that_of_z_and_not_of_its_logarithm_and_huge_values_do_not_overflow() {
    let average = |ln_z, ln_estimate, partition_decay| {
        let partition = PartitionChoice::Ema;
        let options = options(ObjectiveKind::Nce, 6, 0.1);
        let mut objective =
            Objective::new(&TrainConfig { partition, partition_decay, ..options }, Some(ln_z));
        follow(&mut objective, ln_estimate, (0, 0));
        objective.ln_z().expect("set")
    };
    assert!((average(2.0_f64.ln(), 12.0_f64.ln(), 0.9).exp() - (0.9 * 2.0 + 0.1 * 12.0)).abs() < 1e-12);
    assert!((average(2000.0, 2001.0, 0.5) - 2_000.620_114_506_958_3).abs() < 1e-9);
}

#[test]
fn a_delayed_partition_is_the_mean_over_the_first_epoch_and_constant_afterwards() {
    let delayed = TrainConfig { partition: PartitionChoice::Delayed, ..options(ObjectiveKind::Nce, 6, 0.1) };
    let mut delayed = Objective::new(&delayed, Some(50.0));
    for (step, z) in [2.0_f64, 4.0, 9.0].into_iter().enumerate() {
        follow(&mut delayed, z.ln(), (step as u64, 0));
    }
    let z = |objective: &Objective| objective.ln_z().expect("set").exp();
    assert!(close(z(&delayed), 5.0));
    follow(&mut delayed, 9.0, (3, 1));
    assert!(close(z(&delayed), 5.0));
}

#[test]
fn a_given_partition_wins_over_the_state() {
    let given = TrainConfig { partition: PartitionChoice::Given(7.0), ..options(ObjectiveKind::Nce, 6, 0.1) };
    let ln_z = Objective::new(&given, Some(1.0)).ln_z();
    assert_eq!(ln_z, Some(7.0_f64.ln()));
}

#[test]
fn every_estimate_of_the_partition_is_that_of_the_oracle() {
    for (exclude_positive, parts) in [(false, 1), (true, 1), (false, 3), (true, 3)] {
        let case = Case::random(5, 9, 4, 8, Sampling::PerSample);
        let options = TrainConfig {
            exclude_positive,
            partition: PartitionChoice::Ema,
            ..options(ObjectiveKind::Nce, 8, 0.1)
        };
        let fixed = TrainConfig { partition: PartitionChoice::Fixed, ..options.clone() };
        let mut objective = Objective::new(&fixed, None);
        prepare(&mut objective, case.queries(), &case.bank.parts(parts), Some(&case.negatives));
        let expected = case.problem().partition(&settings(&fixed));
        assert!(close(objective.ln_z().expect("set").exp(), expected));

        let expected = case.problem().partition_by_draws(&settings(&options));
        let mut objective = Objective::new(&options, None);
        prepare(&mut objective, case.queries(), &case.bank.parts(parts), Some(&case.negatives));
        assert!(close(objective.ln_z().expect("set").exp(), expected));
        let evaluation = evaluate(&objective, case.queries(), &case.bank.parts(parts), Some(&case.negatives));
        assert!(close(evaluation.ln_partition.expect("asked for").double_value(&[]).exp(), expected));
    }
}

/// Aligned features, 313 rows for each negative: counting a positive n/(K+1) times would raise ln Z by more than 5.
#[test]
fn a_moving_z_is_that_of_all_rows_however_well_features_are_aligned() {
    const ROWS: usize = 5000;
    let bank = MemoryBank::random(ROWS, 64, 1, Device::Cpu);
    let noise = MemoryBank::random(64, 64, 2, Device::Cpu).rows().shallow_clone();
    let positions: Vec<_> = (0..64).map(|at| BankRow(at * 70)).collect();
    let features = bank.gather(&positions) * 0.9 + noise * 0.436;
    let features = &features / features.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
    let queries = Queries::whole(&features, &positions);
    let negatives = draw(3, 16, Sampling::PerSample, 0..64, ROWS);
    let options = TrainConfig {
        partition: PartitionChoice::Ema,
        exclude_positive: true,
        ..options(ObjectiveKind::Nce, 16, 0.07)
    };
    let mut objective = Objective::new(&options, None);
    prepare(&mut objective, queries, &bank.parts(1), Some(&negatives));
    let logits = features.matmul(&bank.rows().tr()).to_kind(Kind::Double) / 0.07;
    let exact = (logits.logsumexp([0_i64, 1].as_slice(), false) - 64.0_f64.ln()).double_value(&[]);
    let estimate = objective.ln_z().expect("set");
    assert!((estimate - exact).abs() < 0.3, "{estimate} {exact}");
}

#[test]
fn losses_and_gradients_stay_finite_for_extreme_logits() {
    let case = Case::random(5, 30, 3, 4, Sampling::PerSample);
    for kind in [ObjectiveKind::Nce, ObjectiveKind::Softmax, ObjectiveKind::InfoNce] {
        for ln_z in [-200.0, 200.0] {
            let objective = Objective::new(&options(kind, 4, 0.001), Some(ln_z));
            let (loss, gradient) = case.evaluate(&objective, 2);
            assert!(loss.is_finite() && gradient.isfinite().all().int64_value(&[]) == 1, "{kind:?}");
        }
    }
}

#[test]
fn a_nearly_certain_positive_keeps_its_digits() {
    // In f32 p = 1 - 4e-9 is 1, so a difference of probabilities would be 0.
    let rows: Vec<f32> = [[1.0, 0.0], [0.0, 1.0]].concat();
    let bank = MemoryBank::from_rows(&rows, 2, vec![None; 2], Device::Cpu);
    let features = bank.rows().narrow(0, 0, 1);
    let temperature = 1.0 / 19.0;
    let objective = Objective::new(&options(ObjectiveKind::Softmax, 0, temperature), None);
    let queries = Queries::whole(&features, &[BankRow(0)]);
    let evaluation = evaluate(&objective, queries, &bank.parts(1), None);
    let expected = (-19.0_f64).exp();
    assert!((evaluation.loss.double_value(&[]) / expected - 1.0).abs() < 1e-5);
    let slope = evaluation.gradient.double_value(&[0, 1]);
    assert!((slope / (19.0 * expected) - 1.0).abs() < 1e-5, "{slope}");
}

#[test]
fn a_more_similar_positive_lowers_every_loss() {
    for kind in [ObjectiveKind::Nce, ObjectiveKind::Softmax, ObjectiveKind::InfoNce] {
        let mut case = Case::random(6, 50, 1, 8, Sampling::PerSample);
        let objective = case.objective(&options(kind, 8, 0.1));
        let (before, _) = case.evaluate(&objective, 1);
        case.features = case.bank.gather(&case.positions);
        assert!(case.evaluate(&objective, 1).0 < before);
    }
}

#[test]
fn exact_softmax_of_a_uniform_bank_is_ln_n() {
    let row: Vec<f32> = [1.0].into_iter().chain([0.0; DIM - 1]).collect();
    let mut case = Case::random(0, 64, 1, 1, Sampling::PerSample);
    case.bank = MemoryBank::from_rows(&row.repeat(64), DIM, vec![None; 64], Device::Cpu);
    case.features = case.bank.rows().narrow(0, 0, 1);
    let (loss, gradient) = case.evaluate(&case.objective(&options(ObjectiveKind::Softmax, 1, 0.07)), 1);
    assert!(close(loss, 64.0_f64.ln()));
    assert!(gradient.abs().max().double_value(&[]) < 1e-4);
}

#[test]
fn a_bank_of_one_row_has_no_loss() {
    let case = Case::random(0, 1, 1, 1, Sampling::PerSample);
    let (loss, gradient) = case.evaluate(&case.objective(&options(ObjectiveKind::Softmax, 1, 0.07)), 1);
    assert_eq!((loss, gradient.abs().max().double_value(&[])), (0.0, 0.0));
}

#[test]
fn parts_of_a_batch_add_up_to_the_batch() {
    for kind in [ObjectiveKind::Nce, ObjectiveKind::Softmax, ObjectiveKind::InfoNce] {
        let case = Case::random(8, 40, 6, 16, Sampling::PerSample);
        let objective = case.objective(&options(kind, 16, 0.1));
        let (loss, gradient) = case.evaluate(&objective, 1);
        let mut sum = 0.0;
        let mut rows = Vec::new();
        for queries in [0..2, 2..6] {
            let features = case.features.narrow(0, queries.start, queries.end - queries.start);
            let positions = &case.positions[queries.start as usize..queries.end as usize];
            let range = queries.start as usize..queries.end as usize;
            let negatives = draw(8, 16, Sampling::PerSample, range, 40);
            let queries = Queries { features: &features, positions, batch: 6, rows: None };
            let evaluation = evaluate(&objective, queries, &case.bank.parts(1), Some(&negatives));
            sum += evaluation.loss.double_value(&[]);
            rows.push(evaluation.gradient);
        }
        assert!(close(sum, loss), "{sum} {loss}");
        assert!((Tensor::cat(&rows, 0) - gradient).abs().max().double_value(&[]) < 1e-6);
    }
}

#[test]
fn many_tiles_give_what_one_gives() {
    // 120,000 rows: several tiles of the dense path at a batch of 64.
    let bank = MemoryBank::random(120_000, DIM, 1, Device::Cpu);
    let features = MemoryBank::random(64, DIM, 2, Device::Cpu);
    let positions: Vec<_> = (0..64).map(|k| BankRow(k * 1873)).collect();
    let queries = Queries::whole(features.rows(), &positions);
    let objective = Objective::new(&options(ObjectiveKind::Softmax, 0, 0.07), None);
    let actual = evaluate(&objective, queries, &bank.parts(1), None);
    let features = features.rows().to_kind(Kind::Double).set_requires_grad(true);
    let logits = features.matmul(&bank.rows().to_kind(Kind::Double).tr()) / 0.07;
    let target: Vec<i64> = positions.iter().map(|position| position.to_index()).collect();
    let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(&target));
    loss.backward();
    assert!(close(actual.loss.double_value(&[]), loss.double_value(&[])));
    let largest = features.grad().abs().max().double_value(&[]);
    let difference = (features.grad() - actual.gradient).abs().max().double_value(&[]);
    assert!(difference <= 1e-5 * largest, "{difference} {largest}");
}

#[test]
fn a_bank_of_16_bits_is_evaluated_as_its_own_values_are() {
    for dtype in [BankDtype::Bf16, BankDtype::F16] {
        let mut case = Case::random(4, 30, 3, 8, Sampling::PerSample);
        case.bank = case.bank.with_dtype(dtype);
        for kind in [ObjectiveKind::Nce, ObjectiveKind::Softmax, ObjectiveKind::InfoNce] {
            let options = options(kind, 8, 0.1);
            let objective = case.objective(&options);
            let z = objective.ln_z().unwrap_or_default().exp();
            let expected = case.problem().solve(&settings(&options), z);
            let (loss, gradient) = case.evaluate(&objective, 1);
            assert!(close(loss, expected.loss) && same_gradient(&gradient, &expected.gradient, &options));
        }
    }
}

prop_compose! {
    fn any_options()(
        kind in prop::sample::select(vec![ObjectiveKind::Nce, ObjectiveKind::Softmax, ObjectiveKind::InfoNce]),
        temperature in 0.05_f64..1.0,
        negatives in 1_usize..20,
        shared in any::<bool>(),
        exclude_positive in any::<bool>(),
        eps in prop::sample::select(vec![0.0, 1e-7, 1e-2]),
        proximal_weight in prop::sample::select(vec![0.0, 0.5, 30.0]),
    ) -> TrainConfig {
        TrainConfig {
            negative_sampling: if shared { Sampling::Shared } else { Sampling::PerSample },
            exclude_positive, eps, proximal_weight,
            ..options(kind, negatives, temperature)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_objective_equals_the_oracle_for_any_division_of_the_bank(
        options in any_options(), seed in 0_u64..1000, batch in 1_usize..6, parts in 1_usize..6,
    ) {
        let case = Case::random(seed, 13, batch, options.negatives, options.negative_sampling);
        let objective = case.objective(&options);
        let z = objective.ln_z().unwrap_or_default().exp();
        let expected = case.problem().solve(&settings(&options), z);
        let (loss, gradient) = case.evaluate(&objective, parts);
        prop_assert!(close(loss, expected.loss), "{loss} {}", expected.loss);
        prop_assert!(same_gradient(&gradient, &expected.gradient, &options));
    }
}
