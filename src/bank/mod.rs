//! Memory bank: one unit vector for each image.
//!
//! Row `i` is the running feature of the image at `BankRow(i)`. After initialisation only
//! [`MemoryBank::update_rows`], which the training loop calls, changes rows: evaluating an objective never writes
//! them, and no autograd graph passes through the bank. This module does not access files.

use std::ops::Range;
use std::rc::Rc;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

use crate::ids::BankRow;
use crate::rng::{Purpose, Stream};
use crate::run_config::{BankDtype, BankInit, TrainConfig};
use crate::units::BankMomentum;

/// Length below which the sum of old row and new feature cannot be normalised.
const SHORTEST_SUM: f64 = 1e-6;
/// Blocks drawn at a time: enough for every core, and a small part of a large bank.
const BLOCKS_AT_ONCE: u64 = 16;

/// One unit vector for each image, or for a contiguous range of images if several processes share the bank.
///
/// Invariants: every row has unit length (within 1e-5, or the precision of its type); all owners together have
/// as many rows as the split has instances; rows never take part in autograd.
#[derive(Debug)]
pub struct MemoryBank {
    shard: BankShard,
    /// `[owned]`
    updated_step: Vec<Option<u64>>,
}

/// Statistics of an update, as f64 scalars on the bank's device; those of several owners of a batch add up.
#[derive(Debug)]
pub struct UpdateStats {
    /// Mean cosine between a row before and after.
    pub row_cosine: Tensor,
    /// Mean squared distance between a feature and its row before the update.
    pub distance: Tensor,
}

impl MemoryBank {
    /// Creates the owned rows of a bank of `instances` before its first step. They depend on the configuration's seed,
    /// row length, row type and initialisation. With [`BankInit::Encode`] they are random until overwritten.
    ///
    /// # Source
    /// Reference `NCEAverage.py`: uniform in ±√(3/dim). Rows there have only approximate unit length until
    /// their first update; here they are normalised.
    pub fn initial(config: &TrainConfig, instances: usize, owned: Range<usize>, device: Device) -> Self {
        let (first_row, updated_step) = (owned.start, vec![None; owned.len()]);
        let rows = random_rows(config, instances, owned, device);
        Self { shard: BankShard { rows, first_row, instances }, updated_step }
    }

    /// Creates a bank of random unit rows in f32.
    pub fn random(instances: usize, dim: usize, seed: u64, device: Device) -> Self {
        let (bank_dtype, bank_init) = (BankDtype::F32, BankInit::Uniform);
        let config = TrainConfig { dim, seed, bank_dtype, bank_init, ..TrainConfig::default() };
        Self::initial(&config, instances, 0..instances, device)
    }

    /// Creates a bank with given rows.
    ///
    /// # Shape
    /// `rows: [instances * dim]`, row after row, each of unit length; `updated_step: [instances]`
    ///
    /// # Panics
    /// If the lengths disagree.
    pub fn from_rows(rows: &[f32], dim: usize, updated_step: Vec<Option<u64>>, device: Device) -> Self {
        let instances = updated_step.len();
        assert_eq!(rows.len(), instances * dim, "one row of {dim} for each instance");
        let rows = Tensor::from_slice(rows).view([instances as i64, dim as i64]).to_device(device);
        Self { shard: BankShard { rows, first_row: 0, instances }, updated_step }
    }

    /// Declares the rows to be those from `first_row` on of a bank of `instances` rows.
    ///
    /// # Panics
    /// If that bank is too short.
    #[must_use]
    pub fn part_of(mut self, first_row: usize, instances: usize) -> Self {
        assert!(first_row + self.shard.len() <= instances, "the rows are some of the bank's");
        (self.shard.first_row, self.shard.instances) = (first_row, instances);
        self
    }

    /// Converts the rows to another number type.
    #[must_use]
    pub fn with_dtype(mut self, dtype: BankDtype) -> Self {
        self.shard.rows = self.shard.rows.to_kind(dtype.kind());
        self
    }

    /// Overwrites initial rows, as if no step had written them; ignores positions of other owners.
    ///
    /// # Shape
    /// `positions: [batch]`, `rows: [batch, dim]` unit rows
    pub fn set_initial(&mut self, positions: &[BankRow], rows: &Tensor) {
        let found = self.shard.rows_of(positions);
        let rows = rows.index_select(0, &found.query()).to_kind(self.shard.rows.kind());
        let _ = no_grad(|| self.shard.rows.index_copy_(0, &found.row(), &rows));
    }

    /// Returns the owned rows as a shard.
    pub fn shard(&self) -> &BankShard {
        &self.shard
    }

    /// Returns the rows as `count` shards of nearly equal length, as several owners would have them.
    pub fn parts(&self, count: usize) -> Vec<BankShard> {
        let BankShard { rows, first_row, instances } = &self.shard;
        let blocks = Blocks::new(self.shard.len(), count as u64);
        let part = |block| {
            let range = blocks.range(block);
            let rows = rows.narrow(0, range.start as i64, (range.end - range.start) as i64);
            BankShard { rows, first_row: first_row + range.start as usize, instances: *instances }
        };
        (0..blocks.count()).map(part).collect()
    }

    /// Returns the owned rows, `[owned, dim]`, without a graph.
    pub fn rows(&self) -> &Tensor {
        &self.shard.rows
    }

    /// Returns for each owned row the last step that wrote it; `None` for an initial row.
    pub fn updated_step(&self) -> &[Option<u64>] {
        &self.updated_step
    }

    /// Returns the rows of owned positions, and zeros for all others, so that the owners' results add up.
    ///
    /// # Shape
    /// `positions: [batch]` -> `[batch, dim]` f32
    pub fn gather(&self, positions: &[BankRow]) -> Tensor {
        let found = self.shard.rows_of(positions);
        let rows = self.shard.rows.index_select(0, &found.row()).to_kind(Kind::Float);
        let shape = [positions.len() as i64, self.shard.dim() as i64];
        Tensor::zeros(shape, (Kind::Float, self.shard.rows.device())).index_copy(0, &found.query(), &rows)
    }

    /// Moves the owned rows of a batch's positions towards `features` and renormalises them.
    ///
    /// `row <- normalise(momentum * row + (1 - momentum) * feature)`; if the sum is too short to be
    /// normalised (row and feature are antipodal), the row becomes the feature.
    ///
    /// # Shape
    /// `features: [batch, dim]` unit rows, one for each position; positions are distinct
    ///
    /// # Panics
    /// If a position occurs twice (the winner would be undefined), on other shapes, or if `batch` is of another shard.
    ///
    /// # Source
    /// Reference `NCEAverage.py`, which updates inside `backward`; here the loop calls it.
    pub fn update_rows(
        &mut self,
        batch: &BatchRows,
        features: &Tensor,
        momentum: BankMomentum,
        step: u64,
    ) -> UpdateStats {
        let positions = batch.positions();
        batch.check(&self.shard, positions);
        assert_eq!(
            features.size(),
            [positions.len() as i64, self.shard.dim() as i64],
            "one feature for each position"
        );
        let ascending = batch.ascending();
        assert!(ascending.windows(2).all(|pair| pair[0] != pair[1]), "a position occurs twice in the batch");
        ascending.iter().for_each(|&row| self.updated_step[row] = Some(step));
        no_grad(|| {
            let row = batch.row();
            let mut features = features.detach().to_kind(Kind::Float);
            if !batch.is_complete() {
                features = features.index_select(0, &batch.query());
            }
            let old = self.shard.rows.index_select(0, &row).to_kind(Kind::Float);
            let sum = &old * momentum.get() + &features * (1.0 - momentum.get());
            let length = sum.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
            let moved = &sum / &length;
            let rows = moved.where_self(&length.gt(SHORTEST_SUM), &features);
            let _ = self.shard.rows.index_copy_(0, &row, &rows.to_kind(self.shard.rows.kind()));
            let count = positions.len() as f64;
            UpdateStats {
                row_cosine: (&old * rows).sum(Kind::Double) / count,
                distance: (features - old).square().sum(Kind::Double) / count,
            }
        })
    }

    /// Copies the rows to the host.
    ///
    /// # Shape
    /// `[owned, dim]` in the bank's number type
    pub fn to_host(&self) -> Tensor {
        match self.shard.rows.device() {
            Device::Cpu => self.shard.rows.copy(),
            _ => self.shard.rows.to_device(Device::Cpu),
        }
    }

    /// Copies the rows to the host, row after row.
    pub fn to_vec(&self) -> Vec<f32> {
        let rows = self.shard.rows.to_device(Device::Cpu).to_kind(Kind::Float);
        Vec::try_from(rows.contiguous().view([-1])).expect("rows of f32 on the host")
    }
}

/// Contiguous rows of a bank. An objective works on shards: a single owner has all rows in one shard, several
/// owners have one each.
#[derive(Debug)]
pub struct BankShard {
    /// `[len, dim]`: the rows from `first_row` on of a bank of `instances` rows.
    rows: Tensor,
    first_row: usize,
    instances: usize,
}

impl BankShard {
    /// Returns the rows, `[len, dim]` in the bank's number type, without a graph.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.size()[0] as usize
    }

    /// Returns whether the shard has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the length of a row.
    pub fn dim(&self) -> usize {
        self.rows.size()[1] as usize
    }

    /// Returns the first row's index in the bank.
    pub fn first_row(&self) -> usize {
        self.first_row
    }

    /// Returns the range of the rows in the bank.
    pub fn range(&self) -> Range<usize> {
        self.first_row..self.first_row + self.len()
    }

    /// Returns the number of rows of the whole bank.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// Returns the positions in this shard, as (index into the slice, row within the shard).
    pub fn owned(&self, positions: &[BankRow]) -> impl Iterator<Item = (usize, usize)> {
        let range = self.range();
        let rows = positions.iter().map(|position| position.row()).enumerate();
        rows.filter(move |(_, row)| range.contains(row)).map(|(query, row)| (query, row - self.first_row))
    }

    /// Locates the rows of these positions in this shard.
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

    /// Locates the rows as [`BankShard::locate`] does, with the result on the shard's device.
    pub fn rows_of(&self, positions: &[BankRow]) -> BatchRows {
        let plan = self.locate(positions);
        let words = Tensor::from_slice(&plan.words).to_device(self.rows.device());
        plan.with(words)
    }
}

/// Located rows of some positions in a shard, before the upload to the shard's device.
#[derive(Debug)]
pub struct RowPlan {
    positions: Vec<BankRow>,
    range: Range<usize>,
    ascending: Vec<usize>,
    words: Vec<i64>,
}

/// Located rows of some positions in a shard, on the shard's device.
///
/// Invariant: `row` and `query` have one entry for each position in the shard, in the order of the positions.
#[derive(Debug)]
pub struct BatchRows {
    plan: Rc<RowPlan>,
    words: Tensor,
}

impl RowPlan {
    /// Returns the indices to upload to the device.
    pub fn words(&self) -> &[i64] {
        &self.words
    }

    /// Completes the plan with the uploaded words.
    ///
    /// # Shape
    /// `words: [words]` int64
    ///
    /// # Panics
    /// If the number of words differs.
    pub fn with(self, words: Tensor) -> BatchRows {
        assert_eq!(words.size(), [self.words.len() as i64], "the plan's words");
        BatchRows { plan: Rc::new(self), words }
    }
}

impl BatchRows {
    /// Returns the positions.
    pub fn positions(&self) -> &[BankRow] {
        &self.plan.positions
    }

    /// Returns the located rows, ascending within the shard.
    pub fn ascending(&self) -> &[usize] {
        &self.plan.ascending
    }

    /// Returns whether all positions are in the shard.
    pub fn is_complete(&self) -> bool {
        self.plan.ascending.len() == self.plan.positions.len()
    }

    /// Returns all positions, `[positions]`.
    pub fn places(&self) -> Tensor {
        self.words.narrow(0, 0, self.plan.positions.len() as i64)
    }

    /// Returns the indices of the located positions, `[found]`.
    pub fn query(&self) -> Tensor {
        self.part(0)
    }

    /// Returns the located positions' rows within the shard, `[found]`.
    pub fn row(&self) -> Tensor {
        self.part(1)
    }

    /// Returns [`BatchRows::query`] in ascending order of the rows, `[found]`.
    pub fn ascending_query(&self) -> Tensor {
        self.part(2)
    }

    /// Returns [`BatchRows::row`] in ascending order, `[found]`.
    pub fn ascending_row(&self) -> Tensor {
        self.part(3)
    }

    fn part(&self, number: usize) -> Tensor {
        let found = self.plan.ascending.len();
        self.words.narrow(0, (self.plan.positions.len() + number * found) as i64, found as i64)
    }

    /// Checks that the rows were located for these positions in this shard.
    ///
    /// # Panics
    /// If the rows were located for another shard or other positions.
    pub fn check(&self, shard: &BankShard, positions: &[BankRow]) {
        assert!(
            self.plan.range == shard.range() && self.plan.positions == positions,
            "rows of this shard and batch"
        );
    }

    /// Returns a second handle to the same rows.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { plan: Rc::clone(&self.plan), words: self.words.shallow_clone() }
    }
}

impl BankDtype {
    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

/// Division of the rows `0..rows` into `count` blocks of nearly equal length.
///
/// Random numbers for rows (initial values, negatives) are drawn by block, each block from its own stream. So
/// an owner of some blocks draws the same numbers as an owner of all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    rows: u64,
    count: u64,
}

impl Blocks {
    /// Number of blocks for initial rows; fixed, so that a bank depends on seed and options alone.
    pub const FOR_INITIAL_ROWS: u64 = 256;
    /// Largest number of blocks over which one query's negatives are spread.
    pub const MOST_FOR_NEGATIVES: u64 = 256;
    /// Smallest number of rows of a block that negatives are drawn from. Blocks differ by one row at most and
    /// get equally many draws, so each row's probability is exact within one part in this number.
    pub const FEWEST_ROWS_FOR_NEGATIVES: u64 = 1024;

    /// Divides the rows into `count` blocks, or into one per row if there are fewer rows.
    ///
    /// # Panics
    /// If there are no rows or no blocks.
    pub fn new(rows: usize, count: u64) -> Self {
        assert!(rows > 0 && count > 0, "blocks need rows");
        Self { rows: rows as u64, count: count.min(rows as u64) }
    }

    /// Returns the blocks for `negatives` draws per query, equally many from each: the largest power of two
    /// up to [`Blocks::MOST_FOR_NEGATIVES`] that divides `negatives` and leaves each block
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

    /// Returns the number of blocks.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Returns the blocks that contain any of these rows.
    pub fn overlapping(self, rows: Range<usize>) -> Range<u64> {
        let (start, end) = (rows.start as u64, rows.end as u64);
        let first = (0..self.count).find(|&block| self.range(block).end > start).unwrap_or(self.count);
        let after = (first..self.count).find(|&block| self.range(block).start >= end).unwrap_or(self.count);
        first..after
    }

    /// Returns the rows of one block.
    pub fn range(self, block: u64) -> Range<u64> {
        let edge = |block: u64| (u128::from(block) * u128::from(self.rows) / u128::from(self.count)) as u64;
        edge(block)..edge(block + 1)
    }
}

/// Draws random unit rows by block, so that an owner's rows do not depend on who owns the others.
///
/// # Shape
/// -> `[owned, dim]`
fn random_rows(config: &TrainConfig, instances: usize, owned: Range<usize>, device: Device) -> Tensor {
    let &TrainConfig { dim, bank_dtype, bank_init, seed, .. } = config;
    let blocks = Blocks::new(instances, Blocks::FOR_INITIAL_ROWS);
    let all = Tensor::empty([owned.len() as i64, dim as i64], (bank_dtype.kind(), device));
    let needed = blocks.overlapping(owned.clone());
    for first in needed.clone().step_by(BLOCKS_AT_ONCE as usize) {
        let some = first..(first + BLOCKS_AT_ONCE).min(needed.end);
        let values: Vec<f32> = some
            .clone()
            .into_par_iter()
            .flat_map_iter(|block| {
                let range = blocks.range(block);
                let mut stream = Stream::new(seed, Purpose::BankInit, block, 0);
                (range.start..range.end).flat_map(move |_| unit_row(&mut stream, dim, bank_init))
            })
            .collect();
        let rows = Tensor::from_slice(&values).view([-1, dim as i64]);
        let drawn = blocks.range(some.start).start as usize..blocks.range(some.end - 1).end as usize;
        let (start, end) = (drawn.start.max(owned.start), drawn.end.min(owned.end));
        let rows = rows.narrow(0, (start - drawn.start) as i64, (end - start) as i64);
        no_grad(|| all.narrow(0, (start - owned.start) as i64, (end - start) as i64).copy_(&rows));
    }
    all
}

fn unit_row(stream: &mut Stream, dim: usize, init: BankInit) -> Vec<f32> {
    // The reference's bound √(3/dim) has no effect once a row is normalised.
    let drawn: Vec<f64> = match init {
        BankInit::Normal => (0..dim).map(|_| stream.normal()).collect(),
        BankInit::Uniform | BankInit::Encode => (0..dim).map(|_| stream.range(-1.0, 1.0)).collect(),
    };
    let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
    drawn.into_iter().map(|x| (x / length) as f32).collect()
}

#[cfg(test)]
mod tests;
