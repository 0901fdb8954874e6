//! Which rows of a split: all, a sample, or few labels.

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::dataset::Manifest;
use crate::loader::{LoaderError, Source, Subset, open_split};
use crate::storage::Location;
use crate::units::Fraction;

/// Rows of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RowChoice {
    /// All.
    #[default]
    All,
    /// The uniform sample of this many rows that training's `limit` takes.
    Sample(usize),
    /// A share of the labels, the same number for each class.
    Labels {
        /// The share.
        fraction: Fraction,
        /// The seed by which the rows are chosen.
        seed: u64,
    },
}

impl RowChoice {
    /// The sample of this many rows that training's `limit` takes; 0 for all.
    pub fn limited(limit: u64) -> Self {
        if limit == 0 { Self::All } else { Self::Sample(limit as usize) }
    }

    /// The rows of its split that a checkpoint's run was trained on.
    ///
    /// # Errors
    /// If the checkpoint's state cannot be read.
    pub fn trained(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        Ok(Self::limited(checkpoint.run_config()?.limit))
    }

    /// These rows of a split.
    ///
    /// # Errors
    /// If the split cannot be read.
    pub fn open(
        self,
        dataset: &Location,
        manifest: &Manifest,
        split: &str,
    ) -> Result<Arc<dyn Source>, LoaderError> {
        let limit = if let Self::Sample(rows) = self { Some(rows) } else { None };
        let source = open_split(dataset, manifest, split, limit)?;
        Ok(match self {
            Self::Labels { fraction, seed } => Arc::new(Subset::of_labels(source, fraction, seed)),
            Self::All | Self::Sample(_) => source,
        })
    }

    #[cfg(feature = "torch")]
    /// The part of a file's name that distinguishes this choice; empty for all rows.
    pub(super) fn name(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Sample(rows) => format!("-sample{rows}"),
            Self::Labels { fraction, seed } => format!("-labels{fraction}-seed{seed}"),
        }
    }
}
