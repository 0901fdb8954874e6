//! Runs of the bank's rows: the shard that an owner has, and the fixed blocks of all rows.

use std::ops::Range;

use tch::Tensor;

use crate::ids::BankRow;

/// Contiguous rows of a bank. An objective works on parts: one owner has all rows in one, several have
/// some each.
#[derive(Debug)]
pub struct BankShard {
    rows: Tensor,
    first_row: usize,
    instances: usize,
}

impl BankShard {
    /// # Shape
    /// `rows: [len, dim]`, those from `first_row` on of a bank of `instances` rows
    pub(super) fn new(rows: Tensor, first_row: usize, instances: usize) -> Self {
        Self { rows, first_row, instances }
    }

    /// `[len, dim]` in the type in which the bank keeps them, without a graph.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.size()[0] as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length of a row.
    pub fn dim(&self) -> usize {
        self.rows.size()[1] as usize
    }

    /// The first row's place in the bank.
    pub fn first_row(&self) -> usize {
        self.first_row
    }

    /// The places in the bank.
    pub fn range(&self) -> Range<usize> {
        self.first_row..self.first_row + self.len()
    }

    /// The rows of the whole bank.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// Which of these positions are here, as (index into the slice, row within the part).
    pub fn owned(&self, positions: &[BankRow]) -> impl Iterator<Item = (usize, usize)> {
        let range = self.range();
        let rows = positions.iter().map(|position| position.row()).enumerate();
        rows.filter(move |(_, row)| range.contains(row)).map(|(query, row)| (query, row - self.first_row))
    }

    /// Finds the rows of these positions that are here.
    pub fn locate(&self, positions: &[BankRow]) -> RowPlan {
        let found: Vec<_> = self.owned(positions).collect();
        let mut ascending = found.clone();
        ascending.sort_unstable_by_key(|&(_, row)| row);
        let queries =
            |pairs: &[(usize, usize)]| pairs.iter().map(|&(query, _)| query as i64).collect::<Vec<_>>();
        let rows = |pairs: &[(usize, usize)]| pairs.iter().map(|&(_, row)| row as i64).collect::<Vec<_>>();
        let all: Vec<i64> = positions.iter().map(|position| position.to_index()).collect();
        let words = [all, queries(&found), rows(&found), queries(&ascending), rows(&ascending)].concat();
        let ascending = ascending.into_iter().map(|(_, row)| row).collect();
        RowPlan { positions: positions.to_vec(), range: self.range(), ascending, words }
    }

    /// Likewise, on the shard's device.
    pub fn rows_of(&self, positions: &[BankRow]) -> BatchRows {
        let plan = self.locate(positions);
        let words = Tensor::from_slice(plan.words()).to_device(self.rows.device());
        plan.with(words)
    }
}

/// Which rows of a shard are those of some positions, before that is on the shard's device.
#[derive(Debug)]
pub struct RowPlan {
    positions: Vec<BankRow>,
    range: Range<usize>,
    ascending: Vec<usize>,
    words: Vec<i64>,
}

/// Which rows of a shard are those of some positions, on the shard's device.
///
/// Invariant: `row` and `query` have one entry for each position whose row is here, in the order of the positions.
#[derive(Debug)]
pub struct BatchRows {
    positions: Vec<BankRow>,
    range: Range<usize>,
    ascending: Vec<usize>,
    words: Tensor,
}

impl RowPlan {
    /// What is to be brought to the device.
    pub fn words(&self) -> &[i64] {
        &self.words
    }

    /// Takes the words from the device to which they were brought.
    ///
    /// # Shape
    /// `words: [words]` int64
    ///
    /// # Panics
    /// If there are fewer or more.
    pub fn with(self, words: Tensor) -> BatchRows {
        assert_eq!(words.size(), [self.words.len() as i64], "the plan's words");
        let Self { positions, range, ascending, .. } = self;
        BatchRows { positions, range, ascending, words }
    }
}

impl BatchRows {
    /// The positions.
    pub fn positions(&self) -> &[BankRow] {
        &self.positions
    }

    /// The rows that are here, ascending within the shard.
    pub fn ascending(&self) -> &[usize] {
        &self.ascending
    }

    /// Whether the row of every position is here.
    pub fn is_complete(&self) -> bool {
        self.ascending.len() == self.positions.len()
    }

    /// `[positions]`: the positions.
    pub fn places(&self) -> Tensor {
        self.words.narrow(0, 0, self.positions.len() as i64)
    }

    /// `[found]`: the indices of the positions whose rows are here.
    pub fn query(&self) -> Tensor {
        self.part(0)
    }

    /// `[found]`: their rows within the shard.
    pub fn row(&self) -> Tensor {
        self.part(1)
    }

    /// `[found]`: as [`BatchRows::query`], in the order of the rows.
    pub fn ascending_query(&self) -> Tensor {
        self.part(2)
    }

    /// `[found]`: as [`BatchRows::row`], in their order.
    pub fn ascending_row(&self) -> Tensor {
        self.part(3)
    }

    fn part(&self, number: usize) -> Tensor {
        let found = self.ascending.len();
        self.words.narrow(0, (self.positions.len() + number * found) as i64, found as i64)
    }

    /// # Panics
    /// If they are not those of these positions in this shard.
    pub fn check(&self, shard: &BankShard, positions: &[BankRow]) {
        assert!(self.range == shard.range() && self.positions == positions, "rows of this shard and batch");
    }

    /// The same.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let Self { positions, range, ascending, words } = self;
        Self {
            positions: positions.clone(),
            range: range.clone(),
            ascending: ascending.clone(),
            words: words.shallow_clone(),
        }
    }
}

/// The rows `0..rows` cut into `count` runs of nearly equal length.
///
/// Random numbers about rows (initial values, negatives) are drawn block by block, each block from its own stream. So
/// an owner of some blocks draws the same numbers as one who owns all of them.
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
    /// many are drawn from each, so each row's probability is right within one part in this number.
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
