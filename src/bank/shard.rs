//! A run of the bank's rows, as its owner sees it.

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

    /// Which of these positions lie here, as (index into the slice, row within the part).
    pub fn owned(&self, positions: &[BankRow]) -> impl Iterator<Item = (usize, usize)> {
        let range = self.range();
        let rows = positions.iter().map(|position| position.row()).enumerate();
        rows.filter(move |(_, row)| range.contains(row)).map(|(query, row)| (query, row - self.first_row))
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

impl BankShard {
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
