//! Evaluations during a run: when they are due, and their time budget.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::gather::any;
use super::learner::{Learned, Learner};
use super::metrics::Meter;
use super::{Evaluation, MetricsLine, Scope, Session, TrainError};
use crate::checkpoint::Cursor;
use crate::distributed::{DistributedError, ProcessGroup};

/// Scores by their names in the metrics.
pub(super) type Scores = serde_json::Map<String, serde_json::Value>;

impl<L: Learner> Session<'_, L> {
    /// Evaluates where a run lacks an evaluation: before the first step, as a baseline, and after a resume if
    /// the run was stopped before its last step was evaluated.
    pub(super) fn catch_up(&mut self) -> Result<(), TrainError> {
        let step = self.cursor().step;
        let has_scores = self.metrics.as_ref().is_some_and(|metrics| metrics.has_scores(step));
        let [is_evaluated] = any(&self.group, [has_scores])?;
        let is_last = self.is_done() && !self.config().no_monitor;
        if (self.is_monitored() || is_last) && !is_evaluated && self.learner.bank().is_some() {
            self.evaluate_alone(is_last)?;
        }
        Ok(())
    }

    /// Returns whether the monitor runs after the current step.
    pub(super) fn is_monitored(&self) -> bool {
        let Cursor { step, epoch, step_in_epoch } = self.cursor();
        let config = self.config();
        !config.no_monitor && config.monitor_every.falls_on(step, (step_in_epoch == 0).then_some(epoch))
    }

    /// Evaluates within an epoch and writes the scores as a separate line.
    pub(super) fn evaluate_alone(&mut self, is_last: bool) -> Result<(), TrainError> {
        let monitor = self.evaluate(is_last)?;
        if !monitor.is_empty() {
            let Cursor { step, epoch, .. } = self.cursor();
            let scope = if step == 0 { Scope::Start } else { Scope::Monitor };
            let line = MetricsLine { monitor, ..Meter::line_of_nothing(scope, step, epoch) };
            self.push(&line);
        }
        Ok(())
    }

    /// Evaluates by the hooks. Returns no scores if they fail, which costs no steps, or would take too much time.
    pub(super) fn evaluate(&mut self, is_last: bool) -> Result<Scores, TrainError> {
        let (share, step) = (self.config().monitor_share, self.cursor().step);
        if !is_last && !self.monitor_cost.allows(share, step, &self.group)? {
            return Ok(Scores::new());
        }
        let began = Instant::now();
        let mut scores = self.scores()?;
        let seconds = self.monitor_cost.add(began.elapsed());
        if !scores.is_empty() {
            scores.insert("monitor_seconds".to_owned(), seconds.into());
        }
        Ok(scores)
    }

    fn scores(&mut self) -> Result<Scores, TrainError> {
        let Learned { encoder, cursor, .. } = self.learner.learned();
        let (bank, probe, group) = (self.learner.bank(), self.learner.probe(), self.group.as_ref());
        group.broadcast(&encoder.statistics(), 0)?;
        let stop = self.stop;
        let evaluated =
            self.hooks.evaluate(Evaluation { encoder, bank, probe, group, step: cursor.step, stop });
        Ok(evaluated.unwrap_or_else(|error| {
            if !stop.load(Ordering::Relaxed) {
                tracing::warn!(
                    "step {}: the monitor failed: {}",
                    cursor.step,
                    crate::failure::chain(&*error)
                );
            }
            Scores::new()
        }))
    }
}

/// Time spent on evaluations since a run's start or resume.
#[derive(Debug)]
pub(super) struct MonitorCost {
    since: Instant,
    spent: Duration,
    last: Duration,
}

impl MonitorCost {
    /// Starts counting for a run whose steps began at `since`.
    pub(super) fn since(since: Instant) -> Self {
        Self { since, spent: Duration::ZERO, last: Duration::ZERO }
    }

    /// Adds an evaluation. Returns its seconds.
    pub(super) fn add(&mut self, took: Duration) -> f64 {
        (self.spent, self.last) = (self.spent + took, took);
        took.as_secs_f64()
    }

    /// Returns whether one more evaluation, as long as the last, keeps the share of the time within `most`; 0
    /// allows any. Rank 0's clock decides for all processes. Logs a skipped evaluation.
    pub(super) fn allows(
        &self,
        most: f64,
        step: u64,
        group: &ProcessGroup,
    ) -> Result<bool, DistributedError> {
        if most == 0.0 {
            return Ok(true);
        }
        let share = share(self.since.elapsed(), self.spent, self.last);
        let [exceeds] = any(group, [group.is_first() && share > most])?;
        if exceeds && group.is_first() {
            tracing::info!(
                "monitor: step {step} is left out: evaluations would take {:.1} % of the time, more than \
                 --monitor-share {most}; the last took {:.1} s",
                100.0 * share,
                self.last.as_secs_f64()
            );
        }
        Ok(!exceeds)
    }
}

/// Returns the share of the time spent on evaluations, including the next one.
fn share(elapsed: Duration, spent: Duration, next: Duration) -> f64 {
    (spent + next).as_secs_f64() / (elapsed + next).as_secs_f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_is_too_dear_where_it_would_exceed_the_share() {
        let share = |elapsed, spent, next| {
            let [elapsed, spent, next] = [elapsed, spent, next].map(Duration::from_secs);
            share(elapsed, spent, next)
        };
        assert_eq!(share(0, 0, 0), 0.0, "the first comes: its cost is not known");
        assert_eq!(share(10, 10, 10), 1.0, "the second not at once");
        assert_eq!(share(190, 5, 10), 0.075);
    }
}
