//! The best candidates of a query so far.

use std::cmp::Ordering;

use crate::ids::InstanceId;

/// A candidate. Ordered as results are: better ones are smaller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbour {
    pub(super) similarity: f32,
    pub(super) id: InstanceId,
    pub(super) row: u32,
}

impl Neighbour {
    fn order(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.id.cmp(&other.id))
    }
}

/// `k / SPARE` candidates may be kept beyond `k` before they are cut: few raise the threshold sooner, many need fewer
/// cuts.
const SPARE: usize = 2;

/// Keeps the best `k` of what is pushed. The order is total, so what is kept does not depend on the order
/// of pushes.
#[derive(Clone, Debug)]
pub(super) struct TopK {
    k: usize,
    kept: Vec<Neighbour>,
    threshold: f32,
}

impl TopK {
    pub(super) fn new(k: usize) -> Self {
        Self { k, kept: Vec::new(), threshold: f32::NEG_INFINITY }
    }

    /// What a candidate must reach: one below it is not among the best.
    pub(super) fn threshold(&self) -> f32 {
        self.threshold
    }

    #[inline]
    pub(super) fn push(&mut self, found: Neighbour) {
        if found.similarity >= self.threshold {
            self.kept.push(found);
            if self.kept.len() > self.k + self.k / SPARE + 1 {
                self.cut();
            }
        }
    }

    /// Keeps the best `k`, and raises the threshold to the last of them.
    pub(super) fn cut(&mut self) {
        if self.kept.len() >= self.k {
            let (_, last, _) = self.kept.select_nth_unstable_by(self.k - 1, Neighbour::order);
            self.threshold = last.similarity;
            self.kept.truncate(self.k);
        }
    }

    /// The best, in order.
    pub(super) fn finish(mut self) -> Vec<Neighbour> {
        self.cut();
        self.kept.sort_unstable_by(Neighbour::order);
        self.kept
    }
}
