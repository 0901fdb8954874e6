//! Validates and writes in one pass, until an image is rejected.
//!
//! Which id an image gets and which shard it comes into depends on which ones are rejected. As long as none is, both are
//! known from the listing: each image is read once, checked, and written while others are checked. At the
//! first rejection this ends for good; what was found out is kept, and checking and writing go on one after the other,
//! with the same result.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
use crate::ingest::validate::{
    IMAGES_AT_ONCE, ImageInfo, Keep, Kept, MOST_IMAGE_BYTES, Validation, validate_all,
};
use crate::progress::Progress;

/// Images of a shard that are checked together, on all threads.
const IMAGES_OF_BATCH: usize = 128;

/// What came of it.
#[derive(Debug)]
pub(in crate::ingest) enum PassOutcome {
    /// All images are accepted and written.
    Complete { infos: Vec<ImageInfo>, shards: Vec<WrittenShard> },
    /// An image was rejected; the validations so far.
    Rejected(Vec<Option<Validation>>),
}

/// A shard that was finished, with the information on its images.
#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    written: WrittenShard,
    #[serde(rename = "facts")]
    infos: Vec<ImageInfo>,
}

/// A shard that may have been ended early.
struct Tried {
    /// Of its first images.
    validations: Vec<Validation>,
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
    /// Checks and writes the shards, which hold indexes in the list of images.
    ///
    /// # Errors
    /// If the source or the destination fails.
    pub(in crate::ingest) fn run(&self, shards: &[Vec<u32>]) -> Result<PassOutcome, IngestError> {
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
                for (&index, validation) in shards[number].iter().zip(tried.validations) {
                    known[index as usize] = Some(validation);
                }
            }
            return Ok(PassOutcome::Rejected(known));
        }
        let mut infos: Vec<Option<ImageInfo>> = vec![None; self.entries.len()];
        let mut written = Vec::with_capacity(shards.len());
        for (number, tried) in tried {
            for (&index, validation) in shards[number].iter().zip(tried.validations) {
                infos[index as usize] = validation.ok();
            }
            written.extend(tried.written);
        }
        let infos: Vec<ImageInfo> = infos.into_iter().flatten().collect();
        debug_assert!(infos.len() == self.entries.len() && written.len() == shards.len());
        Ok(PassOutcome::Complete { infos, shards: written })
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
        if let Some(finished) = finished.filter(|finished| finished.infos.len() == shard.len()) {
            self.progress.advance(shard.len() as u64);
            let validations = finished.infos.into_iter().map(Ok).collect();
            return Ok(Tried { validations, written: Some(finished.written) });
        }
        let mut validations: Vec<Validation> = Vec::with_capacity(shard.len());
        if ended.load(Ordering::Relaxed) {
            return Ok(Tried { validations, written: None });
        }
        let mut writer = self.job.start(number)?;
        let bytes = |index: &u32| self.entries[*index as usize].bytes;
        for indexes in runs(shard, IMAGES_OF_BATCH, self.memory.batch_bytes, bytes) {
            let checked = self.check(indexes)?;
            if checked.iter().any(|(validation, _)| validation.is_err()) {
                ended.store(true, Ordering::Relaxed);
            }
            let is_ended = ended.load(Ordering::Relaxed);
            for (&index, (validation, kept)) in indexes.iter().zip(checked) {
                if let (Ok(info), false) = (&validation, is_ended) {
                    writer.push(self.instance(index, info).row(kept))?;
                }
                validations.push(validation);
            }
            self.progress.advance(indexes.len() as u64);
            if is_ended {
                return Ok(Tried { validations, written: None });
            }
        }
        let written = writer.finish()?;
        let infos = validations.iter().filter_map(|validation| validation.as_ref().ok().copied()).collect();
        let finished = Finished { written, infos };
        self.work.save(&record, &finished)?;
        Ok(Tried { validations, written: Some(finished.written) })
    }

    fn check(&self, indexes: &[u32]) -> Result<Vec<(Validation, Kept)>, IngestError> {
        let validate = |indexes: &[u32]| {
            let entries: Vec<&Entry> = indexes.iter().map(|&index| &self.entries[index as usize]).collect();
            validate_all(self.job.source, &entries, self.job.options, self.memory, Keep::Bytes)
        };
        let parts: Vec<Vec<(Validation, Kept)>> = self.checkers.install(|| {
            indexes.par_chunks(IMAGES_AT_ONCE).map(validate).collect::<Result<_, IngestError>>()
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    fn instance<'b>(&'b self, index: u32, info: &'b ImageInfo) -> Instance<'b> {
        let entry = &self.entries[index as usize];
        let id = InstanceId((self.first_id + index as usize) as u32);
        Instance { id, class: self.plan.class(entry), entry, info }
    }
}
