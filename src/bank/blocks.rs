//! A fixed division of the bank's rows into blocks.
//!
//! Random numbers about rows (initial values, negatives) are drawn block by block, each block with a stream
//! of its own. So whoever owns a run of blocks draws the same numbers as one who owns all of them.

use std::ops::Range;

/// The rows `0..rows` cut into `count` runs of nearly equal length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    rows: u64,
    count: u64,
}

impl Blocks {
    /// The division on which initial rows are drawn; fixed, so that a bank never depends on anything else.
    pub const FOR_INITIAL_ROWS: u64 = 256;
    /// The most blocks over which the negatives of one query are spread.
    pub const MOST_FOR_NEGATIVES: u64 = 256;
    /// The fewest rows of a block from which negatives are drawn. Blocks differ by a row at most, and equally
    /// many are drawn from each, so each row's probability is right within one part in so many.
    pub const FEWEST_ROWS_FOR_NEGATIVES: u64 = 1024;

    /// `count` blocks, or one for each row where there are fewer rows.
    ///
    /// # Panics
    /// If there are no rows or no blocks.
    pub fn new(rows: usize, count: u64) -> Self {
        assert!(rows > 0 && count > 0, "blocks need rows");
        Self { rows: rows as u64, count: count.min(rows as u64) }
    }

    /// The blocks from which `negatives` draws for one query are taken, equally many from each: the
    /// largest power of two up to [`Blocks::MOST_FOR_NEGATIVES`] that divides `negatives` and leaves each
    /// [`Blocks::FEWEST_ROWS_FOR_NEGATIVES`].
    pub fn for_negatives(rows: usize, negatives: usize) -> Self {
        let mut count = 1;
        while count * 2 <= Self::MOST_FOR_NEGATIVES.min(rows as u64 / Self::FEWEST_ROWS_FOR_NEGATIVES)
            && (negatives as u64).is_multiple_of(count * 2)
        {
            count *= 2;
        }
        Self::new(rows, count)
    }

    /// The number of blocks.
    pub fn count(self) -> u64 {
        self.count
    }

    /// The blocks that hold any of these rows.
    pub fn overlapping(self, rows: Range<usize>) -> Range<u64> {
        let (start, end) = (rows.start as u64, rows.end as u64);
        let first = (0..self.count).find(|&block| self.range(block).end > start).unwrap_or(self.count);
        let after = (first..self.count).find(|&block| self.range(block).start >= end).unwrap_or(self.count);
        first..after
    }

    /// The rows of one block.
    pub fn range(self, block: u64) -> Range<u64> {
        let edge = |block: u64| (u128::from(block) * u128::from(self.rows) / u128::from(self.count)) as u64;
        edge(block)..edge(block + 1)
    }
}
