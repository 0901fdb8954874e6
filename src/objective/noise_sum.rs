//! What noise-contrastive estimation adds up over the sampled rows.

use tch::{Kind, Tensor};

use super::candidates::Tile;

/// What is known of the noise.
#[derive(Debug)]
pub(super) struct Noise {
    /// `ln Z + ln(K/n + eps)`, a f64 scalar on the features' device.
    pub(super) offset: Tensor,
    /// `ln(1 + eps n / K)`: what eps adds to the loss of each term beside its part in the offset.
    pub(super) constant: f64,
}

/// `sum_j softplus(u_j)` and `sum_j sigmoid(u_j) row_j` for each query, with `u = logit - offset`.
#[derive(Debug)]
pub(super) struct NoiseSum {
    pub(super) noise: Noise,
    /// `[batch]` f64.
    pub(super) loss: Tensor,
    /// `[batch, dim]` f32.
    pub(super) weighted: Tensor,
}

impl NoiseSum {
    /// The sums over nothing, for queries with these features.
    pub(super) fn empty(features: &Tensor, noise: Noise) -> Self {
        let loss = Tensor::zeros([features.size()[0]], (Kind::Double, features.device()));
        Self { noise, loss, weighted: features.zeros_like() }
    }

    /// Adds a tile.
    pub(super) fn add(&mut self, tile: &Tile) {
        let u = &tile.logits - &self.noise.offset;
        if self.noise.constant > 0.0 {
            let terms =
                tile.logits.gt(f64::NEG_INFINITY).sum_dim_intlist([1_i64].as_slice(), false, Kind::Double);
            self.loss += terms * self.noise.constant;
        }
        self.loss += u.softplus().sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
        self.weighted += tile.weighted(&u.sigmoid());
    }

    /// Adds the sums over disjoint rows.
    pub(super) fn merge(&mut self, other: &Self) {
        self.loss += &other.loss;
        self.weighted += &other.weighted;
    }
}
