//! Writing checkpoints while training goes on.
//!
//! A snapshot is copied to the host between two steps; a thread of its own turns it into files, publishes
//! them, and removes superfluous checkpoints. One snapshot is written at a time: the next one waits.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::retention::Retention;
use super::snapshot::Snapshot;
use crate::storage::Location;
use crate::train::TrainError;

/// The writer of a run's checkpoints.
#[derive(Debug)]
pub(in crate::train) struct Writer {
    run: Location,
    /// Of several processes one removes checkpoints.
    retention: Option<Retention>,
    under_way: Option<JoinHandle<Result<Location, TrainError>>>,
    last: Option<Location>,
}

impl Writer {
    /// A writer for the run, whose newest checkpoint so far is `last`.
    pub(in crate::train) fn new(run: Location, retention: Option<Retention>, last: Option<Location>) -> Self {
        Self { run, retention, under_way: None, last }
    }

    /// Takes a snapshot and starts to write it; how long training stood still for it.
    ///
    /// # Errors
    /// If the checkpoint before it could not be written.
    pub(in crate::train) fn start(
        &mut self,
        take: impl FnOnce() -> Snapshot,
    ) -> Result<Duration, TrainError> {
        let began = Instant::now();
        self.finish()?;
        let snapshot = take();
        let (run, retention) = (self.run.clone(), self.retention);
        let write = move || {
            let (began, step) = (Instant::now(), snapshot.step);
            let folder = snapshot.write(&run)?;
            tracing::debug!("step {step}: written in {:.2} s", began.elapsed().as_secs_f64());
            retention.map_or(Ok(()), |retention| retention.apply(&run))?;
            Ok(folder)
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(write);
        self.under_way = Some(thread.map_err(TrainError::Threads)?);
        Ok(began.elapsed())
    }

    /// Says whether the write under way has failed, without waiting for it.
    ///
    /// # Errors
    /// Why it failed.
    pub(in crate::train) fn check(&mut self) -> Result<(), TrainError> {
        if self.under_way.as_ref().is_some_and(JoinHandle::is_finished) { self.finish() } else { Ok(()) }
    }

    /// Waits until everything is published.
    ///
    /// # Errors
    /// Why it could not be.
    pub(in crate::train) fn finish(&mut self) -> Result<(), TrainError> {
        if let Some(thread) = self.under_way.take() {
            let written = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let folder = written?;
            tracing::debug!("checkpoint {folder}");
            self.last = Some(folder);
        }
        Ok(())
    }

    /// The newest checkpoint that is published.
    pub(in crate::train) fn last(&self) -> Option<&Location> {
        self.last.as_ref()
    }
}

impl Drop for Writer {
    /// A run that ends with an error still has the checkpoint that was under way.
    fn drop(&mut self) {
        if let Some(thread) = self.under_way.take()
            && let Ok(Err(error)) = thread.join()
        {
            tracing::warn!("a checkpoint could not be written: {error}");
        }
    }
}
