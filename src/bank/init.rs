//! The bank's first rows.

use rayon::prelude::*;

use super::Blocks;
use crate::rng::{Purpose, Stream};

/// Rows drawn uniformly in ±1 and normalised, block by block.
///
/// The reference's bound √(3/dim) is immaterial once a row is normalised.
///
/// # Shape
/// -> `[instances * dim]`, row after row
pub(super) fn uniform_unit_rows(instances: usize, dim: usize, seed: u64) -> Vec<f32> {
    let blocks = Blocks::new(instances, Blocks::FOR_INITIAL_ROWS);
    let mut values = vec![0.0_f32; instances * dim];
    let mut rest = values.as_mut_slice();
    let mut parts = Vec::new();
    for block in 0..blocks.count() {
        let range = blocks.range(block);
        let (part, after) = rest.split_at_mut((range.end - range.start) as usize * dim);
        parts.push((block, part));
        rest = after;
    }
    parts.into_par_iter().for_each(|(block, part)| {
        let mut stream = Stream::new(seed, Purpose::BankInit, block, 0);
        for row in part.chunks_exact_mut(dim) {
            let drawn: Vec<f64> = row.iter().map(|_| stream.range(-1.0, 1.0)).collect();
            let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (slot, value) in row.iter_mut().zip(drawn) {
                *slot = (value / length) as f32;
            }
        }
    });
    values
}
