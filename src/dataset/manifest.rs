//! The manifest: what a dataset consists of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::DatasetError;
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location, PublishMode};

/// The version that this code writes and reads.
const FORMAT_VERSION: u32 = 1;
/// Instances of a split at most: an id has 32 bits.
const MOST_INSTANCES: u64 = 1 << 32;
/// The manifest's name within the dataset's folder.
const FILE: &str = "manifest.json";

/// Splits on which features are evaluated where none is named, the first that a dataset has.
pub const EVALUATION_SPLITS: [&str; 6] = ["val", "valid", "validation", "dev", "test", "testing"];
/// The option of [`IngestRecord`] that says whether images are seen as EXIF says.
pub const EXIF_ORIENTATION: &str = "exif_orientation";

/// A shard of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its path within the dataset's folder.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The blake3 digest of its contents.
    pub digest: Digest,
    /// The blake3 digest of each row group's bytes, so that a ranged read can be checked.
    pub row_groups: Vec<Digest>,
    /// What follows the last row group. Manifests from before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footer: Option<FooterEntry>,
}

/// What follows the last row group of a shard: Parquet's page index and footer, up to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FooterEntry {
    /// Its size in bytes.
    pub bytes: u64,
    /// The blake3 digest of its bytes.
    pub digest: Digest,
}

/// A file of the dataset beside the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its path within the dataset's folder.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The blake3 digest of its contents.
    pub digest: Digest,
}

/// How a part of a split was made: enough to know the same command again, and what was found.
///
/// A split has one part, and one more for each time that images were appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestRecord {
    /// The program and its version.
    pub program: String,
    /// The source's form.
    pub format: String,
    /// A fingerprint of the source's names and sizes.
    pub source_fingerprint: Digest,
    /// The options that decide what the shards hold.
    pub options: BTreeMap<String, serde_json::Value>,
    /// The part's instances; their ids follow those of the parts before.
    pub instances: u64,
    /// The part's index; see [`super::IndexRow`].
    pub index: FileEntry,
    /// What was found in the source.
    pub report: PartReport,
}

/// What was found in a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// Images validated.
    pub looked_at: u64,
    /// How many were rejected for which kind of reason.
    pub refused: BTreeMap<String, u64>,
    /// Images left out because another split holds them too (`--drop-leaks`).
    pub dropped_leaks: u64,
    /// Entries of the whole source that are not images by their names, hidden or ignored.
    pub passed_over: u64,
    /// How many images have which format and colour space.
    pub kinds: BTreeMap<String, u64>,
    /// Bytes of the encoded images: smallest, mean, largest.
    #[serde(rename = "picture_bytes")]
    pub encoded_bytes: [u64; 3],
    /// The shorter side in pixels: smallest, mean, largest.
    pub short_side: [u64; 3],
    /// The longer side in pixels: smallest, mean, largest.
    pub long_side: [u64; 3],
    /// Images made smaller (`--max-side`, `--short-side`) or baseline (`--baseline`).
    pub re_encoded: u64,
    /// A digest of the modification times or ETags of the whole source's files, where all have one. It is
    /// part of no other digest. Manifests from before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_stamp: Option<Digest>,
    /// How the whole source was understood, as ingest prints it. Manifests from before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<serde_json::Value>,
}

/// Images that occur more than once, in all splits together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateCounts {
    /// Groups whose images are equal byte for byte.
    pub identical_groups: u64,
    /// Groups whose images look the same.
    pub visual_groups: u64,
    /// Images in groups.
    #[serde(rename = "pictures")]
    pub images: u64,
    /// Training images that have a near-duplicate in another split.
    pub leaks: u64,
}

/// A split of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Its images; their ids are `0..instances`.
    pub instances: u64,
    /// Those that have a label.
    pub labelled: u64,
    /// The sum of the encoded images' sizes, in bytes.
    pub image_bytes: u64,
    /// Images that were refused at ingest; `rejects/<split>.jsonl` names them.
    pub rejected: u64,
    /// The digest of its content; see [`ContentDigest`].
    pub digest: Digest,
    /// Its shards.
    pub shards: Vec<ShardEntry>,
    /// How it was made: the first part, and what was appended.
    pub ingest: Vec<IngestRecord>,
}

impl Split {
    /// Whether its images are seen as EXIF says; all of its parts agree.
    pub fn applies_exif_orientation(&self) -> bool {
        let recorded = self.ingest.first().and_then(|part| part.options.get(EXIF_ORIENTATION));
        recorded.and_then(serde_json::Value::as_str) == Some("apply")
    }
}

/// The contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's version.
    pub format_version: u32,
    /// The digest of the content of all splits: the identity of the dataset, the same wherever, whenever
    /// and by however many threads it was made.
    pub dataset_digest: Digest,
    /// The names of the classes; a label is an index into them. Sorted by their bytes, unless the source
    /// gives them an order.
    pub classes: Vec<String>,
    /// The splits by name.
    pub splits: BTreeMap<String, Split>,
    /// Images that occur more than once; `duplicates.parquet` names them.
    #[serde(default)]
    pub duplicates: DuplicateCounts,
}

impl Manifest {
    /// A manifest of these classes and splits.
    pub fn new(classes: Vec<String>, splits: BTreeMap<String, Split>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"instdisc dataset 1\n");
        absorb(&mut hasher, classes.len() as u64, classes.iter().map(String::as_bytes));
        for (name, split) in &splits {
            absorb(&mut hasher, split.instances, [name.as_bytes(), split.digest.0.as_slice()]);
        }
        let dataset_digest = hasher.finalize().into();
        let duplicates = DuplicateCounts::default();
        Self { format_version: FORMAT_VERSION, dataset_digest, classes, splits, duplicates }
    }

    /// Reads the manifest of a dataset.
    ///
    /// # Errors
    /// If there is none, or it is not understood.
    pub fn read(dataset: &Location) -> Result<Self, DatasetError> {
        let file = dataset.join(FILE);
        let text = match file.read() {
            Err(error) if error.is_not_found() => {
                return Err(DatasetError::NotThere { dataset: dataset.to_string() });
            }
            other => other?,
        };
        Self::parse(&text).map_err(|reason| DatasetError::Manifest { file: file.to_string(), reason })
    }

    /// Reads the text of a manifest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(format!("format version {} is not known to this program", manifest.format_version));
        }
        let expected = Self::new(manifest.classes.clone(), manifest.splits.clone()).dataset_digest;
        if expected != manifest.dataset_digest {
            return Err("its digest is not that of its splits".into());
        }
        manifest.check_counts()?;
        Ok(manifest)
    }

    /// Checks that the counts of each split agree with one another; the files they count are checked when
    /// they are read.
    fn check_counts(&self) -> Result<(), String> {
        let most_classes = usize::from(u16::MAX) + 1;
        if self.classes.len() > most_classes {
            return Err(format!("{} classes, expected at most {most_classes}", self.classes.len()));
        }
        for (name, split) in &self.splits {
            let Split { instances, labelled, .. } = *split;
            let rows = split.shards.iter().map(|shard| shard.rows).fold(0, u64::saturating_add);
            let parts = split.ingest.iter().map(|part| part.instances).fold(0, u64::saturating_add);
            let counts = [("its shards have", rows), ("its parts have", parts)];
            if let Some((what, count)) = counts.iter().find(|(_, count)| *count != instances) {
                return Err(format!("split `{name}` has {instances} instances, but {what} {count}"));
            }
            let misplaced =
                |shard: &&ShardEntry| shard.footer.is_some_and(|footer| footer.bytes > shard.bytes);
            if let Some(shard) = split.shards.iter().find(misplaced) {
                return Err(format!("shard `{}` has a footer that is larger than the shard", shard.path));
            }
            if instances > MOST_INSTANCES || labelled > instances {
                return Err(format!(
                    "split `{name}` has {instances} instances and {labelled} labels, expected at most \
                     {MOST_INSTANCES} instances and as many labels"
                ));
            }
        }
        Ok(())
    }

    /// Publishes the manifest, and with it the dataset.
    ///
    /// # Errors
    /// If the store fails, or on [`PublishMode::Create`] where a manifest exists.
    pub fn publish(&self, dataset: &Location, mode: PublishMode) -> Result<(), DatasetError> {
        let text = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        dataset.join(FILE).publish(text + "\n", mode)?;
        Ok(())
    }

    /// The split of this name.
    ///
    /// # Errors
    /// [`DatasetError::NoSplit`] with the names that there are.
    pub fn split(&self, dataset: &Location, name: &str) -> Result<&Split, DatasetError> {
        self.splits.get(name).ok_or_else(|| DatasetError::NoSplit {
            dataset: dataset.to_string(),
            split: name.into(),
            known: self.splits.keys().cloned().collect(),
        })
    }

    /// The split on which features are evaluated: the one asked for, or the first of [`EVALUATION_SPLITS`], in any
    /// case, that is not the one that is trained on (empty for none); which it is, is said.
    ///
    /// # Errors
    /// [`DatasetError::NoSplit`] or [`DatasetError::NoEvaluationSplit`] with the names that there are.
    pub fn evaluation_split(
        &self,
        dataset: &Location,
        trained_on: &str,
        asked: Option<&str>,
    ) -> Result<String, DatasetError> {
        if let Some(asked) = asked {
            return self.split(dataset, asked).map(|_| asked.to_owned());
        }
        match self.first_evaluation_split(trained_on) {
            Some(name) => {
                tracing::info!("split `{name}`, the first of {} that there is", EVALUATION_SPLITS.join(", "));
                Ok(name.to_owned())
            }
            None => Err(DatasetError::NoEvaluationSplit {
                dataset: dataset.to_string(),
                known: self.splits.keys().cloned().collect(),
            }),
        }
    }

    /// The first of [`EVALUATION_SPLITS`] that there is, in any case, and is not the one that is trained on.
    pub fn first_evaluation_split(&self, trained_on: &str) -> Option<&str> {
        let names = || self.splits.keys().map(String::as_str).filter(|name| *name != trained_on);
        let is = |wanted: &str| names().find(|name| name.eq_ignore_ascii_case(wanted));
        EVALUATION_SPLITS.into_iter().find_map(is)
    }
}

/// Adds parts with their lengths, so that no two lists of parts look alike.
fn absorb<'a>(hasher: &mut blake3::Hasher, count: u64, parts: impl IntoIterator<Item = &'a [u8]>) {
    hasher.update(&count.to_le_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}

/// The digest of a split's content: the labels and images in the order of the ids, and nothing else.
#[derive(Debug, Default)]
pub struct ContentDigest {
    hasher: blake3::Hasher,
    next: u32,
}

impl ContentDigest {
    /// Of a split; whether its images are seen as EXIF says is a part of its content.
    pub fn new(applies_exif_orientation: bool) -> Self {
        let mut digest = Self::default();
        if applies_exif_orientation {
            digest.hasher.update(b"EXIF orientation applied\n");
        }
        digest
    }

    /// Adds the next instance.
    ///
    /// # Panics
    /// If `id` is not the one after the last.
    pub fn add(&mut self, id: InstanceId, label: Option<ClassId>, image: Digest) {
        assert_eq!(id.0, self.next, "instances are added in the order of their ids");
        self.next += 1;
        self.hasher.update(&ClassId::to_stored(label).to_le_bytes());
        self.hasher.update(&image.0);
    }

    /// The digest.
    pub fn finish(&self) -> Digest {
        self.hasher.finalize().into()
    }
}
