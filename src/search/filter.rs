//! Filter: finds the rows of a tile that can be neighbours of a group's queries.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::bound::{BLOCK_ROWS, GROUP, Group, LARGEST_GROUP, QUAD, Tile};
use crate::simd::SimdLevel;

/// Row that the bound does not rule out for a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    /// Index of the query in its group.
    pub query: u32,
    /// Index of the row in its tile.
    pub row: u32,
}

/// Candidates of a query in a block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Passed {
    /// Index of the block in its tile.
    block: u32,
    /// Index of the query in its group.
    query: u32,
    /// Bit `i` is row `i` of the block; the last block may have bits beyond its rows.
    rows: u32,
}

impl Passed {
    /// Iterates over the rows as candidates, without bits beyond the tile.
    pub(super) fn candidates(self, tile: &Tile) -> impl Iterator<Item = Candidate> {
        let first = self.block as usize * BLOCK_ROWS;
        let there = u32::MAX >> BLOCK_ROWS.saturating_sub(tile.rows - first);
        let mut rows = self.rows & there;
        std::iter::from_fn(move || {
            let row = (rows != 0).then(|| first as u32 + rows.trailing_zeros())?;
            rows &= rows - 1;
            Some(Candidate { query: self.query, row })
        })
    }
}

/// Comparison of the rows of a tile with the queries of a group.
pub(super) struct Filter<'a> {
    pub tile: &'a Tile,
    pub group: &'a Group,
    /// Threshold of each query; see [`Group::threshold`].
    pub thresholds: &'a [i32; LARGEST_GROUP],
    /// Output: the rows of each query whose number exceeds the query's threshold.
    pub found: &'a mut Vec<Passed>,
}

/// Appends a block's rows of one query, if there are any.
#[inline(always)]
fn push(found: &mut Vec<Passed>, block: usize, query: usize, rows: u32) {
    if rows != 0 {
        found.push(Passed { block: block as u32, query: query as u32, rows });
    }
}

impl Filter<'_> {
    /// Finds the rows with the instructions of a SIMD level.
    pub(super) fn run(self, simd_level: SimdLevel) {
        match simd_level {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Amx(has) => amx::filter_amx(has, self),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Vnni(has) => x86::filter_vnni(has, self),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::V3(has) => x86::filter_v3(has, self),
            SimdLevel::Portable => self.run_portable(),
        }
    }

    fn run_portable(self) {
        let Self { tile, group, thresholds, found } = self;
        let (rows, queries): (&[u8], &[i8]) =
            (bytemuck::cast_slice(&tile.codes), bytemuck::cast_slice(&group.codes));
        let blocks = rows.chunks_exact(tile.quads * BLOCK_ROWS * QUAD);
        for (block, codes) in blocks.enumerate() {
            let norms = &tile.residual_norms[block * BLOCK_ROWS..][..BLOCK_ROWS];
            for (query, least) in thresholds.iter().enumerate().take(group.len()) {
                let mut sums = [0_i32; BLOCK_ROWS];
                for (sum, norm) in sums.iter_mut().zip(norms) {
                    *sum = (group.reach * norm) as i32;
                }
                for (quad, rows) in codes.as_chunks::<{ BLOCK_ROWS * QUAD }>().0.iter().enumerate() {
                    let own = &queries[(quad * GROUP + query) * QUAD..][..QUAD];
                    for (sum, row) in sums.iter_mut().zip(rows.as_chunks::<QUAD>().0) {
                        *sum += (0..QUAD).map(|i| i32::from(row[i]) * i32::from(own[i])).sum::<i32>();
                    }
                }
                let mut passed = 0;
                for (row, sum) in sums.iter().enumerate() {
                    passed |= u32::from(sum > least) << row;
                }
                push(found, block, query, passed);
            }
        }
    }
}
