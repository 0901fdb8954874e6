//! What tch does not expose of libtorch: operators over lists, copies beside the compute, counts of operators.

mod ffi;
pub mod lists;
pub mod operators;
mod transfer;

pub(super) use transfer::upload_pixels;
pub use transfer::{PendingRead, upload_indices};
