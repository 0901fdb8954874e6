//! Ingestion: from the pictures that people hold to a dataset.
//!
//! [`ingest`] lists the source, decodes every picture once as a check, gives the accepted ones their ids,
//! writes shards and last the manifest. The result depends on the source and the options alone, not on
//! threads, time or place. [`synth()`] draws a picture set for trying things out.
//!
//! Invariant: until the manifest is published there is no dataset, and nothing that a published manifest
//! names is ever overwritten.

mod error;
mod job;
mod layout;
mod report;
mod screen;
mod source;
mod synth;
mod tar_index;
mod write;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use error::IngestError;
pub use job::ingest;
pub use report::{IngestReport, SplitReport};
pub use synth::{SynthError, SynthOptions, SynthReport, synth};

use crate::storage::Location;
use crate::units::Fraction;

/// The forms of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SourceFormat {
    /// What the source's content says it is.
    #[default]
    Auto,
    /// A folder: `<class>/<file>`, or `<split>/<class>/<file>`.
    Imagefolder,
    /// A tar that holds such a folder.
    Tar,
}

/// What to ingest, and how.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// The pictures.
    pub source: Location,
    /// The dataset's folder.
    pub dest: Location,
    /// What the source is.
    pub format: SourceFormat,
    /// The split's name; of a source with several splits, the one to take.
    pub split: Option<String>,
    /// The share of refused pictures above which the job fails.
    pub max_reject_fraction: Fraction,
    /// The size at which a shard is full, in bytes of encoded pictures.
    pub shard_bytes: u64,
    /// Rows of a row group.
    pub row_group: usize,
    /// The seed of the rows' order over the shards.
    pub shuffle_seed: u64,
    /// A picture with more pixels is refused.
    pub max_pixels: u64,
    /// Threads that check pictures; 0 for one on each core.
    pub threads: usize,
}

impl IngestOptions {
    /// The default options for this source and destination.
    pub fn new(source: Location, dest: Location) -> Self {
        Self {
            source,
            dest,
            format: SourceFormat::Auto,
            split: None,
            max_reject_fraction: Fraction::new(0.01).expect("in range"),
            shard_bytes: 128 << 20,
            row_group: 256,
            shuffle_seed: 0,
            max_pixels: 100_000_000,
            threads: 0,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make foreign files by hand")]
mod tests;
