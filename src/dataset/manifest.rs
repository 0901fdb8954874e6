//! The manifest, which lists the contents of a dataset.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::DatasetError;
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location, PublishMode};

/// Version that this code writes and reads.
const FORMAT_VERSION: u32 = 1;
/// Maximum number of instances of a split: an id has 32 bits.
const MOST_INSTANCES: u64 = 1 << 32;
/// Name of the manifest within the dataset's folder.
const FILE: &str = "manifest.json";

/// Splits on which features are evaluated by default; the first one that a dataset has counts.
pub const EVALUATION_SPLITS: [&str; 6] = ["val", "valid", "validation", "dev", "test", "testing"];
/// Option of [`IngestRecord`] that records whether EXIF orientation is applied to the images.
pub const EXIF_ORIENTATION: &str = "exif_orientation";

/// A shard of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Path within the dataset's folder.
    pub path: String,
    /// Number of rows.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Blake3 digest of the contents.
    pub digest: Digest,
    /// Blake3 digest of each row group's bytes, to check ranged reads.
    pub row_groups: Vec<Digest>,
    /// Bytes after the last row group; `None` in manifests of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footer: Option<FooterEntry>,
}

/// The bytes after the last row group of a shard: Parquet's page index and footer, up to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FooterEntry {
    /// Size in bytes.
    pub bytes: u64,
    /// Blake3 digest of these bytes.
    pub digest: Digest,
}

/// A file of the dataset beside the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path within the dataset's folder.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Blake3 digest of the contents.
    pub digest: Digest,
}

/// Record of the ingest of one part of a split: enough to recognise a repetition of the command, and a report.
///
/// A split has one part, and another for each time that images were appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestRecord {
    /// Name and version of the program.
    pub program: String,
    /// Format of the source.
    pub format: String,
    /// Fingerprint of the source's names, classes and sizes.
    pub source_fingerprint: Digest,
    /// Options that decide the contents of the shards.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Number of instances in the part; their ids follow those of earlier parts.
    pub instances: u64,
    /// Index of the part; see [`super::IndexRow`].
    pub index: FileEntry,
    /// Statistics of the source's images.
    pub report: PartReport,
}

/// Statistics of the images in the source of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// Number of validated images.
    pub looked_at: u64,
    /// Number of rejected images, by kind of reason.
    pub refused: BTreeMap<String, u64>,
    /// Number of images left out because another split has a near-duplicate (`--drop-leaks`).
    pub dropped_leaks: u64,
    /// Number of entries of the whole source that are hidden, ignored, or not images by their names.
    pub passed_over: u64,
    /// Number of images, by format and colour space.
    pub kinds: BTreeMap<String, u64>,
    /// Sizes of the encoded images in bytes: smallest, mean, largest.
    #[serde(rename = "picture_bytes")]
    pub encoded_bytes: [u64; 3],
    /// Shorter side in pixels: smallest, mean, largest.
    pub short_side: [u64; 3],
    /// Longer side in pixels: smallest, mean, largest.
    pub long_side: [u64; 3],
    /// Number of images made smaller (`--max-side`, `--short-side`) or baseline (`--baseline`).
    pub re_encoded: u64,
    /// Digest of the modification times or ETags of the whole source's files, if all have one. No other digest covers
    /// it. `None` in manifests of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_stamp: Option<Digest>,
    /// Plan of the whole source, as ingest prints it; `None` in manifests of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<serde_json::Value>,
}

/// Counts of duplicate images, over all splits together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateCounts {
    /// Number of groups whose images are equal byte for byte.
    pub identical_groups: u64,
    /// Number of groups whose images look the same.
    pub visual_groups: u64,
    /// Number of images in groups.
    #[serde(rename = "pictures")]
    pub images: u64,
    /// Number of training images that have a near-duplicate in another split.
    pub leaks: u64,
}

/// A split of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Number of images; their ids are `0..instances`.
    pub instances: u64,
    /// Number of images that have a label.
    pub labelled: u64,
    /// Sum of the encoded images' sizes, in bytes.
    pub image_bytes: u64,
    /// Number of images rejected at ingest; `rejects/<split>.jsonl` lists them.
    pub rejected: u64,
    /// Digest of the content; see [`ContentDigest`].
    pub digest: Digest,
    /// Shards, in the order of [`super::Place::shard`].
    pub shards: Vec<ShardEntry>,
    /// Records of the parts: the first one, then those that were appended.
    pub ingest: Vec<IngestRecord>,
}

impl Split {
    /// Returns whether EXIF orientation is applied to the images; all parts agree.
    pub fn applies_exif_orientation(&self) -> bool {
        let recorded = self.ingest.first().and_then(|part| part.options.get(EXIF_ORIENTATION));
        recorded.and_then(serde_json::Value::as_str) == Some("apply")
    }
}

/// The contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format_version: u32,
    /// Digest of the content of all splits, the identity of the dataset: it does not depend on location, time or number
    /// of threads.
    pub dataset_digest: Digest,
    /// Names of the classes; a label is an index into them. Sorted by their bytes, unless the source gives them an
    /// order.
    pub classes: Vec<String>,
    /// Splits by name.
    pub splits: BTreeMap<String, Split>,
    /// Counts of duplicate images; `duplicates.parquet` lists them.
    #[serde(default)]
    pub duplicates: DuplicateCounts,
}

impl Manifest {
    /// Makes a manifest of these classes and splits.
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
    /// If there is no manifest, or it is invalid.
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

    /// Parses the text of a manifest.
    ///
    /// # Errors
    /// The reason why the text is invalid.
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

    /// Checks that the counts of each split agree with one another. The files that they count are checked when they are
    /// read.
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
    /// If the store fails, or on [`PublishMode::Create`] if a manifest exists.
    pub fn publish(&self, dataset: &Location, mode: PublishMode) -> Result<(), DatasetError> {
        let text = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        dataset.join(FILE).publish(text + "\n", mode)?;
        Ok(())
    }

    /// Returns the split of this name.
    ///
    /// # Errors
    /// [`DatasetError::NoSplit`], which lists the existing splits.
    pub fn split(&self, dataset: &Location, name: &str) -> Result<&Split, DatasetError> {
        self.splits.get(name).ok_or_else(|| DatasetError::NoSplit {
            dataset: dataset.to_string(),
            split: name.into(),
            known: self.splits.keys().cloned().collect(),
        })
    }

    /// Returns the split on which features are evaluated, and logs a default. Without `asked` this is the first of
    /// [`EVALUATION_SPLITS`], in any case, other than `trained_on` (empty if no split was trained on).
    ///
    /// # Errors
    /// [`DatasetError::NoSplit`] or [`DatasetError::NoEvaluationSplit`], which list the existing splits.
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

    /// Returns the first of [`EVALUATION_SPLITS`] that exists, in any case, other than `trained_on`.
    pub fn first_evaluation_split(&self, trained_on: &str) -> Option<&str> {
        let names = || self.splits.keys().map(String::as_str).filter(|name| *name != trained_on);
        let is = |wanted: &str| names().find(|name| name.eq_ignore_ascii_case(wanted));
        EVALUATION_SPLITS.into_iter().find_map(is)
    }
}

/// Hashes parts with their lengths, so that different lists of parts never give the same bytes.
fn absorb<'a>(hasher: &mut blake3::Hasher, count: u64, parts: impl IntoIterator<Item = &'a [u8]>) {
    hasher.update(&count.to_le_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}

/// Digest of a split's content: the labels and images in the order of the ids, and nothing else.
#[derive(Debug, Default)]
pub struct ContentDigest {
    hasher: blake3::Hasher,
    next: u32,
}

impl ContentDigest {
    /// Starts the digest of a split; whether EXIF orientation is applied is part of its content.
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

    /// Returns the digest of the instances added so far.
    pub fn finish(&self) -> Digest {
        self.hasher.finalize().into()
    }
}
