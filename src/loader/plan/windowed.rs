//! The order of an epoch that reads whole row groups.

use std::ops::Range;

use super::layout::Layout;
use super::order::Permutation;
use crate::ids::{BankRow, even_range};
use crate::rng::{Purpose, Stream};

/// The counter of the stream that permutes row groups; those of the windows come after. 0 is the exact order's.
const GROUPS_COUNTER: u64 = 1;

/// Row groups in some order, cut into windows within which rows are permuted.
///
/// A function of (seed, epoch, layout, window) alone, in memory that grows with the number of row groups, not
/// of rows; any index of the epoch can be asked for at once.
#[derive(Clone, Debug)]
pub(in crate::loader) struct GroupedOrder {
    groups: Vec<u32>,
    /// The epoch index at which each of `groups` begins, and the length of the epoch.
    starts: Vec<u64>,
    windows: Vec<Window>,
}

#[derive(Clone, Debug)]
struct Window {
    /// Indices into `groups`.
    groups: Range<usize>,
    /// How its rows are permuted, if they are.
    permutation: Option<Permutation>,
}

impl GroupedOrder {
    /// Groups permuted, and rows permuted within windows of about `window_rows`. Windows are equal in length
    /// but for a group, so that no short one at the end mixes less.
    pub(in crate::loader) fn shuffled(seed: u64, epoch: u64, layout: &Layout, window_rows: usize) -> Self {
        let mut groups = filled(layout);
        Stream::new(seed, Purpose::EpochOrder, epoch, GROUPS_COUNTER).shuffle(&mut groups);
        let starts = starts(layout, &groups);
        let count = layout.rows().div_ceil(window_rows.max(1)).max(1);
        let mut windows = Vec::with_capacity(count);
        let mut first = 0;
        for window in 0..count {
            let end_index = even_range(layout.rows(), window, count).end as u64;
            let last = window + 1 == count;
            let end = if last { groups.len() } else { starts.partition_point(|&start| start < end_index) };
            if end > first {
                let counter = GROUPS_COUNTER + 1 + windows.len() as u64;
                let mut stream = Stream::new(seed, Purpose::EpochOrder, epoch, counter);
                let permutation = Some(Permutation::draw(&mut stream, starts[end] - starts[first]));
                windows.push(Window { groups: first..end, permutation });
                first = end;
            }
        }
        Self { groups, starts, windows }
    }

    /// Rows in the stored order, group after group.
    pub(in crate::loader) fn stored(layout: &Layout) -> Self {
        let groups = filled(layout);
        let starts = starts(layout, &groups);
        let windows = (0..groups.len()).map(|group| Window { groups: group..group + 1, permutation: None });
        Self { starts, windows: windows.collect(), groups }
    }

    /// The image at an index of the epoch.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(in crate::loader) fn at(&self, layout: &Layout, epoch_index: u64) -> BankRow {
        let window = &self.windows[self.window_at(epoch_index)];
        let (first, last) = (self.starts[window.groups.start], self.starts[window.groups.end]);
        let len = self.starts[self.groups.len()];
        assert!((first..last).contains(&epoch_index), "{epoch_index} is below {len}");
        let in_window = epoch_index - first;
        let drawn = first + window.permutation.as_ref().map_or(in_window, |p| p.at(in_window));
        let group = self.starts.partition_point(|&start| start <= drawn) - 1;
        layout.members(self.groups[group] as usize)[(drawn - self.starts[group]) as usize]
    }

    /// The window of an index of the epoch.
    pub(in crate::loader) fn window_at(&self, epoch_index: u64) -> usize {
        let after = self.windows.partition_point(|window| self.starts[window.groups.start] <= epoch_index);
        after.saturating_sub(1)
    }

    /// The row groups of a window, in the order in which they are fetched.
    pub(in crate::loader) fn groups(&self, window: usize) -> &[u32] {
        &self.groups[self.windows[window].groups.clone()]
    }

    /// The epoch indices of a window.
    pub(in crate::loader) fn epoch_indices(&self, window: usize) -> Range<u64> {
        let groups = &self.windows[window].groups;
        self.starts[groups.start]..self.starts[groups.end]
    }

    /// The number of windows.
    pub(in crate::loader) fn windows(&self) -> usize {
        self.windows.len()
    }

    /// By row group: when it is fetched, counted in row groups; `u64::MAX` for one without rows.
    pub(in crate::loader) fn ranks(&self, layout: &Layout) -> Vec<u64> {
        let mut ranks = vec![u64::MAX; layout.groups()];
        for (rank, &group) in (0..).zip(&self.groups) {
            ranks[group as usize] = rank;
        }
        ranks
    }
}

/// The groups that have rows: a sample may leave some without.
fn filled(layout: &Layout) -> Vec<u32> {
    (0..layout.groups())
        .filter(|&group| !layout.members(group).is_empty())
        .map(|group| group as u32)
        .collect()
}

fn starts(layout: &Layout, groups: &[u32]) -> Vec<u64> {
    let mut next = 0;
    let lens = groups.iter().map(|&group| {
        next += layout.members(group as usize).len() as u64;
        next
    });
    std::iter::once(0).chain(lens).collect()
}
