//! What a run measures, and where the numbers go.

pub(super) mod bank_health;
pub(super) mod exporter;
pub(super) mod log;
pub(super) mod meter;
pub(super) mod tensorboard;
