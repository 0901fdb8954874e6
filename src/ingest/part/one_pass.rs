//! Validates and writes in one pass, until an image is rejected.
//!
//! An image's id and shard depend on which images are rejected. As long as none is, both are known from the
//! listing: each image is read once, checked, and written while others are checked. The first rejection ends
//! this pass. Its validations are kept; checking and writing then follow one another, with the same result.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Instance, PartJob};
use crate::dataset::WrittenShard;
use crate::ids::InstanceId;
use crate::ingest::journal::ENDED;
use crate::ingest::source::Entry;
use crate::ingest::validate::{
    IMAGES_AT_ONCE, ImageInfo, Keep, Kept, MOST_IMAGE_BYTES, Validation, validate_all,
};
use crate::ingest::{IngestError, work_through};
use crate::progress::Progress;

/// The outcome of the pass.
pub(super) enum PassOutcome {
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

/// The pass over a part.
struct OnePass<'a> {
    job: &'a PartJob<'a>,
    /// Indexes in the part's list of images.
    shards: &'a [Vec<u32>],
    /// Whether an image was rejected.
    ended: AtomicBool,
    progress: &'a dyn Progress,
}

/// Checks and writes the shards, which hold indexes in the part's list of images.
///
/// # Errors
/// If the source or the destination fails.
pub(super) fn check_and_write(
    job: &PartJob<'_>,
    shards: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<PassOutcome, IngestError> {
    let is_rejected =
        |entry: &Entry| entry.fault.is_some() || entry.bytes == 0 || entry.bytes > MOST_IMAGE_BYTES;
    let ended = job.work.load::<bool>(ENDED)?.is_some() || job.part.entries.iter().any(is_rejected);
    OnePass { job, shards, ended: AtomicBool::new(ended), progress }.run()
}

impl OnePass<'_> {
    fn run(&self) -> Result<PassOutcome, IngestError> {
        let entries = self.job.part.entries;
        let tried = work_through(self.shards.len(), self.job.writers, |number| self.write(number))?;
        if self.has_ended() {
            self.job.work.save(ENDED, &true)?;
            let mut known = vec![None; entries.len()];
            for (shard, tried) in self.shards.iter().zip(tried) {
                for (&index, validation) in shard.iter().zip(tried.validations) {
                    known[index as usize] = Some(validation);
                }
            }
            return Ok(PassOutcome::Rejected(known));
        }
        let mut infos: Vec<Option<ImageInfo>> = vec![None; entries.len()];
        let mut written = Vec::with_capacity(self.shards.len());
        for (shard, tried) in self.shards.iter().zip(tried) {
            for (&index, validation) in shard.iter().zip(tried.validations) {
                infos[index as usize] = validation.ok();
            }
            written.extend(tried.written);
        }
        let infos: Vec<ImageInfo> = infos.into_iter().flatten().collect();
        debug_assert!(infos.len() == entries.len() && written.len() == self.shards.len());
        Ok(PassOutcome::Complete { infos, shards: written })
    }

    fn write(&self, number: usize) -> Result<Tried, IngestError> {
        let shard = self.shards[number].as_slice();
        let record = format!("whole-{number:05}");
        let finished = if self.has_ended() {
            // Its shard may be gone; the information on its images is still valid.
            self.job.work.load::<Finished>(&record)?
        } else {
            self.job.finished_shard(&record, |finished: &Finished| &finished.written)?
        };
        if let Some(finished) = finished.filter(|finished| finished.infos.len() == shard.len()) {
            self.progress.advance(shard.len() as u64);
            let validations = finished.infos.into_iter().map(Ok).collect();
            return Ok(Tried { validations, written: Some(finished.written) });
        }
        let mut validations: Vec<Validation> = Vec::with_capacity(shard.len());
        if self.has_ended() {
            return Ok(Tried { validations, written: None });
        }
        let mut writer = self.job.start_shard(number)?;
        let bytes = |index: &u32| self.job.part.entries[*index as usize].bytes;
        for indexes in self.job.memory.write_runs(shard, bytes) {
            let checked = self.check(indexes)?;
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
            self.progress.advance(indexes.len() as u64);
            if is_ended {
                return Ok(Tried { validations, written: None });
            }
        }
        let written = writer.finish()?;
        let infos = validations.iter().filter_map(|validation| validation.as_ref().ok().copied()).collect();
        let finished = Finished { written, infos };
        self.job.work.save(&record, &finished)?;
        Ok(Tried { validations, written: Some(finished.written) })
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn check(&self, indexes: &[u32]) -> Result<Vec<(Validation, Kept)>, IngestError> {
        let validate = |indexes: &[u32]| {
            let entry = |&index: &u32| &self.job.part.entries[index as usize];
            let entries: Vec<&Entry> = indexes.iter().map(entry).collect();
            validate_all(self.job.source, &entries, self.job.options, self.job.memory, Keep::Bytes)
        };
        let parts: Vec<Vec<(Validation, Kept)>> = self.job.checkers.install(|| {
            indexes.par_chunks(IMAGES_AT_ONCE).map(validate).collect::<Result<_, IngestError>>()
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    fn instance<'b>(&'b self, index: u32, info: &'b ImageInfo) -> Instance<'b> {
        let entry = &self.job.part.entries[index as usize];
        // New ids follow those of the split's rows.
        let id = InstanceId((self.job.rows.len() + index as usize) as u32);
        Instance { id, class: self.job.plan.class(entry), entry, info }
    }
}
