//! Some queries and the best rows found for each so far.

use super::filter::{Candidate, Passed, filter};
use super::group::{Group, LARGEST_GROUP, code_limit, group_size};
use super::similarity::{rough_similarity, similarity};
use super::tile::Tile;
use super::top_k::{Neighbour, TopK};
use crate::feature_table::FeatureTable;
use crate::ids::InstanceId;
use crate::simd::{SimdLevel, prefetch};

/// Candidates by which the memory is asked ahead of the comparison.
const AHEAD: usize = 6;

/// Rows of the bank as they are.
pub(super) struct Rows<'a> {
    /// The bank's row of the first.
    pub(super) first: usize,
    /// `[rows]`.
    pub(super) ids: &'a [InstanceId],
    /// `[rows * dim]`.
    pub(super) features: &'a [f32],
}

impl Rows<'_> {
    fn feature(&self, row: usize, dim: usize) -> &[f32] {
        &self.features[row * dim..(row + 1) * dim]
    }
}

/// Some queries, with the best that was found for each so far.
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
    /// Prepares the queries from `first` to before `end` for the search of `k` neighbours.
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

    /// Finds the neighbours in a tile, which encodes `rows`.
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
            filter(simd_level, tile, group, &thresholds, &mut self.passed);
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
                let (query, id) = (first + at, rows.ids[row]);
                if self.leave_one_out && id == queries.ids[query] {
                    continue;
                }
                let (own, other) = (queries.feature(query), rows.feature(row, dim));
                if rough_similarity(simd_level, own, other) + slacks[at] < best[at].threshold() {
                    continue;
                }
                let similarity = similarity(simd_level, own, other);
                best[at].push(Neighbour { similarity, id, row: (rows.first + row) as u32 });
            }
        }
    }

    /// The neighbours of each query, best first.
    pub(super) fn finish(self) -> impl Iterator<Item = Neighbour> {
        self.best.into_iter().flat_map(TopK::finish)
    }
}
