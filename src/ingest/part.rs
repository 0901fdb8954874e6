//! Checks, numbers and writes one part of a split.

mod one_pass;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::one_pass::OnePass;
use super::journal::{ACCEPTED, Work};
use super::memory::OVER_MEMORY_LIMIT;
use super::plan::{MEMORY_LIMIT, PartPlan, Plan};
use super::source::{Entry, Source};
use super::validate::{Checker, IMAGES_AT_ONCE, ImageInfo, Kept, Rejection, Validation, rewrite};
use super::{AlreadyThere, CheckDepth, IngestError, PROGRAM, SplitReport, TRAINING_SPLIT, work_through};
use crate::dataset::{
    ContentDigest, DatasetError, IndexRow, IngestRecord, PartReport, Place, Row, ShardWriter, Split,
    WriterOptions, WrittenShard, write_index,
};
use crate::ids::{ClassId, InstanceId};
use crate::image::entry_points;
use crate::rng::{Purpose, Stream};
use crate::storage::{Digest, Location, PublishMode, StorageError};

/// Number of reasons in an error or a report.
const SHOWN_REJECTS: usize = 5;
/// Kind of rejection of a training image that has a near-duplicate in another split.
const LEAK: &str = "leak";
/// Start of the reason of such a rejection; the other image follows.
const LEAK_REASON: &str = "a near-duplicate of ";

/// A line of `rejects/<part>.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reject<'a> {
    pub path: Cow<'a, str>,
    pub reason: Cow<'a, str>,
}

impl Reject<'_> {
    /// Returns whether the image was left out because another split has a near-duplicate.
    pub(super) fn is_leak(&self) -> bool {
        // Earlier versions used another word.
        [LEAK_REASON, "a twin of "].iter().any(|start| self.reason.starts_with(start))
    }
}

/// Validations of a part's images, in their order.
struct Checked<'a> {
    part: &'a PartPlan<'a>,
    validations: Vec<Validation>,
}

impl Checked<'_> {
    /// Returns the accepted images with their positions in the part.
    fn accepted(&self) -> Vec<(usize, ImageInfo)> {
        let all = self.validations.iter().enumerate();
        all.filter_map(|(position, validation)| Some((position, *validation.as_ref().ok()?))).collect()
    }

    /// Rejects images that have a near-duplicate in another split, whose name comes with each.
    fn drop_leaks(&mut self, leaks: Vec<(usize, String)>) {
        for (position, other) in leaks {
            self.validations[position] =
                Err(Rejection { kind: LEAK.into(), reason: format!("{LEAK_REASON}{other}") });
        }
    }

    /// Iterates over the rejected images, with their reasons.
    fn rejects(&self) -> impl Iterator<Item = Reject<'_>> {
        let contents = self.part.entries.iter().zip(&self.validations);
        contents.filter_map(|(entry, validation)| {
            let reason = &*validation.as_ref().err()?.reason;
            Some(Reject { path: Cow::Borrowed(&entry.path), reason: Cow::Borrowed(reason) })
        })
    }

    /// Returns the first rejected images, with their reasons.
    fn first_rejects(&self) -> Vec<String> {
        let show = |reject: Reject<'_>| format!("{}: {}", reject.path, reject.reason);
        self.rejects().take(SHOWN_REJECTS).map(show).collect()
    }

    /// Publishes the list of rejected images.
    fn publish_rejects(&self, dest: &Location) -> Result<(), StorageError> {
        let file = dest.join(&self.part.rejects_file());
        let line =
            |reject: Reject<'_>| serde_json::to_string(&reject).expect("a reject is plain data") + "\n";
        file.publish(self.rejects().map(line).collect::<String>(), PublishMode::Overwrite)
    }

    /// Describes the relation of the ids to the order of the source.
    fn describe_ids(&self) -> String {
        let rejected = self.validations.iter().position(Result::is_err);
        match (rejected, self.part.number) {
            (None, 0) => "0 to n-1 in the order of a sorted ImageFolder of these images".into(),
            (None, _) => {
                "after those before, in the order of a sorted ImageFolder of the appended images".into()
            }
            (Some(index), _) => format!(
                "in the order of a sorted ImageFolder without the rejected images, of which the first is its \
                 number {index}"
            ),
        }
    }

    /// Computes the statistics of the part; `instances` are the accepted images.
    fn report(&self, source: &Source, instances: &[Instance<'_>]) -> PartReport {
        let validations = &self.validations;
        let mut refused: BTreeMap<String, u64> = BTreeMap::new();
        let kinds =
            validations.iter().filter_map(|validation| Some(validation.as_ref().err()?.kind.as_str()));
        kinds.for_each(|kind| *refused.entry(kind.to_owned()).or_default() += 1);
        let mut images: BTreeMap<String, u64> = BTreeMap::new();
        for instance in instances {
            let kind = format!("{:?} {:?}", instance.info.format, instance.info.colour).to_lowercase();
            *images.entry(kind).or_default() += 1;
        }
        let range = |of: fn(&ImageInfo) -> u64| {
            let values = || instances.iter().map(|instance| of(instance.info));
            let mean = values().sum::<u64>() / values().count().max(1) as u64;
            [values().min().unwrap_or(0), mean, values().max().unwrap_or(0)]
        };
        let changed = instances.iter().filter(|instance| instance.info.change.is_some());
        PartReport {
            looked_at: validations.len() as u64,
            dropped_leaks: refused.get(LEAK).copied().unwrap_or(0),
            refused,
            passed_over: source.plan.passed_over.values().map(|counted| counted.count).sum(),
            kinds: images,
            encoded_bytes: range(|info| info.bytes),
            short_side: range(|info| u64::from(info.width.min(info.height))),
            long_side: range(|info| u64::from(info.width.max(info.height))),
            re_encoded: changed.count() as u64,
            source_stamp: (source.stamps.without() == 0).then(|| source.stamps.digest()),
            plan: serde_json::to_value(&source.plan).ok(),
        }
    }
}

/// An image with all data of its row.
#[derive(Clone, Copy, Debug)]
struct Instance<'a> {
    id: InstanceId,
    class: Option<ClassId>,
    entry: &'a Entry,
    info: &'a ImageInfo,
}

impl Instance<'_> {
    /// Makes the row of the image.
    fn row(&self, kept: Kept) -> Row {
        Row {
            id: self.id,
            label: self.class,
            bytes: kept.bytes,
            entry_points: kept.entry_points,
            path: self.entry.path.to_string(),
            width: self.info.width,
            height: self.info.height,
        }
    }
}

/// Work on one part.
pub(super) struct PartJob<'a> {
    pub checker: Checker<'a>,
    pub plan: &'a Plan<'a>,
    pub part: &'a PartPlan<'a>,
    pub work: Work,
    /// Existing split, if the part is appended.
    pub before: Option<&'a Split>,
    /// Index rows of the existing split.
    pub rows: Vec<IndexRow>,
    /// Number of shards that are written at once.
    pub writers: usize,
}

impl PartJob<'_> {
    /// Validates every image, assigns ids to the accepted ones, and writes shards, index and rejects. `find_leaks`
    /// returns those of the accepted ones to leave out.
    ///
    /// Returns all rows of the split.
    ///
    /// # Errors
    /// If too many images are rejected, the source changes, there are more images than ids, or a store fails.
    pub(super) fn run(
        self,
        find_leaks: impl FnOnce(&[(usize, ImageInfo)]) -> Vec<(usize, String)>,
    ) -> Result<(Split, Vec<IndexRow>, SplitReport), IngestError> {
        let (options, progress, entries) = (self.checker.options, self.checker.progress, self.part.entries);
        self.ids(entries.len())?;
        let can_drop = options.drop_leaks && self.part.split == TRAINING_SPLIT;
        let (known, shards) = if can_drop || options.changes_images() {
            (vec![None; entries.len()], None)
        } else {
            progress.begin(&format!("check and write {}", self.part.split), entries.len() as u64);
            let assigned = self.shard_indexes(entries.iter().map(|entry| entry.bytes));
            self.record_files(assigned.len())?;
            let tried = OnePass::new(&self, &assigned)?.run()?;
            progress.finish();
            tried
        };
        let mut checked = if shards.is_some() {
            Checked { part: self.part, validations: known.into_iter().flatten().collect() }
        } else {
            self.remove_unfinished_shards()?;
            self.check(&known)?
        };
        if can_drop {
            checked.drop_leaks(find_leaks(&checked.accepted()));
        }
        let accepted = checked.accepted();
        let instances = self.number(&accepted)?;
        let assigned = self.assign(&instances);
        let shards = match shards {
            Some(shards) => shards,
            None => self.write_all(&checked, &assigned)?,
        };
        self.finish(&checked, &instances, &assigned, shards)
    }

    /// Records the files of the part, before the first of them is written.
    fn record_files(&self, shards: usize) -> Result<(), IngestError> {
        let files = (0..shards).map(|number| self.shard_path(number)).chain(self.part.files());
        Ok(self.work.record_files(files)?)
    }

    fn check(&self, known: &[Option<Validation>]) -> Result<Checked<'_>, IngestError> {
        let (entries, progress) = (self.part.entries, self.checker.progress);
        progress.begin(&format!("check {}", self.part.split), entries.len() as u64);
        let validations = self.checker.check_part(entries, known, &self.work)?;
        progress.finish();
        let checked = Checked { part: self.part, validations };
        let (rejected, total) = (checked.rejects().count(), entries.len());
        let allowed = self.checker.options.max_reject_fraction.get();
        if rejected < total && rejected as f64 <= allowed * total as f64 {
            return Ok(checked);
        }
        let first = checked.first_rejects().join("; ");
        Err(IngestError::TooManyRejects { split: self.part.split.into(), rejected, total, allowed, first })
    }

    /// Writes the shards, on as many threads as there are writers.
    fn write_all(
        &self,
        checked: &Checked<'_>,
        assigned: &[Vec<Instance<'_>>],
    ) -> Result<Vec<WrittenShard>, IngestError> {
        self.record_files(assigned.len())?;
        let bits: Vec<u8> =
            checked.validations.iter().map(|validation| u8::from(validation.is_ok())).collect();
        self.keep_shards_for(Digest::of(&bits))?;
        let instances: usize = assigned.iter().map(Vec::len).sum();
        self.checker.progress.begin(&format!("write {}", self.part.split), instances as u64);
        let shards =
            work_through(assigned.len(), self.writers, |number| self.write(number, &assigned[number]))?;
        self.checker.progress.finish();
        Ok(shards)
    }

    fn finish(
        &self,
        checked: &Checked<'_>,
        instances: &[Instance<'_>],
        assigned: &[Vec<Instance<'_>>],
        shards: Vec<WrittenShard>,
    ) -> Result<(Split, Vec<IndexRow>, SplitReport), IngestError> {
        let (options, source) = (self.checker.options, self.checker.source);
        let new_rows = index_rows(assigned, &shards, self.first_shard());
        let index = write_index(&options.dest, &self.part.index_file(), &new_rows)?;
        checked.publish_rejects(&options.dest)?;
        let found = checked.report(source, instances);
        let report = SplitReport {
            instances: instances.len() as u64,
            rejected: found.refused.values().sum(),
            first_rejects: checked.first_rejects(),
            ids: checked.describe_ids(),
            image_bytes: instances.iter().map(|instance| instance.info.bytes).sum(),
            shards: shards.len(),
            already_there: already_there(&self.rows, &new_rows),
            found: found.clone(),
        };
        let mut recorded = self.plan.options.clone();
        if let (Some(limit), true) = (options.memory_limit, found.refused.contains_key(OVER_MEMORY_LIMIT)) {
            // Only in this case the limit decides the contents of the shards.
            recorded.insert(MEMORY_LIMIT.into(), limit.into());
        }
        let record = IngestRecord {
            program: PROGRAM.into(),
            format: format!("{:?}", source.format).to_lowercase(),
            source_fingerprint: self.part.fingerprint,
            options: recorded,
            instances: report.instances,
            index,
            report: found,
        };
        let mut rows = self.rows.clone();
        rows.extend(new_rows);
        let mut digest = ContentDigest::new(options.exif_orientation.is_applied());
        rows.iter().for_each(|row| digest.add(row.id, row.label, row.image));
        let mut split = Split {
            instances: rows.len() as u64,
            labelled: rows.iter().filter(|row| row.label.is_some()).count() as u64,
            image_bytes: report.image_bytes,
            rejected: report.rejected,
            digest: digest.finish(),
            shards: Vec::new(),
            ingest: Vec::new(),
        };
        if let Some(before) = self.before {
            split.image_bytes += before.image_bytes;
            split.rejected += before.rejected;
            split.shards.clone_from(&before.shards);
            split.ingest.clone_from(&before.ingest);
        }
        split.shards.extend(shards.into_iter().map(|written| written.entry));
        split.ingest.push(record);
        Ok((split, rows, report))
    }

    /// Returns the name of a shard, given its number in the part.
    fn shard_name(&self, number: usize) -> String {
        format!("shard-{:05}", self.first_shard() + number)
    }

    /// Returns the path of a shard within the dataset's folder.
    fn shard_path(&self, number: usize) -> String {
        format!("{}/{}.parquet", self.part.split, self.shard_name(number))
    }

    fn start_shard(&self, number: usize) -> Result<ShardWriter, DatasetError> {
        let options = self.checker.options;
        let layout = WriterOptions { row_group: options.row_group, classes: self.plan.classes.clone() };
        ShardWriter::start(&options.dest, &self.shard_path(number), &layout)
    }

    /// Returns whether a shard that an earlier call recorded still exists.
    fn is_there(&self, WrittenShard { entry, offsets, entry_points }: &WrittenShard) -> bool {
        // A record of an older version is of a shard without entry points.
        entry_points.len() == offsets.len()
            && self.checker.options.dest.join(&entry.path).size().is_ok_and(|bytes| bytes == entry.bytes)
    }

    /// Returns the record that [`Self::write`] made of a shard, if the shard still exists.
    fn finished_shard(&self, name: &str) -> Result<Option<WrittenShard>, StorageError> {
        Ok(self.work.load(name)?.filter(|written| self.is_there(written)))
    }

    /// Removes recorded shards of this part that [`Self::write`] has not finished.
    fn remove_unfinished_shards(&self) -> Result<(), StorageError> {
        let (dest, recorded) = (&self.checker.options.dest, self.work.files()?);
        for entry in dest.join(self.part.split).list()? {
            let path = format!("{}/{}", self.part.split, entry.name);
            let name = entry.name.trim_end_matches(".parquet");
            if recorded.contains(&path) && self.finished_shard(name)?.is_none() {
                dest.join(&path).delete()?;
            }
        }
        Ok(())
    }

    /// Forgets the recorded shards if they were written for other accepted images: `--memory-limit` may change between
    /// a kill and its resume, and with it the validations.
    fn keep_shards_for(&self, accepted: Digest) -> Result<(), StorageError> {
        if self.work.load(ACCEPTED)? == Some(accepted) {
            return Ok(());
        }
        for file in self.work.files()? {
            let name = file.rsplit_once('/').map_or(file.as_str(), |(_, name)| name);
            if let Some(record) = name.strip_suffix(".parquet") {
                self.work.remove(record)?;
            }
        }
        self.work.save(ACCEPTED, &accepted)
    }

    /// Writes a shard, unless an earlier call finished it.
    ///
    /// # Errors
    /// If the source changed since it was checked, or a store fails.
    fn write(&self, number: usize, shard: &[Instance<'_>]) -> Result<WrittenShard, IngestError> {
        let Checker { memory, threads, progress, .. } = self.checker;
        let name = self.shard_name(number);
        // A record of other images, which a damaged journal could have, is passed over.
        let finished = self.finished_shard(&name)?.filter(|written| written.offsets.len() == shard.len());
        if let Some(written) = finished {
            progress.advance(written.entry.rows);
            return Ok(written);
        }
        let mut writer = self.start_shard(number)?;
        for instances in memory.write_runs(shard, |instance| instance.entry.bytes) {
            let groups = instances.par_chunks(IMAGES_AT_ONCE).map(|instances| self.rows_of(instances));
            let rows: Vec<Vec<Row>> = threads.install(|| groups.collect::<Result<_, IngestError>>())?;
            for row in rows.into_iter().flatten() {
                writer.push(row)?;
            }
            progress.advance(instances.len() as u64);
        }
        let written = writer.finish()?;
        self.work.save(&name, &written)?;
        Ok(written)
    }

    fn rows_of(&self, instances: &[Instance<'_>]) -> Result<Vec<Row>, IngestError> {
        let Checker { source, options, memory, .. } = self.checker;
        let entries: Vec<&Entry> = instances.iter().map(|instance| instance.entry).collect();
        let read = source.read_all(&entries)?;
        let mut rows = Vec::with_capacity(instances.len());
        for (instance, source) in instances.iter().zip(read) {
            let bytes = match instance.info.change {
                None => Some(source),
                Some(change) => {
                    let _reservation = memory.readmit(&source, options);
                    rewrite(&source, change, options).map(Into::into)
                }
            };
            let bytes = bytes.filter(|bytes| Digest::of(bytes) == instance.info.digest);
            let bytes = bytes.ok_or_else(|| {
                let location = format!("{} in {}", instance.entry.path, options.sources[0]);
                IngestError::layout(location, "it changed while it was ingested")
            })?;
            // Entry points of the check are not kept, as they would fill the journal; they are computed again.
            let points = (options.check == CheckDepth::Full).then(|| entry_points(&bytes)).flatten();
            rows.push(instance.row(Kept { bytes, entry_points: points.map(Into::into) }));
        }
        Ok(rows)
    }

    fn first_shard(&self) -> usize {
        self.before.map_or(0, |split| split.shards.len())
    }

    /// Returns the indices of the images in each shard, given their sizes.
    fn shard_indexes(&self, sizes: impl Iterator<Item = u64>) -> Vec<Vec<u32>> {
        let options = self.checker.options;
        let sizes: Vec<u64> = sizes.collect();
        assign(&sizes, options.shuffle_seed, self.part.number as u64, options.shard_bytes)
    }

    /// Returns the images of each shard. Unchanged images count with the listed sizes, which are known first.
    fn assign<'b>(&self, instances: &[Instance<'b>]) -> Vec<Vec<Instance<'b>>> {
        let changes = self.checker.options.changes_images();
        let size = |of: &Instance<'_>| if changes { of.info.bytes } else { of.entry.bytes };
        let shards = self.shard_indexes(instances.iter().map(size));
        let images = |indexes: Vec<u32>| indexes.into_iter().map(|index| instances[index as usize]).collect();
        shards.into_iter().map(images).collect()
    }

    /// Returns the range of `count` new ids.
    fn ids(&self, count: usize) -> Result<std::ops::Range<u32>, IngestError> {
        let first = self.rows.len();
        match (u32::try_from(first), u32::try_from(first + count)) {
            (Ok(first), Ok(end)) => Ok(first..end),
            _ => {
                let reason = "it has more images than there are ids (2^32)";
                Err(IngestError::layout(&self.checker.options.sources[0], reason))
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
}

/// Assigns images of these sizes to shards, by their indices in the list. The seed permutes them, so that each shard is
/// a uniform sample; a shard ends when it is full.
fn assign(sizes: &[u64], seed: u64, part: u64, shard_bytes: u64) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..sizes.len() as u32).collect();
    Stream::new(seed, Purpose::ShardOrder, part, 0).shuffle(&mut order);
    let (mut shards, mut shard, mut bytes) = (Vec::new(), Vec::new(), 0);
    for index in order {
        bytes += sizes[index as usize];
        shard.push(index);
        if bytes >= shard_bytes {
            shards.push(std::mem::take(&mut shard));
            bytes = 0;
        }
    }
    if !shard.is_empty() {
        shards.push(shard);
    }
    shards
}

/// Counts the appended images that equal one of the split byte for byte, and names the first.
fn already_there(before: &[IndexRow], appended: &[IndexRow]) -> Option<AlreadyThere> {
    let held: HashMap<Digest, &IndexRow> = before.iter().rev().map(|row| (row.image, row)).collect();
    let mut found = appended.iter().filter_map(|row| Some((row, *held.get(&row.image)?)));
    let (row, same) = found.next()?;
    let example = format!("{} (id {}) is {} (id {})", row.path, row.id.0, same.path, same.id.0);
    Some(AlreadyThere { images: 1 + found.count() as u64, example })
}

/// Returns the rows of the index, in the order of the ids.
fn index_rows(shards: &[Vec<Instance<'_>>], written: &[WrittenShard], first_shard: usize) -> Vec<IndexRow> {
    let mut rows = Vec::with_capacity(shards.iter().map(Vec::len).sum());
    for (shard, (instances, written)) in (first_shard as u32..).zip(shards.iter().zip(written)) {
        let places = written.offsets.iter().zip(&written.entry_points);
        for (row, (instance, (&offset, &points))) in (0..).zip(instances.iter().zip(places)) {
            let ImageInfo { width, height, bytes, .. } = *instance.info;
            rows.push(IndexRow {
                id: instance.id,
                label: instance.class,
                path: instance.entry.path.to_string(),
                place: Place {
                    shard,
                    row,
                    offset,
                    bytes: bytes as u32,
                    width,
                    height,
                    entry_points_offset: points.0,
                    entry_points_bytes: points.1,
                },
                image: instance.info.digest,
                view: instance.info.view,
            });
        }
    }
    let assigned: usize = shards.iter().map(Vec::len).sum();
    assert_eq!(rows.len(), assigned, "every image was written");
    rows.sort_unstable_by_key(|row| row.id);
    rows
}
