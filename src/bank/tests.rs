use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::{Blocks, MemoryBank, UpdateStats};
use crate::ids::BankRow;
use crate::run_config::{BankDtype, BankInit, TrainConfig};
use crate::units::BankMomentum;

fn momentum(value: f64) -> BankMomentum {
    BankMomentum::new(value).expect("a momentum")
}

fn update(
    bank: &mut MemoryBank,
    positions: &[BankRow],
    features: &Tensor,
    momentum: BankMomentum,
    step: u64,
) -> UpdateStats {
    bank.update_rows(&bank.shard().rows_of(positions), features, momentum, step)
}

fn bank(rows: &[[f32; 2]]) -> MemoryBank {
    MemoryBank::from_rows(rows.as_flattened(), 2, vec![None; rows.len()], Device::Cpu)
}

fn feature(values: [f32; 2]) -> Tensor {
    Tensor::from_slice(&values).view([1, 2])
}

#[test]
fn an_orthogonal_feature_turns_the_row_by_half_a_right_angle_which_is_told() {
    let mut bank = bank(&[[1.0, 0.0]]);
    let moved = update(&mut bank, &[BankRow(0)], &feature([0.0, 1.0]), momentum(0.5), 3);
    let half = std::f32::consts::FRAC_1_SQRT_2;
    assert!(bank.to_vec().iter().all(|value| (value - half).abs() < 1e-6));
    assert_eq!(bank.updated_step(), [Some(3)]);
    assert!((moved.row_cosine.double_value(&[]) - f64::from(half)).abs() < 1e-6);
    assert!((moved.distance.double_value(&[]) - 2.0).abs() < 1e-6);
}

#[test]
fn momentum_weighs_the_old_row() {
    let mut bank = bank(&[[1.0, 0.0]]);
    let _ = update(&mut bank, &[BankRow(0)], &feature([0.0, 1.0]), momentum(0.9), 0);
    let row = bank.to_vec();
    assert!((row[0] / row[1] - 9.0).abs() < 1e-4, "{row:?}");
}

#[test]
fn an_antipodal_feature_replaces_the_row() {
    let mut bank = bank(&[[1.0, 0.0]]);
    let _ = update(&mut bank, &[BankRow(0)], &feature([-1.0, 0.0]), momentum(0.5), 0);
    assert_eq!(bank.to_vec(), [-1.0, 0.0]);
}

#[test]
fn other_rows_are_untouched() {
    let mut bank = MemoryBank::random(50, 8, 1, Device::Cpu);
    let before = bank.to_vec();
    let features = MemoryBank::random(2, 8, 2, Device::Cpu);
    let _ = update(&mut bank, &[BankRow(7), BankRow(3)], features.rows(), momentum(0.5), 0);
    let after = bank.to_vec();
    for row in 0..50 {
        let same = before[row * 8..][..8] == after[row * 8..][..8];
        assert_eq!(same, row != 7 && row != 3, "row {row}");
    }
}

#[test]
fn each_feature_reaches_the_row_of_its_own_id() {
    let mut bank = bank(&[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]);
    let features = Tensor::from_slice(&[0.0_f32, 1.0, -0.6, 0.8]).view([2, 2]);
    let _ = update(&mut bank, &[BankRow(2), BankRow(0)], &features, momentum(0.0), 0);
    assert_eq!(bank.to_vec(), [-0.6, 0.8, 1.0, 0.0, 0.0, 1.0]);
}

#[test]
#[should_panic(expected = "twice")]
fn duplicate_ids_are_refused() {
    let mut bank = MemoryBank::random(5, 4, 0, Device::Cpu);
    let features = MemoryBank::random(2, 4, 1, Device::Cpu);
    let _ = update(&mut bank, &[BankRow(1), BankRow(1)], features.rows(), momentum(0.5), 0);
}

#[test]
fn gathered_rows_carry_no_gradient() {
    let bank = MemoryBank::random(5, 4, 0, Device::Cpu);
    assert!(!bank.gather(&[BankRow(1)]).requires_grad());
}

#[test]
fn random_rows_are_a_function_of_seed_and_distribution_and_of_unit_length() {
    let start = |seed, bank_init| {
        let config = TrainConfig { dim: 16, seed, bank_init, ..TrainConfig::default() };
        MemoryBank::initial(&config, 1000, 0..1000, Device::Cpu)
    };
    let [first, same, other] = [1, 1, 2].map(|seed| start(seed, BankInit::Uniform));
    let normal = start(1, BankInit::Normal);
    assert_eq!(first.to_vec(), same.to_vec());
    assert!(first.to_vec() != other.to_vec() && first.to_vec() != normal.to_vec());
    for bank in [first, normal] {
        let lengths = bank.rows().norm_scalaropt_dim(2, [1_i64].as_slice(), false);
        assert!((lengths - 1.0).abs().max().double_value(&[]) < 1e-6);
    }
}

#[test]
fn blocks_cover_every_row_once() {
    for (rows, count) in [(1, 256), (5, 2), (1000, 256), (1_281_167, 256)] {
        let blocks = Blocks::new(rows, count);
        let mut next = 0;
        for block in 0..blocks.count() {
            let range = blocks.range(block);
            assert!(range.start == next && range.end > next);
            next = range.end;
        }
        assert_eq!(next, rows as u64);
    }
}

#[test]
fn negatives_spread_over_as_many_blocks_as_divide_them_and_are_not_short() {
    assert_eq!(Blocks::for_negatives(1_281_167, 4096).count(), 256);
    assert_eq!(Blocks::for_negatives(1_281_167, 10).count(), 2);
    assert_eq!(Blocks::for_negatives(10_000, 4096).count(), 8);
    assert_eq!(Blocks::for_negatives(100, 4096).count(), 1);
    assert_eq!(Blocks::for_negatives(1, 7).count(), 1);
}

proptest! {
    #[test]
    fn an_updated_row_is_unit_length_and_nearer_to_the_feature(seed in 0_u64..1000, m in 0.0_f64..0.99) {
        let mut bank = MemoryBank::random(3, 8, seed, Device::Cpu);
        let target = MemoryBank::random(1, 8, seed + 5000, Device::Cpu);
        let cosine = |bank: &MemoryBank| {
            (bank.gather(&[BankRow(1)]) * target.rows()).sum(Kind::Double).double_value(&[])
        };
        let before = cosine(&bank);
        let _ = update(&mut bank, &[BankRow(1)], target.rows(), momentum(m), 0);
        let length = bank.gather(&[BankRow(1)]).norm().double_value(&[]);
        prop_assert!((length - 1.0).abs() < 1e-5);
        prop_assert!(cosine(&bank) >= before - 1e-5);
    }
}

#[test]
fn parts_cover_the_bank_and_each_knows_its_positions() {
    let bank = MemoryBank::random(11, 4, 1, Device::Cpu);
    let parts = bank.parts(3);
    let rows: Vec<_> = parts.iter().map(|part| part.rows().shallow_clone()).collect();
    assert!(Tensor::cat(&rows, 0).equal(bank.rows()));
    let positions = [BankRow(10), BankRow(0), BankRow(5)];
    let owned: Vec<Vec<_>> = parts.iter().map(|part| part.owned(&positions).collect()).collect();
    assert_eq!(owned, [vec![(1, 0)], vec![(2, 2)], vec![(0, 3)]]);
}

#[test]
fn a_bank_of_16_bits_keeps_its_rows_near_unit_length_and_moves_them_alike() {
    for (dtype, tolerance) in [(BankDtype::Bf16, 2.0_f64.powi(-8)), (BankDtype::F16, 2.0_f64.powi(-11))] {
        let mut exact = MemoryBank::random(20, 8, 1, Device::Cpu);
        let mut coarse = MemoryBank::random(20, 8, 1, Device::Cpu).with_dtype(dtype);
        let features = MemoryBank::random(2, 8, 2, Device::Cpu);
        for bank in [&mut exact, &mut coarse] {
            let _ = update(bank, &[BankRow(7), BankRow(3)], features.rows(), momentum(0.5), 0);
        }
        let difference = (coarse.rows().to_kind(Kind::Float) - exact.rows()).abs().max().double_value(&[]);
        assert!(difference > 0.0 && difference < 2.0 * tolerance, "{difference}");
    }
}

#[test]
fn blocks_that_overlap_rows_are_found() {
    let blocks = Blocks::new(10, 4);
    // Blocks are 0..2, 2..5, 5..7, 7..10.
    assert_eq!(blocks.overlapping(0..10), 0..4);
    assert_eq!(blocks.overlapping(4..6), 1..3);
    assert_eq!(blocks.overlapping(5..7), 2..3);
}

/// Owners of any ranges of rows have the rows, features and updates of a single owner.
#[test]
fn what_several_owners_have_together_is_the_whole_bank() {
    let config = TrainConfig { dim: 8, seed: 7, bank_init: BankInit::Normal, ..TrainConfig::default() };
    let mut whole = MemoryBank::initial(&config, 301, 0..301, Device::Cpu);
    let edges = [0, 1, 100, 250, 301];
    let mut parts: Vec<MemoryBank> = edges
        .windows(2)
        .map(|edges| MemoryBank::initial(&config, 301, edges[0]..edges[1], Device::Cpu))
        .collect();
    let together = |parts: &[MemoryBank]| parts.iter().flat_map(MemoryBank::to_vec).collect::<Vec<_>>();
    assert_eq!(together(&parts), whole.to_vec());

    let positions = [300, 0, 99, 100, 5, 249].map(BankRow);
    let features = MemoryBank::random(6, 8, 2, Device::Cpu);
    let moved = update(&mut whole, &positions, features.rows(), momentum(0.5), 4);
    let of_parts: Vec<_> =
        parts.iter_mut().map(|part| update(part, &positions, features.rows(), momentum(0.5), 4)).collect();
    assert_eq!(together(&parts), whole.to_vec());
    let steps: Vec<_> = parts.iter().flat_map(|part| part.updated_step().to_vec()).collect();
    assert_eq!(steps, whole.updated_step());
    let sum: f64 = of_parts.iter().map(|moved| moved.row_cosine.double_value(&[])).sum();
    assert!((sum - moved.row_cosine.double_value(&[])).abs() < 1e-6);

    let rows = parts.iter().map(|part| part.gather(&positions)).reduce(|sum, rows| sum + rows);
    assert_eq!(rows.expect("parts"), whole.gather(&positions));
    assert_eq!(parts[2].shard().range(), 100..250);
    assert_eq!(parts[2].shard().instances(), 301);
}
