//! Evaluation of features.
//!
//! The k-nearest-neighbour vote is a pure function of two feature tables and needs no tensors; `embed` writes
//! such a table from a checkpoint. Results do not depend on threads, tiles or the order of the bank's rows:
//! similarities are summed in one fixed order, and every tie has a rule.

mod bank;
#[cfg(feature = "torch")]
mod distributed;
mod duplicates;
#[cfg(feature = "torch")]
mod embed;
mod knn;
#[cfg(feature = "torch")]
mod linear;
mod report;
mod retrieval;
mod thumbnails;
mod vote;

pub use bank::{check_whole, checkpoint_bank, checkpoint_of_bank, open_bank};
#[cfg(feature = "torch")]
pub use distributed::{evaluate_over, gather_table, share};
pub use duplicates::Duplicates;
#[cfg(feature = "torch")]
pub use embed::{EmbedError, EmbedJob, Existing, RowChoice, embed, encode, load_encoder, run_tables};
pub use knn::{
    KnnOptions, MOST_BY_DEFAULT, collapsed_rows, default_k, evaluate, evaluate_with_neighbours, is_remark,
};
#[cfg(feature = "torch")]
pub use linear::{
    ClassifierReport, LinearOptions, LinearReport, ProbeReport, ProbeTables, Score, Solver, SweepCell,
    classify, probe, probe_augmented,
};
pub use report::{ClassScore, Confusion, GridCell, KnnReport, KnnReports, Reports, Timing, write_neighbours};
pub use retrieval::{LabelSets, RecallAt, Retrieval};
pub use thumbnails::{SPRITE_COLUMNS, SPRITE_SIDE, Thumbnails, sprite};
pub use vote::{vote, vote_weight};

use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::failure::Failure;
use crate::feature_table::TableError;
use crate::loader::LoaderError;
use crate::storage::StorageError;

/// Error of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// An option is invalid for these tables.
    #[error("{reason}")]
    Options {
        /// Description of the problem.
        reason: String,
    },
    /// More neighbours were requested than exist.
    #[error("k = {k} is larger than the bank, which has {rows} rows to vote; give --k {rows} or less")]
    KTooLarge {
        /// Requested neighbours.
        k: usize,
        /// Rows that can be neighbours.
        rows: usize,
    },
    /// The tables do not belong together.
    #[error("{tables} do not fit each other: {reason}")]
    Mismatch {
        /// Names of the tables.
        tables: String,
        /// Description of the difference.
        reason: String,
    },
    /// A table for training or scoring has no labels.
    #[error("{table}: no row has a label, and linear needs some; ingest the split with its classes")]
    NoLabels {
        /// Name of the table.
        table: String,
    },
    /// A table could not be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The dataset could not be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The page's images could not be loaded.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Images cannot be embedded.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// Another process failed.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Distributed(#[from] crate::distributed::DistributedError),
}

impl EvalError {
    /// Returns the kind of failure, which selects the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Options { .. } | Self::KTooLarge { .. } => Failure::Usage,
            Self::Mismatch { .. } | Self::NoLabels { .. } => Failure::Data,
            Self::Table(error) => error.failure(),
            Self::Checkpoint(error) => error.failure(),
            Self::Dataset(error) => error.failure(),
            Self::Loader(error) => error.failure(),
            Self::Storage(error) => error.failure(),
            #[cfg(feature = "torch")]
            Self::Embed(error) => error.failure(),
            #[cfg(feature = "torch")]
            Self::Distributed(error) => error.failure(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
