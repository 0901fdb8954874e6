//! Exact search for the most similar rows.
//!
//! Every similarity is computed, and in one fixed order of additions, so that the result is the same for
//! any number of threads. Memory is bounded by tiles; `[queries, bank]` never exists.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::feature_table::FeatureTable;
use crate::ids::InstanceId;

/// Queries that go through the bank together, so that a tile of it is read once for all of them.
const QUERY_TILE: usize = 16;
/// Bank rows of a tile: 256 KiB at 128 numbers a row, which stay in the second-level cache.
const BANK_TILE: usize = 512;
/// Partial sums of an inner product; they are added up in one fixed order at the end.
const LANES: usize = 16;

/// The neighbours of every query, most similar first; of equal similarities the lower id comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Neighbours of each query.
    pub k: usize,
    /// `[queries * k]`: rows of the bank's table.
    pub rows: Vec<u32>,
    /// `[queries * k]`: inner products.
    pub similarities: Vec<f32>,
}

impl Neighbours {
    /// (row of the bank's table, similarity) of one query's neighbours.
    pub fn of(&self, query: usize) -> impl Iterator<Item = (usize, f32)> + Clone + '_ {
        let range = query * self.k..(query + 1) * self.k;
        let rows = self.rows[range.clone()].iter().map(|&row| row as usize);
        rows.zip(self.similarities[range].iter().copied())
    }
}

/// Finds the `k` most similar rows of the bank for each query; with `leave_one_out`, a row of the query's
/// own id does not count.
///
/// # Panics
/// If `k` exceeds the rows that can be found, or the tables differ in dim.
pub fn search(bank: &FeatureTable, queries: &FeatureTable, k: usize, leave_one_out: bool) -> Neighbours {
    assert_eq!(bank.meta.dim, queries.meta.dim, "vectors of one length");
    assert!(k + usize::from(leave_one_out) <= bank.len(), "the bank has k rows");
    let tiles: Vec<usize> = (0..queries.len()).step_by(QUERY_TILE).collect();
    let found: Vec<Vec<Found>> = tiles
        .into_par_iter()
        .flat_map_iter(|start| {
            let end = (start + QUERY_TILE).min(queries.len());
            search_tile(bank, queries, start..end, k, leave_one_out)
        })
        .collect();
    let all = || found.iter().flatten();
    Neighbours {
        k,
        rows: all().map(|found| found.row).collect(),
        similarities: all().map(|found| found.similarity).collect(),
    }
}

/// A candidate. Ordered as results are: better ones are smaller.
#[derive(Clone, Copy, Debug)]
struct Found {
    similarity: f32,
    id: InstanceId,
    row: u32,
}

impl Found {
    fn order(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.id.cmp(&other.id))
    }
}

/// The best candidates of a query so far.
struct Best {
    k: usize,
    kept: Vec<Found>,
    /// What a candidate must reach, once `k` are known.
    threshold: f32,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, kept: Vec::with_capacity(2 * k + 1), threshold: f32::NEG_INFINITY }
    }

    fn push(&mut self, found: Found) {
        self.kept.push(found);
        if self.kept.len() > 2 * self.k {
            self.cut();
        }
    }

    /// Keeps the best `k`; the order is total, so the result does not depend on the order of pushes.
    fn cut(&mut self) {
        if self.kept.len() > self.k {
            let (_, last, _) = self.kept.select_nth_unstable_by(self.k - 1, Found::order);
            self.threshold = last.similarity;
            self.kept.truncate(self.k);
        }
    }

    fn finish(mut self) -> Vec<Found> {
        self.cut();
        self.kept.sort_unstable_by(Found::order);
        self.kept
    }
}

fn search_tile(
    bank: &FeatureTable,
    queries: &FeatureTable,
    range: std::ops::Range<usize>,
    k: usize,
    leave_one_out: bool,
) -> Vec<Vec<Found>> {
    let mut best: Vec<Best> = range.clone().map(|_| Best::new(k)).collect();
    for start in (0..bank.len()).step_by(BANK_TILE) {
        let end = (start + BANK_TILE).min(bank.len());
        for (query, best) in range.clone().zip(&mut best) {
            let (own, feature) = (queries.ids[query], queries.feature(query));
            for row in start..end {
                let similarity = inner_product(feature, bank.feature(row));
                if similarity >= best.threshold && !(leave_one_out && bank.ids[row] == own) {
                    best.push(Found { similarity, id: bank.ids[row], row: row as u32 });
                }
            }
        }
    }
    best.into_iter().map(Best::finish).collect()
}

/// The inner product, in a fixed order of additions.
fn inner_product(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0] + rest
}
