//! Groups of processes that train as one, over libtorch's c10d.
//!
//! A [`Rendezvous`] gives this process's rank and the meeting point. [`ProcessGroup::join`] connects all
//! ranks, collectives and the [`GradientReducer`] exchange tensors, the [`Store`] keeps small values, and a
//! watcher names lost ranks. A single process is a group too, without store or port. Errors are final: a
//! broken group is not repaired, the process ends and is started again.

mod ffi;
mod group;
mod join;
mod rendezvous;
mod watch;

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(crate) use ffi::emulate_kernels;
pub use ffi::{CudaGraph, GraphRecorder, end_process};
pub use group::{GradientReducer, ProcessGroup, Reduce, Store};
pub use rendezvous::{Rendezvous, RendezvousFlags};

use crate::failure::Failure;

/// Reason why a rank counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LossReason {
    /// Its process ended without a goodbye.
    Ended,
    /// Its process said goodbye while the others continued.
    Left,
    /// It failed with an error.
    Failed {
        /// Kind of the failure.
        failure: Failure,
    },
    /// It sent no sign of life: process, machine or network has stopped.
    Silent {
        /// Seconds since the last sign.
        seconds: u64,
    },
    /// It is alive but did not begin a collective that others waited in.
    Late {
        /// Number of the collective, from 1.
        collective: u64,
        /// Number of the last collective that the rank has begun.
        at: u64,
        /// Seconds that others waited.
        seconds: u64,
    },
}

/// Lost rank, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRank {
    /// Number of the rank.
    pub rank: usize,
    /// Reason for the loss.
    pub reason: LossReason,
}

impl std::fmt::Display for LostRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rank = self.rank;
        match self.reason {
            LossReason::Ended => write!(f, "rank {rank} was lost: its connection ended"),
            LossReason::Left => write!(f, "rank {rank} was lost: it ended before the others"),
            LossReason::Failed { failure } => {
                write!(f, "rank {rank} failed with exit code {}; its own log says why", failure.exit_code())
            }
            LossReason::Silent { seconds } => write!(f, "rank {rank} did not answer for {seconds} s"),
            LossReason::Late { collective, at, seconds } => write!(
                f,
                "rank {rank} did not come to collective {collective} within {seconds} s (it is at {at})"
            ),
        }
    }
}

/// Error of the rendezvous or of the group.
#[derive(Debug, thiserror::Error)]
pub enum DistributedError {
    /// Ranks were lost.
    #[error("{}", listed(.lost))]
    PeerLost {
        /// Lost ranks, with reasons.
        lost: Vec<LostRank>,
    },
    /// A collective or a wait took too long, without a lost rank.
    #[error("{what} was not done within {} s, though every rank answers: {message}", .after.as_secs())]
    Timeout {
        /// Operation that timed out.
        what: String,
        /// Duration of the timeout.
        after: Duration,
        /// Message of libtorch.
        message: String,
    },
    /// A rank did not arrive in time, or rank 0 could not be reached or cannot listen.
    #[error("{reason}")]
    Rendezvous {
        /// Arrived and missing ranks, or the cause.
        reason: String,
    },
    /// A signal asked to stop before all ranks had joined.
    #[error("stopped before all ranks had come")]
    Stopped,
    /// Variables or flags are missing beside others, contradict each other or have invalid values.
    #[error("{what}")]
    Contradiction {
        /// The variables or flags, with their values.
        what: String,
    },
    /// Ranks have different values where equal ones are required.
    #[error("{what} differs: rank {rank} has {theirs}, rank 0 has {first}")]
    Disagreement {
        /// Name of the value.
        what: String,
        /// First rank that differs.
        rank: usize,
        /// Value of that rank.
        theirs: String,
        /// Value of rank 0.
        first: String,
    },
    /// Several ranks cannot use CUDA devices here.
    #[error("ranks on GPUs need NCCL, which cannot be used: {reason}")]
    NoNccl {
        /// Reason why NCCL cannot be used.
        reason: String,
    },
    /// libtorch failed.
    #[error("{what}: {message}")]
    Backend {
        /// Operation that failed.
        what: String,
        /// Message of libtorch.
        message: String,
    },
}

impl DistributedError {
    /// Returns the kind of failure; one that a restart may fix is worth a retry.
    pub fn failure(&self) -> Failure {
        match self {
            // A rank's own failure decides whether a restart helps, not the loss of the others.
            Self::PeerLost { lost } => {
                let own = |lost: &LostRank| match lost.reason {
                    LossReason::Failed { failure } => Some(failure),
                    _ => None,
                };
                lost.iter().find_map(own).unwrap_or(Failure::Unavailable)
            }
            Self::Timeout { .. } | Self::Rendezvous { .. } => Failure::Unavailable,
            Self::Stopped => Failure::Stopped,
            Self::Contradiction { .. } | Self::Disagreement { .. } | Self::NoNccl { .. } => Failure::Config,
            Self::Backend { message, .. } if cause(message) == Cause::Connection => Failure::Unavailable,
            Self::Backend { .. } => Failure::Other,
        }
    }
}

/// Lists the lost ranks, at most eight by name.
fn listed(lost: &[LostRank]) -> String {
    const NAMED: usize = 8;
    let mut text = lost.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if lost.len() > NAMED {
        text += &format!("; and {} more ranks", lost.len() - NAMED);
    }
    text
}

/// Cause that a message of libtorch indicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A wait timed out.
    Timeout,
    /// A connection broke, or the peer is gone.
    Connection,
    /// Any other cause.
    Other,
}

/// Classifies a message by the words that c10d, gloo and NCCL use.
fn cause(message: &str) -> Cause {
    let lower = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let connection = [
        "connection reset",
        "connection closed",
        "connection was",
        "connection refused",
        "broken pipe",
        "pair closure",
        "closed by peer",
        "failed to recv",
        "failed to send",
        "remote server shutdown",
        "socket",
        "remote process",
        "ncclremoteerror",
        "network",
    ];
    if has(&["timed out", "timeout after", "wait timeout", "timeouterror"]) {
        Cause::Timeout
    } else if has(&connection) {
        Cause::Connection
    } else {
        Cause::Other
    }
}

/// Returns the first line of a message; in C++ the location of the throw follows.
fn first_line(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    message.split(". This may indicate").next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
