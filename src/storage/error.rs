//! What can go wrong at a location.

use crate::failure::Failure;

/// An operation at a location failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The text names no location.
    #[error("{text:?} is no location: {reason}")]
    BadLocation {
        /// What the user wrote, without credentials.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing lies there.
    #[error("{location}: nothing is there")]
    NotFound {
        /// The file or folder.
        location: String,
        /// Whether it is a path of this machine.
        local: bool,
    },
    /// Something lies there already, and it was to be created.
    #[error("{location}: exists already")]
    AlreadyExists {
        /// The file.
        location: String,
    },
    /// Another process works there.
    #[error("{location}: another process works here ({holder}); wait for it, or name another place")]
    Locked {
        /// The lock's file.
        location: String,
        /// What the holder wrote of itself.
        holder: String,
    },
    /// The store cannot be shared by several writers.
    #[error(
        "{location}: the store overwrites a file that is to be created, so of several writers one would lose \
         its work; use another store, or --single-writer if no other process writes here"
    )]
    NoCreate {
        /// What was to be created.
        location: String,
    },
    /// The store refuses the credentials, or they do not suffice.
    #[error("{location}: {operation} is not allowed: {reason}")]
    Denied {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        location: String,
        /// What the store says.
        reason: String,
    },
    /// The store has no such bucket, or has it in another region.
    #[error("{location}: {operation} failed, there is no such bucket here: {reason}")]
    NoBucket {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        location: String,
        /// What the store says.
        reason: String,
    },
    /// The operation failed for any other reason.
    #[error("{location}: {operation} failed")]
    Failed {
        /// What was tried: `read`, `write`, `list`, …
        operation: &'static str,
        /// The file or folder.
        location: String,
        /// Whether it is a path of this machine.
        local: bool,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StorageError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::BadLocation { .. } => Failure::Usage,
            Self::AlreadyExists { .. } => Failure::Io,
            Self::NoCreate { .. } | Self::Denied { .. } | Self::NoBucket { .. } => Failure::Config,
            Self::Locked { .. } => Failure::Unavailable,
            Self::NotFound { local, .. } | Self::Failed { local, .. } => {
                if *local {
                    Failure::Io
                } else {
                    Failure::Unavailable
                }
            }
        }
    }

    /// Whether the error says that nothing lies at the location.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
