//! Evaluation of a run's checkpoints as they appear, each once.
//!
//! A checkpoint counts as evaluated once its report exists. A watcher first takes the report's lock
//! (`storage::Lock`). Only one process can hold it, and it is released when the holder dies; clocks do not
//! matter. All state is beside the reports, so a watcher can be restarted anywhere.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::CommandError;
use super::reports::REPORTS;
use crate::checkpoint::{finished_step, list_checkpoints};
use crate::failure::chain;
use crate::storage::{Location, Lock, StorageError};

/// Options of a watcher.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// Time between two looks at the run.
    pub poll: Duration,
    /// Time without a new checkpoint after which the watcher stops; `None` to wait until the run is finished.
    pub idle_timeout: Option<Duration>,
}

/// Reason why a watcher stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchEnd {
    /// The run is finished, and every checkpoint has its report.
    Finished,
    /// No new checkpoint appeared within the timeout.
    Idle,
}

/// Results of a watcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WatchSummary {
    /// Steps whose checkpoints this watcher evaluated, in order.
    pub evaluated: Vec<u64>,
    /// Steps whose checkpoints could not be evaluated, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<u64>,
    /// Reason why the watcher stopped.
    pub end: WatchEnd,
}

/// Returns the report of a checkpoint in a folder of reports; `name` is the kind of report, such as `knn-val`.
pub(super) fn report_location(folder: &Location, name: &str, step: u64) -> Location {
    folder.join(&format!("{name}-step-{step:08}.json"))
}

/// Evaluates every checkpoint of the run without a report, oldest first, and waits for more.
///
/// `name` returns the kind of report for the checkpoint in a folder, such as `knn-val`. `evaluate` gets the
/// step, the checkpoint's folder and the report's lock, and publishes the report. If it fails and
/// `is_damaged` holds, the checkpoint is the cause: the summary lists its step, and the watcher continues.
///
/// # Errors
/// Any other error of `evaluate`, or of the store. A checkpoint that was removed meanwhile is skipped.
pub(super) fn watch(
    run: &Location,
    name: impl Fn(&Location) -> String,
    options: &WatchOptions,
    is_damaged: impl Fn(&CommandError) -> bool,
    mut evaluate: impl FnMut(u64, &Location, &Lock) -> Result<(), CommandError>,
) -> Result<WatchSummary, CommandError> {
    let (mut evaluated, mut failed) = (Vec::new(), BTreeSet::new());
    let mut last_news = Instant::now();
    let mut newest = None;
    loop {
        // Looked up before the list: if finished by then, the list is complete.
        let finished = finished_step(run)?.is_some();
        let checkpoints = list_checkpoints(run)?;
        let step = checkpoints.last().map(|(step, _)| *step);
        if step > newest {
            (newest, last_news) = (step, Instant::now());
        }
        let reports: BTreeSet<_> = run.join(REPORTS).list()?.into_iter().map(|entry| entry.name).collect();
        let (mut open, mut worked) = (false, false);
        for (step, folder) in &checkpoints {
            let report = report_location(&run.join(REPORTS), &name(folder), *step);
            if reports.contains(report.file_name()) || failed.contains(step) {
                continue;
            }
            let Some(lock) = take_lock(&report)? else {
                open = true;
                continue;
            };
            // Another watcher may have published and released its lock since the last look.
            let done = report.exists()?;
            let result = if done { Ok(()) } else { evaluate(*step, folder, &lock) };
            drop(lock);
            if let Err(error) = result {
                if list_checkpoints(run)?.iter().all(|(listed, _)| listed != step) {
                    tracing::warn!("{folder}: the checkpoint was removed before it could be evaluated");
                    continue;
                }
                if !is_damaged(&error) {
                    return Err(error);
                }
                tracing::error!(
                    "{folder}: cannot be evaluated, the other checkpoints are: {}",
                    chain(&error)
                );
                failed.insert(*step);
            } else if !done {
                evaluated.push(*step);
            }
            (worked, last_news) = (true, Instant::now());
        }
        let is_idle = || options.idle_timeout.is_some_and(|timeout| last_news.elapsed() >= timeout);
        let end = match (finished && !open && !worked, is_idle()) {
            (true, _) => Some(WatchEnd::Finished),
            (false, true) => Some(WatchEnd::Idle),
            (false, false) => None,
        };
        if let Some(end) = end {
            return Ok(WatchSummary { evaluated, failed: failed.into_iter().collect(), end });
        }
        if !worked {
            std::thread::sleep(options.poll);
        }
    }
}

/// Takes the lock of a report; `None` if another watcher holds it.
fn take_lock(report: &Location) -> Result<Option<Lock>, StorageError> {
    let Some(file) = report.with_file_name(&format!("{}.lock", report.file_name())) else { return Ok(None) };
    match Lock::take(&file) {
        Ok(lock) => Ok(Some(lock)),
        Err(StorageError::Locked { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
