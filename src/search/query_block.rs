//! Some queries and the best rows found for each so far.

use super::filter::{Candidate, filter};
use super::group::{GROUP, Group, code_limit};
use super::similarity::similarity;
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
        let group = |start: usize| {
            let rows = (start..(start + GROUP).min(end)).map(|row| queries.feature(row));
            Group::new(rows, queries.meta.dim, code_limit(simd_level))
        };
        Self {
            queries,
            first,
            groups: (first..end).step_by(GROUP).map(group).collect(),
            best: vec![TopK::new(k); end - first],
            leave_one_out,
            candidates: Vec::new(),
        }
    }

    /// Finds the neighbours in a tile, which encodes `rows`.
    pub(super) fn scan(&mut self, simd_level: SimdLevel, tile: &Tile, rows: &Rows<'_>) {
        let (queries, dim) = (self.queries, self.queries.meta.dim);
        for (at, group) in self.groups.iter().enumerate() {
            let first = self.first + at * GROUP;
            let best = &mut self.best[at * GROUP..][..group.len()];
            let mut thresholds = [i32::MAX; GROUP];
            for (at, best) in best.iter().enumerate() {
                let query = queries.feature(first + at);
                thresholds[at] = group.threshold(simd_level, at, query, tile, best.threshold());
            }
            if thresholds == [i32::MAX; GROUP] {
                continue;
            }
            self.candidates.clear();
            filter(simd_level, tile, group, &thresholds, &mut self.candidates);
            for (i, candidate) in self.candidates.iter().enumerate() {
                if let Some(soon) = self.candidates.get(i + AHEAD) {
                    prefetch(rows.feature(soon.row as usize, dim));
                }
                let (at, row) = (candidate.query as usize, candidate.row as usize);
                let (query, id) = (first + at, rows.ids[row]);
                if self.leave_one_out && id == queries.ids[query] {
                    continue;
                }
                let similarity = similarity(simd_level, queries.feature(query), rows.feature(row, dim));
                best[at].push(Neighbour { similarity, id, row: (rows.first + row) as u32 });
            }
        }
    }

    /// The neighbours of each query, best first.
    pub(super) fn finish(self) -> impl Iterator<Item = Neighbour> {
        self.best.into_iter().flat_map(TopK::finish)
    }
}
