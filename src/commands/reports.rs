//! Reports as files, and those that a run's folder keeps.

use super::CommandError;
use crate::checkpoint::TrainedOn;
use crate::storage::{Location, PublishMode};
use serde::Serialize;
#[cfg(feature = "torch")]
use {crate::storage::StorageError, serde_json::Value};

/// The folder of a run's reports.
pub(super) const REPORTS: &str = "eval";

/// The report of a run's checkpoint.
#[cfg(feature = "torch")]
#[derive(Clone, Debug)]
pub enum Report<T> {
    /// Made by this call.
    New(T),
    /// Made by an earlier call, of the same weights and dataset.
    Kept {
        /// Its file.
        location: Location,
        /// Its content.
        report: Value,
    },
}

/// What a report says of the run that was evaluated, beside its scores; nothing for tables.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct OfRun {
    /// The digest of the evaluated weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<String>,
    /// What the weights were trained on, where the report is of another dataset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trained_on: Option<TrainedOn>,
    /// The name of the dataset's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dataset: Option<String>,
}

/// A report as it is published.
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

/// Whether a file is there and has contents: what is empty was cut.
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

/// The report at a location, if there is one of these weights and this dataset.
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
