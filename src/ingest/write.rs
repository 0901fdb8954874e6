//! Writing the shards of a split.

use rayon::prelude::*;

use super::remake;
use super::screen::Facts;
use super::source::{Entry, Source};
use super::work::Work;
use super::{IngestError, IngestOptions};
use crate::dataset::{Row, ShardEntry, ShardWriter, WriterOptions};
use crate::ids::{ClassId, InstanceId};
use crate::progress::Progress;
use crate::rng::{Purpose, Stream};
use crate::storage::{Digest, Location};

/// Pictures that are fetched together.
const PICTURES_AT_ONCE: usize = 16;

/// A picture with everything that its row says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instance<'a> {
    pub(super) id: InstanceId,
    pub(super) class: Option<ClassId>,
    pub(super) entry: &'a Entry,
    pub(super) facts: &'a Facts,
}

/// Deals instances to shards: permuted by the seed, so that each shard is a uniform sample, and cut where
/// a shard is full.
pub(super) fn deal<'a>(
    instances: &[Instance<'a>],
    seed: u64,
    part: u64,
    shard_bytes: u64,
) -> Vec<Vec<Instance<'a>>> {
    let mut order: Vec<u32> = (0..instances.len() as u32).collect();
    Stream::new(seed, Purpose::ShardOrder, part, 0).shuffle(&mut order);
    let (mut shards, mut shard, mut bytes) = (Vec::new(), Vec::new(), 0);
    for place in order {
        let instance = instances[place as usize];
        bytes += instance.facts.bytes;
        shard.push(instance);
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
pub(super) struct ShardJob<'a> {
    pub(super) source: &'a Source,
    pub(super) options: &'a IngestOptions,
    pub(super) dest: &'a Location,
    pub(super) split: &'a str,
    pub(super) classes: &'a [String],
    /// The number of the first shard.
    pub(super) first: usize,
}

impl ShardJob<'_> {
    /// Writes the shards, one on each thread of the pool that this runs in; those that an earlier call
    /// finished are left as they are.
    ///
    /// # Errors
    /// If the source changed since it was checked, or a store fails.
    pub(super) fn write(
        &self,
        shards: &[Vec<Instance<'_>>],
        work: &Work,
        progress: &dyn Progress,
    ) -> Result<Vec<ShardEntry>, IngestError> {
        let layout = WriterOptions { row_group: self.options.row_group, classes: self.classes.to_vec() };
        let write = |(number, shard): (usize, &Vec<Instance<'_>>)| {
            let name = format!("shard-{:05}", self.first + number);
            if let Some(entry) = work.load::<ShardEntry>(&name)?
                && self.dest.join(&entry.path).size().is_ok_and(|bytes| bytes == entry.bytes)
            {
                progress.advance(entry.rows);
                return Ok(entry);
            }
            let path = format!("{}/{name}.parquet", self.split);
            let mut writer = ShardWriter::start(self.dest, &path, &layout)?;
            for instances in shard.chunks(PICTURES_AT_ONCE) {
                for row in self.rows(instances)? {
                    writer.push(row)?;
                }
                progress.advance(instances.len() as u64);
            }
            let entry = writer.finish()?;
            work.save(&name, &entry)?;
            Ok(entry)
        };
        shards.par_iter().enumerate().map(write).collect()
    }

    fn rows(&self, instances: &[Instance<'_>]) -> Result<Vec<Row>, IngestError> {
        let entries: Vec<&Entry> = instances.iter().map(|instance| instance.entry).collect();
        let read = self.source.read_all(&entries)?;
        let mut rows = Vec::with_capacity(instances.len());
        for (instance, source) in instances.iter().zip(read) {
            let changes = instance.facts.changes;
            let bytes = if changes.none() {
                Some(source)
            } else {
                remake::again(&source, changes, self.options).map(Into::into)
            };
            let bytes = bytes.filter(|bytes| Digest::of(bytes) == instance.facts.digest);
            let bytes = bytes.ok_or_else(|| IngestError::Layout {
                location: format!("{} in {}", instance.entry.path, self.options.sources[0]),
                reason: "it changed while it was ingested".into(),
            })?;
            rows.push(Row {
                id: instance.id,
                label: instance.class,
                bytes,
                path: instance.entry.path.to_string(),
                width: instance.facts.width,
                height: instance.facts.height,
            });
        }
        Ok(rows)
    }
}
