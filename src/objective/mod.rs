//! Objectives: how a batch of features is judged against the memory bank.
//!
//! An objective returns its loss and the gradient with respect to the features in closed form, computed
//! over tiles of the bank. It holds neither `[batch, instances]` logits nor `[batch, negatives, dim]` rows,
//! and no autograd graph passes through it. Evaluating changes nothing: the partition constant Z is named
//! state, set by one explicit call.

mod nce;
mod negatives;
mod softmax;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use nce::{Nce, NceOptions, Partition};
pub use negatives::Negatives;
pub use softmax::Softmax;

use crate::bank::MemoryBank;
use crate::ids::Position;

/// Bytes of bank rows that an objective gathers at a time.
const TILE_BYTES: usize = 32 << 20;

/// The objectives by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// Noise-contrastive estimation against sampled rows (paper section 3.2; the reference's default).
    Nce,
    /// The exact softmax over all instances (paper equation 2; the reference's `--nce-k 0`).
    Softmax,
}

/// A batch as an objective sees it.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[batch, dim]` unit rows, f32, without a graph.
    pub features: &'a Tensor,
    /// `[batch]`: the bank's row of each.
    pub positions: &'a [Position],
}

/// What an objective says of a batch.
#[derive(Debug)]
pub struct Evaluation {
    /// The mean loss over the batch, in nats.
    pub loss: f64,
    /// Its gradient with respect to the features, `[batch, dim]` f32.
    pub gradient: Tensor,
}

/// An objective with its state.
#[derive(Clone, Debug)]
pub enum Objective {
    /// See [`Nce`].
    Nce(Nce),
    /// See [`Softmax`].
    Softmax(Softmax),
}

impl Objective {
    /// Sets what must be known before the first evaluation: the partition constant of `nce`, from the
    /// first batch. Does nothing where it is set already.
    pub fn prepare(&mut self, queries: Queries<'_>, bank: &MemoryBank, negatives: Option<&Negatives>) {
        if let (Self::Nce(nce), Some(negatives)) = (self, negatives) {
            nce.estimate_partition(queries, bank, negatives);
        }
    }

    /// The loss of the batch and its gradient.
    ///
    /// # Panics
    /// If `nce` gets no negatives or [`Objective::prepare`] was not called before.
    pub fn evaluate(
        &self,
        queries: Queries<'_>,
        bank: &MemoryBank,
        negatives: Option<&Negatives>,
    ) -> Evaluation {
        match self {
            Self::Nce(nce) => nce.evaluate(queries, bank, negatives.expect("nce needs negatives")),
            Self::Softmax(softmax) => softmax.evaluate(queries, bank),
        }
    }

    /// How many negatives each query needs.
    pub fn negatives(&self) -> Option<usize> {
        match self {
            Self::Nce(nce) => Some(nce.options().negatives),
            Self::Softmax(_) => None,
        }
    }

    /// The natural logarithm of the partition constant Z, where the objective has one and it is set.
    pub fn ln_partition(&self) -> Option<f64> {
        match self {
            Self::Nce(nce) => nce.partition().ln_z(),
            Self::Softmax(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
