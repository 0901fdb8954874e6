//! What can go wrong at a location.

use crate::failure::Failure;

/// An operation at a location failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The text names no location.
    #[error("invalid location `{text}`: {reason}")]
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
    /// The settings of the store are wrong or incomplete.
    #[error("{location}: {reason}")]
    Settings {
        /// The file or folder.
        location: String,
        /// What is wrong, and what to set.
        reason: String,
    },
    /// No credentials were found.
    #[error(
        "{location}: {operation} failed, no credentials were found: set {}: {reason}",
        credentials(location)
    )]
    NoCredentials {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        location: String,
        /// Whether the store has answered this process before.
        worked: bool,
        /// What was asked for credentials, and its answer.
        reason: String,
    },
    /// The store refuses the credentials, or they do not suffice.
    #[error("{location}: {operation} is not allowed: {reason}")]
    Denied {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        location: String,
        /// Whether it was allowed to this process before.
        worked: bool,
        /// What the store says.
        reason: String,
    },
    /// A store holds a key that has no name here.
    #[error("{location}: list failed: {reason}; rename or remove it, or name a folder without it")]
    BadKey {
        /// The folder that was listed.
        location: String,
        /// The key, and what is wrong with it.
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
            Self::NotFound { .. } | Self::BadKey { .. } => Failure::Data,
            Self::AlreadyExists { .. } => Failure::Io,
            Self::Denied { worked: true, .. } | Self::NoCredentials { worked: true, .. } => {
                Failure::Unavailable
            }
            Self::NoCreate { .. }
            | Self::Settings { .. }
            | Self::NoCredentials { .. }
            | Self::Denied { .. }
            | Self::NoBucket { .. } => Failure::Config,
            Self::Locked { .. } => Failure::Unavailable,
            Self::Failed { local: true, .. } => Failure::Io,
            Self::Failed { local: false, .. } => Failure::Unavailable,
        }
    }

    /// Whether the error says that nothing lies at the location.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// The settings that give credentials to the store of a location.
fn credentials(location: &str) -> String {
    match location.split("://").next() {
        Some("gs") => "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account".into(),
        Some("az" | "abfs" | "abfss") => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY".into(),
        _ => {
            let keys =
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket";
            let profile = match std::env::var_os("AWS_PROFILE") {
                Some(_) => " (AWS_PROFILE is set, but profiles of ~/.aws are not read)",
                None => "",
            };
            format!("{keys}{profile}")
        }
    }
}
