//! What some steps measure.

use std::time::{Duration, Instant};

use super::log::now;
use crate::train::step::StepOutcome;
use crate::train::{MetricsLine, Scope, StepReport};

/// Adds up what an epoch, or an interval of it, measures.
#[derive(Debug)]
pub(in crate::train) struct Meter {
    started: Instant,
    steps: u64,
    images: u64,
    loss_sum: f64,
    cosine_sum: f64,
    alignment_sum: f64,
    skipped: u64,
    last: StepOutcome,
    waited: Duration,
    stalled: Duration,
}

impl Meter {
    pub(in crate::train) fn start() -> Self {
        let last = StepOutcome::before(0.0, 0);
        Self {
            started: Instant::now(),
            steps: 0,
            images: 0,
            loss_sum: 0.0,
            cosine_sum: 0.0,
            alignment_sum: 0.0,
            skipped: 0,
            last,
            waited: Duration::ZERO,
            stalled: Duration::ZERO,
        }
    }

    /// Takes note of a step; `waited` is the time spent waiting for data since the start.
    pub(in crate::train) fn add(&mut self, outcome: StepOutcome, waited: Duration) {
        self.images += outcome.images as u64;
        self.waited = waited;
        if outcome.skipped {
            self.skipped += 1;
        } else {
            self.steps += 1;
            self.loss_sum += outcome.loss;
            self.cosine_sum += outcome.row_cosine;
            self.alignment_sum += outcome.alignment;
        }
        self.last = outcome;
    }

    /// Takes note of time in which training stood still for a checkpoint.
    pub(in crate::train) fn stalled(&mut self, stall: Duration) {
        self.stalled += stall;
    }

    pub(in crate::train) fn report(&self, step: u64, epoch: u64) -> StepReport {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        StepReport {
            step,
            epoch,
            loss: self.last.loss,
            lr: self.last.lr,
            images_per_second: self.images as f64 / seconds,
            data_wait: self.waited.as_secs_f64() / seconds,
        }
    }

    pub(in crate::train) fn line(&self, scope: Scope, step: u64, epoch: u64) -> MetricsLine {
        let report = self.report(step, epoch);
        let mean = |sum: f64| sum / self.steps.max(1) as f64;
        MetricsLine {
            scope,
            time: now(),
            step,
            epoch,
            loss: mean(self.loss_sum),
            lr: self.last.lr,
            images_per_second: report.images_per_second,
            data_wait: report.data_wait,
            gradient_norm: self.last.gradient_norm,
            row_cosine: mean(self.cosine_sum),
            alignment: mean(self.alignment_sum),
            ln_partition: self.last.ln_partition,
            skipped_steps: self.skipped,
            checkpoint_stall: self.stalled.as_secs_f64(),
            bank: None,
            monitor: serde_json::Map::new(),
        }
    }
}
