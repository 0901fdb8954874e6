//! A step's batch over all ranks: who has which of its images, and what they made of them.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;

use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::ids::{BankRow, BatchIndex};
use crate::loader::{Batch, GlobalBatch};
use crate::run_config::OnCorrupt;

/// Of each flag, whether it is set in any process.
///
/// # Errors
/// If a collective fails.
pub(super) fn any<const N: usize>(
    group: &ProcessGroup,
    here: [bool; N],
) -> Result<[bool; N], DistributedError> {
    let flags = Tensor::from_slice(&here.map(i64::from));
    group.all_reduce(&flags, Reduce::Max)?;
    Ok(std::array::from_fn(|index| flags.int64_value(&[index as i64]) == 1))
}

/// The global batch without the images that a loader left out.
///
/// # Errors
/// If a collective fails.
pub(super) fn present(
    group: &ProcessGroup,
    batch: &Batch,
    on_corrupt: OnCorrupt,
) -> Result<Arc<GlobalBatch>, DistributedError> {
    let global = &batch.global;
    if on_corrupt == OnCorrupt::Fail {
        return Ok(Arc::clone(global));
    }
    let mut here = batch.bank_rows.iter().peekable();
    let is_here = |index: &BatchIndex| u8::from(here.next_if_eq(&&global.bank_rows[index.index()]).is_some());
    let own: Vec<u8> = global.shares[group.rank()].iter().map(is_here).collect();
    let of_ranks = group.gather_bytes(&own)?;
    let mut is_there = vec![false; global.bank_rows.len()];
    for (share, flags) in global.shares.iter().zip(&of_ranks) {
        share.iter().zip(flags).for_each(|(index, &flag)| is_there[index.index()] = flag == 1);
    }
    Ok(Arc::new(global.kept(&is_there)))
}

/// The features of a part of the batch from all ranks, the same at each of them.
#[derive(Debug)]
pub(super) struct Gathered {
    /// `[queries, dim]`, rank after rank, without a graph.
    pub(super) features: Tensor,
    /// `[queries]`
    pub(super) positions: Vec<BankRow>,
    /// `[queries]`: their numbers within the global batch.
    pub(super) numbers: Vec<usize>,
    /// Which of them were made here.
    pub(super) own: Range<usize>,
}

impl Gathered {
    /// Brings together what the ranks made of their images of a part.
    ///
    /// # Shape
    /// `own: [own, dim]`
    ///
    /// # Errors
    /// If a collective fails.
    pub(super) fn gather(
        group: &ProcessGroup,
        global: &GlobalBatch,
        part: usize,
        own: &Tensor,
    ) -> Result<Self, DistributedError> {
        let shares: Vec<&[BatchIndex]> =
            (0..group.world()).map(|rank| global.of_rank(rank, part).1).collect();
        let before: usize = shares[..group.rank()].iter().map(|share| share.len()).sum();
        let own_range = before..before + shares[group.rank()].len();
        let features =
            if group.world() == 1 { own.shallow_clone() } else { gather_rows(group, &shares, own)? };
        let numbers: Vec<usize> = shares.iter().copied().flatten().map(|index| index.index()).collect();
        let positions = numbers.iter().map(|&number| global.bank_rows[number]).collect();
        Ok(Self { features, positions, numbers, own: own_range })
    }
}

/// Rows of ranks with shares of different lengths: each sends as many as the longest has.
fn gather_rows(
    group: &ProcessGroup,
    shares: &[&[BatchIndex]],
    own: &Tensor,
) -> Result<Tensor, DistributedError> {
    let longest = shares.iter().map(|share| share.len()).max().unwrap_or(0);
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
