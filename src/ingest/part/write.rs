//! Writing the shards of a split.

use rayon::prelude::*;
use serde::de::DeserializeOwned;

use crate::dataset::{DatasetError, Row, ShardWriter, WriterOptions, WrittenShard};
use crate::ids::{ClassId, InstanceId};
use crate::image::entry_points;
use crate::ingest::journal::{ACCEPTED, Work};
use crate::ingest::source::{Entry, Source};
use crate::ingest::validate::memory::{MemoryBudget, runs};
use crate::ingest::validate::rewrite;
use crate::ingest::validate::{IMAGES_AT_ONCE, ImageInfo, Kept};
use crate::ingest::{CheckDepth, IngestError, IngestOptions};
use crate::progress::Progress;
use crate::rng::{Purpose, Stream};
use crate::storage::{Digest, Location, StorageError};

/// An image with everything that its row says.
#[derive(Clone, Copy, Debug)]
pub(in crate::ingest) struct Instance<'a> {
    pub(in crate::ingest) id: InstanceId,
    pub(in crate::ingest) class: Option<ClassId>,
    pub(in crate::ingest) entry: &'a Entry,
    pub(in crate::ingest) info: &'a ImageInfo,
}

impl Instance<'_> {
    /// Its row.
    pub(in crate::ingest) fn row(&self, kept: Kept) -> Row {
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

/// Deals images of these sizes to shards: permuted by the seed, so that each shard is a uniform sample, and cut
/// where a shard is full. The shards hold indexes in the list.
pub(in crate::ingest) fn assign(sizes: &[u64], seed: u64, part: u64, shard_bytes: u64) -> Vec<Vec<u32>> {
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

/// What the shards of a part have in common.
#[derive(Debug)]
pub(in crate::ingest) struct ShardJob<'a> {
    pub(in crate::ingest) source: &'a Source,
    pub(in crate::ingest) options: &'a IngestOptions,
    pub(in crate::ingest) memory: &'a MemoryBudget,
    pub(in crate::ingest) dest: &'a Location,
    pub(in crate::ingest) split: &'a str,
    pub(in crate::ingest) classes: &'a [String],
    /// The number of the first shard.
    pub(in crate::ingest) first: usize,
}

impl ShardJob<'_> {
    /// The name of a shard of the part, by its number in it.
    pub(in crate::ingest) fn name(&self, number: usize) -> String {
        format!("shard-{:05}", self.first + number)
    }

    /// The path of a shard within the dataset's folder.
    pub(in crate::ingest) fn path(&self, number: usize) -> String {
        format!("{}/{}.parquet", self.split, self.name(number))
    }

    /// Starts a shard.
    pub(in crate::ingest) fn start(&self, number: usize) -> Result<ShardWriter, DatasetError> {
        let layout = WriterOptions { row_group: self.options.row_group, classes: self.classes.to_vec() };
        ShardWriter::start(self.dest, &self.path(number), &layout)
    }

    /// What an earlier call recorded of a shard, if the shard is there.
    pub(in crate::ingest) fn finished<T: DeserializeOwned>(
        &self,
        work: &Work,
        record: &str,
        written: impl Fn(&T) -> &WrittenShard,
    ) -> Result<Option<T>, StorageError> {
        let there = |found: &T| {
            let WrittenShard { entry, offsets, entry_points } = written(found);
            // A record from before there were entry points is of a shard without.
            entry_points.len() == offsets.len()
                && self.dest.join(&entry.path).size().is_ok_and(|bytes| bytes == entry.bytes)
        };
        Ok(work.load(record)?.filter(there))
    }

    /// Removes shards that the work on this part has recorded and [`ShardJob::write`] has not finished.
    ///
    /// # Errors
    /// If the store fails.
    pub(in crate::ingest) fn remove_others(&self, work: &Work) -> Result<(), StorageError> {
        let recorded = work.files()?;
        for entry in self.dest.join(self.split).list()? {
            let path = format!("{}/{}", self.split, entry.name);
            let name = entry.name.trim_end_matches(".parquet");
            if recorded.contains(&path)
                && self.finished(work, name, |written: &WrittenShard| written)?.is_none()
            {
                self.dest.join(&path).delete()?;
            }
        }
        Ok(())
    }

    /// Forgets the shards that the work has recorded, if they were written when other images were accepted: validations may
    /// change with `--memory-limit` between a kill and its resume.
    ///
    /// # Errors
    /// If the store fails.
    pub(in crate::ingest) fn keep_for(&self, accepted: Digest, work: &Work) -> Result<(), StorageError> {
        if work.load(ACCEPTED)? == Some(accepted) {
            return Ok(());
        }
        for file in work.files()? {
            let name = file.rsplit_once('/').map_or(file.as_str(), |(_, name)| name);
            if let Some(record) = name.strip_suffix(".parquet") {
                work.remove(record)?;
            }
        }
        work.save(ACCEPTED, &accepted)
    }

    /// Writes the shards, one on each thread of the pool that this runs in; those that an earlier call
    /// finished are left as they are.
    ///
    /// # Errors
    /// If the source changed since it was checked, or a store fails.
    pub(in crate::ingest) fn write(
        &self,
        shards: &[Vec<Instance<'_>>],
        work: &Work,
        progress: &dyn Progress,
    ) -> Result<Vec<WrittenShard>, IngestError> {
        let write = |(number, shard): (usize, &Vec<Instance<'_>>)| {
            let name = self.name(number);
            if let Some(written) = self.finished(work, &name, |written: &WrittenShard| written)? {
                progress.advance(written.entry.rows);
                return Ok(written);
            }
            let mut writer = self.start(number)?;
            let bytes = |instance: &Instance<'_>| instance.entry.bytes;
            for instances in runs(shard, IMAGES_AT_ONCE, self.memory.batch_bytes, bytes) {
                for row in self.rows(instances)? {
                    writer.push(row)?;
                }
                progress.advance(instances.len() as u64);
            }
            let written = writer.finish()?;
            work.save(&name, &written)?;
            Ok(written)
        };
        shards.par_iter().enumerate().map(write).collect()
    }

    fn rows(&self, instances: &[Instance<'_>]) -> Result<Vec<Row>, IngestError> {
        let entries: Vec<&Entry> = instances.iter().map(|instance| instance.entry).collect();
        let read = self.source.read_all(&entries)?;
        let mut rows = Vec::with_capacity(instances.len());
        for (instance, source) in instances.iter().zip(read) {
            let changes = instance.info.changes;
            let bytes = if changes.none() {
                Some(source)
            } else {
                let _reservation = self.memory.readmit(&source, self.options);
                rewrite::again(&source, changes, self.options).map(Into::into)
            };
            let bytes = bytes.filter(|bytes| Digest::of(bytes) == instance.info.digest);
            let bytes = bytes.ok_or_else(|| IngestError::Layout {
                location: format!("{} in {}", instance.entry.path, self.options.sources[0]),
                reason: "it changed while it was ingested".into(),
            })?;
            // What the check found is not kept, as it would fill the journal; they are the same again.
            let points = (self.options.check == CheckDepth::Full).then(|| entry_points(&bytes)).flatten();
            rows.push(instance.row(Kept { bytes, entry_points: points.map(Into::into) }));
        }
        Ok(rows)
    }
}
