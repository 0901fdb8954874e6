//! What the evaluations of a run take of its time, and whether one more may.

use std::time::{Duration, Instant};

use super::gather::any;
use crate::distributed::{DistributedError, ProcessGroup};

/// Numbers by their names in the metrics.
pub(super) type Scores = serde_json::Map<String, serde_json::Value>;

/// The time of a run's evaluations since its start or resume.
#[derive(Debug)]
pub(super) struct MonitorCost {
    since: Instant,
    spent: Duration,
    last: Duration,
}

impl MonitorCost {
    /// Of a run that steps since then.
    pub(super) fn since(since: Instant) -> Self {
        Self { since, spent: Duration::ZERO, last: Duration::ZERO }
    }

    /// Takes note of an evaluation; its seconds.
    pub(super) fn add(&mut self, took: Duration) -> f64 {
        (self.spent, self.last) = (self.spent + took, took);
        took.as_secs_f64()
    }

    /// Whether one more evaluation, as long as the last, keeps their share of the time within `most`, where that is not 0.
    /// Time differs between processes: rank 0's counts for all. Where it does not, that is said.
    ///
    /// # Errors
    /// If a collective fails.
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

/// The share of the time that evaluations have taken after the next one.
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
