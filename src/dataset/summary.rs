//! What `inspect` says of a dataset, and the check of every byte.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{DatasetError, Manifest, ShardEntry, ShardReader, Split, read_index};
use crate::ids::{ClassId, InstanceId};
use crate::progress::Progress;
use crate::storage::{Digest, Location};

/// What `inspect` says of a dataset.
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

/// What `inspect` says of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    /// Its pictures.
    pub instances: u64,
    /// Those that have a label.
    pub labelled: u64,
    /// Pictures refused at ingest.
    pub rejected: u64,
    /// The sum of the encoded pictures' sizes, in bytes.
    pub image_bytes: u64,
    /// Its shards.
    pub shards: usize,
    /// The sum of their sizes, in bytes.
    pub shard_bytes: u64,
    /// The digest of its content.
    pub digest: Digest,
}

/// What the manifest says, in short.
pub fn summarise(manifest: &Manifest) -> DatasetSummary {
    let split = |split: &Split| SplitSummary {
        instances: split.instances,
        labelled: split.labelled,
        rejected: split.rejected,
        image_bytes: split.image_bytes,
        shards: split.shards.len(),
        shard_bytes: split.shards.iter().map(|shard| shard.bytes).sum(),
        digest: split.digest,
    };
    DatasetSummary {
        kind: "dataset",
        dataset_digest: manifest.dataset_digest,
        classes: manifest.classes.len(),
        splits: manifest.splits.iter().map(|(name, of)| (name.clone(), split(of))).collect(),
    }
}

/// Where a picture was found, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sighting {
    label: Option<ClassId>,
    picture: Digest,
    shard: u32,
    row: u32,
}

/// Reads every byte of every shard and index again and checks digests, ids and the content's digest.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(dataset: &Location, manifest: &Manifest, progress: &dyn Progress) -> Result<(), DatasetError> {
    for (name, split) in &manifest.splits {
        progress.begin(&format!("verify {name}"), split.instances);
        let mut found: Vec<Option<Sighting>> = vec![None; split.instances as usize];
        for (shard, entry) in (0..).zip(&split.shards) {
            check_digest(dataset, entry)?;
            let reader = ShardReader::open(dataset, entry, manifest.classes.len(), split.instances)?;
            let mut place = 0;
            for group in 0..reader.row_groups() {
                for row in reader.read_row_group(group)? {
                    let picture = Digest::of(&row.bytes);
                    let sighting = Sighting { label: row.label, picture, shard, row: place };
                    place += 1;
                    if found[row.id.row()].replace(sighting).is_some() {
                        let reason = format!("instance id {} occurs twice in the split", row.id);
                        return Err(DatasetError::RowGroup {
                            shard: entry.path.clone(),
                            row_group: group,
                            reason,
                        });
                    }
                }
                progress.advance(reader.rows(group) as u64);
            }
        }
        progress.finish();
        check_content(dataset, name, split, &found)?;
        check_index(dataset, split, &found)?;
    }
    Ok(())
}

fn check_digest(dataset: &Location, entry: &ShardEntry) -> Result<(), DatasetError> {
    let location = dataset.join(&entry.path);
    let damaged = |reason: &str| DatasetError::Damaged { shard: location.to_string(), reason: reason.into() };
    let bytes = match location.read() {
        Err(error) if error.is_not_found() => return Err(damaged("it is missing")),
        other => other?,
    };
    if Digest::of(&bytes) != entry.digest {
        return Err(damaged("its digest is not that of the manifest"));
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
    let mut digest = super::ContentDigest::default();
    for (id, sighting) in (0..).map(InstanceId).zip(found) {
        let sighting = sighting.ok_or_else(|| wrong(format!("instance {id} is missing")))?;
        digest.add(id, sighting.label, sighting.picture);
    }
    if digest.finish() != split.digest {
        return Err(wrong("its content is not that of the manifest's digest".into()));
    }
    Ok(())
}

/// Each part's index has its instances, in their order, where and as they are.
fn check_index(dataset: &Location, split: &Split, found: &[Option<Sighting>]) -> Result<(), DatasetError> {
    let mut ids = (0..).map(InstanceId);
    for part in &split.ingest {
        let shown = dataset.join(&part.index.path).to_string();
        let wrong = |reason: String| DatasetError::Damaged { shard: shown.clone(), reason };
        let rows = read_index(dataset, &part.index)?;
        if rows.len() as u64 != part.instances {
            return Err(wrong(format!("it has {} rows, the manifest says {}", rows.len(), part.instances)));
        }
        for row in rows {
            let expected = ids.next().expect("ids do not end");
            let said = Sighting { label: row.label, picture: row.picture, shard: row.shard, row: row.row };
            if row.id != expected || found.get(expected.row()).copied().flatten() != Some(said) {
                return Err(wrong(format!("what it says of instance {expected} is not so")));
            }
        }
    }
    Ok(())
}
