//! Blocks of queries, with the best rows found so far.

use std::cmp::Ordering;

use super::bound::{Group, LARGEST_GROUP, Tile, code_limit, group_size};
use super::filter::{Candidate, Filter, Passed};
use super::similarity::{rough_similarity, similarity};
use crate::feature_table::{FeatureTable, Table};
use crate::ids::InstanceId;
use crate::simd::{SimdLevel, prefetch};

/// Number of candidates that memory is prefetched ahead.
const AHEAD: usize = 6;
/// Up to `k / SPARE` candidates beyond `k` are kept before a cut: few raise the threshold sooner, many need fewer cuts.
const SPARE: usize = 2;

/// Rows of the bank as vectors.
pub(super) struct Rows<'a> {
    /// Bank, for ids.
    pub bank: &'a dyn Table,
    /// Index in the bank of the first row.
    pub first: usize,
    /// `[rows * dim]`.
    pub features: &'a [f32],
}

impl Rows<'_> {
    fn feature(&self, row: usize, dim: usize) -> &[f32] {
        &self.features[row * dim..(row + 1) * dim]
    }
}

/// Block of queries, with the best rows found for each so far.
pub(super) struct QueryBlock<'a> {
    queries: &'a FeatureTable,
    first: usize,
    groups: Vec<Group>,
    best: Vec<TopK>,
    leave_one_out: bool,
    passed: Vec<Passed>,
    candidates: Vec<Candidate>,
}

impl<'a> QueryBlock<'a> {
    /// Prepares the queries from `first` to before `end` for a search of `k` neighbours.
    pub(super) fn new(
        simd_level: SimdLevel,
        queries: &'a FeatureTable,
        (first, end): (usize, usize),
        k: usize,
        leave_one_out: bool,
    ) -> Self {
        let size = group_size(simd_level);
        let group = |start: usize| {
            let rows = (start..(start + size).min(end)).map(|row| queries.feature(row));
            Group::new(simd_level, rows, queries.meta.dim, code_limit(simd_level))
        };
        Self {
            queries,
            first,
            groups: (first..end).step_by(size).map(group).collect(),
            best: vec![TopK::new(k); end - first],
            leave_one_out,
            passed: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Searches a tile, which encodes `rows`.
    pub(super) fn scan(&mut self, simd_level: SimdLevel, tile: &Tile, rows: &Rows<'_>) {
        let (queries, dim) = (self.queries, self.queries.meta.dim);
        let size = group_size(simd_level);
        for (at, group) in self.groups.iter().enumerate() {
            let first = self.first + at * size;
            let best = &mut self.best[at * size..][..group.len()];
            let mut thresholds = [i32::MAX; LARGEST_GROUP];
            for (at, best) in best.iter().enumerate() {
                let query = queries.feature(first + at);
                thresholds[at] = group.threshold(simd_level, at, query, tile, best.threshold());
            }
            if thresholds == [i32::MAX; LARGEST_GROUP] {
                continue;
            }
            self.passed.clear();
            Filter { tile, group, thresholds: &thresholds, found: &mut self.passed }.run(simd_level);
            self.candidates.clear();
            self.candidates.extend(self.passed.iter().flat_map(|passed| passed.candidates(tile)));
            let mut slacks = [f32::INFINITY; LARGEST_GROUP];
            for (at, slack) in slacks.iter_mut().enumerate().take(group.len()) {
                *slack = group.rough_slack(at, tile, dim);
            }
            for (i, candidate) in self.candidates.iter().enumerate() {
                if let Some(soon) = self.candidates.get(i + AHEAD) {
                    prefetch(rows.feature(soon.row as usize, dim));
                }
                let (at, row) = (candidate.query as usize, candidate.row as usize);
                let query = first + at;
                let (own, other) = (queries.feature(query), rows.feature(row, dim));
                if rough_similarity(simd_level, own, other) + slacks[at] < best[at].threshold() {
                    continue;
                }
                let row = rows.first + row;
                let id = rows.bank.id(row);
                if self.leave_one_out && id == queries.ids[query] {
                    continue;
                }
                let similarity = similarity(simd_level, own, other);
                best[at].push(Neighbour { similarity, id, row: row as u32 });
            }
        }
    }

    /// Returns the neighbours of each query, best first.
    pub(super) fn finish(self) -> impl Iterator<Item = Neighbour> {
        self.best.into_iter().flat_map(TopK::finish)
    }
}

/// Row that was compared exactly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbour {
    pub similarity: f32,
    id: InstanceId,
    pub row: u32,
}

impl Neighbour {
    /// Orders results: better ones come first.
    fn order(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.id.cmp(&other.id))
    }
}

/// The best `k` of the pushed rows. The order is total, so the result does not depend on the order of pushes.
#[derive(Clone, Debug)]
struct TopK {
    k: usize,
    kept: Vec<Neighbour>,
    threshold: f32,
}

impl TopK {
    fn new(k: usize) -> Self {
        Self { k, kept: Vec::new(), threshold: f32::NEG_INFINITY }
    }

    /// Returns the similarity below which a candidate is not among the best.
    fn threshold(&self) -> f32 {
        self.threshold
    }

    #[inline]
    fn push(&mut self, found: Neighbour) {
        if found.similarity >= self.threshold {
            self.kept.push(found);
            if self.kept.len() > self.k + self.k / SPARE + 1 {
                self.cut();
            }
        }
    }

    /// Keeps the best `k`, and raises the threshold to the last of them.
    fn cut(&mut self) {
        if self.kept.len() >= self.k {
            let (_, last, _) = self.kept.select_nth_unstable_by(self.k - 1, Neighbour::order);
            self.threshold = last.similarity;
            self.kept.truncate(self.k);
        }
    }

    /// Returns the best rows, in order.
    fn finish(mut self) -> Vec<Neighbour> {
        self.cut();
        self.kept.sort_unstable_by(Neighbour::order);
        self.kept
    }
}
