//! The bank's first rows.

use std::ops::Range;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

use super::Blocks;
use crate::rng::{Purpose, Stream};
use crate::run_config::BankInit;

/// Blocks that are drawn at a time: enough for every core, and a small part of a large bank.
const BLOCKS_AT_ONCE: u64 = 16;

/// Random unit rows, block by block: those of an owner of some rows are the same whoever has the others.
///
/// # Shape
/// -> `[owned, dim]` of this kind
pub(super) fn random_rows(
    (instances, owned): (usize, Range<usize>),
    dim: usize,
    kind: Kind,
    draw: Drawing,
    device: Device,
) -> Tensor {
    let blocks = Blocks::new(instances, Blocks::FOR_INITIAL_ROWS);
    let all = Tensor::empty([owned.len() as i64, dim as i64], (kind, device));
    let needed = blocks.overlapping(owned.clone());
    for first in needed.clone().step_by(BLOCKS_AT_ONCE as usize) {
        let some = first..(first + BLOCKS_AT_ONCE).min(needed.end);
        let values: Vec<f32> = some
            .clone()
            .into_par_iter()
            .flat_map_iter(|block| {
                let range = blocks.range(block);
                let mut stream = Stream::new(draw.seed, Purpose::BankInit, block, 0);
                (range.start..range.end).flat_map(move |_| unit_row(&mut stream, dim, draw.init))
            })
            .collect();
        let rows = Tensor::from_slice(&values).view([-1, dim as i64]);
        let drawn = blocks.range(some.start).start as usize..blocks.range(some.end - 1).end as usize;
        let (start, end) = (drawn.start.max(owned.start), drawn.end.min(owned.end));
        let rows = rows.narrow(0, (start - drawn.start) as i64, (end - start) as i64);
        no_grad(|| all.narrow(0, (start - owned.start) as i64, (end - start) as i64).copy_(&rows));
    }
    all
}

/// How rows are drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawing {
    pub(super) init: BankInit,
    pub(super) seed: u64,
}

fn unit_row(stream: &mut Stream, dim: usize, init: BankInit) -> Vec<f32> {
    // The reference's bound √(3/dim) is immaterial once a row is normalised.
    let drawn: Vec<f64> = match init {
        BankInit::Normal => (0..dim).map(|_| stream.normal()).collect(),
        BankInit::Uniform | BankInit::Encode => (0..dim).map(|_| stream.range(-1.0, 1.0)).collect(),
    };
    let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
    drawn.into_iter().map(|x| (x / length) as f32).collect()
}
