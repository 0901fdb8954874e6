//! Where files lie: a local folder or an object store, behind one blocking interface.
//!
//! A [`Location`] names a file or a folder; reading, listing and publishing are its methods. What is
//! published appears whole or not at all, and is durable when the call returns. Retries and back-off, and
//! what several writers at one place may do, are settled here once. What this layer does not know: any file
//! format, and any of the jobs.
//!
//! Invariant: a location prints as the user wrote it, without credentials, and no error text holds any.

mod access;
mod address;
mod blob_cache;
mod cancel;
mod create;
mod error;
mod lease;
mod location;
mod lock;
mod pending;
mod ranged;
mod remote;
mod retry;
mod runtime;
mod secrets;
mod traffic;
mod unlinked;
mod upload;

pub use access::{Entry, PublishMode, Stamp, read_concurrently};
pub use blob_cache::{BlobCache, Kept};
pub use cancel::Cancel;
pub use error::StorageError;
pub use location::Location;
pub use lock::Lock;
pub use pending::PendingRead;
pub use ranged::LocalFile;
pub use remote::{RetryLimits, StorageOptions};
pub use runtime::{block_on, handle};
pub use traffic::Traffic;
pub use upload::{Digest, Published, Upload};
