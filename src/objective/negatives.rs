//! Noise samples of a step.
//!
//! A draw is a hash of (seed, step, block of rows, query, number). No draw depends on another, so any tile is
//! computed when needed, on the device that needs it; `[batch, K]` indices are never held.

use std::cell::OnceCell;
use std::ops::Range;

use rayon::prelude::*;
use tch::{Device, Tensor};

use crate::bank::{BankShard, Blocks};
use crate::rng::{Purpose, SPLIT_MIX, Stream, split_mix};
use crate::run_config::{Sampling, TrainConfig};

/// Increment of SplitMix64, 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Bank rows drawn as noise.
#[derive(Debug)]
pub struct Negatives {
    source: Source,
    /// Inputs of the draws on the device, which a step's tiles share; set on first use.
    uploaded: OnceCell<Uploaded>,
}

/// Inputs of the draws by column, `[1, K]` int64: hash input of query 0, and the block's first row and length.
#[derive(Debug)]
struct Uploaded {
    state: Tensor,
    first: Tensor,
    len: Tensor,
    /// `[queries, 1]` int64: batch indices of the queries.
    queries: Tensor,
}

#[derive(Debug)]
enum Source {
    /// `[batch, negatives]`, or `[1, negatives]` if all queries share them.
    Given(Tensor),
    Drawn(Drawn),
}

#[derive(Debug)]
struct Drawn {
    /// Random key of each block.
    keys: Vec<u64>,
    blocks: Blocks,
    per_block: usize,
    /// Batch indices of the queries; only 0 if all share.
    queries: Vec<usize>,
    shared: bool,
}

impl Negatives {
    /// Draws negatives for some queries of step `step`, given by their batch indices: uniform and with replacement; a
    /// query's own row is not left out. The draws depend on the configuration's seed, K and `negative_sampling`.
    ///
    /// The draws are spread evenly over blocks of rows, so that an owner of some blocks makes its own draws
    /// alone. Each row's probability is exact within one part in [`Blocks::FEWEST_ROWS_FOR_NEGATIVES`], as
    /// blocks may differ by a row.
    ///
    /// # Source
    /// Reference `alias_multinomial.py` with uniform weights; the spreading over blocks is ours. SplitMix64:
    /// Steele, Lea and Flood 2014.
    pub fn draw(
        config: &TrainConfig,
        step: u64,
        queries: impl IntoIterator<Item = usize>,
        instances: usize,
    ) -> Self {
        let &TrainConfig { seed, negatives: count, negative_sampling: sampling, .. } = config;
        let blocks = Blocks::for_negatives(instances, count);
        let key = |block| Stream::new(seed, Purpose::Negatives, step, block).bits();
        Self::new(Source::Drawn(Drawn {
            keys: (0..blocks.count()).map(key).collect(),
            blocks,
            per_block: count / blocks.count() as usize,
            queries: if sampling == Sampling::Shared { vec![0] } else { queries.into_iter().collect() },
            shared: sampling == Sampling::Shared,
        }))
    }

    /// Creates negatives from given bank rows.
    ///
    /// # Shape
    /// `[batch, negatives]` int64, or `[negatives]` if all queries share them
    pub fn given(rows: Tensor) -> Self {
        Self::new(Source::Given(if rows.dim() == 1 { rows.unsqueeze(0) } else { rows }))
    }

    fn new(source: Source) -> Self {
        Self { source, uploaded: OnceCell::new() }
    }

    /// Returns the number of negatives per query.
    pub fn count(&self) -> usize {
        match &self.source {
            Source::Given(rows) => rows.size()[1] as usize,
            Source::Drawn(drawn) => drawn.keys.len() * drawn.per_block,
        }
    }

    /// Returns the inputs that a device other than the CPU needs for drawing; empty for given rows.
    pub fn words(&self) -> Vec<i64> {
        match &self.source {
            Source::Given(_) => Vec::new(),
            Source::Drawn(drawn) => drawn.words(),
        }
    }

    /// Sets the uploaded words; without this call they are uploaded on first use.
    ///
    /// # Shape
    /// `[words]` int64
    pub fn set_words(&self, words: &Tensor) {
        if let Source::Drawn(drawn) = &self.source {
            let _ = self.uploaded.get_or_init(|| drawn.uploaded(words));
        }
    }

    /// Returns whether all queries share the same negatives.
    pub fn shared(&self) -> bool {
        match &self.source {
            Source::Given(rows) => rows.size()[0] == 1,
            Source::Drawn(drawn) => drawn.shared,
        }
    }

    /// Returns the columns that may contain rows of this shard.
    pub(super) fn columns_for(&self, part: &BankShard) -> Range<usize> {
        match &self.source {
            Source::Given(_) => 0..self.count(),
            Source::Drawn(drawn) => {
                let blocks = drawn.blocks.overlapping(part.range());
                blocks.start as usize * drawn.per_block..blocks.end as usize * drawn.per_block
            }
        }
    }

    /// Returns some columns, `[batch, columns]` (or `[1, columns]`) int64.
    pub(super) fn columns(&self, columns: Range<usize>, device: Device) -> Tensor {
        match &self.source {
            Source::Given(rows) => {
                rows.narrow(1, columns.start as i64, columns.len() as i64).to_device(device)
            }
            Source::Drawn(drawn) if device == Device::Cpu => drawn.on_host(columns),
            Source::Drawn(drawn) => {
                drawn.on_device(columns, self.uploaded.get_or_init(|| drawn.upload(device)))
            }
        }
    }
}

impl Drawn {
    /// Returns a column's block: key, first row and length.
    fn block_of(&self, column: usize) -> (u64, u64, u64) {
        let block = (column / self.per_block) as u64;
        let rows = self.blocks.range(block);
        (self.keys[block as usize], rows.start, rows.end - rows.start)
    }

    /// Returns the number of a draw within its block.
    fn counter(&self, query: usize, column: usize) -> u64 {
        (query * self.per_block + column % self.per_block) as u64
    }

    fn on_host(&self, columns: Range<usize>) -> Tensor {
        let shape = [self.queries.len() as i64, columns.len() as i64];
        let blocks: Vec<_> = columns.clone().map(|column| self.block_of(column)).collect();
        let mut rows = vec![0_i64; self.queries.len() * columns.len()];
        rows.par_chunks_mut(columns.len().max(1)).zip(&self.queries).for_each(|(row, &query)| {
            for ((slot, column), (key, first, len)) in row.iter_mut().zip(columns.clone()).zip(&blocks) {
                let bits = split_mix(key.wrapping_add(self.counter(query, column).wrapping_mul(GOLDEN)));
                *slot = (first + (((bits >> 32) * len) >> 32)) as i64;
            }
        });
        Tensor::from_slice(&rows).view(shape)
    }

    /// Returns the inputs of all columns' draws: states, first rows, lengths, then the queries' indices.
    fn words(&self) -> Vec<i64> {
        let blocks = (0..self.keys.len()).map(|block| self.block_of(block * self.per_block));
        let blocks: Vec<_> = blocks.collect();
        let columns =
            || blocks.iter().flat_map(|block| (0..self.per_block).map(move |number| (number, block)));
        let states = columns()
            .map(|(number, (key, ..))| key.wrapping_add(self.counter(0, number).wrapping_mul(GOLDEN)) as i64);
        let firsts = columns().map(|(_, (_, first, _))| *first as i64);
        let lens = columns().map(|(_, (.., len))| *len as i64);
        states.chain(firsts).chain(lens).chain(self.queries.iter().map(|&query| query as i64)).collect()
    }

    /// Splits the words on a device.
    fn uploaded(&self, words: &Tensor) -> Uploaded {
        let count = (self.keys.len() * self.per_block) as i64;
        let row = |number: i64| words.narrow(0, number * count, count).unsqueeze(0);
        let queries = words.narrow(0, 3 * count, self.queries.len() as i64).unsqueeze(1);
        Uploaded { state: row(0), first: row(1), len: row(2), queries }
    }

    fn upload(&self, device: Device) -> Uploaded {
        self.uploaded(&Tensor::from_slice(&self.words()).to_device(device))
    }

    /// Draws the same numbers by tensor operations, so that nothing of size `[batch, columns]` is uploaded.
    fn on_device(&self, columns: Range<usize>, uploaded: &Uploaded) -> Tensor {
        let some = |all: &Tensor| all.narrow(1, columns.start as i64, columns.len() as i64);
        let stride = (self.per_block as u64).wrapping_mul(GOLDEN) as i64;
        let bits = mix_tensor(some(&uploaded.state) + &uploaded.queries * stride);
        some(&uploaded.first) + logical_shift(&(logical_shift(&bits, 32) * some(&uploaded.len)), 32)
    }
}

/// Computes [`split_mix`] on int64 tensors, whose products wrap.
fn mix_tensor(bits: Tensor) -> Tensor {
    let bits = bits.bitwise_xor_tensor(&logical_shift(&bits, 30)) * SPLIT_MIX[0] as i64;
    let bits = bits.bitwise_xor_tensor(&logical_shift(&bits, 27)) * SPLIT_MIX[1] as i64;
    bits.bitwise_xor_tensor(&logical_shift(&bits, 31))
}

/// Shifts right with zeros, where torch's operator repeats the sign bit.
fn logical_shift(bits: &Tensor, by: i64) -> Tensor {
    bits.bitwise_right_shift_tensor_scalar(by).bitwise_and((1_i64 << (64 - by)) - 1)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    impl Negatives {
        /// Returns all negatives, `[batch, negatives]` (or `[1, negatives]`) int64 on the CPU.
        pub(in crate::objective) fn all(&self) -> Tensor {
            self.columns(0..self.count(), Device::Cpu)
        }
    }

    const INSTANCES: usize = 1000;
    /// Enough instances for several blocks.
    const MANY_INSTANCES: usize = 20_000;

    fn draw(seed: u64, step: u64, count: usize, sampling: Sampling, queries: Range<usize>) -> Negatives {
        let drawn =
            TrainConfig { seed, negatives: count, negative_sampling: sampling, ..TrainConfig::default() };
        Negatives::draw(&drawn, step, queries, INSTANCES)
    }

    #[test]
    fn they_are_uniform_over_the_rows_and_a_function_of_seed_and_step() {
        let rows = |seed, step| draw(seed, step, 4096, Sampling::PerSample, 0..64).all();
        // 262 draws for each row, standard deviation 16. An odd K has one block: 210 draws, deviation 14.5.
        let one_block = draw(3, 0, 7, Sampling::PerSample, 0..30_000).all();
        for (rows, fewest, most) in [(rows(1, 1), 180.0, 345.0), (one_block, 140.0, 290.0)] {
            let counts = rows.flatten(0, -1).bincount(None::<Tensor>, INSTANCES as i64).to_kind(Kind::Double);
            assert!(counts.min().double_value(&[]) > fewest && counts.max().double_value(&[]) < most);
        }
        assert!(rows(1, 1).equal(&rows(1, 1)));
        assert!(!rows(1, 1).equal(&rows(1, 2)) && !rows(1, 1).equal(&rows(2, 1)));
    }

    #[test]
    fn every_query_has_its_own_unless_they_are_shared() {
        let own = draw(1, 1, 64, Sampling::PerSample, 0..2).all();
        assert!(!own.get(0).equal(&own.get(1)));
        assert_eq!(draw(1, 1, 64, Sampling::Shared, 0..2).all().size(), [1, 64]);
    }

    #[test]
    fn a_part_of_the_batch_draws_what_the_whole_draws() {
        let whole = draw(1, 1, 64, Sampling::PerSample, 0..8).all();
        let part = draw(1, 1, 64, Sampling::PerSample, 3..5).all();
        assert!(whole.narrow(0, 3, 2).equal(&part));
    }

    #[test]
    fn tensor_operations_draw_the_same_numbers_as_the_host() {
        let config = TrainConfig { seed: 5, negatives: 96, ..TrainConfig::default() };
        let negatives = Negatives::draw(&config, 9, [2, 3, 9, 5, 40], MANY_INSTANCES);
        let Source::Drawn(drawn) = &negatives.source else { panic!("drawn") };
        assert!(drawn.blocks.count() > 1);
        let uploaded = drawn.upload(Device::Cpu);
        for columns in [0..96, 5..90] {
            assert!(drawn.on_device(columns.clone(), &uploaded).equal(&drawn.on_host(columns)));
        }
    }
}
