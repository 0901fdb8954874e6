//! Several processes that train as one: libtorch's c10d behind safe Rust.
//!
//! A [`Rendezvous`] says who this process is, [`ProcessGroup::join`] brings all together, collectives and the
//! [`GradientReducer`] do the work, the [`Store`] keeps small values, and a watcher names the ranks that are lost.
//! One process is a group too: it needs neither store nor port. Whatever fails here is final: there is no going
//! on with a broken group, the process ends and is started again.

mod address;
mod arrival;
mod error;
mod ffi;
mod group;
mod join;
mod nodelist;
mod reducer;
mod rendezvous;
mod store;
mod watch;

#[cfg(test)]
mod tests;

/// Ends the process at once, without the exit handlers of libraries: for one that is blocked in a device's queue behind
/// a rank that is lost, where those would wait for ever.
pub fn end_process(code: u8) -> ! {
    ffi::end_process(code)
}

pub use error::{DistributedError, LossReason, LostRank};
pub use group::{ProcessGroup, Reduce};
pub use reducer::GradientReducer;
pub use rendezvous::{Rendezvous, RendezvousFlags};
pub use store::Store;
