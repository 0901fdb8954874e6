//! The plan of all reads: the steps of a run, and the fetches that each step needs.
//!
//! A plan is a function of the options and the layout alone, and therefore knows the future: the fetcher follows it in
//! advance, across the end of an epoch into the next.
//! A step has a [`GlobalBatch`], the images of all ranks; each rank loads its own as a [`Batch`].

pub(super) mod order;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use self::order::{EpochOrder, GroupedOrder, Shuffle};
use super::LoaderOptions;
use super::source::Source;
use crate::ids::{BankRow, BatchIndex, ClassId, InstanceId, RankShare, even_range};

/// Number of rows that one read task fetches one after the other.
const ROWS_OF_A_FETCH: usize = 16;

/// Images that a plan visits, and their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passes {
    /// Epochs, each in its own order.
    Shuffled,
    /// Each image once, in the stored order.
    Stored,
}

/// Portions in which a source is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Portions {
    /// Rows alone.
    Rows,
    /// Whole row groups.
    Groups,
}

/// One step of the plan.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub epoch: u64,
    pub step: u64,
    pub global: Arc<GlobalBatch>,
    /// Images of the global batch that this rank loads, ascending.
    pub own: Vec<BatchIndex>,
    /// Rows that arrive with others, but that no step needs.
    pub discard: Vec<BankRow>,
    /// Number of fetches since the start that must have arrived.
    pub needs: u64,
}

/// A portion to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    Rows(Vec<BankRow>),
    /// A row group, and the time of its next use, counted in row groups from epoch 0 on.
    Group {
        group: usize,
        next_use: u64,
    },
}

#[derive(Clone, Debug)]
enum Order {
    Exact(EpochOrder),
    Grouped(GroupedOrder),
}

/// Iterator over the steps in order, each with the fetches before it.
pub(super) struct Planner {
    source: Arc<dyn Source>,
    options: LoaderOptions,
    passes: Passes,
    portions: Portions,
    order: Order,
    /// By bank row: slot in the order of the shards; empty if there is only one rank.
    slots: Vec<u32>,
    /// By row group: time of its use in the next epoch.
    uses_after: Vec<u64>,
    epoch: u64,
    step: u64,
    /// Next window to fetch.
    window: usize,
    fetches: u64,
}

impl Planner {
    pub(super) fn new(source: Arc<dyn Source>, options: LoaderOptions, passes: Passes) -> Self {
        let epoch = options.epoch;
        let portions = options.portions(source.as_ref(), passes);
        let order = order(source.as_ref(), &options, passes, epoch);
        let slots = if options.share.ranks > 1 { source.layout().slots_by_bank_row() } else { Vec::new() };
        let mut planner = Self {
            source,
            options,
            passes,
            portions,
            order,
            slots,
            uses_after: Vec::new(),
            epoch,
            step: options.first_step,
            window: 0,
            fetches: 0,
        };
        planner.uses_after = planner.uses(epoch + 1);
        if let Order::Grouped(order) = &planner.order {
            planner.window = order.window_at(planner.first_epoch_index());
        }
        planner
    }

    /// Returns the time at which each row group is first needed.
    pub(super) fn first_uses(&self) -> Vec<u64> {
        let Order::Grouped(order) = &self.order else { return Vec::new() };
        let first: u64 = (0..self.window).map(|window| order.groups(window).len() as u64).sum();
        let ranks = order.ranks(self.source.layout());
        let base = self.epoch * ranks.len() as u64;
        let use_of = |(rank, after): (u64, &u64)| {
            if rank >= first && rank != u64::MAX { base + rank } else { *after }
        };
        ranks.into_iter().zip(&self.uses_after).map(use_of).collect()
    }

    /// Returns the bytes of the largest window, if whole row groups are read.
    pub(super) fn largest_window(source: &dyn Source, options: &LoaderOptions, passes: Passes) -> u64 {
        let layout = source.layout();
        let bytes = |order: &GroupedOrder| {
            let of = |window| order.groups(window).iter().map(|&group| layout.bytes(group as usize)).sum();
            (0..order.windows()).map(of).max().unwrap_or(0)
        };
        let last = options.end_epoch().min(options.epoch.saturating_add(1));
        let largest = (options.epoch..=last).map(|epoch| match order(source, options, passes, epoch) {
            Order::Grouped(order) => bytes(&order),
            Order::Exact(_) => 0,
        });
        largest.max().unwrap_or(0)
    }

    fn uses(&self, epoch: u64) -> Vec<u64> {
        let layout = self.source.layout();
        let groups = layout.groups() as u64;
        if epoch < self.options.end_epoch()
            && self.portions == Portions::Groups
            && let Order::Grouped(order) = self.order_of(epoch)
        {
            let ranks = order.ranks(layout).into_iter();
            return ranks.map(|rank| rank.saturating_add(epoch * groups)).collect();
        }
        vec![u64::MAX; layout.groups()]
    }

    fn order_of(&self, epoch: u64) -> Order {
        order(self.source.as_ref(), &self.options, self.passes, epoch)
    }

    fn first_epoch_index(&self) -> u64 {
        self.step.saturating_mul(self.options.batch_size as u64).min(self.source.len() as u64)
    }

    fn at(&self, epoch_index: u64) -> BankRow {
        match &self.order {
            Order::Exact(order) => order.at(epoch_index as usize),
            Order::Grouped(order) => order.at(self.source.layout(), epoch_index),
        }
    }

    fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.step = 0;
        self.window = 0;
        self.order = self.order_of(self.epoch);
        self.uses_after = self.uses(self.epoch + 1);
    }

    /// Returns the fetches for the epoch up to index `end`, and the rows among them that belong to no step.
    fn fetch_groups(&mut self, start: u64, end: u64, is_last: bool) -> (Vec<Fetch>, Vec<BankRow>) {
        let Order::Grouped(order) = &self.order else { return (Vec::new(), Vec::new()) };
        let last = order.window_at(end - 1);
        let mut discard = 0..0;
        if self.fetches == 0 {
            discard = order.epoch_indices(self.window).start..start;
        }
        let fetch = |group: u32| {
            let group = group as usize;
            Fetch::Group { group, next_use: self.uses_after[group] }
        };
        let fetches = (self.window..=last).flat_map(|window| self.own_groups(order, window)).map(fetch);
        let fetches = fetches.collect();
        let unused = if is_last { end..order.epoch_indices(last).end } else { 0..0 };
        let discard = discard.chain(unused).map(|epoch_index| self.at(epoch_index)).collect();
        self.window = last + 1;
        (fetches, discard)
    }

    /// Returns the row groups of a window that contain images of this rank.
    fn own_groups(&self, order: &GroupedOrder, window: usize) -> Vec<u32> {
        if self.options.share.ranks == 1 {
            return order.groups(window).to_vec();
        }
        let (epoch_indices, batch) = (order.epoch_indices(window), self.options.batch_size as u64);
        let mut needed = HashSet::new();
        for step in epoch_indices.start / batch..epoch_indices.end.div_ceil(batch) {
            let first = step * batch;
            let global = self.global(first..(first + batch).min(self.source.len() as u64));
            let own = global.shares[self.options.share.rank].iter().map(|index| first + index.index() as u64);
            let layout = self.source.layout();
            let own = own.filter(|epoch_index| epoch_indices.contains(epoch_index));
            needed
                .extend(own.map(|epoch_index| layout.group_of_slot(self.slots[self.at(epoch_index).row()])));
        }
        order.groups(window).iter().copied().filter(|group| needed.contains(group)).collect()
    }

    fn global(&self, epoch_indices: Range<u64>) -> GlobalBatch {
        let bank_rows = epoch_indices.map(|epoch_index| self.at(epoch_index)).collect();
        GlobalBatch::assign(bank_rows, self.options.share.ranks, self.options.micro_batches, &self.slots)
    }
}

impl Iterator for Planner {
    type Item = (Vec<Fetch>, Step);

    fn next(&mut self) -> Option<Self::Item> {
        let (rows, batch) = (self.source.len() as u64, self.options.batch_size as u64);
        loop {
            if self.epoch >= self.options.end_epoch() {
                return None;
            }
            let start = self.first_epoch_index();
            let end = (start + batch).min(rows);
            if start == end || (self.options.drop_last && end - start < batch) {
                self.begin_epoch();
                continue;
            }
            let is_last = end == rows || (self.options.drop_last && end + batch > rows);
            let global = self.global(start..end);
            let own = global.shares[self.options.share.rank].clone();
            let (fetches, discard) = match self.portions {
                Portions::Groups => self.fetch_groups(start, end, is_last),
                Portions::Rows => {
                    let row = |index: &BatchIndex| global.bank_rows[index.index()];
                    let chunks = own.chunks(ROWS_OF_A_FETCH);
                    let fetch = |chunk: &[BatchIndex]| Fetch::Rows(chunk.iter().map(row).collect());
                    (chunks.map(fetch).collect(), Vec::new())
                }
            };
            self.fetches += fetches.len() as u64;
            let (epoch, step, needs, global) = (self.epoch, self.step, self.fetches, Arc::new(global));
            let step = Step { epoch, step, global, own, discard, needs };
            self.step += 1;
            return Some((fetches, step));
        }
    }
}

fn order(source: &dyn Source, options: &LoaderOptions, passes: Passes, epoch: u64) -> Order {
    match (passes, options.shuffle) {
        (Passes::Stored, _) => Order::Grouped(GroupedOrder::stored(source.layout())),
        (Passes::Shuffled, Shuffle::Exact) => {
            Order::Exact(EpochOrder::new(options.seed, epoch, source.len()))
        }
        (Passes::Shuffled, Shuffle::Windowed { rows }) => {
            Order::Grouped(GroupedOrder::shuffled(options.seed, epoch, source.layout(), rows))
        }
    }
}

/// A global batch, and the assignment of its images to ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalBatch {
    /// Images in the order of the epoch.
    pub bank_rows: Vec<BankRow>,
    /// Micro-batches that pass the network one after the other, as ranges of `bank_rows`.
    pub micro_batches: Vec<Range<usize>>,
    /// By rank: its images, as ascending indices into `bank_rows`. Every image belongs to one rank.
    pub shares: Vec<Vec<BatchIndex>>,
}

impl GlobalBatch {
    /// Assigns a batch to ranks by bank row, as if images were stored in that order.
    pub fn assigned(bank_rows: Vec<BankRow>, ranks: usize, micro_batches: usize) -> Self {
        let last = bank_rows.iter().map(|bank_row| bank_row.0).max().unwrap_or(0);
        Self::assign(bank_rows, ranks, micro_batches, &(0..=last).collect::<Vec<_>>())
    }

    /// Assigns a batch to ranks. Of each micro-batch, a rank gets a run of the images in their order in the shards,
    /// given by `slots`: so it reads and caches about the same region of the split in every step and epoch. The images
    /// of a micro-batch over all ranks do not depend on the number of ranks.
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

    /// Returns a rank's images of a micro-batch: the range within the rank's share, and the batch indices in it.
    pub fn of_rank(&self, rank: usize, micro_batch: usize) -> (Range<usize>, &[BatchIndex]) {
        let (share, part) = (&self.shares[rank], &self.micro_batches[micro_batch]);
        let before = |edge: usize| share.partition_point(|index| index.index() < edge);
        let range = before(part.start)..before(part.end);
        (range.clone(), &share[range])
    }

    /// Returns the batch without its missing images.
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

/// Images of one step for one rank, ready for the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Step within the epoch, from 0.
    pub step_in_epoch: u64,
    /// Global batch, of which this batch has the images of its rank.
    pub global: Arc<GlobalBatch>,
    /// `[batch]`: instances.
    pub ids: Vec<InstanceId>,
    /// `[batch]`: bank rows in the source.
    pub bank_rows: Vec<BankRow>,
    /// `[batch]`: labels.
    pub labels: Vec<Option<ClassId>>,
    /// `[batch, 3, side, side]`: pixels, row after row.
    pub pixels: Vec<u8>,
}

/// Cuts `total` images into `asked` micro-batches of nearly equal length, or fewer, so that each has at least two
/// images, unless there is only one.
fn micro_batch_ranges(total: usize, asked: usize) -> Vec<Range<usize>> {
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
        // Without 3 and 9 six images are left, and the micro-batches are halves of these.
        let kept = batch.kept(&[true, false, true, true, false, true, true, true]);
        assert_eq!(kept.bank_rows, [8, 5, 0, 1, 7, 2].map(BankRow));
        assert_eq!(kept.micro_batches, [0..3, 3..6]);
        assert_eq!(kept.shares, [[2, 3, 5], [0, 1, 4]].map(|share| share.map(BatchIndex).to_vec()));
        assert_eq!(kept.of_rank(1, 0), (0..2, &[0, 1].map(BatchIndex)[..]));
    }
}
