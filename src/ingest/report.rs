//! What an ingest did.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::storage::Digest;

/// What an ingest did, as the command prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IngestReport {
    /// The destination.
    pub dest: String,
    /// Whether the dataset was there before; then nothing was written.
    pub already_done: bool,
    /// The dataset's identity.
    pub dataset_digest: Digest,
    /// The number of classes.
    pub classes: usize,
    /// The splits that this call wrote.
    pub splits: BTreeMap<String, SplitReport>,
    /// Entries of the source that are no pictures: other files, links, devices.
    pub ignored_entries: usize,
    /// How long it took.
    pub seconds: f64,
}

/// What was done with a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitReport {
    /// Pictures that are in the dataset.
    pub instances: u64,
    /// Pictures that were refused.
    pub rejected: u64,
    /// The first reasons.
    pub first_rejects: Vec<String>,
    /// The encoded pictures' sizes together, in bytes.
    pub image_bytes: u64,
    /// Shards written.
    pub shards: usize,
    /// How many pictures have which format and colour space.
    pub kinds: BTreeMap<String, u64>,
}
