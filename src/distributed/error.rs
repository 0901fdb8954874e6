//! What goes wrong between ranks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    /// Some rank did not come in time, or rank 0 could not be reached.
    #[error("{reason}")]
    Rendezvous {
        /// Who came and who did not.
        reason: String,
    },
    /// A signal asked to stop before all ranks had come.
    #[error("stopped before all ranks had come")]
    Stopped,
    /// Rank 0 cannot listen where the others look for it.
    #[error(
        "rank 0 cannot listen at {address}: the port is in use; choose another (MASTER_PORT or --master)"
    )]
    PortInUse {
        /// Host and port.
        address: String,
    },
    /// A variable or flag is missing beside others that are there.
    #[error("{name} is not set, though {beside} is")]
    MissingVariable {
        /// The variable or flag.
        name: &'static str,
        /// What asks for it.
        beside: &'static str,
    },
    /// Variables or flags contradict each other or make no sense.
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
            Self::PortInUse { .. } => Failure::Unavailable,
            Self::Stopped => Failure::Stopped,
            Self::MissingVariable { .. } | Self::Contradiction { .. } | Self::Disagreement { .. } => {
                Failure::Config
            }
            Self::NoNccl { .. } => Failure::Config,
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
pub(super) enum Cause {
    /// A wait was given up.
    Timeout,
    /// A connection broke, or the other side is gone.
    Connection,
    /// Anything else.
    Other,
}

/// Classifies a message by the words that c10d, gloo and NCCL use.
pub(super) fn cause(message: &str) -> Cause {
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
pub(super) fn first_line(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    message.split(". This may indicate").next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_ranks_are_named_with_their_reason() {
        let reasons = [
            (LossReason::Ended, "rank 2 was lost: its connection ended"),
            (LossReason::Silent { seconds: 12 }, "rank 2 did not answer for 12 s"),
            (
                LossReason::Late { collective: 341, at: 339, seconds: 600 },
                "rank 2 did not come to collective 341 within 600 s (it is at 339)",
            ),
        ];
        for (reason, text) in reasons {
            let error = DistributedError::PeerLost { lost: vec![LostRank { rank: 2, reason }] };
            assert_eq!(error.to_string(), text);
            assert_eq!(error.failure().exit_code(), 69);
        }
        let many = (0..64).map(|rank| LostRank { rank, reason: LossReason::Ended }).collect();
        let text = DistributedError::PeerLost { lost: many }.to_string();
        assert!(text.ends_with("; and 56 more ranks"), "{text}");
    }

    #[test]
    fn messages_of_libtorch_are_told_apart() {
        let cases = [
            ("Timed out waiting 3000ms for recv operation to complete", Cause::Timeout),
            ("wait timeout after 5000ms, keys: /pg0/gloo/0/1", Cause::Timeout),
            ("Read error [127.0.0.1]:4: Connection reset by peer", Cause::Connection),
            ("Failed to recv, got 0 bytes. Connection was likely closed.", Cause::Connection),
            ("Application timeout caused pair closure", Cause::Connection),
            ("Invalid scalar type", Cause::Other),
        ];
        for (message, expected) in cases {
            assert_eq!(cause(message), expected, "{message}");
        }
        assert_eq!(first_line("reset by peer. This may indicate that\nat frame 3"), "reset by peer");
    }

    #[test]
    fn what_the_user_must_mend_is_not_retried() {
        let missing = DistributedError::MissingVariable { name: "WORLD_SIZE", beside: "RANK" };
        assert_eq!(missing.to_string(), "WORLD_SIZE is not set, though RANK is");
        assert_eq!(missing.failure().exit_code(), 78);
        let lost = DistributedError::Rendezvous { reason: "rank 3 did not come".into() };
        assert_eq!(lost.failure().exit_code(), 69);
    }
}
