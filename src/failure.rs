//! The kind of an error's failure, and the exit code by which a scheduler decides about a retry.
//!
//! The errors of jobs and formats have a method `failure`; the shell turns it into the exit code. 69 and 75
//! are worth a retry at once, 74 once its cause is removed, 2, 65 and 78 never.

/// An error and its causes on one line; a cause that the text before it repeats is left out.
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

/// The kinds of failure that a job tells apart, each with an exit code (from sysexits where one fits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Failure {
    /// The command line or an argument makes no sense.
    Usage,
    /// The data are wrong: a corrupt shard, another dataset's digest.
    Data,
    /// A store or a peer cannot be reached.
    Unavailable,
    /// Reading or writing failed: a full disk, a read-only destination.
    Io,
    /// Stopped by a signal, with everything saved that there was to save.
    Stopped,
    /// The configuration is wrong: an unknown key, a value out of range.
    Config,
    /// Anything else.
    Other,
}

impl Failure {
    /// The process's exit code.
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
