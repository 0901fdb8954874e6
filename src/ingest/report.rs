//! What an ingest did.

use std::collections::BTreeMap;

use serde::Serialize;

use super::SourceFormat;
use crate::dataset::{DuplicateCounts, PartReport};
use crate::storage::Digest;

/// What an ingest did, as the command prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IngestReport {
    /// The destination.
    pub dest: String,
    /// Whether the dataset was there before; then nothing was written.
    pub already_done: bool,
    /// What the source is.
    pub format: SourceFormat,
    /// The dataset's identity.
    pub dataset_digest: Digest,
    /// The number of classes.
    pub classes: usize,
    /// The splits that this call wrote, or appended to.
    pub splits: BTreeMap<String, SplitReport>,
    /// Pictures that occur more than once, in all splits together.
    pub duplicates: DuplicateCounts,
    /// Entries of the source that are not taken: files without a picture's name or outside the class folders
    /// (`passed_over` of the splits), and links, devices and names that lead outside (`refused`).
    pub ignored_entries: u64,
    /// What `--verify-source` has read; none where the option or the images were not there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_source: Option<VerifiedSource>,
    /// How long it took.
    pub seconds: f64,
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
    /// Those of which the dataset holds other bytes, which were made anew and compared.
    pub rewritten: u64,
    /// Those that were rejected then and now.
    pub rejected: u64,
}

/// What was done with a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitReport {
    /// Pictures that this call put into the dataset.
    pub instances: u64,
    /// Pictures that were refused.
    pub rejected: u64,
    /// The first reasons.
    pub first_rejects: Vec<String>,
    /// How ids and the places in the sorted ImageFolder hang together.
    pub ids: String,
    /// The encoded pictures' sizes together, in bytes.
    pub image_bytes: u64,
    /// Shards written.
    pub shards: usize,
    /// Appended images that are byte for byte in the split already; they got ids of their own.
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
            line("pictures", format!("{} in {} shards, {megabytes:.1} MB", split.instances, split.shards));
            line("ids", split.ids.clone());
            line("kinds", counts(&found.kinds));
            let range = |[least, mean, most]: [u64; 3]| format!("{least} to {most}, mean {mean}");
            line("bytes", range(found.picture_bytes));
            line("shorter side", range(found.short_side));
            line("longer side", range(found.long_side));
            if found.re_encoded > 0 {
                line("re-encoded", found.re_encoded.to_string());
            }
            if found.tiled > 0 {
                line("with tiles", found.tiled.to_string());
            }
            if let Some(AlreadyThere { images, example }) = &split.already_there {
                line("already there", format!("{images} of the appended images, byte for byte; {example}"));
            }
            if split.rejected > 0 {
                line("refused", counts(&found.refused));
            }
            for reject in &split.first_rejects {
                line("", reject.clone());
            }
        }
        let DuplicateCounts { identical_groups, visual_groups, pictures, leaks } = self.duplicates;
        if pictures > 0 {
            lines.push(format!(
                "duplicates: {pictures} pictures in {identical_groups} identical and {visual_groups} look-alike groups (duplicates.parquet)"
            ));
        }
        if leaks > 0 {
            lines.push(format!(
                "leaks: {leaks} training pictures have a twin in another split; a kNN score counts them (--drop-leaks)"
            ));
        }
        if let Some(VerifiedSource { images, rewritten, rejected }) = self.verified_source {
            lines.push(format!(
                "verified: {images} images of the source are those of the dataset ({rewritten} made anew, {rejected} rejected again)"
            ));
        }
        if self.ignored_entries > 0 {
            lines.push(format!(
                "passed over: {} (files without a picture's name or outside the class folders, links, devices)",
                self.ignored_entries
            ));
        }
        lines
    }
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    of.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}
