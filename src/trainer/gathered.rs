//! A step's batch over all ranks: who has which of its pictures, and what they made of them.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;

use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::ids::Position;
use crate::loader::{Batch, GlobalBatch, OnCorrupt};

/// Whether it is so in any process.
///
/// # Errors
/// If a collective fails.
pub(super) fn any(group: &ProcessGroup, here: bool) -> Result<bool, DistributedError> {
    if group.world() == 1 {
        return Ok(here);
    }
    let flag = Tensor::from_slice(&[i64::from(here)]);
    group.all_reduce(&flag, Reduce::Max)?;
    Ok(flag.int64_value(&[0]) == 1)
}

/// The global batch without the pictures that a loader left out.
///
/// # Errors
/// If a collective fails.
pub(super) fn present(
    group: &ProcessGroup,
    batch: &Batch,
    on_corrupt: OnCorrupt,
) -> Result<Arc<GlobalBatch>, DistributedError> {
    if group.world() == 1 {
        let all = batch.positions.len() == batch.global.positions.len();
        let kept = || Arc::new(GlobalBatch::whole(batch.positions.clone()));
        return Ok(if all { Arc::clone(&batch.global) } else { kept() });
    }
    if on_corrupt == OnCorrupt::Fail {
        return Ok(Arc::clone(&batch.global));
    }
    let global = &batch.global;
    let mut here = batch.positions.iter().peekable();
    let is_here = |&index: &usize| u8::from(here.next_if_eq(&&global.positions[index]).is_some());
    let own: Vec<u8> = global.shares[group.rank()].iter().map(is_here).collect();
    let of_ranks = group.gather_bytes(&own)?;
    let mut is_there = vec![false; global.positions.len()];
    for (share, flags) in global.shares.iter().zip(&of_ranks) {
        share.iter().zip(flags).for_each(|(&index, &flag)| is_there[index] = flag == 1);
    }
    // By index: its index among those that are there.
    let count = |next: &mut usize, &there: &bool| Some(std::mem::replace(next, *next + usize::from(there)));
    let renumbered: Vec<usize> = is_there.iter().scan(0, count).collect();
    let kept = |share: &Vec<usize>| {
        share.iter().filter(|&&index| is_there[index]).map(|&index| renumbered[index]).collect()
    };
    let positions = global.positions.iter().zip(&is_there).filter(|(_, there)| **there);
    Ok(Arc::new(GlobalBatch {
        positions: positions.map(|(position, _)| *position).collect(),
        shares: global.shares.iter().map(kept).collect(),
    }))
}

/// In how many parts each rank's pictures go through the network: as many as asked for, but none with fewer than
/// two pictures, unless there are no more.
pub(super) fn part_count(global: &GlobalBatch, asked: usize) -> usize {
    let fewest = global.shares.iter().map(Vec::len).min().unwrap_or(0);
    asked.min(fewest / 2).max(1)
}

/// One of so many parts of nearly equal length.
pub(super) fn part(total: usize, count: usize, number: usize) -> Range<usize> {
    number * total / count..(number + 1) * total / count
}

/// The parts of the pictures of one process.
pub(super) fn parts(total: usize, asked: usize) -> impl Iterator<Item = Range<usize>> {
    let count = asked.min(total / 2).max(1);
    (0..count).map(move |number| part(total, count, number))
}

/// The features of a part of the batch from all ranks, the same at each of them.
#[derive(Debug)]
pub(super) struct Gathered {
    /// `[queries, dim]`, rank after rank, without a graph.
    pub(super) features: Tensor,
    /// `[queries]`
    pub(super) positions: Vec<Position>,
    /// `[queries]`: their numbers within the global batch.
    pub(super) numbers: Vec<usize>,
    /// Which of them were made here.
    pub(super) own: Range<usize>,
}

impl Gathered {
    /// Brings together what the ranks made of their share of a part, number `number` of `count`.
    ///
    /// # Shape
    /// `own: [own, dim]`
    ///
    /// # Errors
    /// If a collective fails.
    pub(super) fn gather(
        group: &ProcessGroup,
        global: &GlobalBatch,
        (number, count): (usize, usize),
        own: &Tensor,
    ) -> Result<Self, DistributedError> {
        let share = |share: &'_ Vec<usize>| share[part(share.len(), count, number)].to_vec();
        let shares: Vec<Vec<usize>> = global.shares.iter().map(share).collect();
        let before: usize = shares[..group.rank()].iter().map(Vec::len).sum();
        let own_range = before..before + shares[group.rank()].len();
        let features =
            if group.world() == 1 { own.shallow_clone() } else { gather_rows(group, &shares, own)? };
        let numbers: Vec<usize> = shares.into_iter().flatten().collect();
        let positions = numbers.iter().map(|&number| global.positions[number]).collect();
        Ok(Self { features, positions, numbers, own: own_range })
    }
}

/// Rows of ranks with shares of different lengths: each sends as many as the longest has.
fn gather_rows(
    group: &ProcessGroup,
    shares: &[Vec<usize>],
    own: &Tensor,
) -> Result<Tensor, DistributedError> {
    let longest = shares.iter().map(Vec::len).max().unwrap_or(0);
    let missing = longest as i64 - own.size()[0];
    let padded = if missing == 0 {
        own.contiguous()
    } else {
        let nothing = Tensor::zeros([missing, own.size()[1]], (own.kind(), own.device()));
        Tensor::cat(&[own, &nothing], 0)
    };
    let all = group.all_gather(&padded)?;
    if shares.iter().all(|share| share.len() == longest) {
        return Ok(all);
    }
    let rows = shares
        .iter()
        .enumerate()
        .flat_map(|(rank, share)| (0..share.len()).map(move |row| (rank * longest + row) as i64));
    Ok(all.index_select(0, &Tensor::from_slice(&rows.collect::<Vec<_>>()).to_device(own.device())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_nearly_equal_and_hold_two_pictures_at_least() {
        let parts = |shares: &[usize], asked| {
            let shares = shares.iter().map(|&len| (0..len).collect()).collect();
            let count = part_count(&GlobalBatch { positions: Vec::new(), shares }, asked);
            (0..count).map(|number| part(7, count, number)).collect::<Vec<_>>()
        };
        assert_eq!(parts(&[7], 3), [0..2, 2..4, 4..7]);
        assert_eq!(parts(&[7, 4], 3), [0..3, 3..7]);
        assert_eq!(parts(&[7, 1], 4), vec![0..7; 1]);
        assert_eq!(parts(&[7, 0], 4), vec![0..7; 1]);
    }
}
