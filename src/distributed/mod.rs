//! Several processes that train as one: libtorch's c10d behind safe Rust.
//!
//! A [`Rendezvous`] has this process's rank, [`ProcessGroup::join`] brings all together, collectives and the
//! [`GradientReducer`] do the work, the [`Store`] keeps small values, and a watcher names the ranks that are lost.
//! One process is a group too: it needs neither store nor port. An error here is final: a broken group is not
//! repaired, the process ends and is started again.

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

/// What became of a rank that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LossReason {
    /// Its process ended without a goodbye.
    Ended,
    /// Its process said goodbye while the others went on.
    Left,
    /// It failed with an error.
    Failed {
        /// Of what kind.
        failure: Failure,
    },
    /// It gave no sign of life: it, its machine or its network is stopped.
    Silent {
        /// Seconds since its last sign.
        seconds: u64,
    },
    /// It lives but did not begin a collective that others waited in.
    Late {
        /// The collective, counted from 1.
        collective: u64,
        /// The last one that it has begun.
        at: u64,
        /// The seconds that others waited.
        seconds: u64,
    },
}

/// A rank that was lost, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRank {
    /// The rank.
    pub rank: usize,
    /// What became of it.
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

/// An error of the ranks' rendezvous or of their work together.
#[derive(Debug, thiserror::Error)]
pub enum DistributedError {
    /// Ranks were lost.
    #[error("{}", listed(.lost))]
    PeerLost {
        /// Who, and how.
        lost: Vec<LostRank>,
    },
    /// A collective or a wait took too long, though no rank is known to be lost.
    #[error("{what} was not done within {} s, though every rank answers: {message}", .after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// The timeout.
        after: Duration,
        /// libtorch's own words.
        message: String,
    },
    /// Some rank did not come in time, rank 0 could not be reached or cannot listen.
    #[error("{reason}")]
    Rendezvous {
        /// Who came and who did not, or why.
        reason: String,
    },
    /// A signal asked to stop before all ranks had come.
    #[error("stopped before all ranks had come")]
    Stopped,
    /// Variables or flags are missing beside others, contradict each other or make no sense.
    #[error("{what}")]
    Contradiction {
        /// Which, and their values.
        what: String,
    },
    /// Ranks have different values of what must be the same.
    #[error("{what} differs: rank {rank} has {theirs}, rank 0 has {first}")]
    Disagreement {
        /// Of what.
        what: String,
        /// The first rank that differs.
        rank: usize,
        /// Its value.
        theirs: String,
        /// The value of rank 0.
        first: String,
    },
    /// A CUDA device cannot be used by several ranks here.
    #[error("ranks on GPUs need NCCL, which cannot be used: {reason}")]
    NoNccl {
        /// Why.
        reason: String,
    },
    /// libtorch refused something.
    #[error("{what}: {message}")]
    Backend {
        /// What was asked.
        what: String,
        /// libtorch's own words.
        message: String,
    },
}

impl DistributedError {
    /// What kind of failure it is; one that a new start may mend is worth a retry.
    pub fn failure(&self) -> Failure {
        match self {
            // What failed one rank would fail it again, or not, whatever became of the others.
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

/// The lost ranks, at most eight by name.
fn listed(lost: &[LostRank]) -> String {
    const NAMED: usize = 8;
    let mut text = lost.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if lost.len() > NAMED {
        text += &format!("; and {} more ranks", lost.len() - NAMED);
    }
    text
}

/// What a message of libtorch's tells of its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A wait was given up.
    Timeout,
    /// A connection broke, or the other side is gone.
    Connection,
    /// Anything else.
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

/// The first line of a message: what follows in C++ is where it was thrown.
fn first_line(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    message.split(". This may indicate").next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
