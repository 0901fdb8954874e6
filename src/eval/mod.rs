//! Evaluation: how good a space of features is.
//!
//! The k-nearest-neighbour vote is a pure function of two feature tables and needs no tensors; `embed`
//! makes such a table from a checkpoint. Results do not depend on threads, tiles or the order of the bank's
//! rows: similarities are summed in one fixed order, and every tie has a rule.

mod drawn;
#[cfg(feature = "torch")]
mod embed;
mod error;
mod interval;
mod knn;
mod neighbours;
mod page;
mod report;
mod search;
mod thumbnails;
mod vote;
mod watch;

pub use drawn::{Shape, draw_tables};
#[cfg(feature = "torch")]
pub use embed::{EmbedError, EmbedJob, embed, encode, load_encoder};
pub use error::EvalError;
pub use knn::{KnnOptions, evaluate, evaluate_with_neighbours};
pub use neighbours::write_neighbours;
pub use page::{PageInput, page};
pub use report::{ClassScore, Confusion, GridCell, KnnReport, Timing};
pub use search::{Neighbours, search};
pub use thumbnails::Thumbnails;
pub use vote::vote;
pub use watch::{Claim, WatchEnd, WatchOptions, WatchSummary, report_location, watch};

#[cfg(test)]
mod tests;
