//! Publishing: what is written appears whole or not at all, and is durable.

pub(super) mod create;
pub(super) mod upload;
