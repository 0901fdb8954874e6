//! The filter: which rows of a tile can be neighbours of which queries of a group.

use super::group::{GROUP, Group};
use super::tile::{BLOCK_ROWS, QUAD, Tile};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::simd::{Kernel, SimdLevel};

/// A row that the bound does not rule out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    /// The query's index in its group.
    pub(super) query: u32,
    /// The row's index in its tile.
    pub(super) row: u32,
}

/// Adds each pair whose number exceeds the query's threshold; see [`Group::threshold`].
pub(super) fn filter(
    simd_level: SimdLevel,
    tile: &Tile,
    group: &Group,
    thresholds: &[i32; GROUP],
    found: &mut Vec<Candidate>,
) {
    match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Vnni(has) => x86::filter_vnni(has, tile, group, thresholds, found),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::V3(has) => x86::filter_v3(has, tile, group, thresholds, found),
        SimdLevel::Portable => Portable { tile, group, thresholds, found }.run(),
    }
}

/// Adds a block's candidates of one query; bit `i` of `passed` stands for the block's row `i`.
#[inline(always)]
pub(super) fn push(found: &mut Vec<Candidate>, tile: &Tile, block: usize, query: usize, mut passed: u32) {
    while passed != 0 {
        let row = block * BLOCK_ROWS + passed.trailing_zeros() as usize;
        passed &= passed - 1;
        if row < tile.rows {
            found.push(Candidate { query: query as u32, row: row as u32 });
        }
    }
}

struct Portable<'a> {
    tile: &'a Tile,
    group: &'a Group,
    thresholds: &'a [i32; GROUP],
    found: &'a mut Vec<Candidate>,
}

impl Kernel for Portable<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tile, group, thresholds, found } = self;
        let blocks = tile.codes.chunks_exact(tile.quads * BLOCK_ROWS * QUAD);
        for (block, codes) in blocks.enumerate() {
            let norms = &tile.residual_norms[block * BLOCK_ROWS..][..BLOCK_ROWS];
            for (query, least) in thresholds.iter().enumerate().take(group.len()) {
                let mut sums = [0_i32; BLOCK_ROWS];
                for (sum, norm) in sums.iter_mut().zip(norms) {
                    *sum = (group.reach * norm) as i32;
                }
                for (quad, rows) in codes.as_chunks::<{ BLOCK_ROWS * QUAD }>().0.iter().enumerate() {
                    let own = &group.codes[(quad * GROUP + query) * QUAD..][..QUAD];
                    for (sum, row) in sums.iter_mut().zip(rows.as_chunks::<QUAD>().0) {
                        *sum += (0..QUAD).map(|i| i32::from(row[i]) * i32::from(own[i])).sum::<i32>();
                    }
                }
                let mut passed = 0;
                for (row, sum) in sums.iter().enumerate() {
                    passed |= u32::from(sum > least) << row;
                }
                push(found, tile, block, query, passed);
            }
        }
    }
}
