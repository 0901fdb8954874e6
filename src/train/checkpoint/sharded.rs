//! One checkpoint written by several processes.
//!
//! Each process writes its bank shard and reports this in the shared store. Rank 0 waits for all reports,
//! writes the rest and the manifest, and reports the checkpoint as published. This code runs on the writer
//! threads, so it uses no collective.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{FileEntry, bank_part};
use crate::distributed::{ProcessGroup, Store};
use crate::failure::Failure;
use crate::model::Encoder;
use crate::storage::{Digest, Location};
use crate::train::{Probe, TrainError};

/// Interval between two looks at the store.
const POLL: Duration = Duration::from_millis(20);

/// Report of a process about its part of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Written(FileEntry),
    Published,
    Failed(String, Failure),
}

/// Reports that the processes of a run exchange about the checkpoint that they write together.
#[derive(Clone, Debug)]
pub(crate) struct SharedCheckpoint {
    store: Store,
    rank: usize,
    ranks: usize,
    /// Set once the run has failed, which ends all waits.
    given_up: Arc<AtomicBool>,
}

impl SharedCheckpoint {
    pub(crate) fn new(group: &ProcessGroup) -> Self {
        let (rank, ranks) = (group.rank(), group.world());
        Self { store: group.store(), rank, ranks, given_up: Arc::default() }
    }

    /// Returns the file name of this process's bank shard.
    pub(crate) fn bank_file(&self) -> String {
        bank_part(self.rank, self.ranks)
    }

    /// Ends all waits for other processes, as the run has failed.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Reports this process's part to rank 0, and waits until the checkpoint is published.
    pub(crate) fn hand_in(&self, step: u64, part: Result<FileEntry, TrainError>) -> Result<(), TrainError> {
        self.tell(step, part.map(Word::Written))?;
        self.wait_for(step)
    }

    /// Waits until rank 0 has published the checkpoint.
    pub(crate) fn wait_for(&self, step: u64) -> Result<(), TrainError> {
        self.hear(step, 0).map(drop)
    }

    /// Returns the files that the other processes wrote into this folder.
    ///
    /// # Errors
    /// If a process failed, is lost, or wrote elsewhere: the same path may be another folder on another machine.
    pub(crate) fn collect(&self, step: u64, folder: &Location) -> Result<Vec<FileEntry>, TrainError> {
        (1..self.ranks)
            .map(|rank| match self.hear(step, rank)? {
                Word::Written(entry) => match folder.join(&entry.name).size() {
                    Ok(bytes) if bytes == entry.bytes => Ok(entry),
                    Err(error) if !error.is_not_found() => Err(error.into()),
                    _ => {
                        let reason =
                            format!("what it wrote is not in {folder}: all need one place for the run");
                        Err(TrainError::OtherRank { rank, reason, failure: Failure::Config })
                    }
                },
                _ => Err(Self::failed(step, rank, "it did not name its file".into())),
            })
            .collect()
    }

    /// Reports to the other processes whether the checkpoint is published.
    pub(crate) fn publish(&self, step: u64, published: Result<(), TrainError>) -> Result<(), TrainError> {
        if self.ranks == 1 { published } else { self.tell(step, published.map(|()| Word::Published)) }
    }

    /// Reports the outcome of this process's part; the part's own error comes before an error of the store.
    fn tell(&self, step: u64, done: Result<Word, TrainError>) -> Result<(), TrainError> {
        let (word, done) = match done {
            Ok(word) => (word, Ok(())),
            Err(error) => (Word::Failed(error.to_string(), error.failure()), Err(error)),
        };
        let text = serde_json::to_vec(&word).expect("a word is plain data");
        let said = self.store.set(&key(step, self.rank), &text);
        done?;
        Ok(said?)
    }

    /// Waits for the report of a process. A slow store may take its time: if a process is lost, the group
    /// notices and ends the wait.
    fn hear(&self, step: u64, rank: usize) -> Result<Word, TrainError> {
        loop {
            if let Some(text) = self.store.try_get(&key(step, rank))? {
                return match serde_json::from_slice(&text) {
                    Ok(Word::Failed(reason, failure)) => {
                        let reason = format!("checkpoint of step {step}: {reason}");
                        Err(TrainError::OtherRank { rank, reason, failure })
                    }
                    Ok(word) => Ok(word),
                    Err(error) => Err(Self::failed(step, rank, error.to_string())),
                };
            }
            self.store.check()?;
            if self.given_up.load(Ordering::Relaxed) {
                return Err(Self::failed(step, rank, "the run ended before it did".into()));
            }
            std::thread::sleep(POLL);
        }
    }

    fn failed(step: u64, rank: usize, reason: String) -> TrainError {
        let reason = format!("checkpoint of step {step}: {reason}");
        TrainError::OtherRank { rank, reason, failure: Failure::Unavailable }
    }
}

fn key(step: u64, rank: usize) -> String {
    format!("checkpoint/{step}/{rank}")
}

/// Copies rank 0's batch-norm statistics to every process, and checks that all have equal weights, also of the probe.
///
/// # Errors
/// If weights differ, or a collective fails.
pub(crate) fn make_replicas_equal(
    group: &ProcessGroup,
    encoder: &Encoder,
    probe: Option<&Probe>,
    step: u64,
) -> Result<(), TrainError> {
    if group.world() == 1 {
        return Ok(());
    }
    group.broadcast(&encoder.statistics(), 0)?;
    let mut weights = encoder.weights().to_bytes();
    weights.extend(probe.map(|probe| probe.tensors().to_bytes()).unwrap_or_default());
    let digest = Digest::of(&weights).to_string();
    Ok(group.agree(&format!("the weights' digest after step {step}"), &digest)?)
}
