//! What the process itself needs: signals, threads of OpenMP, and the program beside it that is linked to libtorch.

pub(super) mod beside;
#[cfg(feature = "torch")]
pub(super) mod learning;
#[cfg(feature = "torch")]
pub(super) mod openmp;
pub(super) mod signals;
