use proptest::prelude::*;
use strum::VariantArray;

use super::bound::{GROUP, Group, LARGEST_GROUP, code_limit};
use super::filter::{Candidate, Filter};
use super::similarity::{inner_product, rough_similarity, similarity};
use super::*;
use crate::feature_table::tests::meta;
use crate::feature_table::{Kind, TableMeta};
use crate::ids::InstanceId;
use crate::rng::{Purpose, Stream};

fn table(features: Vec<f32>, dim: usize) -> FeatureTable {
    let rows = features.len() / dim;
    FeatureTable {
        meta: TableMeta {
            split: "val".into(),
            unit_length: false,
            classes: vec!["one".into()],
            ..meta(Kind::Embedding, dim)
        },
        // Descending, so that ids differ from rows.
        ids: (0..rows as u32).rev().map(InstanceId).collect(),
        labels: vec![None; rows],
        updated_step: vec![None; rows],
        features,
    }
}

/// Vectors that are hard for a bound or for the order of results.
#[derive(Clone, Copy, Debug, VariantArray)]
enum Shape {
    Unit,
    /// Narrow cone, like the features of an untrained encoder.
    Crowded,
    /// All within a few units in the last place of each other.
    Close,
    /// Small whole numbers, with many equal similarities.
    Whole,
    /// Few distinct vectors, repeated many times; some are zero.
    Repeated,
    /// Lengths from 1e-6 to 1e6 in one table.
    Lengths,
    /// One component a thousand times larger than the others.
    Spiky,
    /// Too large for f32 to square.
    Huge,
    /// Too small for f32 to square, some subnormal.
    Tiny,
}

fn vectors(shape: Shape, seed: u64, rows: usize, dim: usize) -> Vec<f32> {
    // Bank and queries of one shape share the first stream: the crowd's direction, the repeated vectors.
    let mut common = Stream::new(7, Purpose::Test, 0, 0);
    let mut own = Stream::new(seed, Purpose::Test, 1, 0);
    let few: Vec<Vec<f64>> = (0..3).map(|_| (0..dim).map(|_| common.normal()).collect()).collect();
    let mut features = Vec::with_capacity(rows * dim);
    for _ in 0..rows {
        let drawn: Vec<f64> = (0..dim).map(|_| own.normal()).collect();
        let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = 10_f64.powf(own.range(-6.0, 6.0));
        let which = own.below(4) as usize;
        let spike = own.below(dim as u64) as usize;
        features.extend(drawn.iter().enumerate().map(|(i, x)| {
            let unit = x / length;
            (match shape {
                Shape::Unit => unit,
                Shape::Crowded => few[0][i] + 0.02 * unit,
                Shape::Close => few[0][i] + 1e-7 * unit,
                Shape::Whole => (1.5 * x).round(),
                Shape::Repeated => few.get(which).map_or(0.0, |vector| vector[i]),
                Shape::Lengths => unit * scale,
                Shape::Spiky => {
                    if i == spike {
                        1000.0 * x
                    } else {
                        *x
                    }
                }
                Shape::Huge => x * 1e25,
                Shape::Tiny => x * 1e-41,
            }) as f32
        }));
    }
    features
}

/// Computes every similarity by its definition, and sorts all.
fn slow(bank: &FeatureTable, query: &[f32], without: Option<InstanceId>, k: usize) -> Vec<(usize, u32)> {
    let mut all: Vec<(f32, InstanceId, usize)> = (0..bank.len())
        .filter(|&row| Some(bank.ids[row]) != without)
        .map(|row| (similarity(SimdLevel::Portable, query, bank.feature(row)), bank.ids[row], row))
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    all.iter().take(k).map(|(similarity, _, row)| (*row, similarity.to_bits())).collect()
}

fn found(neighbours: &Neighbours, query: usize) -> Vec<(usize, u32)> {
    neighbours.of(query).map(|(row, similarity)| (row, similarity.to_bits())).collect()
}

/// Encodes a tile of rows and a group of queries, with codes of at most `limit`.
fn encoded(level: SimdLevel, bank: &[f32], asked: &[f32], dim: usize, limit: f64) -> (Tile, Group) {
    let mut tile = Tile::default();
    tile.encode(level, bank, dim);
    (tile, Group::new(level, asked.chunks_exact(dim), dim, limit))
}

/// Returns the thresholds of queries; `least` gives the similarity that a row must reach.
fn thresholds(
    level: SimdLevel,
    (tile, group): &(Tile, Group),
    asked: std::slice::ChunksExact<'_, f32>,
    least: impl Fn(&[f32]) -> f32,
) -> [i32; LARGEST_GROUP] {
    let mut thresholds = [i32::MAX; LARGEST_GROUP];
    for ((at, query), threshold) in asked.enumerate().zip(&mut thresholds) {
        *threshold = group.threshold(level, at, query, tile, least(query));
    }
    thresholds
}

fn candidates(
    level: SimdLevel,
    (tile, group): &(Tile, Group),
    thresholds: &[i32; LARGEST_GROUP],
) -> Vec<Candidate> {
    let mut passed = Vec::new();
    Filter { tile, group, thresholds, found: &mut passed }.run(level);
    passed.into_iter().flat_map(|passed| passed.candidates(tile)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_search_is_a_full_sort_bit_for_bit_at_every_level(
        shape in prop::sample::select(Shape::VARIANTS),
        seed in 0_u64..1_000_000,
        (rows, queries, dim) in (1_usize..900, 1_usize..30, 1_usize..70),
        share in 0.0_f64..1.0,
        leave_one_out: bool,
    ) {
        let bank = table(vectors(shape, seed, rows, dim), dim);
        let asked = table(vectors(shape, seed + 1, queries, dim), dim);
        let available = rows - usize::from(leave_one_out);
        prop_assume!(available > 0);
        // Small numbers of neighbours are more frequent than large ones.
        let k = ((available as f64 * share.powi(3)) as usize).max(1);
        for level in SimdLevel::available() {
            let neighbours = search_at(level, (&bank, 0..rows), &asked, k, leave_one_out).expect("found");
            for query in 0..queries {
                let own = leave_one_out.then_some(asked.ids[query]);
                let expected = slow(&bank, asked.feature(query), own, k);
                prop_assert_eq!(found(&neighbours, query), expected, "{:?} query {}", level, query);
            }
        }
    }

    /// Tests the bound's proof: a pair that reaches the requested similarity always passes.
    #[test]
    fn a_row_that_reaches_the_similarity_is_always_a_candidate(
        shapes in (prop::sample::select(Shape::VARIANTS), prop::sample::select(Shape::VARIANTS)),
        seed in 0_u64..1_000_000,
        (rows, dim) in (1_usize..100, 1_usize..200),
    ) {
        let bank = vectors(shapes.0, seed, rows, dim);
        for level in SimdLevel::available() {
            let size = group_size(level);
            let asked = vectors(shapes.1, seed + 1, size - 1, dim);
            let pair = encoded(level, &bank, &asked, dim, code_limit(level));
            for (row, x) in bank.chunks_exact(dim).enumerate() {
                let least = |query: &[f32]| similarity(level, query, x);
                let found =
                    candidates(level, &pair, &thresholds(level, &pair, asked.chunks_exact(dim), least));
                let own = found.iter().filter(|candidate| candidate.row == row as u32).count();
                prop_assert_eq!(own, size - 1, "{:?} row {}", level, row);
            }
        }
    }

    #[test]
    fn a_rough_similarity_is_as_near_as_it_says(
        shapes in (prop::sample::select(Shape::VARIANTS), prop::sample::select(Shape::VARIANTS)),
        seed in 0_u64..1_000_000,
        (rows, dim) in (1_usize..20, 1_usize..300),
    ) {
        let (bank, query) = (vectors(shapes.0, seed, rows, dim), vectors(shapes.1, seed + 1, 1, dim));
        for level in SimdLevel::available() {
            let (tile, group) = encoded(level, &bank, &query, dim, code_limit(level));
            let slack = group.rough_slack(0, &tile, dim);
            for row in bank.chunks_exact(dim) {
                let (rough, exact) = (rough_similarity(level, &query, row), inner_product(level, &query, row));
                let is_near = slack.is_infinite() || (f64::from(rough) - exact).abs() <= f64::from(slack);
                prop_assert!(is_near, "{:?}: {} for {}, at most {} off", level, rough, exact, slack);
            }
        }
    }

    #[test]
    fn the_filters_of_all_levels_agree(seed in 0_u64..1_000_000, rows in 1_usize..200, dim in 1_usize..150) {
        let bank = vectors(Shape::Unit, seed, rows, dim);
        let asked = vectors(Shape::Unit, seed + 1, GROUP, dim);
        let of_level = |level: SimdLevel| {
            // Codes that are valid at every level.
            let pair = encoded(level, &bank, &asked, dim, 63.0);
            let thresholds = thresholds(level, &pair, asked.chunks_exact(dim), |_| 0.1);
            let mut found = candidates(level, &pair, &thresholds);
            found.sort_unstable();
            found
        };
        let expected: Vec<Candidate> = of_level(SimdLevel::Portable);
        for level in SimdLevel::available() {
            prop_assert_eq!(&of_level(level), &expected, "{:?}", level);
        }
    }

    #[test]
    fn inner_products_of_all_levels_have_the_same_bits(
        shape in prop::sample::select(Shape::VARIANTS), seed in 0_u64..1_000_000, dim in 1_usize..300,
    ) {
        let pair = vectors(shape, seed, 2, dim);
        let of_level = |level| inner_product(level, &pair[..dim], &pair[dim..]).to_bits();
        for level in SimdLevel::available() {
            prop_assert_eq!(of_level(level), of_level(SimdLevel::Portable), "{:?}", level);
        }
    }
}

#[test]
fn similarities_are_correctly_rounded_inner_products() {
    // 1 + 2⁻²⁴ is between two f32 and rounds to even; a sum in f32 would lose the small terms one by one.
    let small = 2_f32.powi(-26);
    let a = [1.0, small, small, small, small, 0.0, 0.0, small];
    assert_eq!(similarity(SimdLevel::Portable, &a, &[1.0; 8]), 1.0 + 2_f32.powi(-23));
    assert_eq!(similarity(SimdLevel::Portable, &[-1e-30, 0.0], &[1e-30, 0.0]).to_bits(), 0);
}

/// Without this the search would be correct but slow.
#[test]
fn the_filter_leaves_few_rows_to_compare() {
    let dim = 128;
    for shape in [Shape::Unit, Shape::Crowded] {
        let bank = table(vectors(shape, 1, 2048, dim), dim);
        let asked = vectors(shape, 2, GROUP, dim);
        for level in SimdLevel::available() {
            let pair = encoded(level, &bank.features, &asked, dim, code_limit(level));
            let twentieth = |query: &[f32]| f32::from_bits(slow(&bank, query, None, 20)[19].1);
            let thresholds = thresholds(level, &pair, asked.chunks_exact(dim), twentieth);
            let found = candidates(level, &pair, &thresholds);
            assert!(found.len() < 60 * GROUP, "{shape:?} {level:?}: {} for {GROUP} queries", found.len());
        }
    }
}

#[test]
fn tiles_threads_and_the_order_of_rows_change_nothing() {
    let (dim, rows) = (24, 5000);
    let bank = table(vectors(Shape::Whole, 3, rows, dim), dim);
    let asked = table(vectors(Shape::Whole, 4, 50, dim), dim);
    let ids = |bank: &FeatureTable, found: &Neighbours| {
        let id = |&(row, similarity): &(u32, f32)| (bank.ids[row as usize], similarity);
        found.found.iter().map(id).collect::<Vec<_>>()
    };
    let expected = search(&bank, &asked, 17, false).expect("found");
    let mut order: Vec<usize> = (0..rows).collect();
    Stream::new(5, Purpose::Test, 0, 0).shuffle(&mut order);
    let shuffled = FeatureTable {
        ids: order.iter().map(|&row| bank.ids[row]).collect(),
        features: order.iter().flat_map(|&row| bank.feature(row).to_vec()).collect(),
        ..bank.clone()
    };
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let found = pool.install(|| search(&shuffled, &asked, 17, false)).expect("found");
        assert_eq!(ids(&shuffled, &found), ids(&bank, &expected));
    }
}

#[test]
fn a_vector_that_is_not_finite_is_named() {
    let good = table(vectors(Shape::Unit, 1, 700, 8), 8);
    let mut bad = good.clone();
    bad.features[8 * 601 + 3] = f32::NAN;
    for (bank, queries) in [(&bad, &good), (&good, &bad)] {
        let error = search(bank, queries, 5, false).expect_err("not a number");
        assert!(matches!(error, TableError::NotFinite { row: 601, .. }), "{error}");
    }
}

#[test]
fn tiles_cover_a_chunk_and_start_small() {
    let ranges = tile_ranges(&(0..5000), 0, 2048);
    assert_eq!(ranges, [0..256, 256..512, 512..1024, 1024..2048, 2048..4096, 4096..5000]);
    assert_eq!(tile_ranges(&(16384..18500), 0, 2048), [16384..18432, 18432..18500]);
    assert_eq!(tile_ranges(&(16384..18500), 16384, 2048)[..2], [16384..16640, 16640..16896]);
}
