//! Statistics of the time that each stage of the loader worked and waited.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Share of time below which the wait for data is not reported.
const NO_WAIT: f64 = 0.02;
/// Share of time below which the wait for data counts as small.
const LITTLE_WAIT: f64 = 0.1;
/// Share of time from which the wait for data is the limit.
const MOST_WAIT: f64 = 0.5;

/// An amount to which threads add.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds an amount.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Returns the sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds the nanoseconds that `work` takes.
    pub(super) fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.add(started.elapsed().as_nanos() as u64);
        result
    }

    fn seconds(&self) -> f64 {
        Duration::from_nanos(self.get()).as_secs_f64()
    }
}

/// Declares the counters and the statistics that show them, each with a doc and a name.
macro_rules! counted {
    (
        times { $($(#[$of_time:meta])* $time:ident,)+ }
        amounts { $($(#[$of_amount:meta])* $amount:ident,)+ }
    ) => {
        /// Counters of the stages; times are in nanoseconds, summed over threads.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$of_time])* pub $time: Counter,)+
            /// Number of batches that were ready when one was requested, summed.
            pub ready: Counter,
            $($(#[$of_amount])* pub $amount: Counter,)+
        }

        /// Statistics of a loader since its start.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize)]
        pub struct LoaderStats {
            /// Time since the start, in seconds, as are all times; those of several threads are summed.
            pub seconds: f64,
            /// Number of threads that read.
            pub read_threads: usize,
            /// Number of threads that decode.
            pub decode_threads: usize,
            $($(#[$of_time])* pub $time: f64,)+
            /// Mean number of batches that were ready when one was requested.
            pub ready: f64,
            $($(#[$of_amount])* pub $amount: u64,)+
            /// Maximum number of bytes of encoded images that were held at once.
            pub peak_bytes: u64,
        }

        impl LoaderStats {
            pub(super) fn new(
                counters: &Counters,
                seconds: f64,
                (read_threads, decode_threads): (usize, usize),
                peak_bytes: u64,
            ) -> Self {
                let batches = counters.batches.get().max(1);
                Self {
                    seconds,
                    read_threads,
                    decode_threads,
                    $($time: counters.$time.seconds(),)+
                    ready: counters.ready.get() as f64 / batches as f64,
                    $($amount: counters.$amount.get(),)+
                    peak_bytes,
                }
            }
        }
    };
}

counted! {
    times {
        /// Wait of the planner for memory: the loader is as far ahead as it may be.
        plan_wait,
        /// Reading.
        read_busy,
        /// Wait of the readers for work.
        read_wait,
        /// Wait for rows that are being read.
        gather_wait,
        /// Decoding and augmenting.
        make_busy,
        /// Wait of the decode workers for rows.
        make_wait,
        /// Wait of finished batches for room.
        ready_wait,
        /// Wait of the consumer for batches.
        consumer_wait,
    }
    amounts {
        /// Number of batches requested.
        batches,
        /// Number of images made.
        images,
        /// Bytes read from the dataset's disk or store.
        bytes,
        /// Number of reads from the dataset's disk or store.
        requests,
        /// Number of reads repeated because of damaged bytes.
        retries,
        /// Number of row groups found in the cache.
        cache_hits,
        /// Number of row groups not found in the cache.
        cache_misses,
        /// Bytes read from the cache.
        cache_bytes,
        /// Number of distinct instances left out as corrupt.
        corrupt,
    }
}

impl Counters {
    pub(super) fn count_read(&self, bytes: &[u8]) {
        self.requests.add(1);
        self.bytes.add(bytes.len() as u64);
    }
}

impl LoaderStats {
    /// Returns the difference from `before` in the fields that [`LoaderStats::verdict`] uses.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            seconds: self.seconds - before.seconds,
            consumer_wait: self.consumer_wait - before.consumer_wait,
            gather_wait: self.gather_wait - before.gather_wait,
            make_busy: self.make_busy - before.make_busy,
            bytes: self.bytes - before.bytes,
            ..*self
        }
    }

    /// Returns whether the consumer waits for data more than a little.
    pub fn waits_for_data(&self) -> bool {
        self.consumer_wait >= LITTLE_WAIT * self.seconds.max(1e-9)
    }

    /// Describes in one line the limit of the speed: decoding, the storage, or the consumer (the encoder).
    pub fn verdict(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        let wait = self.consumer_wait / seconds;
        // An image counts once it is made, including time before the start of these seconds.
        let decoding = (self.make_busy / (seconds * self.decode_threads.max(1) as f64)).min(1.0);
        let is_storage = self.gather_wait > self.consumer_wait / 2.0;
        let source = if is_storage { "the storage" } else { "the CPU that decodes" };
        let limit = if wait < NO_WAIT {
            "nothing waits for data, the encoder sets the pace".into()
        } else if wait < LITTLE_WAIT {
            "little waits for data, the encoder sets most of the pace".into()
        } else if wait < MOST_WAIT {
            format!("the encoder sets most of the pace, and waits for {source}")
        } else {
            format!("the limit is {source}")
        };
        let (wait, decoding) = (100.0 * wait, 100.0 * decoding);
        let rate = self.bytes as f64 / 1e6 / seconds;
        format!("data wait {wait:.1} %, decoders busy {decoding:.0} %, {rate:.1} MB/s read: {limit}")
    }

    /// Formats the stages, one in each line.
    pub fn table(&self) -> String {
        let readers = self.read_threads;
        format!(
            "plan     waited {:.2} s for memory, {:.1} MB held at most\n\
             read     busy {:.2} s, idle {:.2} s over {readers} threads; {} reads, {:.1} MB, {} again\n\
             cache    {} hits, {} misses, {:.1} MB\n\
             gather   waited {:.2} s for rows\n\
             make     busy {:.2} s over {} threads, waited {:.2} s for rows and {:.2} s for room; {} images, \
             {} corrupt\nconsumer waited {:.2} s of {:.2} s for {} batches; {:.1} were ready on average",
            self.plan_wait,
            self.peak_bytes as f64 / 1e6,
            self.read_busy,
            self.read_wait,
            self.requests,
            self.bytes as f64 / 1e6,
            self.retries,
            self.cache_hits,
            self.cache_misses,
            self.cache_bytes as f64 / 1e6,
            self.gather_wait,
            self.make_busy,
            self.decode_threads,
            self.make_wait,
            self.ready_wait,
            self.images,
            self.corrupt,
            self.consumer_wait,
            self.seconds,
            self.batches,
            self.ready,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(consumer: f64, gather: f64) -> String {
        let counters = Counters::default();
        counters.consumer_wait.add((consumer * 1e9) as u64);
        counters.gather_wait.add((gather * 1e9) as u64);
        LoaderStats::new(&counters, 100.0, (1, 1), 0).verdict()
    }

    #[test]
    fn an_epoch_has_a_verdict_of_its_own_waits() {
        let counters = Counters::default();
        counters.consumer_wait.add(60_000_000_000);
        let before = LoaderStats::new(&counters, 100.0, (1, 1), 0);
        assert!(before.waits_for_data());
        let after = LoaderStats::new(&counters, 150.0, (1, 1), 0).since(&before);
        assert!(!after.waits_for_data() && after.seconds == 50.0, "{}", after.verdict());
    }

    #[test]
    fn decoders_are_never_busier_than_all_the_time() {
        let counters = Counters::default();
        counters.make_busy.add(203_000_000_000);
        let said = LoaderStats::new(&counters, 100.0, (1, 2), 0).verdict();
        assert!(said.contains("decoders busy 100 %"), "{said}");
    }

    #[test]
    fn where_nothing_waits_for_data_the_loader_is_no_limit() {
        for (waits, expected) in [
            ((0.9, 0.9), "data wait 0.9 %, decoders busy 0 %, 0.0 MB/s read: nothing waits for data"),
            ((7.0, 1.0), "little waits for data"),
            ((30.0, 1.0), "most of the pace, and waits for the CPU that decodes"),
            ((30.0, 29.0), "most of the pace, and waits for the storage"),
            ((60.0, 1.0), "the limit is the CPU that decodes"),
            ((60.0, 59.0), "the limit is the storage"),
        ] {
            let said = verdict(waits.0, waits.1);
            assert!(said.contains(expected), "{said}");
        }
    }
}
