//! A run's checkpoints: how its state becomes one, and comes back from one.

pub(super) mod restore;
pub(super) mod resume;
pub(super) mod retention;
pub(super) mod sharded;
pub(super) mod snapshot;
pub(super) mod writer;
