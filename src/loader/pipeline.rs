//! Threads of the loader, which make batches in advance.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::LoaderError;
use super::options::{Budget, DECODE_WORKERS, LoaderOptions};
use super::plan::{Batch, Passes, Planner};
use super::source::{ReadContext, Source};
use super::stages::{DecodeWorkers, DecodedBatch, View, gather, make, plan, read};
use super::stats::{Counters, LoaderStats};
use crate::augment::{EvalTransform, Recipe};
use crate::failure::chain;
use crate::ids::BankRow;
use crate::run_config::OnCorrupt;

/// Interval at which a waiting consumer checks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// Iterator over the batches of some epochs in order, made by its own threads.
///
/// Dropping the loader ends the threads at once, whatever they are doing.
#[derive(Debug)]
pub struct Loader {
    /// Receivers of the workers' batches; the workers take turns. Empty once the loader has ended.
    workers: Vec<Receiver<DecodedBatch>>,
    turn: usize,
    /// Epoch and step of the next batch.
    next: (u64, u64),
    steps: u64,
    threads: Vec<JoinHandle<()>>,
    shutdown: Shutdown,
    counters: Arc<Counters>,
    started: Instant,
    thread_counts: (usize, usize),
    buffers: Sender<Vec<u8>>,
    on_corrupt: OnCorrupt,
    max_corrupt: u64,
    corrupt: HashSet<BankRow>,
}

impl Loader {
    /// Starts to load epochs from `first_step` on.
    ///
    /// # Errors
    /// If the memory limit is too small, or threads cannot be started.
    ///
    /// # Panics
    /// If the batch size is 0.
    pub fn start(
        source: Arc<dyn Source>,
        recipe: Recipe,
        options: LoaderOptions,
    ) -> Result<Self, LoaderError> {
        let view = View::Training { recipe, seed: options.seed };
        Self::spawn(source, view, Passes::Shuffled, options)
    }

    /// Returns the time that the consumer has waited for batches so far.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.counters.consumer_wait.get())
    }

    /// Returns the statistics so far.
    pub fn stats(&self) -> LoaderStats {
        let seconds = self.started.elapsed().as_secs_f64();
        LoaderStats::new(&self.counters, seconds, self.thread_counts, self.shutdown.fetched.peak())
    }

    /// Returns the next batch of this epoch; `None` when the epoch is over, or soon after `stop` was set.
    pub fn next_of(&mut self, epoch: u64, stop: &AtomicBool) -> Option<Result<Batch, LoaderError>> {
        if self.next.0 == epoch { self.receive(Some(stop)) } else { None }
    }

    /// Takes back the memory of a batch for reuse.
    pub fn give_back(&self, batch: Batch) {
        // The buffer is freed if enough others wait for reuse.
        let _ = self.buffers.try_send(batch.pixels);
    }

    fn spawn(
        source: Arc<dyn Source>,
        view: View,
        passes: Passes,
        options: LoaderOptions,
    ) -> Result<Self, LoaderError> {
        assert!(options.batch_size > 0, "a batch has images");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|index| format!("loader-{index}"))
            .build()
            .map_err(|error| LoaderError::Threads(error.into()))?;
        let thread_counts = (options.read_threads.max(1), pool.current_num_threads());
        let (fetched, memory) = options.budgets(source.as_ref(), passes, thread_counts.1, view.side())?;
        let planner = Planner::new(Arc::clone(&source), options, passes);
        let context = ReadContext::default();
        let counters = Arc::clone(&context.counters);
        let shutdown =
            Shutdown { context: context.clone(), fetched: fetched.clone(), memory: memory.clone() };
        let steps = options.steps(source.len());
        let next = if options.first_step < steps {
            (options.epoch, options.first_step)
        } else {
            (options.epoch + 1, 0)
        };
        let (buffers, returned) = bounded(options.prefetch + DECODE_WORKERS);
        let mut loader = Self {
            workers: Vec::new(),
            turn: 0,
            next,
            steps,
            threads: Vec::new(),
            shutdown,
            counters,
            started: Instant::now(),
            thread_counts,
            buffers,
            on_corrupt: options.on_corrupt,
            max_corrupt: options.max_corrupt,
            corrupt: HashSet::new(),
        };

        let (task_sender, tasks) = bounded(thread_counts.0);
        let (step_sender, step_receiver) = unbounded();
        let (arrived_sender, arrived) = unbounded();
        {
            let (source, context, budget) = (Arc::clone(&source), context.clone(), fetched.clone());
            loader.run("plan", move || {
                plan(planner, source.as_ref(), &budget, &context, &task_sender, &step_sender);
            })?;
        }
        for _ in 0..thread_counts.0 {
            let (source, context) = (Arc::clone(&source), context.clone());
            let (tasks, arrived) = (tasks.clone(), arrived_sender.clone());
            loader.run("read", move || read(source.as_ref(), &context, &tasks, &arrived))?;
        }
        drop((tasks, arrived_sender));
        let workers = Arc::new(DecodeWorkers {
            source,
            view,
            pool,
            memory,
            context: context.clone(),
            buffers: returned,
        });
        let mut work_senders = Vec::new();
        for _ in 0..DECODE_WORKERS {
            let (work_sender, works) = bounded(1);
            let (batch_sender, batches) = bounded(options.prefetch.div_ceil(DECODE_WORKERS).max(1));
            work_senders.push(work_sender);
            loader.workers.push(batches);
            let workers = Arc::clone(&workers);
            loader.run("make", move || make(&workers, &works, &batch_sender))?;
        }
        loader.run("gather", move || gather(&context, &fetched, &step_receiver, &arrived, &work_senders))?;
        Ok(loader)
    }

    fn run(&mut self, stage: &str, work: impl FnOnce() + Send + 'static) -> Result<(), LoaderError> {
        let shutdown = self.shutdown.clone();
        let thread = std::thread::Builder::new().name(format!("loader-{stage}")).spawn(move || {
            let _ends_all_if_it_panics = OnPanic(shutdown);
            work();
        });
        self.threads.push(thread.map_err(|error| LoaderError::Threads(error.into()))?);
        Ok(())
    }

    fn receive(&mut self, stop: Option<&AtomicBool>) -> Option<Result<Batch, LoaderError>> {
        let turn = self.turn;
        let batches = self.workers.get(turn)?;
        self.counters.ready.add(self.workers.iter().map(|batches| batches.len() as u64).sum());
        let received = self.counters.consumer_wait.time(|| {
            loop {
                match batches.recv_timeout(STOP_INTERVAL) {
                    Err(RecvTimeoutError::Timeout)
                        if stop.is_none_or(|stop| !stop.load(Ordering::Relaxed)) => {}
                    other => return other,
                }
            }
        });
        let made = match received {
            Ok(made) => made,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => {
                // All threads have ended; if one panicked, the consumer panics, too.
                if let Some(panic) = self.join() {
                    std::panic::resume_unwind(panic);
                }
                return None;
            }
        };
        self.turn = (turn + 1) % self.workers.len();
        self.counters.batches.add(1);
        let (epoch, step) = self.next;
        self.next = if step + 1 < self.steps { (epoch, step + 1) } else { (epoch + 1, 0) };
        let batch = self.accept(made);
        if batch.is_err() {
            self.workers.clear();
        }
        Some(batch)
    }

    /// Counts or reports the images missing from a batch. The order of batches makes this independent of threads.
    fn accept(&mut self, made: DecodedBatch) -> Result<Batch, LoaderError> {
        for (bank_row, error) in made.missing {
            let owned = |error| Arc::try_unwrap(error).unwrap_or_else(LoaderError::Shared);
            if self.on_corrupt == OnCorrupt::Fail || !error.is_corruption() {
                return Err(owned(error));
            }
            if self.corrupt.insert(bank_row) {
                tracing::warn!("left out: {}", chain(error.as_ref()));
                self.counters.corrupt.add(1);
            }
            let corrupt = self.corrupt.len() as u64;
            if corrupt > self.max_corrupt {
                return Err(LoaderError::TooManyCorrupt { corrupt, limit: self.max_corrupt, source: error });
            }
        }
        Ok(made.batch)
    }

    /// Ends all threads and waits for each of them; returns the first panic.
    fn join(&mut self) -> Option<Box<dyn Any + Send>> {
        self.shutdown.end_all();
        // Without a receiver, a worker that waits to send stops, and so do all stages before it.
        self.workers.clear();
        let panics = self.threads.drain(..).filter_map(|thread| thread.join().err());
        // Collected, so that all threads are joined after the first panic.
        panics.collect::<Vec<_>>().into_iter().next()
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receive(None)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // A panic is meant for the consumer, which wants no more batches.
        let _ = self.join();
    }
}

/// Loads every image of a source exactly once, in the stored order, under the evaluation transform.
///
/// # Errors
/// If threads cannot be started.
///
/// # Panics
/// If the batch size is 0.
pub fn evaluation_batches(
    source: Arc<dyn Source>,
    transform: EvalTransform,
    batch_size: usize,
    threads: usize,
) -> Result<Loader, LoaderError> {
    let options = LoaderOptions { batch_size, threads, ..LoaderOptions::default() };
    Loader::spawn(source, View::Evaluation(transform), Passes::Stored, options)
}

/// Loads every image of a source exactly once under the evaluation transform, in the order of epoch 0 under these
/// options. Each rank reads its own region. The last batch may be short.
///
/// # Errors
/// If threads cannot be started, or the memory limit is too small.
///
/// # Panics
/// If the batch size is 0.
pub fn evaluation_epoch(
    source: Arc<dyn Source>,
    transform: EvalTransform,
    options: LoaderOptions,
) -> Result<Loader, LoaderError> {
    let options = LoaderOptions { drop_last: false, epoch: 0, epochs: 1, first_step: 0, ..options };
    Loader::spawn(source, View::Evaluation(transform), Passes::Shuffled, options)
}

/// Signal that ends all stages.
#[derive(Clone, Debug)]
struct Shutdown {
    context: ReadContext,
    fetched: Budget,
    memory: Budget,
}

impl Shutdown {
    fn end_all(&self) {
        self.context.cancel.cancel();
        self.fetched.close();
        self.memory.close();
    }
}

/// Guard that ends all stages if its thread panics.
struct OnPanic(Shutdown);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end_all();
        }
    }
}
