//! Judging the checkpoints of a run as they appear, each once.
//!
//! A checkpoint is judged when its report exists. Before a watcher begins, it takes a *claim*: a small file
//! that only one watcher can create, with a lease that its holder renews. A watcher that dies leaves a claim
//! that runs out, and another takes the next one; claims are numbered and never replaced by others, so two
//! watchers cannot both take over. State lies beside the reports alone: a watcher can be started anew anywhere.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, finished_step, list_checkpoints};
use crate::storage::{Location, PublishMode, StorageError};

/// The folder of a run's reports.
const REPORTS: &str = "eval";

/// How to watch.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// How often the run is looked at.
    pub poll: Duration,
    /// Stop after so long without a new checkpoint; `None` to wait until the run is finished.
    pub idle_timeout: Option<Duration>,
    /// How long a claim holds unless it is renewed.
    pub lease: Duration,
}

/// Why a watcher stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchEnd {
    /// The run is finished, and every checkpoint has its report.
    Finished,
    /// Nothing new came for long.
    Idle,
}

/// What a watcher did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WatchSummary {
    /// The steps whose checkpoints this watcher judged, in order.
    pub judged: Vec<u64>,
    /// Why it stopped.
    pub end: WatchEnd,
}

/// The contents of a claim.
#[derive(Debug, Serialize, Deserialize)]
struct ClaimFile {
    /// Seconds since 1970 at which it runs out.
    until: f64,
}

/// The right to judge a checkpoint.
#[derive(Debug)]
pub struct Claim {
    file: Location,
    /// Claims before it, which ran out.
    before: Vec<Location>,
    lease: Duration,
    renewed: Mutex<Instant>,
}

impl Claim {
    /// Renews the lease where a good part of it is over; call it now and then in long work.
    ///
    /// # Errors
    /// If the store fails.
    pub fn renew(&self) -> Result<(), StorageError> {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.elapsed() > self.lease / 4 {
            self.file.publish(claim_text(self.lease), PublishMode::Overwrite)?;
            *renewed = Instant::now();
        }
        Ok(())
    }

    /// Gives it up. Where the report is `published`, claims of watchers that died are of no use any more.
    fn give_up(self, published: bool) -> Result<(), StorageError> {
        let before = if published { self.before } else { Vec::new() };
        before.iter().chain([&self.file]).try_for_each(Location::delete)
    }
}

/// The place of the report of a checkpoint of a run.
pub fn report_location(run: &Location, step: u64) -> Location {
    run.join(REPORTS).join(&format!("knn-step-{step:08}.json"))
}

/// Judges every checkpoint of the run that has no report, oldest first, and waits for more.
///
/// `judge` is called with the step, the checkpoint's folder and the claim; it has to publish the report.
///
/// # Errors
/// The first error of `judge` or of the store. A checkpoint that was removed meanwhile is no error.
pub fn watch<E: From<CheckpointError>>(
    run: &Location,
    options: &WatchOptions,
    mut judge: impl FnMut(u64, &Location, &Claim) -> Result<(), E>,
) -> Result<WatchSummary, E> {
    let mut judged = Vec::new();
    let mut last_news = Instant::now();
    let mut newest = None;
    loop {
        // Looked up before the list: what is listed after it is all there will be.
        let finished = finished_step(run)?.is_some();
        let checkpoints = list_checkpoints(run)?;
        let step = checkpoints.last().map(|(step, _)| *step);
        if step > newest {
            (newest, last_news) = (step, Instant::now());
        }
        let reports = reports(run)?;
        let mut open = false;
        let mut worked = false;
        for (step, folder) in &checkpoints {
            let report = report_location(run, *step);
            if reports.contains(report.file_name()) {
                continue;
            }
            let Some(claim) = take_claim(&report, options.lease).map_err(CheckpointError::from)? else {
                open = true;
                continue;
            };
            // Another watcher may have published and given up its claim since the look above.
            let done = report.exists().map_err(CheckpointError::from)?;
            let result = if done { Ok(()) } else { judge(*step, folder, &claim) };
            claim.give_up(result.is_ok()).map_err(CheckpointError::from)?;
            if let Err(error) = result {
                if is_listed(run, *step)? {
                    return Err(error);
                }
                tracing::warn!("{folder}: the checkpoint was removed before it could be judged");
                continue;
            }
            if !done {
                judged.push(*step);
            }
            (worked, last_news) = (true, Instant::now());
        }
        if finished && !open && !worked {
            return Ok(WatchSummary { judged, end: WatchEnd::Finished });
        }
        if options.idle_timeout.is_some_and(|timeout| last_news.elapsed() >= timeout) {
            return Ok(WatchSummary { judged, end: WatchEnd::Idle });
        }
        if !worked {
            std::thread::sleep(options.poll);
        }
    }
}

/// The names of the reports, and of what else lies in their folder.
fn reports(run: &Location) -> Result<BTreeSet<String>, CheckpointError> {
    Ok(run.join(REPORTS).list()?.into_iter().map(|entry| entry.name).collect())
}

fn is_listed(run: &Location, step: u64) -> Result<bool, CheckpointError> {
    Ok(list_checkpoints(run)?.iter().any(|(listed, _)| *listed == step))
}

/// Takes the claim of a report; none where another watcher holds it.
fn take_claim(report: &Location, lease: Duration) -> Result<Option<Claim>, StorageError> {
    let mut before = Vec::new();
    for number in 0_u32.. {
        let name = format!("{}.claim-{number}", report.file_name());
        let Some(file) = report.with_file_name(&name) else { break };
        match file.publish(claim_text(lease), PublishMode::Create) {
            Ok(()) => return Ok(Some(Claim { file, before, lease, renewed: Mutex::new(Instant::now()) })),
            Err(StorageError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let until = match file.read() {
            Ok(text) => serde_json::from_slice::<ClaimFile>(&text).map_or(0.0, |claim| claim.until),
            // Its holder is done: the next look finds the report.
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        if until > seconds() {
            return Ok(None);
        }
        before.push(file);
    }
    Ok(None)
}

fn claim_text(lease: Duration) -> String {
    let claim = ClaimFile { until: seconds() + lease.as_secs_f64() };
    serde_json::to_string(&claim).expect("a claim is plain data")
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
