//! Evaluation: how good a space of features is.
//!
//! The k-nearest-neighbour vote is a pure function of two feature tables and needs no tensors; `embed`
//! makes such a table from a checkpoint. Results do not depend on threads, tiles or the order of the bank's
//! rows: similarities are summed in one fixed order, and every tie has a rule.

mod bank;
#[cfg(feature = "torch")]
mod distributed;
mod duplicates;
#[cfg(feature = "torch")]
mod embed;
mod error;
mod knn;
#[cfg(feature = "torch")]
mod linear;
mod report;
mod retrieval;
mod thumbnails;
mod vote;

pub use bank::{checkpoint_bank, checkpoint_of_bank, open_bank};
#[cfg(feature = "torch")]
pub use distributed::{evaluate_over, gather_table, share};
pub use duplicates::Duplicates;
#[cfg(feature = "torch")]
pub use embed::{EmbedError, EmbedJob, Existing, RowChoice, embed, encode, load_encoder, run_tables};
pub use error::EvalError;
pub use knn::{KnnOptions, MOST_BY_DEFAULT, default_k, evaluate, evaluate_with_neighbours};
#[cfg(feature = "torch")]
pub use linear::{
    ClassifierReport, LinearError, LinearOptions, LinearReport, ProbeReport, ProbeTables, Score, Solver,
    SweepCell, classify, probe, probe_augmented,
};
pub use report::{ClassScore, Confusion, GridCell, KnnReport, KnnReports, Timing, write_neighbours};
pub use retrieval::{LabelSets, RecallAt, Retrieval};
pub use thumbnails::{SPRITE_COLUMNS, SPRITE_SIDE, Thumbnails, sprite};
pub use vote::{vote, vote_weight};

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
use tests::duplicate as duplicate_row;
