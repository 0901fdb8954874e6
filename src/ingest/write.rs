//! Writing the shards of a split.

use rayon::prelude::*;

use super::layout::Candidate;
use super::screen::Facts;
use super::source::Source;
use super::{IngestError, IngestOptions};
use crate::dataset::{Row, ShardEntry, ShardWriter, WriterOptions};
use crate::ids::{ClassId, InstanceId};
use crate::progress::Progress;
use crate::rng::{Purpose, Stream};
use crate::storage::Digest;

/// A picture with everything that its row says.
#[derive(Debug)]
pub(super) struct Instance<'a> {
    pub(super) id: InstanceId,
    pub(super) class: ClassId,
    pub(super) candidate: &'a Candidate,
    pub(super) facts: Facts,
}

/// Deals instances to shards: permuted by the seed, so that each shard is a uniform sample, and cut where
/// a shard is full.
pub(super) fn deal<'a>(
    mut instances: Vec<Instance<'a>>,
    seed: u64,
    shard_bytes: u64,
) -> Vec<Vec<Instance<'a>>> {
    Stream::new(seed, Purpose::ShardOrder, 0, 0).shuffle(&mut instances);
    let (mut shards, mut shard, mut bytes) = (Vec::new(), Vec::new(), 0);
    for instance in instances {
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

/// Writes the shards, several at once on the threads of the pool that this runs in.
pub(super) fn write_shards(
    source: &Source,
    options: &IngestOptions,
    split: &str,
    classes: &[String],
    shards: &[Vec<Instance<'_>>],
    progress: &dyn Progress,
) -> Result<Vec<ShardEntry>, IngestError> {
    let layout = WriterOptions { row_group: options.row_group, classes: classes.to_vec() };
    let write = |(number, shard): (usize, &Vec<Instance<'_>>)| {
        let path = format!("{split}/shard-{number:05}.parquet");
        let mut writer = ShardWriter::start(&options.dest, &path, &layout)?;
        for instance in shard {
            writer.push(row(source, instance)?)?;
            progress.advance(1);
        }
        Ok(writer.finish()?)
    };
    shards.par_iter().enumerate().map(write).collect()
}

fn row(source: &Source, instance: &Instance<'_>) -> Result<Row, IngestError> {
    let bytes = source.read(&instance.candidate.file)?;
    if Digest::of(&bytes) != instance.facts.digest {
        let location = instance.candidate.file.path.clone();
        return Err(IngestError::Layout { location, reason: "it changed while it was ingested".into() });
    }
    Ok(Row {
        id: instance.id,
        label: Some(instance.class),
        bytes,
        path: instance.candidate.path.clone(),
        width: instance.facts.width,
        height: instance.facts.height,
    })
}
