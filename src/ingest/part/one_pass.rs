//! Validates and writes in one pass, until an image is rejected.
//!
//! An image's id and shard depend on which images are rejected. As long as none is, the listing determines both:
//! each image is read once, checked, and written while others are checked. The first rejection ends this pass. Its
//! validations are kept, and separate passes check and write the images, with the same result.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::{Instance, PartJob};
use crate::dataset::WrittenShard;
use crate::ids::InstanceId;
use crate::ingest::journal::ENDED;
use crate::ingest::source::Entry;
use crate::ingest::validate::{ImageInfo, Validation, unreadable};
use crate::ingest::{IngestError, work_through};

/// A finished shard, with the information on its images.
#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    written: WrittenShard,
    #[serde(rename = "facts")]
    infos: Vec<ImageInfo>,
}

/// Validations of a shard's first images, and the shard, unless the pass has ended before.
type Tried = (Vec<Validation>, Option<WrittenShard>);

/// Known validations of a part's images, and its shards, unless an image was rejected.
pub(super) type Outcome = (Vec<Option<Validation>>, Option<Vec<WrittenShard>>);

/// The pass over a part.
pub(super) struct OnePass<'a> {
    job: &'a PartJob<'a>,
    /// By shard: indices in the part's list of images.
    shards: &'a [Vec<u32>],
    /// Whether an image was rejected.
    ended: AtomicBool,
}

impl<'a> OnePass<'a> {
    /// Prepares the pass; `shards` has the indices of each shard's images in the part's list.
    ///
    /// # Errors
    /// If the destination fails.
    pub(super) fn new(job: &'a PartJob<'a>, shards: &'a [Vec<u32>]) -> Result<Self, IngestError> {
        let is_rejected = |entry: &Entry| entry.bytes == 0 || unreadable(entry).is_some();
        let ended = job.work.load::<bool>(ENDED)?.is_some() || job.part.entries.iter().any(is_rejected);
        Ok(Self { job, shards, ended: AtomicBool::new(ended) })
    }

    /// Checks and writes the shards.
    ///
    /// # Errors
    /// If the source or the destination fails.
    pub(super) fn run(&self) -> Result<Outcome, IngestError> {
        let tried = work_through(self.shards.len(), self.job.writers, |number| self.write(number))?;
        let mut known = vec![None; self.job.part.entries.len()];
        let mut written = Vec::with_capacity(self.shards.len());
        for (shard, (validations, finished)) in self.shards.iter().zip(tried) {
            for (&index, validation) in shard.iter().zip(validations) {
                known[index as usize] = Some(validation);
            }
            written.extend(finished);
        }
        if self.has_ended() {
            self.job.work.save(ENDED, &true)?;
            return Ok((known, None));
        }
        debug_assert!(known.iter().all(Option::is_some) && written.len() == self.shards.len());
        Ok((known, Some(written)))
    }

    fn write(&self, number: usize) -> Result<Tried, IngestError> {
        let (job, shard) = (self.job, self.shards[number].as_slice());
        let record = format!("whole-{number:05}");
        // After the end of the pass a shard may be gone; the information on its images is still valid.
        let is_valid = |finished: &Finished| {
            finished.infos.len() == shard.len() && (self.has_ended() || job.is_there(&finished.written))
        };
        let finished: Option<Finished> = job.work.load(&record)?;
        if let Some(finished) = finished.filter(is_valid) {
            job.checker.progress.advance(shard.len() as u64);
            return Ok((finished.infos.into_iter().map(Ok).collect(), Some(finished.written)));
        }
        let mut validations: Vec<Validation> = Vec::with_capacity(shard.len());
        if self.has_ended() {
            return Ok((validations, None));
        }
        let mut writer = job.start_shard(number)?;
        let entry = |&index: &u32| &job.part.entries[index as usize];
        for indexes in job.checker.memory.write_runs(shard, |index| entry(index).bytes) {
            let entries: Vec<&Entry> = indexes.iter().map(entry).collect();
            let checked = job.checker.check(&entries, |validation, kept| (validation, kept))?;
            if checked.iter().any(|(validation, _)| validation.is_err()) {
                self.ended.store(true, Ordering::Relaxed);
            }
            let is_ended = self.has_ended();
            for (&index, (validation, kept)) in indexes.iter().zip(checked) {
                if let (Ok(info), false) = (&validation, is_ended) {
                    writer.push(self.instance(index, info).row(kept))?;
                }
                validations.push(validation);
            }
            if is_ended {
                return Ok((validations, None));
            }
        }
        let written = writer.finish()?;
        let infos = validations.iter().filter_map(|validation| validation.as_ref().ok().copied()).collect();
        let finished = Finished { written, infos };
        job.work.save(&record, &finished)?;
        Ok((validations, Some(finished.written)))
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn instance<'b>(&'b self, index: u32, info: &'b ImageInfo) -> Instance<'b> {
        let entry = &self.job.part.entries[index as usize];
        // New ids follow those of the split's rows.
        let id = InstanceId((self.job.rows.len() + index as usize) as u32);
        Instance { id, class: self.job.plan.class(entry), entry, info }
    }
}
