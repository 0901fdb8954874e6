//! Checking and writing in one go, for as long as no image is refused.
//!
//! Which id an image gets and which shard it comes into depends on which ones are refused. As long as none is, both are
//! known from the listing: each image is read once, checked, and written while others are checked. At the
//! first refusal this ends for good; what was found out is kept, and checking and writing go on one after the other,
//! with the same result.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use rayon::ThreadPool;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::write::{Instance, ShardJob};
use crate::dataset::WrittenShard;
use crate::ids::InstanceId;
use crate::ingest::IngestError;
use crate::ingest::journal::{ENDED, Work};
use crate::ingest::plan::Plan;
use crate::ingest::source::Entry;
use crate::ingest::validate::memory::{MemoryBudget, runs};
use crate::ingest::validate::{IMAGES_AT_ONCE, ImageInfo, Keep, MOST_IMAGE_BYTES, Verdict, validate_all};
use crate::progress::Progress;

/// Images of a shard that are checked together, on all threads.
const IMAGES_OF_BATCH: usize = 128;

/// What came of it.
#[derive(Debug)]
pub(in crate::ingest) enum Outcome {
    /// All images are accepted and written.
    Whole { facts: Vec<ImageInfo>, shards: Vec<WrittenShard> },
    /// An image is refused; what is known of each.
    Refused(Vec<Option<Verdict>>),
}

/// A shard that was finished, with the facts of its images.
#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    written: WrittenShard,
    facts: Vec<ImageInfo>,
}

/// A shard that may have been ended early.
struct Tried {
    /// Of its first images.
    verdicts: Vec<Verdict>,
    written: Option<WrittenShard>,
}

/// The work on a part.
pub(in crate::ingest) struct OnePass<'a> {
    pub(in crate::ingest) job: &'a ShardJob<'a>,
    pub(in crate::ingest) plan: &'a Plan<'a>,
    pub(in crate::ingest) entries: &'a [Entry],
    pub(in crate::ingest) work: &'a Work,
    /// The id of the first image.
    pub(in crate::ingest) first_id: usize,
    /// The pool that checks images; writing has threads of its own, that mostly wait.
    pub(in crate::ingest) checkers: &'a ThreadPool,
    pub(in crate::ingest) memory: &'a MemoryBudget,
    /// Shards that are written at once.
    pub(in crate::ingest) uploads: usize,
    pub(in crate::ingest) progress: &'a dyn Progress,
}

impl OnePass<'_> {
    /// Checks and writes the shards, which hold places in the list of images.
    ///
    /// # Errors
    /// If the source or the destination fails.
    pub(in crate::ingest) fn run(&self, shards: &[Vec<u32>]) -> Result<Outcome, IngestError> {
        let is_rejected =
            |entry: &Entry| entry.fault.is_some() || entry.bytes == 0 || entry.bytes > MOST_IMAGE_BYTES;
        let ended = self.work.load::<bool>(ENDED)?.is_some() || self.entries.iter().any(is_rejected);
        let ended = AtomicBool::new(ended);
        let mut tried = self.write_all(shards, &ended)?;
        tried.sort_by_key(|(number, _)| *number);
        if ended.load(Ordering::Relaxed) {
            self.work.save(ENDED, &true)?;
            let mut known = vec![None; self.entries.len()];
            for (number, tried) in tried {
                for (&place, verdict) in shards[number].iter().zip(tried.verdicts) {
                    known[place as usize] = Some(verdict);
                }
            }
            return Ok(Outcome::Refused(known));
        }
        let mut facts: Vec<Option<ImageInfo>> = vec![None; self.entries.len()];
        let mut written = Vec::with_capacity(shards.len());
        for (number, tried) in tried {
            for (&place, verdict) in shards[number].iter().zip(tried.verdicts) {
                facts[place as usize] = verdict.ok();
            }
            written.extend(tried.written);
        }
        let facts: Vec<ImageInfo> = facts.into_iter().flatten().collect();
        debug_assert!(facts.len() == self.entries.len() && written.len() == shards.len());
        Ok(Outcome::Whole { facts, shards: written })
    }

    /// Takes shard after shard on each writing thread, until all are done or one fails.
    fn write_all(&self, shards: &[Vec<u32>], ended: &AtomicBool) -> Result<Vec<(usize, Tried)>, IngestError> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let write = || {
            let mut done = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(shard) = shards.get(number) else { break };
                match self.write(number, shard, ended) {
                    Ok(tried) => done.push((number, tried)),
                    Err(error) => {
                        failed.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(done)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.uploads.max(1)).map(|_| scope.spawn(write)).collect();
            let mut all = Vec::with_capacity(shards.len());
            for thread in threads {
                match thread.join() {
                    Ok(done) => all.extend(done?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(all)
        })
    }

    fn write(&self, number: usize, shard: &[u32], ended: &AtomicBool) -> Result<Tried, IngestError> {
        let record = format!("whole-{number:05}");
        let finished = if ended.load(Ordering::Relaxed) {
            // Its shard may be gone; what it says of the images holds.
            self.work.load::<Finished>(&record)?
        } else {
            self.job.finished(self.work, &record, |finished: &Finished| &finished.written)?
        };
        if let Some(finished) = finished.filter(|finished| finished.facts.len() == shard.len()) {
            self.progress.advance(shard.len() as u64);
            let verdicts = finished.facts.into_iter().map(Ok).collect();
            return Ok(Tried { verdicts, written: Some(finished.written) });
        }
        let mut verdicts: Vec<Verdict> = Vec::with_capacity(shard.len());
        if ended.load(Ordering::Relaxed) {
            return Ok(Tried { verdicts, written: None });
        }
        let mut writer = self.job.start(number)?;
        let bytes = |place: &u32| self.entries[*place as usize].bytes;
        for places in runs(shard, IMAGES_OF_BATCH, self.memory.batch_bytes, bytes) {
            let checked = self.check(places)?;
            if checked.iter().any(|(verdict, _)| verdict.is_err()) {
                ended.store(true, Ordering::Relaxed);
            }
            let is_ended = ended.load(Ordering::Relaxed);
            for (&place, (verdict, bytes)) in places.iter().zip(checked) {
                if let (Ok(facts), false) = (&verdict, is_ended) {
                    writer.push(self.instance(place, facts).row(bytes))?;
                }
                verdicts.push(verdict);
            }
            self.progress.advance(places.len() as u64);
            if is_ended {
                return Ok(Tried { verdicts, written: None });
            }
        }
        let written = writer.finish()?;
        let facts = verdicts.iter().filter_map(|verdict| verdict.as_ref().ok().copied()).collect();
        let finished = Finished { written, facts };
        self.work.save(&record, &finished)?;
        Ok(Tried { verdicts, written: Some(finished.written) })
    }

    fn check(&self, places: &[u32]) -> Result<Vec<(Verdict, Bytes)>, IngestError> {
        let look = |places: &[u32]| {
            let entries: Vec<&Entry> = places.iter().map(|&place| &self.entries[place as usize]).collect();
            validate_all(self.job.source, &entries, self.job.options, self.memory, Keep::Bytes)
        };
        let parts: Vec<Vec<(Verdict, Bytes)>> = self
            .checkers
            .install(|| places.par_chunks(IMAGES_AT_ONCE).map(look).collect::<Result<_, IngestError>>())?;
        Ok(parts.into_iter().flatten().collect())
    }

    fn instance<'b>(&'b self, place: u32, facts: &'b ImageInfo) -> Instance<'b> {
        let entry = &self.entries[place as usize];
        let id = InstanceId((self.first_id + place as usize) as u32);
        Instance { id, class: self.plan.class(entry), entry, facts }
    }
}
