//! Exact search for the most similar rows.
//!
//! The result equals that of comparing every query with every row: similarities have one definition
//! (`similarity.rs`), and ties go to the lower id. Products of bytes with a proven bound (`bound.rs`) rule
//! out almost all pairs, and f32 sums of known error most of the rest. Remaining pairs are compared exactly.
//! So the result is the same for any number of threads, tile sizes and instructions of the CPU.
//!
//! The bank is read once, in tiles, and ahead of need from a file. Memory holds a few tiles and the best
//! candidates of each query, never `[queries, bank]`.

mod bound;
mod filter;
mod query_block;
mod similarity;
mod synthetic;

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use self::bound::{BLOCK_ROWS, Tile, group_size};
use self::query_block::{QueryBlock, Rows};
use crate::feature_table::{FeatureTable, Table, TableError, read_ahead};
use crate::simd::SimdLevel;

pub use synthetic::{Shape, draw_tables};

/// Bytes of a tile's codes: a quarter of a usual second-level cache.
const TILE_BYTES: usize = 256 << 10;
/// Maximum number of rows in a tile.
const TILE_ROWS: usize = 2048;
/// Rows of the first tile. Each tile may be as large as all before it, so that few rows are compared with
/// thresholds that are still far too low.
const FIRST_TILE_ROWS: usize = 256;
/// Tiles that are read and encoded before queries pass them: 8 MiB of a file at 128 numbers a row.
const TILES: usize = 8;
/// Pending reads while queries pass a chunk.
const READ_AHEAD: usize = 4;
/// Blocks of queries per thread: several, so that no thread waits long for another.
const BLOCKS_PER_THREAD: usize = 4;

/// Neighbours of every query, most similar first; ties go to the lower id.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Number of neighbours per query.
    pub k: usize,
    /// `[queries * k]`: row of the bank's table, and inner product.
    pub found: Vec<(u32, f32)>,
}

impl Neighbours {
    /// Iterates over one query's neighbours as (row of the bank's table, similarity).
    pub fn of(&self, query: usize) -> impl Iterator<Item = (usize, f32)> + Clone + '_ {
        let found = &self.found[query * self.k..(query + 1) * self.k];
        found.iter().map(|&(row, similarity)| (row as usize, similarity))
    }
}

/// Finds the `k` most similar rows of the bank for each query; with `leave_one_out`, without a row of the query's own
/// id. If the queries have unit length, the bank's rows are normalised when read, so that similarities are cosines.
/// Runs on rayon's current pool.
///
/// # Errors
/// If the bank cannot be read, or a vector is not finite.
///
/// # Panics
/// If `k` exceeds the number of eligible rows, or the tables differ in dim.
pub fn search(
    bank: &dyn Table,
    queries: &FeatureTable,
    k: usize,
    leave_one_out: bool,
) -> Result<Neighbours, TableError> {
    search_at(SimdLevel::best(), (bank, 0..bank.rows()), queries, k, leave_one_out)
}

/// Does the same as [`search`], among some rows of the bank.
///
/// # Errors
/// As [`search`].
///
/// # Panics
/// As [`search`].
pub fn search_among(
    bank: &dyn Table,
    rows: Range<usize>,
    queries: &FeatureTable,
    k: usize,
) -> Result<Neighbours, TableError> {
    search_at(SimdLevel::best(), (bank, rows), queries, k, false)
}

fn search_at(
    simd_level: SimdLevel,
    (bank, rows): (&dyn Table, Range<usize>),
    queries: &FeatureTable,
    k: usize,
    leave_one_out: bool,
) -> Result<Neighbours, TableError> {
    let dim = queries.meta.dim;
    assert_eq!(bank.meta().dim, dim, "vectors of one length");
    assert!(k + usize::from(leave_one_out) <= rows.len(), "the bank has k rows");
    queries.check()?;
    let tile_rows = (TILE_BYTES / dim / BLOCK_ROWS * BLOCK_ROWS).clamp(BLOCK_ROWS, TILE_ROWS);
    let mut query_blocks = query_blocks(simd_level, queries, k, leave_one_out);
    let mut tiles = vec![Tile::default(); TILES];
    let start = |range: &Range<usize>| {
        let range = range.clone();
        if queries.meta.unit_length { bank.start_unit_read(range) } else { bank.start_read(range) }
    };
    let ranges = bank.ranges(tile_rows * TILES).into_iter();
    let ranges = ranges.map(|range| range.start.max(rows.start)..range.end.min(rows.end));
    for (range, read) in read_ahead(ranges.filter(|range| !range.is_empty()), READ_AHEAD, start) {
        let vectors = read.finish()?;
        let ranges = tile_ranges(&range, rows.start, tile_rows);
        if ranges.len() > tiles.len() {
            tiles.resize(ranges.len(), Tile::default());
        }
        let encode = |(tile, range): (&mut Tile, &Range<usize>)| {
            let features = vectors.rows(range.clone())?;
            tile.encode(simd_level, &features, dim);
            Ok(features)
        };
        let features: Vec<Cow<'_, [f32]>> =
            tiles.par_iter_mut().zip(&ranges).map(encode).collect::<Result<_, TableError>>()?;
        query_blocks.par_iter_mut().for_each(|block| {
            for ((tile, range), features) in tiles.iter().zip(&ranges).zip(&features) {
                block.scan(simd_level, tile, &Rows { bank, first: range.start, features });
            }
        });
    }
    let found = query_blocks.into_par_iter().flat_map_iter(QueryBlock::finish);
    Ok(Neighbours { k, found: found.map(|found| (found.row, found.similarity)).collect() })
}

fn query_blocks(
    simd_level: SimdLevel,
    queries: &FeatureTable,
    k: usize,
    leave_one_out: bool,
) -> Vec<QueryBlock<'_>> {
    let groups = queries.len().div_ceil(group_size(simd_level));
    let size =
        groups.div_ceil(rayon::current_num_threads() * BLOCKS_PER_THREAD).max(1) * group_size(simd_level);
    let starts: Vec<usize> = (0..queries.len()).step_by(size).collect();
    let block = |first: usize| {
        QueryBlock::new(simd_level, queries, (first, (first + size).min(queries.len())), k, leave_one_out)
    };
    starts.into_par_iter().map(block).collect()
}

/// Divides a chunk into tiles, with small ones after the `first` searched row.
fn tile_ranges(chunk: &Range<usize>, first: usize, tile_rows: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = chunk.start;
    while start < chunk.end {
        let rows = (start - first).clamp(FIRST_TILE_ROWS.min(tile_rows), tile_rows);
        let end = (start + rows).min(chunk.end);
        ranges.push(start..end);
        start = end;
    }
    ranges
}

#[cfg(test)]
mod tests;
