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
mod error;
mod location;
mod lock;
mod pending;
mod publish;
mod ranged;
mod runtime;
mod store;
mod unlinked;

pub use access::{Entry, PublishMode, Stamp, read_concurrently};
pub use blob_cache::{BlobCache, Kept};
pub use cancel::Cancel;
pub use error::StorageError;
pub use location::Location;
pub use lock::Lock;
pub use pending::PendingRead;
pub use publish::upload::{Digest, Published, Upload};
pub use ranged::LocalFile;
pub use runtime::{block_on, handle};
pub use store::counted::Traffic;
pub use store::{RetryLimits, StorageOptions};
