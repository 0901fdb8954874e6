//! Memory of an ingest: one budget for all threads.
//!
//! Three quarters of the limit are for decoding. Before an image is decoded, the memory that its header implies is
//! reserved, and a thread waits until enough is released. A thread with a reservation only computes and waits for
//! no other thread, so reservations are always released. The last quarter is for encoded images that were read and
//! not yet written.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::source::Entry;
use super::validate::Rejection;
use super::{CheckDepth, IngestOptions};
use crate::image::{decoding_memory, probe, shrunk_size};

/// Kind of rejection of an image that does not fit into `--memory-limit`.
pub(super) const OVER_MEMORY_LIMIT: &str = "over the memory limit";
/// Default limit in bytes, if the system does not report how much memory there is.
const UNKNOWN_MACHINE: u64 = 4 << 30;
/// Maximum size in bytes of the row group in memory while a shard is written; see [`crate::dataset::ShardWriter`].
const MOST_ROW_GROUP: u64 = 256 << 20;
/// Maximum number of images of a shard that are processed together, on all threads.
const IMAGES_OF_BATCH: usize = 128;

/// Budget of memory.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    /// Limit of `--memory-limit`, if given.
    given: Option<u64>,
    /// Bytes for decoding.
    decoding: u64,
    /// Bytes for encoded images that one thread reads together.
    read_bytes: u64,
    /// Bytes for encoded images that are checked together before they are written.
    batch_bytes: u64,
    /// Bytes for shards that are written at the same time.
    writing: u64,
    held: Mutex<u64>,
    given_back: Condvar,
    /// Held while an encoded image larger than `read_bytes` is in memory.
    large: Mutex<()>,
}

/// Memory that is reserved until the reservation is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Reservation<'a> {
    budget: &'a MemoryBudget,
    bytes: u64,
}

impl MemoryBudget {
    /// Makes a budget for `threads` threads: `--memory-limit`, or half of the machine's memory.
    pub(super) fn new(options: &IngestOptions, threads: usize) -> Self {
        let limit =
            options.memory_limit.unwrap_or_else(|| machine_memory().map_or(UNKNOWN_MACHINE, |all| all / 2));
        Self {
            given: options.memory_limit,
            decoding: limit / 4 * 3,
            read_bytes: limit / 16 / threads.max(1) as u64,
            batch_bytes: limit / 32,
            writing: limit / 8,
            held: Mutex::new(0),
            given_back: Condvar::new(),
            large: Mutex::new(()),
        }
    }

    /// Waits until no other thread has encoded images above `read_bytes`, if `bytes` is above it. A waiting thread has
    /// no reservation.
    pub(super) fn large(&self, bytes: u64) -> Option<MutexGuard<'_, ()>> {
        (bytes > self.read_bytes).then(|| self.large.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the memory to check an image.
    ///
    /// # Errors
    /// If the image needs more than a given limit allows. Without a given limit the image waits until it is the only
    /// one, since the contents of a dataset must not depend on the machine.
    pub(super) fn admit(&self, image: &[u8], options: &IngestOptions) -> Result<Reservation<'_>, Rejection> {
        let needed = needed(image, options);
        if let Some(limit) = self.given.filter(|_| needed > self.decoding) {
            let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let reason = format!(
                "decoding needs {:.1} MiB, `--memory-limit` is {:.1} MiB and leaves {:.1} MiB for it",
                mebibytes(needed),
                mebibytes(limit),
                mebibytes(self.decoding)
            );
            return Err(Rejection { kind: OVER_MEMORY_LIMIT.into(), reason });
        }
        Ok(self.reserve(needed))
    }

    /// Waits for the memory to rewrite an image that was admitted before.
    pub(super) fn readmit(&self, image: &[u8], options: &IngestOptions) -> Reservation<'_> {
        self.reserve(needed(image, options))
    }

    /// Waits for `bytes`; a request above the budget waits until no other reservation exists.
    fn reserve(&self, bytes: u64) -> Reservation<'_> {
        let mut held = self.lock();
        while *held > 0 && held.saturating_add(bytes) > self.decoding {
            held = self.given_back.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        *held = held.saturating_add(bytes);
        Reservation { budget: self, bytes }
    }

    /// Returns how many of `wanted` shards may be written at once, at least one. Each holds a batch and a row group.
    pub(super) fn writers<'a>(
        &self,
        wanted: usize,
        row_group: usize,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> usize {
        let (mut count, mut sum, mut largest) = (0, 0, 0);
        for entry in entries {
            (count, sum, largest) = (count + 1, sum + entry.bytes, largest.max(entry.bytes));
        }
        let mean = sum / std::cmp::max(count, 1);
        // Rows come in random order, so a row group is seldom twice the mean.
        let group = (2 * mean).saturating_mul(row_group as u64).saturating_add(largest).min(MOST_ROW_GROUP);
        let writer = (group + self.batch_bytes.min(group)).max(1);
        wanted.min(usize::try_from(self.writing / writer).unwrap_or(usize::MAX)).max(1)
    }

    /// Returns consecutive runs of items that one thread reads together; `bytes` is the encoded size of each.
    pub(super) fn read_runs<'i, T>(&self, items: &'i [T], bytes: impl Fn(&T) -> u64) -> Vec<&'i [T]> {
        runs(items, items.len(), self.read_bytes, bytes)
    }

    /// Returns consecutive runs of items that are in memory together before a shard takes them.
    pub(super) fn write_runs<'i, T>(&self, items: &'i [T], bytes: impl Fn(&T) -> u64) -> Vec<&'i [T]> {
        runs(items, IMAGES_OF_BATCH, self.batch_bytes, bytes)
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        *self.budget.lock() -= self.bytes;
        self.budget.given_back.notify_all();
    }
}

/// Returns consecutive runs of at most `most` items and, unless a single one is larger, at most `limit` bytes.
fn runs<T>(items: &[T], most: usize, limit: u64, bytes: impl Fn(&T) -> u64) -> Vec<&[T]> {
    let (mut runs, mut start, mut sum) = (Vec::new(), 0, 0_u64);
    for (at, item) in items.iter().enumerate() {
        let bytes = bytes(item);
        if at > start && (at - start == most || sum.saturating_add(bytes) > limit) {
            runs.push(&items[start..at]);
            (start, sum) = (at, 0);
        }
        sum = sum.saturating_add(bytes);
    }
    if start < items.len() {
        runs.push(&items[start..]);
    }
    runs
}

/// Returns the number of bytes to check and rewrite an image, from its header; 0 if the header rejects it.
fn needed(image: &[u8], options: &IngestOptions) -> u64 {
    let Ok(header) = probe(image) else { return 0 };
    if u64::from(header.width) * u64::from(header.height) > options.max_pixels {
        return 0;
    }
    let decoding = decoding_memory(image, &header);
    let shrunk = shrunk_size(header.width, header.height, options.max_side, options.short_side);
    let mut needed = if options.check == CheckDepth::Full || shrunk.is_some() { decoding } else { 0 };
    if let Some((width, height)) = shrunk {
        // The filter resizes one side after the other.
        needed += 3 * (u64::from(width) * u64::from(header.height) + u64::from(width) * u64::from(height));
    } else if options.baseline {
        // Coefficients of both files, or both decoded for the comparison.
        needed = needed.max(2 * decoding);
    }
    needed
}

/// Returns the memory that this process may use, in bytes: the machine's, or less if its control group limits it.
pub fn machine_memory() -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let info = std::fs::read_to_string("/proc/meminfo").ok();
    let line = info.as_deref().and_then(|info| info.lines().find_map(|line| line.strip_prefix("MemTotal:")));
    let machine = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut limits: Vec<u64> = machine.map(|kibibytes| kibibytes * 1024).into_iter().collect();
    for line in groups.lines() {
        // Number, controllers, path; version 2 names no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // Limits of the groups above also apply.
        let folders = std::iter::successors(Some(path.trim_end_matches('/')), |path| {
            path.rsplit_once('/').map(|(above, _)| above)
        });
        limits.extend(folders.filter_map(|folder| number(&format!("{root}{folder}/{file}"))));
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::image::{DecodedImage, encode_png};
    use crate::storage::Location;

    fn options(memory_limit: Option<u64>) -> IngestOptions {
        let here = Location::from_path(std::path::Path::new("x")).expect("a location");
        IngestOptions { memory_limit, ..IngestOptions::new(here.clone(), here) }
    }

    fn png(side: u32) -> Vec<u8> {
        let rgb = vec![0; (side * side * 3) as usize];
        encode_png(&DecodedImage { width: side, height: side, rgb }).expect("encoded")
    }

    #[test]
    fn threads_together_hold_no_more_than_the_limit() {
        let (image, options) = (png(192), options(Some(1 << 20)));
        let budget = MemoryBudget::new(&options, 8);
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let held = budget.admit(&image, &options).expect("it fits");
                        most.fetch_max(
                            now.fetch_add(held.bytes, Ordering::SeqCst) + held.bytes,
                            Ordering::SeqCst,
                        );
                        std::thread::yield_now();
                        now.fetch_sub(held.bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!(most <= budget.decoding && most >= 2 * 192 * 192 * 7, "{most}");
    }

    #[test]
    fn an_image_above_a_given_limit_is_rejected_and_without_one_it_is_alone() {
        let given = options(Some(1 << 20));
        let budget = MemoryBudget::new(&given, 2);
        let rejection = budget.admit(&png(1024), &given).expect_err("7 MiB are more than 1 MiB");
        let reason = "decoding needs 7.0 MiB, `--memory-limit` is 1.0 MiB and leaves 0.8 MiB for it";
        assert_eq!((rejection.kind.as_str(), rejection.reason.as_str()), (OVER_MEMORY_LIMIT, reason));
        let by_default = MemoryBudget { given: None, ..MemoryBudget::new(&given, 2) };
        let alone = by_default.admit(&png(1024), &given).expect("nothing else is held");
        let (sender, asks) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let image = png(16);
                sender.send(()).expect("heard");
                drop(by_default.admit(&image, &given));
            });
            asks.recv().expect("it asks");
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiting.is_finished());
            drop(alone);
        });
    }

    #[test]
    fn an_image_that_its_header_rejects_needs_no_memory() {
        let mut few = options(Some(1 << 20));
        few.max_pixels = 1000;
        assert_eq!(needed(&png(1024), &few), 0);
        assert_eq!(needed(b"no image", &few), 0);
    }

    #[test]
    fn runs_keep_the_order_and_their_limits() {
        let lengths = |limit| {
            runs(&[3, 3, 9, 1, 1, 1, 1], 3, limit, |&item| item)
                .iter()
                .map(|run| run.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(6), [2, 1, 3, 1]);
        assert_eq!(lengths(0), [1; 7]);
        assert!(runs(&[], 3, 1, |&item: &u64| item).is_empty());
    }

    #[test]
    fn the_machine_has_memory() {
        assert!(machine_memory().is_some_and(|bytes| bytes > 64 << 20));
    }
}
