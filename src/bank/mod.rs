//! The memory bank: one unit vector for each picture.
//!
//! Row `i` is the running feature of the picture at `Position(i)`. Rows move only through [`MemoryBank::update`], which
//! the training loop calls; evaluating an objective never writes them, and no autograd graph passes through
//! the bank. The bank knows nothing of files: it turns into a feature table and back.

mod blocks;
mod init;
mod options;
mod part;

use tch::{Device, Kind, Tensor, no_grad};

pub use blocks::Blocks;
pub use options::{BankDtype, BankInit, BankOptions};
pub use part::BankPart;

use self::init::Drawing;
use crate::ids::Position;
use crate::units::BankMomentum;

/// A sum of old row and new feature shorter than this cannot be normalised.
const SHORTEST_SUM: f64 = 1e-6;

/// One unit vector for each picture.
///
/// Invariants: every row has unit length (within 1e-5, or what its type can hold); there are as many rows as the split has
/// instances; rows never take part in autograd.
#[derive(Debug)]
pub struct MemoryBank {
    rows: Tensor,
    updated_step: Vec<Option<u64>>,
}

/// What an update saw, as f64 scalars on the bank's device.
#[derive(Debug)]
pub struct Moved {
    /// The mean cosine of a row before and after.
    pub row_cosine: Tensor,
    /// The mean squared distance of a feature to its row before.
    pub distance: Tensor,
}

impl MemoryBank {
    /// A bank before its first step, a function of the seed alone.
    ///
    /// # Source
    /// Reference `NCEAverage.py`: uniform in ±√(3/dim). There the rows are only approximately of unit length
    /// until their first update; here they are normalised.
    pub fn initial(options: BankOptions, seed: u64, device: Device) -> Self {
        let BankOptions { instances, dim, dtype, init } = options;
        let rows = init::random_rows(instances, dim, dtype.kind(), Drawing { init, seed }, device);
        Self { rows, updated_step: vec![None; instances] }
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
        assert_eq!(rows.len(), updated_step.len() * dim, "one row of {dim} for each instance");
        let rows = Tensor::from_slice(rows).view([updated_step.len() as i64, dim as i64]).to_device(device);
        Self { rows, updated_step }
    }

    /// The same rows, kept in another type.
    #[must_use]
    pub fn with_dtype(self, dtype: BankDtype) -> Self {
        Self { rows: self.rows.to_kind(dtype.kind()), ..self }
    }

    /// Writes the first rows of some positions, as if no step had written them.
    ///
    /// # Shape
    /// `positions: [batch]`, `rows: [batch, dim]` unit rows
    pub fn set_initial(&mut self, positions: &[Position], rows: &Tensor) {
        let rows = rows.to_kind(self.rows.kind());
        let _ = no_grad(|| self.rows.index_copy_(0, &self.index(positions), &rows));
    }

    /// All rows as one part.
    pub fn whole(&self) -> BankPart {
        BankPart::new(self.rows.shallow_clone(), 0, self.len())
    }

    /// The rows in so many parts of nearly equal length, as several owners would have them.
    pub fn parts(&self, count: usize) -> Vec<BankPart> {
        let blocks = Blocks::new(self.len(), count as u64);
        let part = |block| {
            let range = blocks.range(block);
            let rows = self.rows.narrow(0, range.start as i64, (range.end - range.start) as i64);
            BankPart::new(rows, range.start as usize, self.len())
        };
        (0..blocks.count()).map(part).collect()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.updated_step.len()
    }

    /// Whether the bank has no rows.
    pub fn is_empty(&self) -> bool {
        self.updated_step.is_empty()
    }

    /// The length of a row.
    pub fn dim(&self) -> usize {
        self.rows.size()[1] as usize
    }

    /// All rows, `[instances, dim]`, without a graph.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The step that last wrote each row; `None` where it is still the initial one.
    pub fn updated_step(&self) -> &[Option<u64>] {
        &self.updated_step
    }

    /// The rows of `positions`.
    ///
    /// # Shape
    /// `positions: [batch]` -> `[batch, dim]` f32
    pub fn gather(&self, positions: &[Position]) -> Tensor {
        self.rows.index_select(0, &self.index(positions)).to_kind(Kind::Float)
    }

    /// Moves the rows of `positions` towards `features` and renormalises them.
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
        positions: &[Position],
        features: &Tensor,
        momentum: BankMomentum,
        step: u64,
    ) -> Moved {
        assert_eq!(
            features.size(),
            [positions.len() as i64, self.dim() as i64],
            "one feature for each position"
        );
        let mut distinct: Vec<_> = positions.to_vec();
        distinct.sort_unstable();
        assert!(distinct.windows(2).all(|pair| pair[0] != pair[1]), "a position occurs twice in the batch");
        for position in positions {
            self.updated_step[position.row()] = Some(step);
        }
        no_grad(|| {
            let features = features.detach().to_kind(Kind::Float);
            let old = self.gather(positions);
            let sum = &old * momentum.get() + &features * (1.0 - momentum.get());
            let length = sum.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
            let moved = &sum / &length;
            let rows = moved.where_self(&length.gt(SHORTEST_SUM), &features);
            let _ = self.rows.index_copy_(0, &self.index(positions), &rows.to_kind(self.rows.kind()));
            let count = positions.len() as f64;
            Moved {
                row_cosine: (&old * rows).sum(Kind::Double) / count,
                distance: (features - old).square().sum(Kind::Double) / count,
            }
        })
    }

    /// A copy of the rows on the host, row after row.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows.numel()];
        let count = values.len();
        if count > 0 {
            self.rows.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().copy_data(&mut values, count);
        }
        values
    }

    fn index(&self, positions: &[Position]) -> Tensor {
        let positions: Vec<i64> = positions.iter().map(|position| position.to_index()).collect();
        Tensor::from_slice(&positions).to_device(self.rows.device())
    }
}

#[cfg(test)]
mod tests;
