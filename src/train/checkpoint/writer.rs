//! Background writer of checkpoints.
//!
//! A snapshot is copied to the host between two steps. Another thread then writes it as files, publishes them
//! and removes superfluous checkpoints. Snapshots are written one at a time.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::snapshot::Snapshot;
use crate::checkpoint::{list_checkpoints, remove_checkpoint};
use crate::storage::Location;
use crate::train::TrainError;

/// Background writer of a run's checkpoints.
#[derive(Debug)]
pub(crate) struct Writer {
    run: Location,
    /// Set in one process of a run, which removes old checkpoints.
    retention: Option<Retention>,
    under_way: Option<JoinHandle<Result<Location, TrainError>>>,
    last: Option<Location>,
}

impl Writer {
    /// Creates a writer for the run, whose newest checkpoint so far is `last`.
    pub(crate) fn new(run: Location, retention: Option<Retention>, last: Option<Location>) -> Self {
        Self { run, retention, under_way: None, last }
    }

    /// Takes a snapshot and starts to write it. Returns how long training was blocked.
    ///
    /// # Errors
    /// If the previous checkpoint could not be written.
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

    /// Checks, without waiting, that the current write has not failed.
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

    /// Returns the newest published checkpoint.
    pub(crate) fn last(&self) -> Option<&Location> {
        self.last.as_ref()
    }
}

impl Drop for Writer {
    /// Waits for the current write, so a run that ends with an error still has this checkpoint.
    fn drop(&mut self) {
        if let Some(thread) = self.under_way.take()
            && let Ok(Err(error)) = thread.join()
        {
            tracing::warn!("a checkpoint could not be written: {error}");
        }
    }
}

/// Rule for which checkpoints of a run are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Number of newest checkpoints to keep; 0 keeps all.
    pub newest: usize,
    /// Also keeps checkpoints whose step is a multiple of this; 0 for none.
    pub every_steps: u64,
}

impl Retention {
    /// Selects the checkpoints to remove from ascending `steps`. The initial one is always kept.
    fn superfluous(self, steps: &[u64]) -> Vec<u64> {
        let old = if self.newest == 0 { 0 } else { steps.len().saturating_sub(self.newest) };
        let for_ever =
            |step: u64| step == 0 || (self.every_steps > 0 && step.is_multiple_of(self.every_steps));
        steps[..old].iter().copied().filter(|&step| !for_ever(step)).collect()
    }

    /// Removes superfluous checkpoints.
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
