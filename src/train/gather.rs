//! Global batches over all ranks: their images, and gathering the features.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Tensor, nn};

use crate::bank::{BankShard, BatchRows};
use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::ids::{BankRow, BatchIndex};
use crate::loader::{Batch, GlobalBatch};
use crate::model::libtorch::upload_indices;
use crate::model::{Encoder, OverRanks};
use crate::objective::Negatives;
use crate::run_config::{OnCorrupt, TrainConfig};

/// Returns for each flag whether any process has set it.
pub(super) fn any<const N: usize>(
    group: &ProcessGroup,
    here: [bool; N],
) -> Result<[bool; N], DistributedError> {
    let flags = Tensor::from_slice(&here.map(i64::from));
    group.all_reduce(&flags, Reduce::Max)?;
    Ok(std::array::from_fn(|index| flags.int64_value(&[index as i64]) == 1))
}

/// Requests of a process to all: stop, and save a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    pub stop: bool,
    pub save: bool,
}

impl Requests {
    /// Returns the requests of any process.
    pub(super) fn of_any(self, group: &ProcessGroup) -> Result<Self, DistributedError> {
        let [stop, save] = any(group, [self.stop, self.save])?;
        Ok(Self { stop, save })
    }

    /// Returns the requests as numbers, which processes add up together with others.
    pub(super) fn numbers(self) -> [f64; 2] {
        [self.stop, self.save].map(|asked| f64::from(u8::from(asked)))
    }

    /// Reads the requests from the sums over all processes.
    pub(super) fn from_sums(stop: f64, save: f64) -> Self {
        Self { stop: stop > 0.0, save: save > 0.0 }
    }
}

/// Returns the global batch without corrupt images that a loader left out.
pub(super) fn present(
    group: &ProcessGroup,
    batch: &Batch,
    on_corrupt: OnCorrupt,
) -> Result<Arc<GlobalBatch>, DistributedError> {
    let global = &batch.global;
    if on_corrupt == OnCorrupt::Fail {
        return Ok(Arc::clone(global));
    }
    let mut here = batch.bank_rows.iter().peekable();
    let is_here = |index: &BatchIndex| u8::from(here.next_if_eq(&&global.bank_rows[index.index()]).is_some());
    let own: Vec<u8> = global.shares[group.rank()].iter().map(is_here).collect();
    let of_ranks = group.gather_bytes(&own)?;
    let mut is_there = vec![false; global.bank_rows.len()];
    for (share, flags) in global.shares.iter().zip(&of_ranks) {
        share.iter().zip(flags).for_each(|(index, &flag)| is_there[index.index()] = flag == 1);
    }
    Ok(Arc::new(global.kept(&is_there)))
}

/// Makes batch norm compute over all processes, if configured. Errors are kept in the returned cell, as
/// passes through the network cannot return them.
pub(super) fn share_statistics(
    encoder: &mut Encoder,
    group: &Rc<ProcessGroup>,
    config: &TrainConfig,
) -> Rc<RefCell<Option<DistributedError>>> {
    let failed = Rc::default();
    if config.sync_batch_norm {
        encoder.share_statistics(Rc::new(Ranks { group: Rc::clone(group), failed: Rc::clone(&failed) }));
    }
    failed
}

/// Processes of a run, as batch norm uses them.
struct Ranks {
    group: Rc<ProcessGroup>,
    failed: Rc<RefCell<Option<DistributedError>>>,
}

impl Ranks {
    /// Returns the computed tensor, or the input after an error; keeps the first error.
    fn or_keep(&self, computed: Result<Tensor, DistributedError>, input: &Tensor) -> Tensor {
        computed.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            input.shallow_clone()
        })
    }
}

impl OverRanks for Ranks {
    fn sum(&self, values: &Tensor) -> Tensor {
        self.or_keep(self.group.sum_with_gradient(values), values)
    }

    fn batch_norm(&self, input: &Tensor, layer: &nn::BatchNorm) -> Tensor {
        let nn::BatchNorm { ws: Some(weight), bs: Some(bias), running_mean, running_var, .. } = layer else {
            panic!("a batch norm has weight and bias");
        };
        let nn::BatchNormConfig { momentum, eps, .. } = nn::BatchNormConfig::default();
        let parameters = [weight, bias, running_mean, running_var];
        self.or_keep(self.group.batch_norm(input, parameters, momentum, eps), input)
    }
}

/// Micro-batch over all ranks, with the order of the gathered features.
#[derive(Debug)]
pub(super) struct MicroBatch {
    /// `[queries]`, ordered by rank.
    pub positions: Vec<BankRow>,
    /// `[queries]`: indices within the global batch.
    numbers: Vec<usize>,
    /// Range of this rank's queries.
    pub own: Range<usize>,
    /// Largest number of queries of a rank.
    longest: usize,
    /// Row of each query in the gathered, padded features; empty if all ranks have equally many queries.
    order: Vec<i64>,
}

impl MicroBatch {
    /// Creates the micro-batch with this number.
    pub(super) fn of(group: &ProcessGroup, global: &GlobalBatch, number: usize) -> Self {
        let shares: Vec<&[BatchIndex]> =
            (0..group.world()).map(|rank| global.of_rank(rank, number).1).collect();
        let before: usize = shares[..group.rank()].iter().map(|share| share.len()).sum();
        let longest = shares.iter().map(|share| share.len()).max().unwrap_or(0);
        let place = |rank: usize, share: &[BatchIndex]| {
            (0..share.len()).map(move |row| (rank * longest + row) as i64).collect::<Vec<_>>()
        };
        let is_even = shares.iter().all(|share| share.len() == longest);
        let order = shares.iter().enumerate().filter(|_| !is_even);
        let numbers: Vec<usize> = shares.concat().into_iter().map(BatchIndex::index).collect();
        Self {
            positions: numbers.iter().map(|&number| global.bank_rows[number]).collect(),
            numbers,
            own: before..before + shares[group.rank()].len(),
            longest,
            order: order.flat_map(|(rank, share)| place(rank, share)).collect(),
        }
    }

    /// Returns the indices that [`MicroBatch::gather`] needs on the device.
    pub(super) fn words(&self) -> &[i64] {
        &self.order
    }

    /// Gathers the features of all ranks, without a graph, at every rank. `order`: the words, on the device.
    ///
    /// # Shape
    /// `own: [own, dim]` -> `[queries, dim]`
    pub(super) fn gather(
        &self,
        group: &ProcessGroup,
        own: &Tensor,
        order: &Tensor,
    ) -> Result<Tensor, DistributedError> {
        if group.world() == 1 {
            return Ok(own.shallow_clone());
        }
        let missing = self.longest as i64 - own.size()[0];
        let padded = if missing == 0 {
            own.contiguous()
        } else {
            let nothing = Tensor::zeros([missing, own.size()[1]], (own.kind(), own.device()));
            Tensor::cat(&[own, &nothing], 0)
        };
        let all = group.all_gather(&padded)?;
        Ok(if self.order.is_empty() { all } else { all.index_select(0, order) })
    }
}

/// Micro-batches of a step, with all indices on the device by one upload.
pub(super) struct Plan {
    pub micro_batches: Vec<Planned>,
    /// Bank rows of the whole batch, in the order of its micro-batches.
    pub rows: BatchRows,
}

/// Micro-batch with its indices and negatives.
pub(super) struct Planned {
    pub micro_batch: MicroBatch,
    pub order: Tensor,
    pub rows: BatchRows,
    pub negatives: Option<Negatives>,
}

impl Plan {
    /// Plans a step: the queries of each rank, and the rows and negatives that they need. One upload brings
    /// all indices to the device. `draw` returns the negatives of the queries with these batch indices.
    pub(super) fn new(
        group: &ProcessGroup,
        global: &GlobalBatch,
        shard: &BankShard,
        device: Device,
        draw: impl Fn(&[usize]) -> Option<Negatives>,
    ) -> Self {
        let mut words = Vec::new();
        let mut add = |more: &[i64]| {
            let start = words.len() as i64;
            words.extend_from_slice(more);
            (start, more.len() as i64)
        };
        let mut micro_batches = Vec::new();
        let mut positions = Vec::new();
        for number in 0..global.micro_batches.len() {
            let micro_batch = MicroBatch::of(group, global, number);
            let rows = shard.locate(&micro_batch.positions);
            let negatives = draw(&micro_batch.numbers);
            // On the CPU negatives are read where they were drawn.
            let drawn = negatives.as_ref().filter(|_| device.is_cuda()).map(Negatives::words);
            let places = (add(micro_batch.words()), add(rows.words()), drawn.map(|drawn| add(&drawn)));
            positions.extend_from_slice(&micro_batch.positions);
            micro_batches.push((micro_batch, rows, negatives, places));
        }
        let whole = (micro_batches.len() > 1).then(|| shard.locate(&positions));
        let whole = whole.map(|rows| (add(rows.words()), rows));
        let uploaded = upload_indices(&words, device);
        let words = |(start, len)| uploaded.narrow(0, start, len);
        let mut planned = Vec::new();
        for (micro_batch, rows, negatives, (order, places, drawn)) in micro_batches {
            if let Some((negatives, drawn)) = negatives.as_ref().zip(drawn) {
                negatives.set_words(&words(drawn));
            }
            let (order, rows) = (words(order), rows.with(words(places)));
            planned.push(Planned { micro_batch, order, rows, negatives });
        }
        let rows = match whole {
            Some((places, rows)) => rows.with(words(places)),
            None => planned[0].rows.shallow_clone(),
        };
        Self { micro_batches: planned, rows }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::distributed::emulate_kernels;

    #[test]
    fn batch_norm_by_kernels_is_that_of_the_layer() {
        emulate_kernels();
        let normalised = |by_kernels: bool| {
            let variables = nn::VarStore::new(Device::Cpu);
            let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.5), ..Default::default() };
            let layer = nn::batch_norm2d(&(variables.root() / "bn"), 2, config);
            let input = (Tensor::arange(36, (Kind::Float, Device::Cpu)) * 0.7).sin().view([3, 2, 3, 2]);
            let ranks = Ranks { group: Rc::new(ProcessGroup::alone()), failed: Rc::default() };
            let output = if by_kernels {
                ranks.batch_norm(&input, &layer)
            } else {
                nn::ModuleT::forward_t(&layer, &input, true)
            };
            assert!(ranks.failed.take().is_none());
            [output.detach(), layer.running_mean.detach(), layer.running_var.detach()]
        };
        for (ours, plain) in normalised(true).iter().zip(&normalised(false)) {
            assert!(ours.allclose(plain, 1e-5, 1e-6, false), "{ours} {plain}");
        }
    }
}
