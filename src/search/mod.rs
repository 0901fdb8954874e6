//! Exact search for the most similar rows.
//!
//! The answer is that of comparing every query with every row: similarities have one definition
//! (`similarity.rs`), and of equal ones the lower id comes first. Almost all pairs are ruled out beforehand,
//! by products of bytes with a proven bound (`bound.rs`), and most of the rest by f32 sums of known error.
//! What is left is compared exactly. So the result is the same for any number of threads, tile sizes and
//! instructions of the CPU.
//!
//! The bank is read once, in tiles, and ahead of need from a file. Memory holds a few tiles and the best candidates of
//! each query, never `[queries, bank]`.

mod bound;
mod filter;
mod query_block;
mod similarity;
mod synthetic;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;

use rayon::prelude::*;

use self::bound::{BLOCK_ROWS, Tile, group_size};
use self::query_block::{Neighbour, QueryBlock, Rows};
use crate::feature_table::{FeatureTable, PendingVectors, Table, TableError, Vectors};
use crate::simd::SimdLevel;

pub use synthetic::{Shape, draw_tables};

/// Codes of a tile in bytes, a quarter of a usual second-level cache.
const TILE_BYTES: usize = 256 << 10;
/// Rows of a tile at most.
const TILE_ROWS: usize = 2048;
/// Rows of the first tile. Each tile may be as large as all before it, so that few rows are compared with
/// thresholds that are far too low.
const FIRST_TILE_ROWS: usize = 256;
/// Tiles that are read and encoded before queries go through them: 8 MiB of a file at 128 numbers a row.
const TILES: usize = 8;
/// Reads on their way while queries go through a chunk.
const READ_AHEAD: usize = 4;
/// Blocks of queries for each thread: more than one, so that no thread waits long for another.
const BLOCKS_PER_THREAD: usize = 4;

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
/// own id does not count. Runs on rayon's current pool.
///
/// # Errors
/// If the bank cannot be read, or a vector is not finite.
///
/// # Panics
/// If `k` exceeds the rows that can be found, or the tables differ in dim.
pub fn search(
    bank: &dyn Table,
    queries: &FeatureTable,
    k: usize,
    leave_one_out: bool,
) -> Result<Neighbours, TableError> {
    search_at(SimdLevel::best(), bank, queries, k, leave_one_out)
}

fn search_at(
    simd_level: SimdLevel,
    bank: &dyn Table,
    queries: &FeatureTable,
    k: usize,
    leave_one_out: bool,
) -> Result<Neighbours, TableError> {
    let (dim, bank_rows) = (queries.meta.dim, bank.rows());
    assert_eq!(bank.meta().dim, dim, "vectors of one length");
    assert!(k + usize::from(leave_one_out) <= bank_rows, "the bank has k rows");
    queries.check()?;
    let tile_rows = (TILE_BYTES / dim / BLOCK_ROWS * BLOCK_ROWS).clamp(BLOCK_ROWS, TILE_ROWS);
    let mut query_blocks = query_blocks(simd_level, queries, k, leave_one_out);
    let mut tiles = vec![Tile::default(); TILES];
    let mut ahead = ReadAhead::new(bank, tile_rows * TILES);
    while let Some((range, vectors)) = ahead.next() {
        let vectors = vectors?;
        let ranges = tile_ranges(&range, tile_rows);
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
    let found: Vec<Neighbour> = query_blocks.into_par_iter().flat_map_iter(QueryBlock::finish).collect();
    Ok(Neighbours {
        k,
        rows: found.iter().map(|found| found.row).collect(),
        similarities: found.iter().map(|found| found.similarity).collect(),
    })
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

/// Cuts a chunk into tiles; small ones at the bank's start.
fn tile_ranges(chunk: &Range<usize>, tile_rows: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = chunk.start;
    while start < chunk.end {
        let rows = start.clamp(FIRST_TILE_ROWS.min(tile_rows), tile_rows);
        let end = (start + rows).min(chunk.end);
        ranges.push(start..end);
        start = end;
    }
    ranges
}

/// The bank's chunks in order, some of them on their way.
struct ReadAhead<'a> {
    bank: &'a dyn Table,
    waiting: std::vec::IntoIter<Range<usize>>,
    started: VecDeque<(Range<usize>, PendingVectors<'a>)>,
}

impl<'a> ReadAhead<'a> {
    fn new(bank: &'a dyn Table, chunk_rows: usize) -> Self {
        Self { bank, waiting: bank.ranges(chunk_rows).into_iter(), started: VecDeque::new() }
    }

    fn next(&mut self) -> Option<(Range<usize>, Result<Vectors<'a>, TableError>)> {
        while self.started.len() <= READ_AHEAD {
            let Some(range) = self.waiting.next() else { break };
            self.started.push_back((range.clone(), self.bank.start_read(range)));
        }
        self.started.pop_front().map(|(range, pending)| (range, pending.finish()))
    }
}

#[cfg(test)]
mod tests;
