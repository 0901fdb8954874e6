//! Reports that a run's folder keeps under names of their own.

use serde::Serialize;
#[cfg(feature = "torch")]
use serde_json::Value;

#[cfg(feature = "torch")]
use super::{GlobalArgs, progress::say};
#[cfg(feature = "torch")]
use crate::storage::Location;

/// A report as it is published.
#[derive(Serialize)]
pub(super) struct Published<'a, T> {
    /// The report.
    #[serde(flatten)]
    pub(super) report: &'a T,
    /// The digest of the evaluated weights, where they are a run's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<&'a str>,
}

/// The report at a place, if one is there and is of these weights and this dataset.
///
/// # Errors
/// If the store fails.
#[cfg(feature = "torch")]
pub(super) fn made_before(
    place: &Location,
    weights: &str,
    dataset_digest: &str,
) -> anyhow::Result<Option<Value>> {
    let report = match place.read() {
        Ok(text) => serde_json::from_slice::<Value>(&text).ok(),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(report.filter(|report| report["weights"] == weights && report["dataset_digest"] == dataset_digest))
}

/// Prints a report that was made before, and says so.
#[cfg(feature = "torch")]
pub(super) fn show_again(global: &GlobalArgs, place: &Location, report: &Value) -> anyhow::Result<()> {
    say(&format!("{place}: made before; remove it to make it again, or give --output"));
    let top1 = report["top1"]
        .as_f64()
        .map_or_else(|| "no score".to_owned(), |top1| format!("top-1 {:.2} %", 100.0 * top1));
    let line =
        format!("step {}: {top1} ({})", report["step"], report["feature"].as_str().unwrap_or_default());
    global.write_result(&[line], report)
}
