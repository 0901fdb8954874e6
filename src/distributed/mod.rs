//! Several processes that train as one: libtorch's c10d behind safe Rust.
//!
//! A [`Rendezvous`] has this process's rank, [`ProcessGroup::join`] brings all together, collectives and the
//! [`GradientReducer`] do the work, the [`Store`] keeps small values, and a watcher names the ranks that are lost.
//! One process is a group too: it needs neither store nor port. An error here is final: a broken group is not
//! repaired, the process ends and is started again.

mod error;
mod ffi;
mod group;
mod join;
mod rendezvous;
mod store;
mod watch;

#[cfg(test)]
mod tests;

/// Ends the process at once, without the exit handlers of libraries: for one that is blocked in a device's queue behind
/// a lost rank, where they would never return.
pub fn end_process(code: u8) -> ! {
    ffi::end_process(code)
}

#[cfg(test)]
pub(crate) use ffi::emulate_kernels;

pub use error::{DistributedError, LossReason, LostRank};
pub use group::{GradientReducer, ProcessGroup, Reduce};
pub use rendezvous::{Rendezvous, RendezvousFlags};
pub use store::Store;
