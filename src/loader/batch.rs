//! A step's images: those of all ranks, and the batch that one of them loads.

use std::ops::Range;
use std::sync::Arc;

use crate::ids::{BankRow, BatchIndex, ClassId, InstanceId, RankShare, even_range};

/// A global batch, and which rank has which of its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalBatch {
    /// Its images in the order of the epoch.
    pub bank_rows: Vec<BankRow>,
    /// The micro-batches in which it passes the network, one after the other.
    pub micro_batches: Vec<Range<usize>>,
    /// By rank: its images, as ascending indices into `bank_rows`. Every image has one rank.
    pub shares: Vec<Vec<BatchIndex>>,
}

impl GlobalBatch {
    /// A batch of one rank and one micro-batch.
    pub fn whole(bank_rows: Vec<BankRow>) -> Self {
        let all = 0..bank_rows.len();
        Self { shares: vec![all.clone().map(batch_index).collect()], micro_batches: vec![all], bank_rows }
    }

    /// Assigns a batch to ranks by bank row, as if images were stored in that order.
    pub fn assigned(bank_rows: Vec<BankRow>, ranks: usize, micro_batches: usize) -> Self {
        let last = bank_rows.iter().map(|bank_row| bank_row.0).max().unwrap_or(0);
        Self::assign(bank_rows, ranks, micro_batches, &(0..=last).collect::<Vec<_>>())
    }

    /// Assigns a batch to ranks. Of each micro-batch a rank gets a run of the images in their order in the shards, by
    /// `slots`: so in every step and epoch it reads and caches about the same region of the split. What all ranks have of
    /// a micro-batch does not depend on their number.
    pub(super) fn assign(bank_rows: Vec<BankRow>, ranks: usize, micro_batches: usize, slots: &[u32]) -> Self {
        let micro_batches = micro_batch_ranges(bank_rows.len(), micro_batches);
        let mut shares = vec![Vec::new(); ranks];
        for micro_batch in &micro_batches {
            let mut indices: Vec<BatchIndex> = micro_batch.clone().map(batch_index).collect();
            if ranks > 1 {
                indices.sort_unstable_by_key(|index| slots[bank_rows[index.index()].row()]);
            }
            for (rank, share) in shares.iter_mut().enumerate() {
                let own = &mut indices[RankShare { rank, ranks }.of(micro_batch.len())];
                own.sort_unstable();
                share.extend_from_slice(own);
            }
        }
        Self { bank_rows, micro_batches, shares }
    }

    /// What a rank has of a micro-batch: the range of its share, and the indices there.
    pub fn of_rank(&self, rank: usize, micro_batch: usize) -> (Range<usize>, &[BatchIndex]) {
        let (share, part) = (&self.shares[rank], &self.micro_batches[micro_batch]);
        let before = |edge: usize| share.partition_point(|index| index.index() < edge);
        let range = before(part.start)..before(part.end);
        (range.clone(), &share[range])
    }

    /// The batch without its missing images.
    pub fn kept(&self, is_there: &[bool]) -> Self {
        let count =
            |next: &mut usize, &there: &bool| Some(std::mem::replace(next, *next + usize::from(there)));
        let renumbered: Vec<usize> = is_there.iter().scan(0, count).collect();
        let kept = |share: &Vec<BatchIndex>| {
            let there = share.iter().filter(|index| is_there[index.index()]);
            there.map(|index| batch_index(renumbered[index.index()])).collect()
        };
        let bank_rows = self.bank_rows.iter().zip(is_there).filter(|(_, there)| **there);
        let bank_rows: Vec<BankRow> = bank_rows.map(|(bank_row, _)| *bank_row).collect();
        let micro_batches = micro_batch_ranges(bank_rows.len(), self.micro_batches.len());
        Self { micro_batches, shares: self.shares.iter().map(kept).collect(), bank_rows }
    }
}

/// Images of one step, ready for the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The step within the epoch, from 0.
    pub step_in_epoch: u64,
    /// The global batch, of which this one has the images of its rank.
    pub global: Arc<GlobalBatch>,
    /// `[batch]`: the instances.
    pub ids: Vec<InstanceId>,
    /// `[batch]`: their bank rows in the source.
    pub bank_rows: Vec<BankRow>,
    /// `[batch]`: their labels.
    pub labels: Vec<Option<ClassId>>,
    /// `[batch, 3, side, side]`, row after row.
    pub pixels: Vec<u8>,
}

/// Cuts `total` images into as many micro-batches of nearly equal length as asked for; each has two images at least,
/// unless there is but one.
pub fn micro_batch_ranges(total: usize, asked: usize) -> Vec<Range<usize>> {
    let count = asked.min(total / 2).max(1);
    (0..count).map(|number| even_range(total, number, count)).collect()
}

fn batch_index(index: usize) -> BatchIndex {
    BatchIndex(index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_nearly_equal_and_hold_two_images_at_least() {
        assert_eq!(micro_batch_ranges(7, 3), [0..2, 2..4, 4..7]);
        assert_eq!(micro_batch_ranges(1, 4), vec![0..1; 1]);
        assert_eq!(micro_batch_ranges(5, 4), [0..2, 2..5]);
    }

    #[test]
    fn every_micro_batch_is_assigned_to_all_ranks() {
        let bank_rows = [8, 3, 5, 0, 9, 1, 7, 2].map(BankRow).to_vec();
        let batch = GlobalBatch::assigned(bank_rows, 2, 2);
        assert_eq!(batch.micro_batches, [0..4, 4..8]);
        assert_eq!(batch.shares, [[1, 3, 5, 7], [0, 2, 4, 6]].map(|share| share.map(BatchIndex).to_vec()));
        assert_eq!(batch.of_rank(0, 1), (2..4, &[5, 7].map(BatchIndex)[..]));
        // Without 3 and 9, there are six, and the micro-batches are halves of these.
        let kept = batch.kept(&[true, false, true, true, false, true, true, true]);
        assert_eq!(kept.bank_rows, [8, 5, 0, 1, 7, 2].map(BankRow));
        assert_eq!(kept.micro_batches, [0..3, 3..6]);
        assert_eq!(kept.shares, [[2, 3, 5], [0, 1, 4]].map(|share| share.map(BatchIndex).to_vec()));
        assert_eq!(kept.of_rank(1, 0), (0..2, &[0, 1].map(BatchIndex)[..]));
    }
}
