//! The memory bank: one unit vector for each picture.
//!
//! Row `i` is the running feature of the picture at `Position(i)`. Rows move only through [`MemoryBank::update`], which
//! the training loop calls; evaluating an objective never writes them, and no autograd graph passes through
//! the bank. The bank knows nothing of files: it turns into a feature table and back.

mod blocks;
mod init;

use tch::{Device, Kind, Tensor, no_grad};

pub use blocks::Blocks;

use crate::ids::Position;
use crate::units::BankMomentum;

/// A sum of old row and new feature shorter than this cannot be normalised.
const SHORTEST_SUM: f64 = 1e-6;

/// One unit vector for each picture.
///
/// Invariants: every row has unit length (within 1e-5); there are as many rows as the split has
/// instances; rows never take part in autograd.
#[derive(Debug)]
pub struct MemoryBank {
    rows: Tensor,
    updated_step: Vec<Option<u64>>,
}

impl MemoryBank {
    /// A bank of random unit rows, a function of the seed alone.
    ///
    /// # Source
    /// Reference `NCEAverage.py`: uniform in ±√(3/dim). There the rows are only approximately of unit length
    /// until their first update; here they are normalised.
    pub fn random(instances: usize, dim: usize, seed: u64, device: Device) -> Self {
        let values = init::uniform_unit_rows(instances, dim, seed);
        let rows = Tensor::from_slice(&values).view([instances as i64, dim as i64]).to_device(device);
        Self { rows, updated_step: vec![None; instances] }
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
    /// `positions: [batch]` -> `[batch, dim]`
    pub fn gather(&self, positions: &[Position]) -> Tensor {
        self.rows.index_select(0, &self.index(positions))
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
    pub fn update(&mut self, positions: &[Position], features: &Tensor, momentum: BankMomentum, step: u64) {
        assert_eq!(
            features.size(),
            [positions.len() as i64, self.dim() as i64],
            "one feature for each position"
        );
        let mut distinct: Vec<_> = positions.to_vec();
        distinct.sort_unstable();
        assert!(distinct.windows(2).all(|pair| pair[0] != pair[1]), "a position occurs twice in the batch");
        no_grad(|| {
            let features = features.detach().to_kind(Kind::Float);
            let old = self.gather(positions);
            let sum = old * momentum.get() + &features * (1.0 - momentum.get());
            let length = sum.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
            let moved = &sum / &length;
            let rows = moved.where_self(&length.gt(SHORTEST_SUM), &features);
            let _ = self.rows.index_copy_(0, &self.index(positions), &rows);
        });
        for position in positions {
            self.updated_step[position.row()] = Some(step);
        }
    }

    /// A copy of the rows on the host, row after row.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows.numel()];
        let count = values.len();
        if count > 0 {
            self.rows.to_device(Device::Cpu).contiguous().copy_data(&mut values, count);
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
