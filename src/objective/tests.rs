use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::{Nce, NceOptions, Negatives, Partition, Queries, Softmax};
use crate::bank::MemoryBank;
use crate::ids::Position;
use crate::rng::{Purpose, Stream};
use crate::units::Temperature;

const DIM: usize = 8;

fn temperature(value: f64) -> Temperature {
    Temperature::new(value).expect("a temperature")
}

fn options(negatives: usize, tau: f64, eps: f64) -> NceOptions {
    NceOptions { negatives, temperature: temperature(tau), eps }
}

/// A small case: bank, features, ids, negatives.
struct Case {
    bank: MemoryBank,
    features: Tensor,
    ids: Vec<Position>,
    negatives: Negatives,
}

impl Case {
    fn random(seed: u64, instances: usize, batch: usize, negatives: usize) -> Self {
        let mut ids: Vec<_> = (0..instances as u32).map(Position).collect();
        Stream::new(seed, Purpose::Report, 0, 0).shuffle(&mut ids);
        ids.truncate(batch);
        Self {
            bank: MemoryBank::random(instances, DIM, seed, Device::Cpu),
            features: MemoryBank::random(batch, DIM, seed + 1, Device::Cpu).rows().shallow_clone(),
            ids,
            negatives: Negatives::draw(seed, 1, batch, negatives, instances, Device::Cpu),
        }
    }

    fn queries(&self) -> Queries<'_> {
        Queries { features: &self.features, positions: &self.ids }
    }

    fn feature(&self, query: usize) -> Vec<f64> {
        (0..DIM as i64).map(|k| self.features.double_value(&[query as i64, k])).collect()
    }

    fn row(&self, row: usize) -> Vec<f64> {
        self.bank.to_vec()[row * DIM..][..DIM].iter().map(|&x| f64::from(x)).collect()
    }

    /// exp(s/τ) of the query's own row and of each negative.
    fn exponentials(&self, query: usize, tau: f64) -> Vec<f64> {
        let feature = self.feature(query);
        let count = self.negatives.rows().size()[1];
        let own = self.ids[query].row();
        let drawn = (0..count).map(|j| self.negatives.rows().int64_value(&[query as i64, j]) as usize);
        std::iter::once(own).chain(drawn).map(|row| (dot(&feature, &self.row(row)) / tau).exp()).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn nce(options: NceOptions, case: &Case) -> Nce {
    let mut nce = Nce::new(options, Partition::Unset);
    nce.estimate_partition(case.queries(), &case.bank, &case.negatives);
    nce
}

/// The reference's formulas, word for word, in f64 (lib/NCECriterion.py).
fn reference_loss(case: &Case, tau: f64, z: f64, eps: f64) -> f64 {
    let batch = case.ids.len();
    let total: f64 = (0..batch)
        .map(|query| {
            let p: Vec<f64> = case.exponentials(query, tau).iter().map(|o| o / z).collect();
            let c = (p.len() - 1) as f64 / case.bank.len() as f64;
            (p[0] / (p[0] + c + eps)).ln() + p[1..].iter().map(|p| (c / (p + c + eps)).ln()).sum::<f64>()
        })
        .sum();
    -total / batch as f64
}

fn close(actual: f64, expected: f64, relative: f64) -> bool {
    (actual - expected).abs() <= relative * expected.abs().max(1e-3)
}

#[test]
fn loss_is_one_plus_k_times_ln_two_when_model_equals_noise() {
    // u = 0 everywhere: one row for all instances, and Z = exp(s/τ) n / K.
    let row: Vec<f32> = [1.0].into_iter().chain([0.0; DIM - 1]).collect();
    let bank = MemoryBank::from_rows(&row.repeat(100), DIM, vec![None; 100], Device::Cpu);
    let features = bank.rows().narrow(0, 0, 2);
    let ids = [Position(0), Position(1)];
    let negatives = Negatives::draw(0, 0, 2, 4096, 100, Device::Cpu);
    let ln_z = 1.0 / 0.07 - (4096.0_f64 / 100.0).ln();
    let nce = Nce::new(options(4096, 0.07, 0.0), Partition::Fixed { ln_z });
    let loss = nce.evaluate(Queries { features: &features, positions: &ids }, &bank, &negatives).loss;
    assert!(close(loss, 4097.0 * 2.0_f64.ln(), 1e-6), "{loss}");
}

#[test]
fn the_partition_is_n_times_the_mean_over_positives_and_negatives() {
    let case = Case::random(3, 40, 4, 6);
    let all: Vec<f64> = (0..4).flat_map(|query| case.exponentials(query, 0.1)).collect();
    let expected = 40.0 * all.iter().sum::<f64>() / all.len() as f64;
    let ln_z = nce(options(6, 0.1, 0.0), &case).partition().ln_z().expect("estimated");
    assert!(close(ln_z.exp(), expected, 1e-6), "{} {expected}", ln_z.exp());
}

#[test]
fn a_partition_once_set_stays() {
    let case = Case::random(3, 40, 4, 6);
    let mut nce = Nce::new(options(6, 0.1, 0.0), Partition::Fixed { ln_z: 1.25 });
    nce.estimate_partition(case.queries(), &case.bank, &case.negatives);
    assert_eq!(nce.partition().ln_z(), Some(1.25));
}

#[test]
fn loss_stays_finite_for_extreme_logits() {
    let case = Case::random(5, 30, 3, 4);
    for ln_z in [-200.0, 200.0] {
        let nce = Nce::new(options(4, 0.01, 0.0), Partition::Fixed { ln_z });
        let evaluation = nce.evaluate(case.queries(), &case.bank, &case.negatives);
        assert!(evaluation.loss.is_finite());
        assert!(evaluation.gradient.isfinite().all().int64_value(&[]) == 1);
    }
}

#[test]
fn a_more_similar_positive_lowers_the_loss() {
    let mut case = Case::random(6, 50, 1, 8);
    let nce = nce(options(8, 0.1, 0.0), &case);
    let before = nce.evaluate(case.queries(), &case.bank, &case.negatives).loss;
    case.features = case.bank.gather(&case.ids);
    assert!(nce.evaluate(case.queries(), &case.bank, &case.negatives).loss < before);
}

#[test]
fn negatives_are_uniform_over_the_rows_and_a_function_of_seed_and_step() {
    let draw = |seed, step| Negatives::draw(seed, step, 64, 4096, 1000, Device::Cpu);
    let counts = draw(1, 1).rows().flatten(0, -1).bincount(None::<Tensor>, 1000).to_kind(Kind::Double);
    // 262 draws for each row, standard deviation 16; blocks of 3 or 4 rows differ by design.
    assert!(counts.min().double_value(&[]) > 150.0 && counts.max().double_value(&[]) < 450.0);
    assert!(draw(1, 1).rows().equal(draw(1, 1).rows()));
    assert!(!draw(1, 1).rows().equal(draw(1, 2).rows()));
    assert!(!draw(1, 1).rows().equal(draw(2, 1).rows()));
}

#[test]
fn every_query_has_its_own_negatives() {
    let negatives = Negatives::draw(1, 1, 2, 64, 100_000, Device::Cpu);
    assert!(!negatives.rows().get(0).equal(&negatives.rows().get(1)));
}

#[test]
fn exact_softmax_of_a_uniform_bank_is_ln_n() {
    let row: Vec<f32> = [1.0].into_iter().chain([0.0; DIM - 1]).collect();
    let bank = MemoryBank::from_rows(&row.repeat(64), DIM, vec![None; 64], Device::Cpu);
    let features = bank.rows().narrow(0, 0, 1);
    let evaluation = Softmax::new(temperature(0.07))
        .evaluate(Queries { features: &features, positions: &[Position(0)] }, &bank);
    assert!(close(evaluation.loss, 64.0_f64.ln(), 1e-6));
    assert!(evaluation.gradient.abs().max().double_value(&[]) < 1e-4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nce_equals_the_reference_formulas_in_f64(
        seed in 0_u64..1000, batch in 1_usize..6, k in 1_usize..20, eps in prop::sample::select(vec![0.0, 1e-7, 1e-2]),
    ) {
        let case = Case::random(seed, 30, batch, k);
        let nce = nce(options(k, 0.2, eps), &case);
        let z = nce.partition().ln_z().expect("estimated").exp();
        let actual = nce.evaluate(case.queries(), &case.bank, &case.negatives).loss;
        let expected = reference_loss(&case, 0.2, z, eps);
        prop_assert!(close(actual, expected, 1e-5), "{actual} {expected}");
    }

    /// The closed form against automatic differentiation of the same formulas.
    #[test]
    fn nce_gradient_equals_autograd(seed in 0_u64..1000, batch in 1_usize..6, k in 1_usize..20) {
        let case = Case::random(seed, 30, batch, k);
        let nce = nce(options(k, 0.2, 0.0), &case);
        let evaluation = nce.evaluate(case.queries(), &case.bank, &case.negatives);
        let ln_z = nce.partition().ln_z().expect("estimated");
        let features = case.features.to_kind(Kind::Double).set_requires_grad(true);
        let own = case.bank.gather(&case.ids).unsqueeze(1);
        let drawn = case.bank.rows().index_select(0, &case.negatives.rows().reshape([-1]));
        let rows = Tensor::cat(&[own, drawn.view([batch as i64, k as i64, DIM as i64])], 1).to_kind(Kind::Double);
        let u = rows.bmm(&features.unsqueeze(2)).squeeze_dim(2) / 0.2 - (ln_z + (k as f64 / 30.0).ln());
        let loss = (-u.narrow(1, 0, 1)).softplus().sum(Kind::Double)
            + u.narrow(1, 1, k as i64).softplus().sum(Kind::Double);
        (loss / batch as f64).backward();
        let difference = (features.grad() - evaluation.gradient).abs().max().double_value(&[]);
        prop_assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn softmax_equals_cross_entropy_and_its_autograd(seed in 0_u64..1000, batch in 1_usize..6) {
        let case = Case::random(seed, 30, batch, 1);
        let evaluation = Softmax::new(temperature(0.1)).evaluate(case.queries(), &case.bank);
        let features = case.features.to_kind(Kind::Double).set_requires_grad(true);
        let logits = features.matmul(&case.bank.rows().to_kind(Kind::Double).tr()) / 0.1;
        let target: Vec<i64> = case.ids.iter().map(|id| id.to_index()).collect();
        let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(&target));
        loss.backward();
        prop_assert!(close(evaluation.loss, loss.double_value(&[]), 1e-5));
        let difference = (features.grad() - evaluation.gradient).abs().max().double_value(&[]);
        prop_assert!(difference < 1e-5, "{difference}");
    }
}
