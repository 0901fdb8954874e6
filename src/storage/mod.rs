//! Files and folders on this machine or in an object store, behind one blocking interface.
//!
//! A [`Location`] names a file or a folder; reading, listing and publishing are its methods. A published file appears
//! whole or not at all, and is durable when the call returns. Retries, and concurrent writers of one location, are
//! settled here once. This layer knows no file format and none of the jobs.
//!
//! Invariant: a location prints as the user wrote it, without credentials, and no error text holds any.

mod address;
mod blob_cache;
mod error;
mod location;
mod lock;
mod read;
mod store;
mod upload;

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Handle, Runtime};

pub use blob_cache::{BlobCache, Kept};
pub use error::StorageError;
pub use location::{Entry, Location, PublishMode, Stamp};
pub use lock::Lock;
pub use read::{Cancel, LocalFile, PendingRead, read_concurrently};
pub use store::{RetryLimits, StorageOptions, Traffic};
pub use upload::{Published, Upload};

/// Threads that drive sockets and blocking file calls; the futures themselves wait, they do not compute.
const IO_THREADS: usize = 4;

/// The one tokio runtime, for I/O only: CPU work belongs on rayon or on other threads.
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

/// A handle for I/O in the background.
pub fn handle() -> &'static Handle {
    runtime().handle()
}

/// A blake3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of some bytes.
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
