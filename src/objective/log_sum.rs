//! A sum of exponentials that is built up tile by tile, with the mean row that it weighs.
//!
//! Logits of unit vectors are at most 1/τ. From [`LOWEST_TEMPERATURE`] on their exponentials are summed as they are:
//! five passes over a tile (product, exponential in place, sum, weighted product). Below, the sum is kept relative to a
//! running maximum, so that nothing overflows; where the maximum grows, what was summed shrinks. Sums over disjoint rows
//! merge, so that owners of parts of a bank can each make theirs.
//!
//! # Source
//! Milakov and Gimelshein 2018 (online softmax); the weighted rows as in Rabe and Staats 2021.

use tch::{Kind, Tensor};

use super::candidates::Tile;
use crate::units::Temperature;

/// Below every logit and yet finite: a difference to it is no NaN.
const LOWEST: f64 = -1e30;

/// `exp(1/τ)`, 3e14, times any number of rows is far from f32's limit of 3e38, and `exp(-1/τ)` from its least.
const LOWEST_TEMPERATURE: f64 = 0.03;

/// `sum_i exp(logit_i)` and `sum_i exp(logit_i) row_i` for each query.
#[derive(Debug)]
pub(super) struct LogSum {
    /// `[batch, 1]` f32: the largest logit so far; 0 where it is not needed.
    pub(super) maximum: Tensor,
    /// Whether a maximum is needed.
    pub(super) is_relative: bool,
    /// `[batch]` f64: the sum of `exp(logit - maximum)`.
    pub(super) sum: Tensor,
    /// `[batch, dim]` f32: the rows in that sum.
    pub(super) weighted: Tensor,
}

impl LogSum {
    /// The sums over nothing, for queries with these features.
    pub(super) fn empty(features: &Tensor, temperature: Temperature) -> Self {
        let (batch, device) = (features.size()[0], features.device());
        let is_relative = temperature.get() < LOWEST_TEMPERATURE;
        let lowest = if is_relative { LOWEST } else { 0.0 };
        Self {
            maximum: Tensor::full([batch, 1], lowest, (Kind::Float, device)),
            is_relative,
            sum: Tensor::zeros([batch], (Kind::Double, device)),
            weighted: features.zeros_like(),
        }
    }

    /// Adds a tile; its logits are used up.
    pub(super) fn add(&mut self, mut tile: Tile) {
        if self.is_relative {
            self.rise(&tile.logits.amax([1_i64].as_slice(), true));
            let _ = tile.logits.g_sub_(&self.maximum);
        }
        let _ = tile.logits.exp_();
        self.sum += tile.logits.sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
        self.weighted += tile.weighted(&tile.logits);
    }

    /// Adds the sums over disjoint rows.
    pub(super) fn merge(&mut self, mut other: Self) {
        if self.is_relative {
            self.rise(&other.maximum);
            other.rise(&self.maximum);
        }
        self.sum += &other.sum;
        self.weighted += &other.weighted;
    }

    /// `[batch]` f64: the logarithm of the sum.
    pub(super) fn ln(&self) -> Tensor {
        self.sum.log() + self.maximum.squeeze_dim(1).to_kind(Kind::Double)
    }

    /// `[batch, dim]` f32: the mean row, each weighed by its exponential; zero where there is none.
    pub(super) fn mean_row(&self) -> Tensor {
        &self.weighted / self.sum.clamp_min(f64::from(f32::MIN_POSITIVE)).to_kind(Kind::Float).unsqueeze(1)
    }

    /// Raises the maximum where the other is larger.
    pub(super) fn rise(&mut self, other: &Tensor) {
        let maximum = self.maximum.maximum(other);
        let shrink = (&self.maximum - &maximum).exp();
        self.sum *= shrink.squeeze_dim(1);
        self.weighted *= &shrink;
        self.maximum = maximum;
    }
}
