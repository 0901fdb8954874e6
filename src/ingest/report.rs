//! What an ingest did.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{SourceFormat, SourcePlan};
use crate::dataset::{DuplicateCounts, PartReport};
use crate::storage::Digest;

/// What an ingest did, as the command prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IngestReport {
    /// The destination.
    pub dest: String,
    /// Whether the dataset was there before; then nothing was written.
    pub already_done: bool,
    /// The evidence for that; none where something was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// What the source is.
    pub format: SourceFormat,
    /// The dataset's identity.
    pub dataset_digest: Digest,
    /// The number of classes.
    pub classes: usize,
    /// The splits that this call wrote, or appended to.
    pub splits: BTreeMap<String, SplitReport>,
    /// Images that occur more than once, in all splits together.
    pub duplicates: DuplicateCounts,
    /// How the source was understood.
    pub plan: SourcePlan,
    /// What `--verify-source` has read; none where the option or the images were not there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_source: Option<VerifiedSource>,
    /// How long it took.
    pub seconds: f64,
}

/// The evidence that a dataset holds a source already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// Every image was read and compared.
    Contents,
    /// Names, classes and sizes of the images; times or ETags of the source's files are those of the ingest.
    Times,
    /// The same, but times or ETags are others.
    OtherTimes,
    /// Names, classes and sizes alone: times or ETags are not known.
    NamesAndSizes,
}

impl HeldBy {
    /// The sentence's end, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Contents => "by the contents of its images",
            Self::Times => {
                "by the names, classes and sizes of its images, and the modification times or ETags of the source; \
                 --verify-source reads and compares each"
            }
            Self::OtherTimes => {
                "by the names, classes and sizes of its images, but modification times or ETags of the source are not those \
                 of the ingest; --verify-source reads and compares each"
            }
            Self::NamesAndSizes => {
                "by the names, classes and sizes of its images alone; --verify-source reads and compares each"
            }
        }
    }
}

/// Appended images that the split holds already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlreadyThere {
    /// How many.
    pub images: u64,
    /// The first of them, and which one it is.
    pub example: String,
}

/// What was read of a source that the dataset holds already (`--verify-source`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifiedSource {
    /// Images that were read and compared with the dataset's.
    pub images: u64,
    /// Those of which the dataset holds other bytes, which were made again and compared.
    pub rewritten: u64,
    /// Those that were rejected then and now.
    pub rejected: u64,
}

/// What was done with a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitReport {
    /// Images that this call put into the dataset.
    pub instances: u64,
    /// Images that were rejected.
    pub rejected: u64,
    /// The first reasons.
    pub first_rejects: Vec<String>,
    /// How ids relate to the order of the source.
    pub ids: String,
    /// The encoded images' sizes together, in bytes.
    pub image_bytes: u64,
    /// Shards written.
    pub shards: usize,
    /// Appended images that are byte for byte in the split already; each got a new id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already_there: Option<AlreadyThere>,
    /// What was found in the source.
    #[serde(flatten)]
    pub found: PartReport,
}

impl IngestReport {
    /// The report as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, split) in &self.splits {
            let found = &split.found;
            let megabytes = split.image_bytes as f64 / 1e6;
            let mut line = |label: &str, text: String| lines.push(format!("{name:>8}  {label:<16} {text}"));
            let shards =
                if split.shards == 1 { "1 shard".to_owned() } else { format!("{} shards", split.shards) };
            line("images", format!("{} in {shards}, {megabytes:.1} MB", split.instances));
            line("ids", split.ids.clone());
            line("kinds", counts(&found.kinds));
            let range = |[least, mean, most]: [u64; 3]| format!("{least} to {most}, mean {mean}");
            line("bytes", range(found.encoded_bytes));
            line("shorter side", range(found.short_side));
            line("longer side", range(found.long_side));
            if found.re_encoded > 0 {
                line("re-encoded", found.re_encoded.to_string());
            }
            if let Some(AlreadyThere { images, example }) = &split.already_there {
                line("already there", format!("{images} of the appended images, byte for byte; {example}"));
            }
            if split.rejected > 0 {
                let (rejected, all) = (split.rejected, found.looked_at);
                line("rejected", format!("{rejected} of {all} images: {}", counts(&found.refused)));
            }
            for reject in &split.first_rejects {
                line("", reject.clone());
            }
        }
        let DuplicateCounts { identical_groups, visual_groups, images, leaks } = self.duplicates;
        if images > 0 {
            lines.push(format!(
                "near-duplicates: {images} images in {identical_groups} identical and {visual_groups} similar groups (duplicates.parquet)"
            ));
        }
        if leaks > 0 {
            lines.push(format!(
                "leaks: {leaks} training images have a near-duplicate in another split, which raises a kNN score (--drop-leaks leaves them out)"
            ));
        }
        if let Some(VerifiedSource { images, rewritten, rejected }) = self.verified_source {
            lines.push(format!(
                "verified: {images} images of the source are those of the dataset ({rewritten} rewritten, {rejected} rejected again)"
            ));
        }
        lines
    }
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    of.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}
