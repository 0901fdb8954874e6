//! A step's images over all ranks.

use std::ops::Range;

use crate::ids::Position;

/// A part of each global batch: what one rank of several loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankShare {
    /// Which part, from 0.
    pub rank: usize,
    /// The number of micro_batches.
    pub ranks: usize,
}

impl RankShare {
    /// All of it.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// How many of so many images it has, as ranks of `0..len`.
    pub fn of(self, len: usize) -> Range<usize> {
        len * self.rank / self.ranks..len * (self.rank + 1) / self.ranks
    }
}

/// A global batch, and who has which of its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalBatch {
    /// Its images in the order of the epoch.
    pub positions: Vec<Position>,
    /// The micro_batches in which it goes through the network, one after the other.
    pub micro_batches: Vec<Range<usize>>,
    /// By rank: its images, as ascending indices into `positions`. Every image has one rank.
    pub shares: Vec<Vec<usize>>,
}

impl GlobalBatch {
    /// A batch of one rank, in one part.
    pub fn whole(positions: Vec<Position>) -> Self {
        let all = 0..positions.len();
        Self { shares: vec![all.clone().collect()], micro_batches: vec![all], positions }
    }

    /// Deals a batch to so many ranks by position, as if images lay in their order.
    pub fn assigned(positions: Vec<Position>, ranks: usize, micro_batches: usize) -> Self {
        let last = positions.iter().map(|position| position.0).max().unwrap_or(0);
        Self::assign(positions, ranks, micro_batches, &(0..=last).collect::<Vec<_>>())
    }

    /// Deals a batch to so many ranks. Of each part a rank gets a run of the images in the order in which they lie
    /// in the shards, by `slots`: in every step and epoch it has images of about the same region of the split,
    /// and reads and caches about that region alone. What all ranks have of a part does not depend on their number.
    pub(in crate::loader) fn assign(
        positions: Vec<Position>,
        ranks: usize,
        micro_batches: usize,
        slots: &[u32],
    ) -> Self {
        let micro_batches = micro_batch_ranges(positions.len(), micro_batches);
        let mut shares = vec![Vec::new(); ranks];
        for part in &micro_batches {
            let mut indices: Vec<usize> = part.clone().collect();
            if ranks > 1 {
                indices.sort_unstable_by_key(|&index| slots[positions[index].row()]);
            }
            for (rank, share) in shares.iter_mut().enumerate() {
                let own = &mut indices[RankShare { rank, ranks }.of(part.len())];
                own.sort_unstable();
                share.extend_from_slice(own);
            }
        }
        Self { positions, micro_batches, shares }
    }

    /// What a rank has of a part: where in its share, and the indices.
    pub fn of_rank(&self, rank: usize, part: usize) -> (Range<usize>, &[usize]) {
        let (share, part) = (&self.shares[rank], &self.micro_batches[part]);
        let before = |edge: usize| share.partition_point(|&index| index < edge);
        let range = before(part.start)..before(part.end);
        (range.clone(), &share[range])
    }

    /// The batch without the images that are not there.
    pub fn kept(&self, is_there: &[bool]) -> Self {
        let count =
            |next: &mut usize, &there: &bool| Some(std::mem::replace(next, *next + usize::from(there)));
        let renumbered: Vec<usize> = is_there.iter().scan(0, count).collect();
        let kept = |share: &Vec<usize>| {
            share.iter().filter(|&&index| is_there[index]).map(|&index| renumbered[index]).collect()
        };
        let positions = self.positions.iter().zip(is_there).filter(|(_, there)| **there);
        let positions: Vec<Position> = positions.map(|(position, _)| *position).collect();
        let micro_batches = micro_batch_ranges(positions.len(), self.micro_batches.len());
        Self { micro_batches, shares: self.shares.iter().map(kept).collect(), positions }
    }
}

/// So many images in as many micro_batches of nearly equal length as asked for, none of one image alone unless there is
/// no other.
pub fn micro_batch_ranges(total: usize, asked: usize) -> Vec<Range<usize>> {
    let count = asked.min(total / 2).max(1);
    (0..count).map(|number| number * total / count..(number + 1) * total / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_nearly_equal_and_hold_two_images_at_least() {
        assert_eq!(micro_batch_ranges(7, 3), [0..2, 2..4, 4..7]);
        assert_eq!(micro_batch_ranges(1, 4), vec![0..1; 1]);
        assert_eq!(micro_batch_ranges(5, 4), [0..2, 2..5]);
    }

    #[test]
    fn every_part_is_dealt_to_all_ranks() {
        let positions = [8, 3, 5, 0, 9, 1, 7, 2].map(Position).to_vec();
        let batch = GlobalBatch::assigned(positions, 2, 2);
        assert_eq!(batch.micro_batches, [0..4, 4..8]);
        assert_eq!(batch.shares, [vec![1, 3, 5, 7], vec![0, 2, 4, 6]]);
        assert_eq!(batch.of_rank(0, 1), (2..4, &[5, 7][..]));
        // Without 3 and 9, there are six, and the micro_batches are halves of these.
        let kept = batch.kept(&[true, false, true, true, false, true, true, true]);
        assert_eq!(kept.positions, [8, 5, 0, 1, 7, 2].map(Position));
        assert_eq!(
            (kept.micro_batches.clone(), kept.shares.clone()),
            (vec![0..3, 3..6], vec![vec![2, 3, 5], vec![0, 1, 4]])
        );
        assert_eq!(kept.of_rank(1, 0), (0..2, &[0, 1][..]));
    }
}
