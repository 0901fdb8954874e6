//! The order of an epoch: over single rows, or over whole row groups.

use std::ops::Range;

use crate::ids::{BankRow, even_range};
use crate::loader::source::Layout;
use crate::rng::{Purpose, Stream, split_mix};

/// Number of rounds of the Feistel network; four make a pseudo-random permutation, six leave a margin.
const ROUNDS: usize = 6;
/// Counter of the stream that permutes row groups; those of the windows follow. The exact order uses 0.
const GROUPS_COUNTER: u64 = 1;

/// Order in which the instances of an epoch are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// Uniform over the whole split; each image is read alone.
    Exact,
    /// Row groups in a random order, their rows mixed within windows. Suits a store, since whole groups are read.
    Windowed {
        /// Approximate number of rows in a window.
        rows: usize,
    },
}

/// A permutation of `0..len` that is computed rather than stored.
///
/// A Feistel network permutes the smallest range `0..4^k` that contains all numbers. A number that falls outside of
/// `0..len` is permuted again until it is inside.
#[derive(Clone, Debug)]
struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    fn draw(stream: &mut Stream, len: u64) -> Self {
        let bits = u64::BITS - (len.max(2) - 1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2), keys: std::array::from_fn(|_| stream.bits()) }
    }

    /// Returns the number to which an index is mapped.
    ///
    /// # Panics
    /// If the index is out of range.
    fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "{index} is below {}", self.len);
        let mut value = index;
        loop {
            value = self.permute(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn permute(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (split_mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// Order of [`Shuffle::Exact`]: a uniform permutation of the bank rows `0..len`, a function of (seed, epoch) alone, in
/// constant memory.
#[derive(Clone, Debug)]
pub struct EpochOrder(Permutation);

impl EpochOrder {
    /// Makes the order of an epoch of `len` instances.
    ///
    /// # Panics
    /// If there are more instances than ids.
    pub fn new(seed: u64, epoch: u64, len: usize) -> Self {
        assert!(u32::try_from(len).is_ok(), "an id has 32 bits");
        let mut stream = Stream::new(seed, Purpose::EpochOrder, epoch, 0);
        Self(Permutation::draw(&mut stream, len as u64))
    }

    /// Returns the image at an index of the epoch.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn at(&self, epoch_index: usize) -> BankRow {
        BankRow(self.0.at(epoch_index as u64) as u32)
    }
}

/// Order of row groups, cut into windows within which rows are permuted.
///
/// The order is a function of (seed, epoch, layout, window) alone. Its memory grows with the number of row groups, not
/// of rows, and any index of the epoch can be computed directly.
#[derive(Clone, Debug)]
pub(crate) struct GroupedOrder {
    groups: Vec<u32>,
    /// Epoch index at which each of `groups` begins, and the length of the epoch.
    starts: Vec<u64>,
    windows: Vec<Window>,
}

#[derive(Clone, Debug)]
struct Window {
    /// Range of indices into `groups`.
    groups: Range<usize>,
    permutation: Option<Permutation>,
}

impl GroupedOrder {
    /// Permutes the groups, and their rows within windows of about `window_rows`. The lengths of windows differ by at
    /// most a group, so that no short one at the end mixes less.
    pub(crate) fn shuffled(seed: u64, epoch: u64, layout: &Layout, window_rows: usize) -> Self {
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

    /// Makes the stored order, group after group.
    pub(crate) fn stored(layout: &Layout) -> Self {
        let groups = filled(layout);
        let starts = starts(layout, &groups);
        let windows = (0..groups.len()).map(|group| Window { groups: group..group + 1, permutation: None });
        Self { starts, windows: windows.collect(), groups }
    }

    /// Returns the image at an index of the epoch.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(crate) fn at(&self, layout: &Layout, epoch_index: u64) -> BankRow {
        let window = &self.windows[self.window_at(epoch_index)];
        let (first, last) = (self.starts[window.groups.start], self.starts[window.groups.end]);
        let len = self.starts[self.groups.len()];
        assert!((first..last).contains(&epoch_index), "{epoch_index} is below {len}");
        let in_window = epoch_index - first;
        let drawn = first + window.permutation.as_ref().map_or(in_window, |p| p.at(in_window));
        let group = self.starts.partition_point(|&start| start <= drawn) - 1;
        layout.members(self.groups[group] as usize)[(drawn - self.starts[group]) as usize]
    }

    pub(crate) fn window_at(&self, epoch_index: u64) -> usize {
        let after = self.windows.partition_point(|window| self.starts[window.groups.start] <= epoch_index);
        after.saturating_sub(1)
    }

    /// Returns the row groups of a window, in the order of their fetches.
    pub(crate) fn groups(&self, window: usize) -> &[u32] {
        &self.groups[self.windows[window].groups.clone()]
    }

    pub(crate) fn epoch_indices(&self, window: usize) -> Range<u64> {
        let groups = &self.windows[window].groups;
        self.starts[groups.start]..self.starts[groups.end]
    }

    pub(crate) fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Returns, by row group, its rank in the order of fetches; `u64::MAX` for a group without rows.
    pub(crate) fn ranks(&self, layout: &Layout) -> Vec<u64> {
        let mut ranks = vec![u64::MAX; layout.groups()];
        for (rank, &group) in (0..).zip(&self.groups) {
            ranks[group as usize] = rank;
        }
        ranks
    }
}

/// Returns the groups that have rows; a sample may leave some without.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_comes_exactly_once() {
        for len in [1, 2, 3, 4, 5, 17, 256, 1000, 65_537] {
            let order = EpochOrder::new(1, 2, len);
            let mut seen = vec![false; len];
            for bank_row in 0..len {
                assert!(!std::mem::replace(&mut seen[order.at(bank_row).row()], true), "{len}");
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let first = |seed, epoch| {
            let order = EpochOrder::new(seed, epoch, 1000);
            (0..20).map(|bank_row| order.at(bank_row)).collect::<Vec<_>>()
        };
        assert_eq!(first(1, 1), first(1, 1));
        assert_ne!(first(1, 1), first(1, 2));
        assert_ne!(first(1, 1), first(2, 1));
    }

    #[test]
    fn the_order_is_uniform_over_many_epochs() {
        // Instances 0..50 at the first bank row over 50,000 epochs: 1000 times each, deviation 31.
        let mut counts = [0_u32; 50];
        for epoch in 0..50_000 {
            counts[EpochOrder::new(7, epoch, 50).at(0).row()] += 1;
        }
        assert!(counts.iter().all(|&count| count.abs_diff(1000) < 160), "{counts:?}");
    }

    #[test]
    fn neighbours_in_id_are_not_neighbours_in_order() {
        let order = EpochOrder::new(3, 0, 100_000);
        let near = (1..100_000).filter(|&p| order.at(p).0.abs_diff(order.at(p - 1).0) < 10).count();
        // Expected 2 * 9 * n / n = 18, deviation about 4.
        assert!(near < 50, "{near}");
    }
}
