//! The noise samples of a step.

use rayon::prelude::*;
use tch::{Device, Tensor};

use crate::bank::Blocks;
use crate::rng::{Purpose, Stream};

/// Bank rows drawn as noise, for each query of a batch its own.
#[derive(Debug)]
pub struct Negatives {
    rows: Tensor,
}

impl Negatives {
    /// Draws `count` rows for each of `batch` queries, uniformly and with replacement; a query's own row is
    /// not left out.
    ///
    /// The draws are spread evenly over blocks of rows, each with a stream of (seed, step, block), so that
    /// an owner of some blocks draws the same ones alone.
    ///
    /// # Source
    /// Reference `alias_multinomial.py` with uniform weights; spreading over blocks is ours.
    pub fn draw(seed: u64, step: u64, batch: usize, count: usize, instances: usize, device: Device) -> Self {
        let blocks = Blocks::for_negatives(instances, count);
        let per_block = count / blocks.count() as usize;
        let drawn: Vec<Vec<i64>> = (0..blocks.count())
            .into_par_iter()
            .map(|block| {
                let range = blocks.range(block);
                let mut stream = Stream::new(seed, Purpose::Negatives, step, block);
                let mut row = || (range.start + stream.below(range.end - range.start)) as i64;
                (0..batch * per_block).map(|_| row()).collect()
            })
            .collect();
        let mut rows = vec![0_i64; batch * count];
        rows.par_chunks_mut(count.max(1)).enumerate().for_each(|(query, row)| {
            for (block, part) in row.chunks_exact_mut(per_block.max(1)).enumerate() {
                part.copy_from_slice(&drawn[block][query * per_block..][..per_block]);
            }
        });
        let shape = [batch as i64, count as i64];
        Self { rows: Tensor::from_slice(&rows).view(shape).to_device(device) }
    }

    /// Given rows.
    ///
    /// # Shape
    /// `[batch, negatives]` int64, each a row of the bank
    pub fn given(rows: Tensor) -> Self {
        Self { rows }
    }

    /// `[batch, negatives]` int64.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }
}
