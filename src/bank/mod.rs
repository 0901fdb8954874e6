//! The memory bank: one unit vector for each image.
//!
//! Row `i` is the running feature of the image at `BankRow(i)`. Rows move only through [`MemoryBank::update_rows`],
//! which the training loop calls; evaluating an objective never writes them, and no autograd graph passes through
//! the bank. The bank knows nothing of files: it turns into a feature table and back.

mod shard;

use std::ops::Range;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

pub use shard::{BankShard, BatchRows, Blocks, RowPlan};

use crate::ids::BankRow;
use crate::rng::{Purpose, Stream};
use crate::run_config::{BankDtype, BankInit};
use crate::units::BankMomentum;

/// A sum of old row and new feature shorter than this cannot be normalised.
const SHORTEST_SUM: f64 = 1e-6;
/// Blocks that are drawn at a time: enough for every core, and a small part of a large bank.
const BLOCKS_AT_ONCE: u64 = 16;

/// What a bank is.
#[derive(Clone, Copy, Debug)]
pub struct BankOptions {
    /// The number of rows.
    pub instances: usize,
    /// The length of a row.
    pub dim: usize,
    /// The type of its numbers.
    pub dtype: BankDtype,
    /// Its first rows; with [`BankInit::Encode`] they are random until they are written.
    pub init: BankInit,
}

/// One unit vector for each image, or for a run of them: several processes own some each.
///
/// Invariants: every row has unit length (within 1e-5, or what its type can hold); all owners together have as
/// many rows as the split has instances; rows never take part in autograd.
#[derive(Debug)]
pub struct MemoryBank {
    /// `[owned, dim]`
    rows: Tensor,
    /// `[owned]`
    updated_step: Vec<Option<u64>>,
    first_row: usize,
    instances: usize,
}

/// What an update saw, as f64 scalars on the bank's device; what several owners saw of a batch adds up.
#[derive(Debug)]
pub struct UpdateStats {
    /// The mean cosine of a row before and after.
    pub row_cosine: Tensor,
    /// The mean squared distance of a feature to its row before.
    pub distance: Tensor,
}

/// Rows as they were kept, with the steps that wrote them.
#[derive(Debug)]
pub struct StoredRows<'a> {
    /// `[owned * dim]`, row after row, each of unit length.
    pub rows: &'a [f32],
    /// `[owned]`
    pub updated_step: Vec<Option<u64>>,
    /// The place of the first one.
    pub first_row: usize,
    /// The rows of all owners.
    pub instances: usize,
}

impl MemoryBank {
    /// A bank before its first step, a function of the seed alone.
    ///
    /// # Source
    /// Reference `NCEAverage.py`: uniform in ±√(3/dim). There the rows are only approximately of unit length
    /// until their first update; here they are normalised.
    pub fn initial(options: BankOptions, seed: u64, device: Device) -> Self {
        Self::initial_rows(options, 0..options.instances, seed, device)
    }

    /// Some rows of that bank.
    pub fn initial_rows(options: BankOptions, owned: Range<usize>, seed: u64, device: Device) -> Self {
        let rows = random_rows(options, owned.clone(), seed, device);
        let updated_step = vec![None; owned.len()];
        Self { rows, updated_step, first_row: owned.start, instances: options.instances }
    }

    /// A bank of random unit rows in f32.
    pub fn random(instances: usize, dim: usize, seed: u64, device: Device) -> Self {
        let (dtype, init) = (BankDtype::F32, BankInit::Uniform);
        Self::initial(BankOptions { instances, dim, dtype, init }, seed, device)
    }

    /// A bank with given rows.
    ///
    /// # Shape
    /// `rows: [instances * dim]`, row after row, each of unit length; `updated_step: [instances]`
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn from_rows(rows: &[f32], dim: usize, updated_step: Vec<Option<u64>>, device: Device) -> Self {
        let instances = updated_step.len();
        Self::from_stored(StoredRows { rows, updated_step, first_row: 0, instances }, dim, device)
    }

    /// Some rows of a bank, as they were kept.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn from_stored(stored: StoredRows<'_>, dim: usize, device: Device) -> Self {
        let StoredRows { rows, updated_step, first_row, instances } = stored;
        assert_eq!(rows.len(), updated_step.len() * dim, "one row of {dim} for each instance");
        assert!(first_row + updated_step.len() <= instances, "the rows are some of the bank's");
        let rows = Tensor::from_slice(rows).view([updated_step.len() as i64, dim as i64]).to_device(device);
        Self { rows, updated_step, first_row, instances }
    }

    /// The same rows, kept in another type.
    #[must_use]
    pub fn with_dtype(self, dtype: BankDtype) -> Self {
        Self { rows: self.rows.to_kind(dtype.kind()), ..self }
    }

    /// Writes the first rows of some positions, as if no step had written them; those of others are left out.
    ///
    /// # Shape
    /// `positions: [batch]`, `rows: [batch, dim]` unit rows
    pub fn set_initial(&mut self, positions: &[BankRow], rows: &Tensor) {
        let found = self.owned().rows_of(positions);
        let rows = rows.index_select(0, &found.query()).to_kind(self.rows.kind());
        let _ = no_grad(|| self.rows.index_copy_(0, &found.row(), &rows));
    }

    /// The rows that are here, as one part.
    pub fn owned(&self) -> BankShard {
        BankShard::new(self.rows.shallow_clone(), self.first_row, self.instances)
    }

    /// The rows in `count` parts of nearly equal length, as several owners would have them.
    pub fn parts(&self, count: usize) -> Vec<BankShard> {
        let blocks = Blocks::new(self.len(), count as u64);
        let part = |block| {
            let range = blocks.range(block);
            let rows = self.rows.narrow(0, range.start as i64, (range.end - range.start) as i64);
            BankShard::new(rows, self.first_row + range.start as usize, self.instances)
        };
        (0..blocks.count()).map(part).collect()
    }

    /// The number of rows that are here.
    pub fn len(&self) -> usize {
        self.updated_step.len()
    }

    /// Whether no row is here.
    pub fn is_empty(&self) -> bool {
        self.updated_step.is_empty()
    }

    /// The rows of all owners: one for each instance.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// The places of the rows that are here.
    pub fn range(&self) -> Range<usize> {
        self.first_row..self.first_row + self.len()
    }

    /// The length of a row.
    pub fn dim(&self) -> usize {
        self.rows.size()[1] as usize
    }

    /// The rows that are here, `[owned, dim]`, without a graph.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// `[owned]`: the step that last wrote each row; `None` where it is still the initial one.
    pub fn updated_step(&self) -> &[Option<u64>] {
        &self.updated_step
    }

    /// The rows of `positions`.
    ///
    /// # Shape
    /// `positions: [batch]`, all of them here -> `[batch, dim]` f32
    ///
    /// # Panics
    /// If a row is not here.
    pub fn gather(&self, positions: &[BankRow]) -> Tensor {
        let found = self.owned().rows_of(positions);
        assert!(found.is_complete(), "the rows are here");
        self.rows.index_select(0, &found.row()).to_kind(Kind::Float)
    }

    /// The rows of those positions that are here, and zeros for all others: what all owners have adds up.
    ///
    /// # Shape
    /// `positions: [batch]` -> `[batch, dim]` f32
    pub fn gather_owned(&self, positions: &[BankRow]) -> Tensor {
        let found = self.owned().rows_of(positions);
        let rows = self.rows.index_select(0, &found.row()).to_kind(Kind::Float);
        let shape = [positions.len() as i64, self.dim() as i64];
        Tensor::zeros(shape, (Kind::Float, self.rows.device())).index_copy(0, &found.query(), &rows)
    }

    /// Moves the rows of `positions` that are here towards `features` and renormalises them.
    ///
    /// `row <- normalise(momentum * row + (1 - momentum) * feature)`; where the sum is too short to be
    /// normalised (row and feature are antipodal), the row becomes the feature.
    ///
    /// # Shape
    /// `positions: [batch]` distinct, `features: [batch, dim]` unit rows
    ///
    /// # Panics
    /// If a position occurs twice (the winner would be undefined), or on other shapes.
    ///
    /// # Source
    /// Reference `NCEAverage.py`, which does this inside `backward`; here the loop calls it.
    pub fn update(
        &mut self,
        positions: &[BankRow],
        features: &Tensor,
        momentum: BankMomentum,
        step: u64,
    ) -> UpdateStats {
        self.update_rows(&self.owned().rows_of(positions), features, momentum, step)
    }

    /// As [`MemoryBank::update`], of rows that were found before.
    ///
    /// # Panics
    /// Likewise, and if they are those of another shard.
    pub fn update_rows(
        &mut self,
        batch: &BatchRows,
        features: &Tensor,
        momentum: BankMomentum,
        step: u64,
    ) -> UpdateStats {
        let positions = batch.positions();
        batch.check(&self.owned(), positions);
        assert_eq!(
            features.size(),
            [positions.len() as i64, self.dim() as i64],
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
            let old = self.rows.index_select(0, &row).to_kind(Kind::Float);
            let sum = &old * momentum.get() + &features * (1.0 - momentum.get());
            let length = sum.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
            let moved = &sum / &length;
            let rows = moved.where_self(&length.gt(SHORTEST_SUM), &features);
            let _ = self.rows.index_copy_(0, &row, &rows.to_kind(self.rows.kind()));
            let count = positions.len() as f64;
            UpdateStats {
                row_cosine: (&old * rows).sum(Kind::Double) / count,
                distance: (features - old).square().sum(Kind::Double) / count,
            }
        })
    }

    /// A copy of the rows on the host.
    ///
    /// # Shape
    /// `[owned, dim]` in the type in which the bank keeps them
    pub fn to_host(&self) -> Tensor {
        match self.rows.device() {
            Device::Cpu => self.rows.copy(),
            _ => self.rows.to_device(Device::Cpu),
        }
    }

    /// A copy of the rows on the host, row after row.
    pub fn to_vec(&self) -> Vec<f32> {
        let rows = self.rows.to_device(Device::Cpu).to_kind(Kind::Float);
        Vec::try_from(rows.contiguous().view([-1])).expect("rows of f32 on the host")
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

/// Random unit rows, block by block: an owner's rows do not depend on who has the others.
///
/// # Shape
/// -> `[owned, dim]`
fn random_rows(options: BankOptions, owned: Range<usize>, seed: u64, device: Device) -> Tensor {
    let BankOptions { instances, dim, dtype, init } = options;
    let blocks = Blocks::new(instances, Blocks::FOR_INITIAL_ROWS);
    let all = Tensor::empty([owned.len() as i64, dim as i64], (dtype.kind(), device));
    let needed = blocks.overlapping(owned.clone());
    for first in needed.clone().step_by(BLOCKS_AT_ONCE as usize) {
        let some = first..(first + BLOCKS_AT_ONCE).min(needed.end);
        let values: Vec<f32> = some
            .clone()
            .into_par_iter()
            .flat_map_iter(|block| {
                let range = blocks.range(block);
                let mut stream = Stream::new(seed, Purpose::BankInit, block, 0);
                (range.start..range.end).flat_map(move |_| unit_row(&mut stream, dim, init))
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
    // The reference's bound √(3/dim) is immaterial once a row is normalised.
    let drawn: Vec<f64> = match init {
        BankInit::Normal => (0..dim).map(|_| stream.normal()).collect(),
        BankInit::Uniform | BankInit::Encode => (0..dim).map(|_| stream.range(-1.0, 1.0)).collect(),
    };
    let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
    drawn.into_iter().map(|x| (x / length) as f32).collect()
}

#[cfg(test)]
mod tests;
