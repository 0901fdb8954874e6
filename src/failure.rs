//! Kinds of failure, and the exit codes by which a scheduler decides on a retry.
//!
//! Errors of jobs and formats have a method `failure`; the shell turns its result into the exit code. 69 and
//! 75 are worth an immediate retry, 74 once its cause is removed, 2, 65 and 78 none.

/// Formats an error and its causes on one line, without causes that earlier text repeats.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = String::new();
    for cause in std::iter::successors(Some(error), |error| error.source()) {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line += ": ";
        }
        line += &text;
    }
    line
}

/// Kind of a job's failure, each with an exit code (from sysexits where one fits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Failure {
    /// The command line or an argument is invalid.
    Usage,
    /// The data are invalid: a corrupt shard, another dataset's digest.
    Data,
    /// A store or a peer is unreachable.
    Unavailable,
    /// Reading or writing failed: a full disk, a read-only destination.
    Io,
    /// A signal stopped the job; everything that can be saved is saved.
    Stopped,
    /// The configuration is invalid: an unknown key, a value out of range.
    Config,
    /// Any other failure.
    Other,
}

impl Failure {
    /// Returns the exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Data => 65,
            Self::Unavailable => 69,
            Self::Io => 74,
            Self::Stopped => 75,
            Self::Config => 78,
            Self::Other => 1,
        }
    }
}
