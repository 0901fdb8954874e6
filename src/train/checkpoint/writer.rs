//! Writing checkpoints while training goes on.
//!
//! A snapshot is copied to the host between two steps; another thread turns it into files, publishes
//! them, and removes superfluous checkpoints. One snapshot is written at a time: the next one waits.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::snapshot::Snapshot;
use crate::checkpoint::{list_checkpoints, remove_checkpoint};
use crate::storage::Location;
use crate::train::TrainError;

/// The writer of a run's checkpoints.
#[derive(Debug)]
pub(crate) struct Writer {
    run: Location,
    /// Of several processes one removes checkpoints.
    retention: Option<Retention>,
    under_way: Option<JoinHandle<Result<Location, TrainError>>>,
    last: Option<Location>,
}

impl Writer {
    /// A writer for the run, whose newest checkpoint so far is `last`.
    pub(crate) fn new(run: Location, retention: Option<Retention>, last: Option<Location>) -> Self {
        Self { run, retention, under_way: None, last }
    }

    /// Takes a snapshot and starts to write it; how long training stood still for it.
    ///
    /// # Errors
    /// If the checkpoint before it could not be written.
    pub(crate) fn start(&mut self, take: impl FnOnce() -> Snapshot) -> Result<Duration, TrainError> {
        let began = Instant::now();
        self.finish()?;
        let snapshot = take();
        let (run, retention) = (self.run.clone(), self.retention);
        let write = move || {
            let (began, step) = (Instant::now(), snapshot.step());
            let folder = snapshot.write(&run)?;
            tracing::debug!("step {step}: written in {:.2} s", began.elapsed().as_secs_f64());
            retention.map_or(Ok(()), |retention| retention.apply(&run))?;
            Ok(folder)
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(write);
        self.under_way = Some(thread.map_err(TrainError::Threads)?);
        Ok(began.elapsed())
    }

    /// Whether the write under way has failed, without waiting for it.
    pub(crate) fn check(&mut self) -> Result<(), TrainError> {
        if self.under_way.as_ref().is_some_and(JoinHandle::is_finished) { self.finish() } else { Ok(()) }
    }

    /// Waits until everything is published.
    pub(crate) fn finish(&mut self) -> Result<(), TrainError> {
        if let Some(thread) = self.under_way.take() {
            let written = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let folder = written?;
            tracing::debug!("checkpoint {folder}");
            self.last = Some(folder);
        }
        Ok(())
    }

    /// The newest checkpoint that is published.
    pub(crate) fn last(&self) -> Option<&Location> {
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

/// Which checkpoints of a run are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Keeps this many of the newest; 0 for all.
    pub newest: usize,
    /// Keeps those of multiples of this number of steps for ever; 0 for none.
    pub every_steps: u64,
}

impl Retention {
    /// The steps, ascending, whose checkpoints go. The initial one always stays.
    fn superfluous(self, steps: &[u64]) -> Vec<u64> {
        let old = if self.newest == 0 { 0 } else { steps.len().saturating_sub(self.newest) };
        let for_ever =
            |step: u64| step == 0 || (self.every_steps > 0 && step.is_multiple_of(self.every_steps));
        steps[..old].iter().copied().filter(|&step| !for_ever(step)).collect()
    }

    /// Removes what need not stay.
    fn apply(self, run: &Location) -> Result<(), TrainError> {
        let all = list_checkpoints(run)?;
        let steps: Vec<u64> = all.iter().map(|(step, _)| *step).collect();
        let superfluous = self.superfluous(&steps);
        for (_, folder) in all.iter().filter(|(step, _)| superfluous.contains(step)) {
            remove_checkpoint(folder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_the_first_and_one_of_every_so_many_steps_stay() {
        let superfluous =
            |newest, every_steps, steps: &[u64]| Retention { newest, every_steps }.superfluous(steps);
        assert_eq!(superfluous(2, 0, &[0, 10, 20, 30, 40]), [10, 20]);
        assert_eq!(superfluous(2, 0, &[0, 10]), [0_u64; 0]);
        assert_eq!(superfluous(0, 0, &[0, 10, 20]), [0_u64; 0]);
        assert_eq!(superfluous(1, 20, &[0, 10, 20, 25, 30, 40, 50]), [10, 25, 30]);
    }
}
