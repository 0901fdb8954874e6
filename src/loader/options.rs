//! How an epoch is loaded, and what memory its stages get.

use super::LoaderError;
use super::plan::order::Shuffle;
use super::plan::{Passes, PlanOptions, Planner, Portions};
use super::source::Source;
use crate::ids::RankShare;
use crate::run_config::OnCorrupt;

/// The memory limit where none is given, in bytes.
const DEFAULT_MEMORY: u64 = 4 << 30;
/// The most memory for decoding that each thread can use, in bytes: an image of 40 megapixels.
const DECODE_MEMORY_OF_A_THREAD: u64 = 256 << 20;
/// Steps that are read ahead of those that are decoded, where rows are read by themselves.
const STEPS_READ_AHEAD: u64 = 4;
/// Threads that make batches in turn, so that the last image of one does not keep the pool idle.
pub(super) const DECODE_WORKERS: usize = 2;

/// How epochs are loaded.
///
/// Of these, `batch_size`, `seed`, `shuffle`, `drop_last`, the epoch and the step decide which images a batch
/// has and what they look like; nothing else does.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Images of a global batch.
    pub batch_size: usize,
    /// The seed of order and pixels.
    pub seed: u64,
    /// The first epoch.
    pub epoch: u64,
    /// Epochs, one after the other without a pause.
    pub epochs: u64,
    /// The first step that is needed of the first epoch; earlier ones are not read.
    pub first_step: u64,
    /// How instances are mixed.
    pub shuffle: Shuffle,
    /// Leave out the last batch if it is short.
    pub drop_last: bool,
    /// What this rank loads of each global batch.
    pub share: RankShare,
    /// The micro-batches of a batch, each assigned to all ranks.
    pub micro_batches: usize,
    /// Threads that decode and augment; 0 for one on each core.
    pub threads: usize,
    /// Threads that read.
    pub read_threads: usize,
    /// Batches that are made ahead of need.
    pub prefetch: usize,
    /// The memory of the whole loader in bytes; 0 for a default.
    pub memory_limit: u64,
    /// What happens to an image that is missing or corrupt.
    pub on_corrupt: OnCorrupt,
    /// The most distinct instances that may be left out.
    pub max_corrupt: u64,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 256,
            seed: 0,
            epoch: 0,
            epochs: 1,
            first_step: 0,
            shuffle: Shuffle::Exact,
            drop_last: false,
            share: RankShare::WHOLE,
            micro_batches: 1,
            threads: 0,
            read_threads: 8,
            prefetch: 2,
            memory_limit: 0,
            on_corrupt: OnCorrupt::Fail,
            max_corrupt: 100,
        }
    }
}

impl LoaderOptions {
    /// The steps of an epoch.
    pub fn steps(&self, instances: usize) -> u64 {
        let (instances, batch) = (instances as u64, self.batch_size as u64);
        if self.drop_last { instances / batch } else { instances.div_ceil(batch) }
    }

    /// The plan of these options for a source.
    pub(super) fn plan(&self, source: &dyn Source, passes: Passes) -> PlanOptions {
        let exact = matches!(passes, Passes::Shuffled { shuffle: Shuffle::Exact, .. });
        let portions = if exact || source.reads_rows() { Portions::Rows } else { Portions::Groups };
        PlanOptions {
            passes,
            portions,
            batch_size: self.batch_size,
            drop_last: self.drop_last,
            share: self.share,
            micro_batches: self.micro_batches,
            first_epoch: self.epoch,
            first_step: self.first_step,
            end_epoch: self.epoch.saturating_add(self.epochs),
        }
    }
}

/// What memory the stages get, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryBudget {
    /// Encoded images, from the request to the decoder.
    pub fetched: u64,
    /// Decoding.
    pub decoding: u64,
}

impl MemoryBudget {
    /// Divides the limit.
    ///
    /// # Errors
    /// [`LoaderError::Memory`] if it is too small.
    pub(super) fn of(
        source: &dyn Source,
        options: &LoaderOptions,
        plan: PlanOptions,
        threads: usize,
        side: u32,
    ) -> Result<Self, LoaderError> {
        let limit = if options.memory_limit == 0 { DEFAULT_MEMORY } else { options.memory_limit };
        let own = plan.share.of(plan.batch_size).len() as u64;
        // Those ready, one with each worker, one with the consumer, one given back.
        let batches = options.prefetch.max(DECODE_WORKERS) as u64 + DECODE_WORKERS as u64 + 2;
        let fixed = source.held_bytes() + batches * own * 3 * u64::from(side).pow(2);
        let rest = limit.saturating_sub(fixed);
        let decoding = (rest / 4).min(threads as u64 * DECODE_MEMORY_OF_A_THREAD).max(1);
        let rest = rest - decoding.min(rest);
        let batch = own * source.layout().mean_bytes();
        let (needed, useful, what, advice) = match plan.portions {
            Portions::Rows => {
                let ahead = options.prefetch as u64 + DECODE_WORKERS as u64 + STEPS_READ_AHEAD;
                let what = "a batch's images, beside batches, tables and decoding";
                (source.prepare_rows(rest)? + batch, batch * ahead, what, "lower `--batch-size`")
            }
            Portions::Groups => {
                let window = Planner::largest_window(source, plan);
                let group = source.layout().largest_group();
                let read = options.read_threads as u64 * 2 * group;
                let what = "a window of row groups, beside batches, tables and decoding";
                (window + 2 * group + batch, 2 * window + batch + read, what, "lower `--window`")
            }
        };
        if needed > rest {
            return Err(LoaderError::Memory { what, needed: fixed + decoding + needed, limit, advice });
        }
        let reserved = if plan.portions == Portions::Rows { needed - batch } else { 0 };
        Ok(Self { fetched: (rest - reserved).min(useful.max(1)), decoding })
    }
}
