//! Files and folders on this machine or in an object store, behind one blocking interface.
//!
//! A [`Location`] names a file or a folder; reading, listing and publishing are its methods. A published file appears
//! whole or not at all, and is durable when the call returns. Retries, and concurrent writers of one location, are
//! settled here once. This layer knows no file format and none of the jobs.
//!
//! Invariant: a location prints as the user wrote it, without credentials, and no error text holds any.

mod address;
mod blob_cache;
mod location;
mod lock;
mod read;
mod store;

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Handle, Runtime};

pub use blob_cache::BlobCache;
pub use location::{Entry, Location, PublishMode, Published, Stamp, Upload};
pub use lock::Lock;
pub use read::{Cancel, LocalFile, PendingRead, read_concurrently};
pub use store::{RetryLimits, StorageOptions, Traffic};

use crate::failure::Failure;
use store::{CONDITIONAL_CREATE, Fault, Store, is_below_a_file};

/// Threads that drive sockets and blocking file calls; the futures wait but do not compute.
const IO_THREADS: usize = 4;

/// Returns the one tokio runtime, for I/O only: CPU work belongs on rayon or on other threads.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("instdisc-io")
            .enable_all()
            .build()
            .expect("the operating system gives a process its first threads")
    })
}

/// Runs an I/O future to its end on the calling thread.
///
/// # Panics
/// If called from inside another future.
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// Returns a handle that spawns I/O in the background.
pub fn handle() -> &'static Handle {
    runtime().handle()
}

/// A blake3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Returns the digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = blake3::HexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        blake3::Hash::from_hex(text).map(Self::from)
    }
}

/// Error from an operation at a location.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The text names no location.
    #[error("invalid location `{text}`: {reason}")]
    BadLocation {
        /// Text that the user wrote, without credentials.
        text: String,
        /// Reason why the text is invalid.
        reason: String,
    },
    /// No file or folder has this name.
    #[error("{location}: not found")]
    NotFound {
        /// The file or folder.
        location: String,
        /// Whether the location is a path of this machine.
        local: bool,
    },
    /// A file that was to be created exists.
    #[error("{location}: already exists")]
    AlreadyExists {
        /// The file.
        location: String,
    },
    /// Another process holds the lock.
    #[error("{location}: another process works here ({holder}); wait for it or choose another location")]
    Locked {
        /// The lock's file.
        location: String,
        /// Name that the holder wrote: process and host.
        holder: String,
    },
    /// The store cannot be used with these settings, credentials or keys.
    #[error("{location}: {reason}")]
    Refused {
        /// The file or folder.
        location: String,
        /// Reason, with the action to take.
        reason: String,
        /// The kind of failure.
        failure: Failure,
    },
    /// The operation failed for any other reason.
    #[error("{location}: {operation} failed")]
    Failed {
        /// The operation: `read`, `write`, `list`, …
        operation: &'static str,
        /// The file or folder.
        location: String,
        /// Whether the location is a path of this machine.
        local: bool,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StorageError {
    /// Returns the kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::BadLocation { .. } => Failure::Usage,
            Self::NotFound { .. } => Failure::Data,
            Self::AlreadyExists { .. } => Failure::Io,
            Self::Locked { .. } => Failure::Unavailable,
            Self::Refused { failure, .. } => *failure,
            Self::Failed { local: true, .. } => Failure::Io,
            Self::Failed { local: false, .. } => Failure::Unavailable,
        }
    }

    /// Returns whether no file or folder has the location's name.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Converts an error of an object store.
    fn of_store(
        operation: &'static str,
        location: String,
        store: &Store,
        error: object_store::Error,
    ) -> Self {
        let (answer, health) = (store.describe(&error), &store.health);
        // An operation that was allowed before may be allowed again.
        let denied = |worked| if worked { Failure::Unavailable } else { Failure::Config };
        let (failure, reason) = match (Fault::of(&error), error) {
            (Some(Fault::Setting(advice)), _) => {
                (Failure::Config, format!("{advice} ({operation} failed: {answer})"))
            }
            (Some(Fault::NoBucket), _) => {
                let what = "no such bucket in this account or region";
                (Failure::Config, format!("{operation} failed: {what}: {answer}"))
            }
            (Some(Fault::NoCredentials), _) => {
                let advice = format!("no credentials found; set {}", credentials(&location));
                (denied(health.has_worked(None)), format!("{operation} failed: {advice}: {answer}"))
            }
            (Some(Fault::Denied), _) => {
                (denied(health.has_worked(Some(operation))), format!("{operation} denied: {answer}"))
            }
            (Some(Fault::Expired), _) => {
                (denied(health.has_worked(None)), format!("{operation} denied: {answer}"))
            }
            (Some(Fault::Key(key)), _) => {
                let advice = "rename or remove it, or choose a folder without it";
                (Failure::Data, format!("list failed: {key}; {advice}"))
            }
            (None, object_store::Error::NotFound { .. }) => return Self::NotFound { location, local: false },
            (None, object_store::Error::AlreadyExists { .. }) => return Self::AlreadyExists { location },
            (None, object_store::Error::NotImplemented { operation, .. })
                if operation == CONDITIONAL_CREATE =>
            {
                let reason = "the store has no conditional create, so concurrent writers could overwrite each \
                              other; use another store, or --single-writer if no other process writes here";
                (Failure::Config, reason.to_owned())
            }
            (None, _) => return Self::Failed { operation, location, local: false, source: answer.into() },
        };
        Self::Refused { location, reason, failure }
    }

    /// Converts an error of object_store's local file system.
    fn of_local_store(operation: &'static str, location: String, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound { location, local: true },
            // Nothing can exist below a file.
            ref error
                if ["read", "look up", "delete", "list"].contains(&operation) && is_below_a_file(error) =>
            {
                Self::NotFound { location, local: true }
            }
            object_store::Error::AlreadyExists { .. } => Self::AlreadyExists { location },
            source => Self::Failed { operation, location, local: true, source: Box::new(source) },
        }
    }
}

/// Names the settings that give credentials to the store of a location.
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
