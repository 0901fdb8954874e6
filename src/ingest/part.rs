//! One part of a split: checked, numbered, written.

pub(super) mod one_pass;
pub(super) mod overlap;
pub(super) mod write;

use std::collections::HashMap;

use rayon::ThreadPool;

use self::one_pass::{OnePass, PassOutcome};
use self::write::{Instance, ShardJob, assign};
use super::journal::Work;
use super::plan::{MEMORY_LIMIT, PartPlan, Plan};
use super::report::{AlreadyThere, SplitReport};
use super::source::{Entry, Source};
use super::validate::{ImageInfo, Rejection, Validation, validate};
use super::{IngestError, IngestOptions, PROGRAM, TRAINING_SPLIT};
use crate::dataset::{
    ContentDigest, IndexRow, IngestRecord, Place, ShardEntry, Split, WrittenShard, write_index,
};
use crate::ids::InstanceId;
use crate::ingest::report::findings::{Findings, LEAK, LEAK_REASON};
use crate::ingest::validate::memory::{MemoryBudget, OVER_MEMORY_LIMIT};
use crate::progress::Progress;
use crate::storage::Digest;

/// The validations of a part's images, in their order.
#[derive(Debug)]
pub(super) struct Checked(pub(super) Vec<Validation>);

impl Checked {
    /// The accepted images with their indexes.
    pub(super) fn accepted(&self) -> Vec<(usize, ImageInfo)> {
        self.0
            .iter()
            .enumerate()
            .filter_map(|(index, validation)| Some((index, *validation.as_ref().ok()?)))
            .collect()
    }

    /// Leaves an image out because it has a near-duplicate in another split.
    pub(super) fn drop_leak(&mut self, index: usize, other: &str) {
        self.0[index] = Err(Rejection { kind: LEAK.into(), reason: format!("{LEAK_REASON}{other}") });
    }
}

/// The work on one part.
pub(super) struct PartJob<'a> {
    pub(super) options: &'a IngestOptions,
    pub(super) source: &'a Source,
    pub(super) plan: &'a Plan<'a>,
    pub(super) part: &'a PartPlan<'a>,
    pub(super) work: Work,
    /// The split as it is, if the part is appended.
    pub(super) before: Option<&'a Split>,
    /// Its rows.
    pub(super) rows: Vec<IndexRow>,
    pub(super) memory: &'a MemoryBudget,
    /// The threads that check images.
    pub(super) checkers: &'a ThreadPool,
    /// The threads that write shards, where that comes after checking.
    pub(super) writers: &'a ThreadPool,
}

impl PartJob<'_> {
    /// Validates every image, gives the accepted ones their ids and writes shards, index and
    /// rejects. `drop_leaks` marks those of the accepted ones that are to be left out.
    ///
    /// All rows of the split come back.
    ///
    /// # Errors
    /// If too many are rejected, the source changes, there are more images than ids, or a store fails.
    pub(super) fn run(
        self,
        drop_leaks: impl FnOnce(&mut Checked),
        progress: &dyn Progress,
    ) -> Result<(Split, Vec<IndexRow>, SplitReport), IngestError> {
        self.ids(self.part.entries.len())?;
        let can_drop = self.options.drop_leaks && self.part.split == TRAINING_SPLIT;
        let outcome = if can_drop || self.options.changes_images() {
            PassOutcome::Rejected(vec![None; self.part.entries.len()])
        } else {
            self.check_and_write(progress)?
        };
        match outcome {
            PassOutcome::Complete { infos, shards } => {
                let checked = Checked(infos.into_iter().map(Ok).collect());
                let accepted = checked.accepted();
                let instances = self.number(&accepted)?;
                self.finish(&checked, &instances, &self.assign(&instances), shards)
            }
            PassOutcome::Rejected(known) => {
                self.shard_job().remove_others(&self.work)?;
                let mut checked = self.checkers.install(|| self.check(&known, progress))?;
                if can_drop {
                    drop_leaks(&mut checked);
                }
                let accepted = checked.accepted();
                let instances = self.number(&accepted)?;
                let assigned = self.assign(&instances);
                self.record_files(assigned.len())?;
                let bits: Vec<u8> = checked.0.iter().map(|validation| u8::from(validation.is_ok())).collect();
                self.shard_job().keep_for(Digest::of(&bits), &self.work)?;
                progress.begin(&format!("write {}", self.part.split), instances.len() as u64);
                let write = || self.shard_job().write(&assigned, &self.work, progress);
                let shards = self.writers.install(write)?;
                progress.finish();
                self.finish(&checked, &instances, &assigned, shards)
            }
        }
    }

    fn check_and_write(&self, progress: &dyn Progress) -> Result<PassOutcome, IngestError> {
        progress.begin(&format!("check and write {}", self.part.split), self.part.entries.len() as u64);
        let sizes: Vec<u64> = self.part.entries.iter().map(|entry| entry.bytes).collect();
        let shards = self.shard_indexes(&sizes);
        self.record_files(shards.len())?;
        let outcome = OnePass {
            job: &self.shard_job(),
            plan: self.plan,
            entries: self.part.entries,
            work: &self.work,
            first_id: self.rows.len(),
            checkers: self.checkers,
            memory: self.memory,
            uploads: self.writers.current_num_threads(),
            progress,
        }
        .run(&shards)?;
        progress.finish();
        Ok(outcome)
    }

    /// Records what is going to be written, before the first of these files is.
    fn record_files(&self, shards: usize) -> Result<(), IngestError> {
        let job = self.shard_job();
        let files = (0..shards).map(|number| job.path(number)).chain(self.part.files());
        Ok(self.work.record_files(files)?)
    }

    fn check(&self, known: &[Option<Validation>], progress: &dyn Progress) -> Result<Checked, IngestError> {
        progress.begin(&format!("check {}", self.part.split), self.part.entries.len() as u64);
        let entries = self.part.entries;
        let validations =
            validate(self.source, entries, known, self.options, self.memory, &self.work, progress)?;
        progress.finish();
        let (rejected, total) =
            (validations.iter().filter(|validation| validation.is_err()).count(), validations.len());
        let allowed = self.options.max_reject_fraction.get();
        if rejected < total && rejected as f64 <= allowed * total as f64 {
            return Ok(Checked(validations));
        }
        let first = self.findings(&validations).first_rejects().join("; ");
        Err(IngestError::TooManyRejects { split: self.part.split.into(), rejected, total, allowed, first })
    }

    fn finish(
        &self,
        checked: &Checked,
        instances: &[Instance<'_>],
        assigned: &[Vec<Instance<'_>>],
        shards: Vec<WrittenShard>,
    ) -> Result<(Split, Vec<IndexRow>, SplitReport), IngestError> {
        let findings = self.findings(&checked.0);
        let new_rows = index_rows(assigned, &shards, self.first_shard(), self.rows.len());
        let index = write_index(&self.options.dest, &self.part.index_file(), &new_rows)?;
        findings.publish_rejects(&self.options.dest)?;
        let found = findings.report(instances);
        let report = SplitReport {
            instances: instances.len() as u64,
            rejected: found.refused.values().sum(),
            first_rejects: findings.first_rejects(),
            ids: findings.describe_ids(),
            image_bytes: instances.iter().map(|instance| instance.info.bytes).sum(),
            shards: shards.len(),
            already_there: already_there(&self.rows, &new_rows),
            found: found.clone(),
        };
        let mut options = self.plan.options.clone();
        if let (Some(limit), true) =
            (self.options.memory_limit, found.refused.contains_key(OVER_MEMORY_LIMIT))
        {
            // Only then it decides what the shards hold.
            options.insert(MEMORY_LIMIT.into(), limit.into());
        }
        let record = IngestRecord {
            program: PROGRAM.into(),
            format: format!("{:?}", self.source.format).to_lowercase(),
            source_fingerprint: self.part.fingerprint,
            options,
            instances: report.instances,
            index,
            report: found,
        };
        let mut rows = self.rows.clone();
        rows.extend(new_rows);
        let shards = shards.into_iter().map(|written| written.entry).collect();
        let split = self.split(&rows, shards, record, &report);
        Ok((split, rows, report))
    }

    fn findings<'b>(&'b self, validations: &'b [Validation]) -> Findings<'b> {
        Findings { source: self.source, part: self.part, validations }
    }

    fn shard_job(&self) -> ShardJob<'_> {
        ShardJob {
            source: self.source,
            options: self.options,
            memory: self.memory,
            dest: &self.options.dest,
            split: self.part.split,
            classes: &self.plan.classes,
            first: self.first_shard(),
        }
    }

    fn first_shard(&self) -> usize {
        self.before.map_or(0, |split| split.shards.len())
    }

    /// The indexes of images of these sizes in the shards.
    fn shard_indexes(&self, sizes: &[u64]) -> Vec<Vec<u32>> {
        assign(sizes, self.options.shuffle_seed, self.part.number as u64, self.options.shard_bytes)
    }

    /// The images of each shard. Where images stay as they are, the listing's sizes count: they are known first.
    fn assign<'b>(&self, instances: &[Instance<'b>]) -> Vec<Vec<Instance<'b>>> {
        let size = |instance: &Instance<'_>| {
            if self.options.changes_images() { instance.info.bytes } else { instance.entry.bytes }
        };
        let shards = self.shard_indexes(&instances.iter().map(size).collect::<Vec<u64>>());
        let images = |indexes: Vec<u32>| indexes.into_iter().map(|index| instances[index as usize]).collect();
        shards.into_iter().map(images).collect()
    }

    /// The numbers of new ids.
    fn ids(&self, count: usize) -> Result<std::ops::Range<u32>, IngestError> {
        let first = self.rows.len();
        match (u32::try_from(first), u32::try_from(first + count)) {
            (Ok(first), Ok(end)) => Ok(first..end),
            _ => {
                let reason = "it has more images than there are ids (2^32)".into();
                Err(IngestError::Layout { location: self.options.sources[0].to_string(), reason })
            }
        }
    }

    fn number<'b>(&'b self, accepted: &'b [(usize, ImageInfo)]) -> Result<Vec<Instance<'b>>, IngestError> {
        let instance = |(id, (index, info)): (u32, &'b (usize, ImageInfo))| {
            let entry: &Entry = &self.part.entries[*index];
            Instance { id: InstanceId(id), class: self.plan.class(entry), entry, info }
        };
        Ok(self.ids(accepted.len())?.zip(accepted).map(instance).collect())
    }

    fn split(
        &self,
        rows: &[IndexRow],
        shards: Vec<ShardEntry>,
        record: IngestRecord,
        report: &SplitReport,
    ) -> Split {
        let mut digest = ContentDigest::new(self.options.exif_orientation.is_applied());
        rows.iter().for_each(|row| digest.add(row.id, row.label, row.image));
        let before = self.before.cloned();
        let (mut all_shards, mut ingest, bytes, rejected) = before
            .map_or((Vec::new(), Vec::new(), 0, 0), |split| {
                (split.shards, split.ingest, split.image_bytes, split.rejected)
            });
        all_shards.extend(shards);
        ingest.push(record);
        Split {
            instances: rows.len() as u64,
            labelled: rows.iter().filter(|row| row.label.is_some()).count() as u64,
            image_bytes: bytes + report.image_bytes,
            rejected: rejected + report.rejected,
            digest: digest.finish(),
            shards: all_shards,
            ingest,
        }
    }
}

/// How many appended images are byte for byte in the split already, with the first of them.
fn already_there(before: &[IndexRow], appended: &[IndexRow]) -> Option<AlreadyThere> {
    let held: HashMap<Digest, &IndexRow> = before.iter().rev().map(|row| (row.image, row)).collect();
    let mut found = appended.iter().filter_map(|row| Some((row, *held.get(&row.image)?)));
    let (row, same) = found.next()?;
    let example = format!("{} (id {}) is {} (id {})", row.path, row.id.0, same.path, same.id.0);
    Some(AlreadyThere { images: 1 + found.count() as u64, example })
}

/// The rows of the index, in the order of the ids.
fn index_rows(
    shards: &[Vec<Instance<'_>>],
    written: &[WrittenShard],
    first_shard: usize,
    first_id: usize,
) -> Vec<IndexRow> {
    let count = shards.iter().map(Vec::len).sum();
    let mut rows: Vec<Option<IndexRow>> = vec![None; count];
    for (shard, (instances, written)) in shards.iter().zip(written).enumerate() {
        for (row, (instance, &offset)) in (0..).zip(instances.iter().zip(&written.offsets)) {
            let ImageInfo { width, height, bytes, .. } = *instance.info;
            let shard = (first_shard + shard) as u32;
            rows[instance.id.row() - first_id] = Some(IndexRow {
                id: instance.id,
                label: instance.class,
                path: instance.entry.path.to_string(),
                place: Place { shard, row, offset, bytes: bytes as u32, width, height },
                image: instance.info.digest,
                view: instance.info.view,
            });
        }
    }
    rows.into_iter().map(|row| row.expect("every instance was assigned")).collect()
}
