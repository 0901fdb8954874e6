//! The order of an epoch that reads whole row groups.

use std::ops::Range;

use super::layout::Layout;
use super::order::Permutation;
use crate::ids::Position;
use crate::rng::{Purpose, Stream};

/// The counter of the stream that permutes row groups; those of the windows come after. 0 is the exact order's.
const GROUPS_COUNTER: u64 = 1;

/// Row groups in some order, cut into windows within which rows are permuted.
///
/// A function of (seed, epoch, layout, window) alone, in memory that grows with the number of row groups, not
/// of rows; any place can be asked for at once.
#[derive(Clone, Debug)]
pub(in crate::loader) struct GroupedOrder {
    groups: Vec<u32>,
    /// The first place of each of `groups`, and the number of places.
    starts: Vec<u64>,
    windows: Vec<Window>,
}

#[derive(Clone, Debug)]
struct Window {
    /// Indices into `groups`.
    groups: Range<usize>,
    /// How its places are permuted, if they are.
    permutation: Option<Permutation>,
}

impl GroupedOrder {
    /// Groups permuted, and rows permuted within windows of about `window_rows`. Windows are equal in length
    /// but for a group, so that no short one at the end mixes less.
    pub(in crate::loader) fn shuffled(seed: u64, epoch: u64, layout: &Layout, window_rows: usize) -> Self {
        let mut groups = filled(layout);
        Stream::new(seed, Purpose::EpochOrder, epoch, GROUPS_COUNTER).shuffle(&mut groups);
        let starts = starts(layout, &groups);
        let rows = layout.rows() as u64;
        let count = rows.div_ceil(window_rows.max(1) as u64).max(1);
        let mut windows = Vec::with_capacity(count as usize);
        let mut first = 0;
        for window in 0..count {
            let end_place = rows * (window + 1) / count;
            let last = window + 1 == count;
            let end = if last { groups.len() } else { starts.partition_point(|&start| start < end_place) };
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

    /// Rows as they lie, group after group.
    pub(in crate::loader) fn stored(layout: &Layout) -> Self {
        let groups = filled(layout);
        let starts = starts(layout, &groups);
        let windows = (0..groups.len()).map(|group| Window { groups: group..group + 1, permutation: None });
        Self { starts, windows: windows.collect(), groups }
    }

    /// Which of the images comes at a place of the epoch.
    ///
    /// # Panics
    /// If there is no such place.
    pub(in crate::loader) fn at(&self, layout: &Layout, place: u64) -> Position {
        let window = &self.windows[self.window_at(place)];
        let (first, last) = (self.starts[window.groups.start], self.starts[window.groups.end]);
        assert!((first..last).contains(&place), "the epoch has {} places", self.starts[self.groups.len()]);
        let drawn = first + window.permutation.as_ref().map_or(place - first, |p| p.at(place - first));
        let group = self.starts.partition_point(|&start| start <= drawn) - 1;
        layout.members(self.groups[group] as usize)[(drawn - self.starts[group]) as usize]
    }

    /// The window of a place.
    pub(in crate::loader) fn window_at(&self, place: u64) -> usize {
        let after = self.windows.partition_point(|window| self.starts[window.groups.start] <= place);
        after.saturating_sub(1)
    }

    /// The row groups of a window, in the order in which they are fetched.
    pub(in crate::loader) fn groups(&self, window: usize) -> &[u32] {
        &self.groups[self.windows[window].groups.clone()]
    }

    /// The places of a window.
    pub(in crate::loader) fn places(&self, window: usize) -> Range<u64> {
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
