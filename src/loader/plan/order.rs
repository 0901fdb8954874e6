//! The order of an epoch.

use crate::ids::BankRow;
use crate::rng::{Purpose, Stream, split_mix};

/// Rounds of the Feistel network; four make a pseudo-random permutation, six leave a margin.
const ROUNDS: usize = 6;

/// How the instances of an epoch are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// Uniformly over the whole split; each image is read by itself.
    Exact,
    /// Row groups in a random order, and their rows mixed within windows. Whole row groups are read, which suits a store.
    Windowed {
        /// The rows of a window, about.
        rows: usize,
    },
}

/// A permutation of `0..len`, evaluated and not stored.
///
/// A Feistel network permutes the smallest square of a power of two that holds all numbers. A number that falls outside
/// is permuted again until it is inside.
#[derive(Clone, Debug)]
pub(in crate::loader) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// A permutation drawn from a stream.
    pub(in crate::loader) fn draw(stream: &mut Stream, len: u64) -> Self {
        let bits = u64::BITS - (len.max(2) - 1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2), keys: std::array::from_fn(|_| stream.bits()) }
    }

    /// The number to which an index goes.
    ///
    /// # Panics
    /// If the index is out of range.
    pub(in crate::loader) fn at(&self, index: u64) -> u64 {
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

/// The order of [`Shuffle::Exact`]: a uniform permutation of the bank rows `0..len`, a function of
/// (seed, epoch) alone, in constant memory.
#[derive(Clone, Debug)]
pub struct EpochOrder(Permutation);

impl EpochOrder {
    /// The order of an epoch of `len` instances.
    ///
    /// # Panics
    /// If there are more instances than ids.
    pub fn new(seed: u64, epoch: u64, len: usize) -> Self {
        assert!(u32::try_from(len).is_ok(), "an id has 32 bits");
        let mut stream = Stream::new(seed, Purpose::EpochOrder, epoch, 0);
        Self(Permutation::draw(&mut stream, len as u64))
    }

    /// The image at an index of the epoch.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn at(&self, epoch_index: usize) -> BankRow {
        BankRow(self.0.at(epoch_index as u64) as u32)
    }
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
        // Where instance 0..50 end up at the first bank row, over 50,000 epochs: 1000 each, deviation 31.
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
