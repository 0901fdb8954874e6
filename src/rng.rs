//! Random numbers that depend only on (seed, purpose, and two counters).
//!
//! No generator is shared or passed along. Code that needs numbers derives a [`Stream`] on the spot, so the
//! numbers do not depend on threads, ranks, prefetch or resume. The streams are ChaCha8. The conversions
//! below are our own, so no library update changes a run.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Purpose of a stream of random numbers. The discriminant is part of every stream's key: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Order of a dataset's rows over its shards.
    ShardOrder = 1,
    /// Order of an epoch; counter: epoch.
    EpochOrder = 2,
    /// Augmentation of an image; counters: epoch, instance.
    Augmentation = 3,
    /// Initial rows of the memory bank; counter: block of rows.
    BankInit = 4,
    /// Noise samples of the objective; counters: step, block of rows.
    Negatives = 5,
    /// Initial weights of the encoder; counter: parameter.
    WeightInit = 6,
    /// Synthetic image set; counters: class, image.
    Synth = 7,
    /// Sample of a split for `--limit`; counter: size.
    Sample = 9,
    /// Random numbers of tests; counters: free.
    Test = 8,
    /// Selection of labels for a probe or a fine-tuning; counter: instance.
    LabelSubset = 10,
    /// Order of a probe's rows; counter: epoch.
    ProbeOrder = 11,
    /// Selection of the page's examples; counter: query.
    Examples = 12,
    /// Selection of points for the page's map.
    MapSample = 13,
    /// Start of the map's principal components.
    MapAxes = 14,
    /// Selection of rows for TensorBoard's projector.
    ProjectorSample = 15,
    /// Selection of bank rows for an epoch's statistics; counter: step.
    BankHealth = 16,
    /// Images that test the weights of a checkpoint.
    Soundness = 17,
    /// Images of the step benchmark; counter: batch.
    BenchPixels = 18,
    /// Queries of the objective benchmark.
    BenchQueries = 19,
    /// Vectors of the search benchmark; counters: table, row.
    SyntheticTable = 20,
}

/// Computes the finaliser of SplitMix64: every input bit affects every output bit.
///
/// # Source
/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
pub fn split_mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(SPLIT_MIX[0]);
    bits = (bits ^ (bits >> 27)).wrapping_mul(SPLIT_MIX[1]);
    bits ^ (bits >> 31)
}

/// Factors of [`split_mix`].
pub const SPLIT_MIX: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];

/// Stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// Creates the stream of (seed, purpose, first, second); equal arguments give equal streams in every version.
    pub fn new(seed: u64, purpose: Purpose, first: u64, second: u64) -> Self {
        let mut key = [0; 32];
        for (part, value) in key.chunks_exact_mut(8).zip([seed, purpose as u64, first, second]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Draws 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws a number in `0..bound`, each equally likely (Lemire's method, without bias).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.bits()) * u128::from(bound);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Draws a number in `[0, 1)` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Draws a number in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Returns true with the given probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Draws a normally distributed number with mean 0 and variance 1 (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Shuffles the items into a uniformly random order (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_streams_and_each_part_of_the_key_matters() {
        let first = |seed, purpose, a, b| Stream::new(seed, purpose, a, b).bits();
        let base = first(1, Purpose::EpochOrder, 2, 3);
        assert_eq!(base, first(1, Purpose::EpochOrder, 2, 3));
        for other in [
            first(0, Purpose::EpochOrder, 2, 3),
            first(1, Purpose::Augmentation, 2, 3),
            first(1, Purpose::EpochOrder, 0, 3),
            first(1, Purpose::EpochOrder, 2, 0),
        ] {
            assert_ne!(base, other);
        }
    }

    /// A library must not change the numbers of a run; these were printed by this code.
    #[test]
    fn streams_stay_what_they_are() {
        let mut stream = Stream::new(7, Purpose::Negatives, 11, 13);
        let drawn: Vec<u64> = (0..4).map(|_| stream.below(1_000_000)).collect();
        assert_eq!(drawn, [543_810, 696_752, 933_307, 487_776]);
    }

    #[test]
    fn below_is_uniform() {
        let mut stream = Stream::new(3, Purpose::Test, 0, 0);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        // The standard deviation of a count is 93; allow five.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 465), "{counts:?}");
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut stream = Stream::new(4, Purpose::Test, 0, 0);
        let drawn: Vec<f64> = (0..100_000).map(|_| stream.normal()).collect();
        let mean = drawn.iter().sum::<f64>() / 1e5;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023, "{mean} {variance}");
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        Stream::new(5, Purpose::Test, 0, 0).shuffle(&mut items);
        assert_ne!(items[..10], (0..10).collect::<Vec<u32>>()[..]);
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<u32>>());
    }
}
