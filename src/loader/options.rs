//! Options of an epoch, and the division of memory between the stages.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::LoaderError;
use super::plan::order::Shuffle;
use super::plan::{Passes, Planner, Portions};
use super::source::Source;
use crate::ids::RankShare;
use crate::run_config::OnCorrupt;

/// Default memory limit, in bytes.
const DEFAULT_MEMORY: u64 = 4 << 30;
/// Maximum memory for decoding that each thread can use, in bytes: an image of 40 megapixels.
const DECODE_MEMORY_OF_A_THREAD: u64 = 256 << 20;
/// Number of steps that reading is ahead of decoding, if rows are read alone.
const STEPS_READ_AHEAD: u64 = 4;
/// Number of threads that make batches in turn, so that the last image of one batch does not leave the pool idle.
pub(super) const DECODE_WORKERS: usize = 2;

/// Options for loading epochs.
///
/// Only `batch_size`, `seed`, `shuffle`, `drop_last`, the epoch and the step decide the images of a batch and their
/// pixels.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Number of images in a global batch.
    pub batch_size: usize,
    /// Seed of order and pixels.
    pub seed: u64,
    /// First epoch.
    pub epoch: u64,
    /// Number of epochs, loaded one after the other without a pause.
    pub epochs: u64,
    /// First step needed of the first epoch; earlier ones are not read.
    pub first_step: u64,
    /// Order of the instances.
    pub shuffle: Shuffle,
    /// Leave out the last batch if it is short.
    pub drop_last: bool,
    /// Share of this rank in each global batch.
    pub share: RankShare,
    /// Number of micro-batches of a batch, each assigned to all ranks.
    pub micro_batches: usize,
    /// Number of threads that decode and augment; 0 for one on each core.
    pub threads: usize,
    /// Number of threads that read.
    pub read_threads: usize,
    /// Number of batches that are made in advance.
    pub prefetch: usize,
    /// Memory of the whole loader in bytes; 0 for a default.
    pub memory_limit: u64,
    /// Treatment of an image that is missing or corrupt.
    pub on_corrupt: OnCorrupt,
    /// Maximum number of distinct instances that may be left out.
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
    /// Returns the number of steps in an epoch.
    pub fn steps(&self, instances: usize) -> u64 {
        let (instances, batch) = (instances as u64, self.batch_size as u64);
        if self.drop_last { instances / batch } else { instances.div_ceil(batch) }
    }

    /// Returns the epoch before which the loader ends.
    pub(super) fn end_epoch(&self) -> u64 {
        self.epoch.saturating_add(self.epochs)
    }

    /// Returns the portions in which a source is read.
    pub(super) fn portions(&self, source: &dyn Source, passes: Passes) -> Portions {
        let is_exact = passes == Passes::Shuffled && self.shuffle == Shuffle::Exact;
        if is_exact || source.reads_rows() { Portions::Rows } else { Portions::Groups }
    }

    /// Divides the memory limit: a budget of encoded images, from the request to the decoder, and one of decoding.
    pub(super) fn budgets(
        &self,
        source: &dyn Source,
        passes: Passes,
        threads: usize,
        side: u32,
    ) -> Result<(Budget, Budget), LoaderError> {
        let limit = if self.memory_limit == 0 { DEFAULT_MEMORY } else { self.memory_limit };
        let own = self.share.of(self.batch_size).len() as u64;
        let portions = self.portions(source, passes);
        // The prefetched batches, one with each worker, one with the consumer, and one that was returned.
        let batches = self.prefetch.max(DECODE_WORKERS) as u64 + DECODE_WORKERS as u64 + 2;
        let fixed = source.instances().held_bytes + batches * own * 3 * u64::from(side).pow(2);
        let rest = limit.saturating_sub(fixed);
        let decoding = (rest / 4).min(threads as u64 * DECODE_MEMORY_OF_A_THREAD).max(1);
        let rest = rest - decoding.min(rest);
        let batch = own * source.layout().mean_bytes();
        let (needed, useful, what, advice) = match portions {
            Portions::Rows => {
                let ahead = self.prefetch as u64 + DECODE_WORKERS as u64 + STEPS_READ_AHEAD;
                let what = "a batch's images, beside batches, tables and decoding";
                (source.prepare_rows(rest)? + batch, batch * ahead, what, "lower `--batch-size`")
            }
            Portions::Groups => {
                let window = Planner::largest_window(source, self, passes);
                let group = source.layout().largest_group();
                let read = self.read_threads as u64 * 2 * group;
                let what = "a window of row groups, beside batches, tables and decoding";
                (window + 2 * group + batch, 2 * window + batch + read, what, "lower `--window`")
            }
        };
        if needed > rest {
            return Err(LoaderError::Memory { what, needed: fixed + decoding + needed, limit, advice });
        }
        let reserved = if portions == Portions::Rows { needed - batch } else { 0 };
        Ok((Budget::new((rest - reserved).min(useful.max(1))), Budget::new(decoding)))
    }
}

/// A limit on the bytes that are held at once; a request beyond it waits until others release bytes.
///
/// A request above the whole budget is granted once nothing else is held: it cannot be split, and must not wait
/// forever. A request is also granted while the consumer waits for bytes and no read is under way, so wrong estimates
/// cannot cause a deadlock.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: u64,
    peak: u64,
    /// Number of started reads whose bytes have not reached the consumer.
    in_flight: u64,
    starving: bool,
    closed: bool,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self(Arc::new(Shared { limit, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Waits for `bytes`; returns `None` once the budget is closed.
    pub(super) fn acquire(&self, bytes: u64) -> Option<Permit> {
        let mut state = self.0.lock();
        loop {
            if state.closed {
                return None;
            }
            let starves = state.starving && state.in_flight == 0;
            if state.held == 0 || starves || state.held.saturating_add(bytes) <= self.0.limit {
                state.held += bytes;
                state.peak = state.peak.max(state.held);
                return Some(Permit { budget: self.clone(), bytes });
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts a started read.
    pub(super) fn started(&self) {
        self.0.lock().in_flight += 1;
    }

    /// Runs `wait`, which receives the bytes of a read, while the consumer counts as starving.
    pub(super) fn starve_for<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.0.lock().starving = true;
        self.0.changed.notify_all();
        let brought = wait();
        let mut state = self.0.lock();
        state.starving = false;
        state.in_flight = state.in_flight.saturating_sub(1);
        brought
    }

    /// Ends all waiting; every later request fails.
    pub(super) fn close(&self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }

    /// Returns the maximum number of bytes that were held at once.
    pub(super) fn peak(&self) -> u64 {
        self.0.lock().peak
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a budget that are held; dropping the permit releases them.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Budget,
    bytes: u64,
}

impl Permit {
    /// Splits the permit into one for each of `sizes`. A remainder is released. Bytes beyond the permit were
    /// underestimated, and are taken without waiting, since they are in memory already.
    pub(super) fn split(mut self, sizes: &[u64]) -> Vec<Permit> {
        let needed: u64 = sizes.iter().sum();
        let mut state = self.budget.0.lock();
        state.held = state.held - self.bytes + needed;
        state.peak = state.peak.max(state.held);
        drop(state);
        self.bytes = 0;
        self.budget.0.changed.notify_all();
        sizes.iter().map(|&bytes| Permit { budget: self.budget.clone(), bytes }).collect()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.lock().held -= self.bytes;
            self.budget.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_for_more_than_is_left_waits_until_it_is_given_back() {
        let budget = Budget::new(10);
        let first = budget.acquire(7).expect("free");
        let waiting = thread::spawn({
            let budget = budget.clone();
            move || budget.acquire(4).map(|_| budget.peak())
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.join().expect("no panic"), Some(7));
    }

    #[test]
    fn a_request_above_the_whole_is_granted_alone() {
        let budget = Budget::new(10);
        let large = budget.acquire(100).expect("nothing else is held");
        drop(large);
        assert_eq!(budget.peak(), 100);
    }

    #[test]
    fn a_starving_consumer_gets_bytes_beyond_the_limit() {
        let budget = Budget::new(10);
        let _held = budget.acquire(9).expect("free");
        let reader = thread::spawn({
            let budget = budget.clone();
            move || budget.acquire(5).is_some()
        });
        assert!(budget.starve_for(|| reader.join().expect("no panic")));
        assert_eq!(budget.peak(), 14);
    }

    #[test]
    fn closing_ends_all_waiting() {
        let budget = Budget::new(1);
        let held = budget.acquire(1).expect("free");
        let waiting = thread::spawn({
            let budget = budget.clone();
            move || budget.acquire(1).is_none()
        });
        budget.close();
        assert!(waiting.join().expect("no panic"));
        drop(held);
        assert!(budget.acquire(1).is_none());
    }

    #[test]
    fn parts_of_a_permit_hold_what_they_are() {
        let budget = Budget::new(10);
        let parts = budget.acquire(8).expect("free").split(&[2, 3]);
        let more = budget.acquire(5).expect("three were given back");
        drop((parts, more));
        assert_eq!(budget.0.lock().held, 0);
    }
}
