//! What can be wrong with a checkpoint.

use crate::failure::Failure;
use crate::storage::StorageError;

/// A checkpoint cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder holds no published checkpoint, and no run that has one.
    #[error("{folder}: no checkpoint is there, nor a run that has one; instdisc train makes one")]
    NotThere {
        /// The folder.
        folder: String,
    },
    /// A checkpoint is not below a run's folder, where results go.
    #[error(
        "{folder}: a checkpoint outside a run, into whose folder results would be written; `instdisc embed` it and give its bank and the table to `knn --bank --queries`"
    )]
    OutsideRun {
        /// The folder.
        folder: String,
    },
    /// A JSON file does not say what it should.
    #[error("{file}: its contents are not understood")]
    Malformed {
        /// The file.
        file: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A file is missing, cut or changed.
    #[error("{file}: damaged: it is not the file that was published")]
    Damaged {
        /// The file.
        file: String,
    },
    /// A number that is not finite: what was trained diverged.
    #[error("{checkpoint}: {name} is not finite")]
    NotFinite {
        /// The checkpoint.
        checkpoint: String,
        /// The weight, buffer or feature.
        name: String,
    },
    /// Another version of the format.
    #[error("{file}: format version {version} is not known to this program")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl CheckpointError {
    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Storage(error) => error.failure(),
            Self::OutsideRun { .. } => Failure::Config,
            _ => Failure::Data,
        }
    }
}
