//! Report files, and the reports kept in a run's folder.

use super::CommandError;
use crate::checkpoint::TrainedOn;
use crate::storage::{Location, PublishMode};
use serde::Serialize;
#[cfg(feature = "torch")]
use {crate::storage::StorageError, serde_json::Value};

/// Folder of a run's reports.
pub(super) const REPORTS: &str = "eval";

/// Report of a run's checkpoint.
#[cfg(feature = "torch")]
#[derive(Clone, Debug)]
pub enum Report<T> {
    /// Result of this call.
    New(T),
    /// Result of an earlier call for the same weights and dataset.
    Kept {
        /// File of the report.
        location: Location,
        /// Content of the report.
        report: Value,
    },
}

/// Report fields about the evaluated run, besides the scores; empty for tables.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct OfRun {
    /// Digest of the evaluated weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<String>,
    /// Training data of the weights, if the report is on another dataset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trained_on: Option<TrainedOn>,
    /// Name of the dataset's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dataset: Option<String>,
}

/// Report as published.
#[derive(Serialize)]
struct Published<'a, T> {
    #[serde(flatten)]
    report: &'a T,
    #[serde(flatten)]
    of: &'a OfRun,
}

/// Publishes a report.
///
/// # Errors
/// If the store fails, or a report exists and `mode` does not replace it.
pub(super) fn publish<T: Serialize>(
    location: &Location,
    report: &T,
    of: &OfRun,
    mode: PublishMode,
) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(&Published { report, of })? + "\n";
    location.publish(text, mode)?;
    Ok(())
}

/// Returns whether a file exists with contents; an interrupted write leaves an empty file.
///
/// # Errors
/// If the store fails.
#[cfg(feature = "torch")]
pub(super) fn is_made(file: &Location) -> Result<bool, StorageError> {
    match file.size() {
        Err(error) if error.is_not_found() => Ok(false),
        size => Ok(size? > 0),
    }
}

/// Returns the report at a location, if it is of these weights and this dataset.
///
/// # Errors
/// If the store fails.
#[cfg(feature = "torch")]
pub(super) fn find(
    location: &Location,
    weights: &str,
    dataset_digest: &str,
) -> Result<Option<Value>, StorageError> {
    let report = match location.read() {
        Ok(text) => serde_json::from_slice::<Value>(&text).ok(),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    Ok(report.filter(|report| report["weights"] == weights && report["dataset_digest"] == dataset_digest))
}
