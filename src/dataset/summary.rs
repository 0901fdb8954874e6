//! The summary of a dataset for `inspect`, and the check of every byte.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::table::read_whole;
use super::{DatasetError, Located, Manifest, Place, Row, ShardReader, Split, unsealed};
use crate::ids::{ClassId, InstanceId};
use crate::progress::Progress;
use crate::storage::{Digest, Location};

/// The summary of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetSummary {
    /// Always `dataset`.
    pub kind: &'static str,
    /// The dataset's identity.
    pub dataset_digest: Digest,
    /// The number of classes.
    pub classes: usize,
    /// The splits by name.
    pub splits: BTreeMap<String, SplitSummary>,
}

/// The summary of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    /// Its images.
    pub instances: u64,
    /// Those that have a label.
    pub labelled: u64,
    /// Images refused at ingest.
    pub rejected: u64,
    /// The sum of the encoded images' sizes, in bytes.
    pub image_bytes: u64,
    /// Its shards.
    pub shards: usize,
    /// The sum of their sizes, in bytes.
    pub shard_bytes: u64,
    /// The digest of its content.
    pub digest: Digest,
}

/// Summarises a manifest.
pub fn summarise(manifest: &Manifest) -> DatasetSummary {
    let split = |split: &Split| SplitSummary {
        instances: split.instances,
        labelled: split.labelled,
        rejected: split.rejected,
        image_bytes: split.image_bytes,
        shards: split.shards.len(),
        shard_bytes: split.shards.iter().fold(0, |sum, shard| sum.saturating_add(shard.bytes)),
        digest: split.digest,
    };
    DatasetSummary {
        kind: "dataset",
        dataset_digest: manifest.dataset_digest,
        classes: manifest.classes.len(),
        splits: manifest.splits.iter().map(|(name, of)| (name.clone(), split(of))).collect(),
    }
}

/// The class and the image of an instance that was found.
type Sighting = (Option<ClassId>, Digest);

/// Reads every byte of every shard and index again and checks digests, ids, the content's digest, and that the
/// indexes tell where each image is. Stored entry points must be those that `entry_points` finds in the image.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    dataset: &Location,
    manifest: &Manifest,
    entry_points: &(dyn Fn(&[u8]) -> Option<Vec<u8>> + Sync),
    progress: &dyn Progress,
) -> Result<(), DatasetError> {
    let has_others = |row: &&Row| {
        row.entry_points
            .as_ref()
            .is_some_and(|points| entry_points(&row.bytes).as_deref() != Some(&points[..]))
    };
    for (name, split) in &manifest.splits {
        progress.begin(&format!("verify {name}"), split.instances);
        let indexed = split.read_places(dataset)?;
        let mut found: Vec<Option<Sighting>> = vec![None; indexed.len()];
        for (shard, entry) in (0..).zip(&split.shards) {
            let bytes = read_whole(&dataset.join(&entry.path), entry.digest)?;
            let reader = ShardReader::open(dataset, entry, manifest.classes.len(), split.instances)?;
            let mut place = 0;
            for group in 0..reader.row_groups() {
                let range = reader.row_group_range(group);
                let wrong = |reason: String| DatasetError::RowGroup {
                    shard: entry.path.clone(),
                    row_group: group,
                    reason,
                };
                let rows =
                    reader.parse_row_group(group, bytes.slice(range.start as usize..range.end as usize))?;
                if let Some(row) = rows.par_iter().find_first(has_others) {
                    return Err(wrong(format!(
                        "the entry points of instance {} are not its image's",
                        row.id
                    )));
                }
                for row in rows {
                    let image = Digest::of(&row.bytes);
                    if found[row.id.row()].replace((row.label, image)).is_some() {
                        return Err(wrong(format!("instance id {} occurs twice in the split", row.id)));
                    }
                    let said = indexed[row.id.row()];
                    let size = row.bytes.len() as u32;
                    let (width, height) = (row.width, row.height);
                    let actual = Place { shard, row: place, bytes: size, width, height, ..said.place };
                    let part = |offset: u64, len: u32| {
                        let start = usize::try_from(offset).ok()?;
                        let end = start.checked_add(len as usize).filter(|&end| end <= bytes.len())?;
                        Some(bytes.slice(start..end))
                    };
                    let Place { offset, entry_points_offset, entry_points_bytes, .. } = said.place;
                    let points = match entry_points_bytes {
                        0 => Some(None),
                        len => part(entry_points_offset, len)
                            .and_then(|stored| unsealed(stored, &row.bytes))
                            .map(Some),
                    };
                    let is_there = part(offset, size).is_some_and(|bytes| bytes == row.bytes)
                        && points.is_some_and(|points| points == row.entry_points);
                    let located = Located { id: row.id, label: row.label, place: actual, image };
                    if said != located || !is_there {
                        return Err(split.wrong_index(dataset, row.id));
                    }
                    place += 1;
                }
                progress.advance(reader.rows(group) as u64);
            }
        }
        progress.finish();
        check_content(dataset, name, split, &found)?;
    }
    Ok(())
}

fn check_content(
    dataset: &Location,
    name: &str,
    split: &Split,
    found: &[Option<Sighting>],
) -> Result<(), DatasetError> {
    let wrong = |reason: String| DatasetError::Damaged { shard: format!("{dataset} split {name}"), reason };
    let mut digest = super::ContentDigest::new(split.applies_exif_orientation());
    for (id, sighting) in (0..).map(InstanceId).zip(found) {
        let (label, image) = sighting.ok_or_else(|| wrong(format!("instance {id} is missing")))?;
        digest.add(id, label, image);
    }
    if digest.finish() != split.digest {
        return Err(wrong("its content is not that of the manifest's digest".into()));
    }
    Ok(())
}
