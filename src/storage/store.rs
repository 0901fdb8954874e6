//! Object stores, as a chain of decorators.

mod counted;
mod fault;
mod local;
mod options;
mod provider;
mod redacted;
mod retried;
mod secrets;
mod settled;

use std::sync::{Arc, OnceLock};

use object_store::ObjectStore;

pub use self::counted::Traffic;
pub(super) use self::fault::{Fault, Health, is_below_a_file};
use self::local::Local;
pub use self::options::{RetryLimits, StorageOptions};
pub(super) use self::provider::OpenError;
use self::provider::Provider;
use self::redacted::Redacted;
use self::retried::Retried;
pub(super) use self::secrets::one_line;
use self::settled::Settled;
pub(super) use self::settled::{CONDITIONAL_CREATE, writer_id};

/// The file system of this machine, which needs no retries and has no secrets.
pub(super) fn local() -> Arc<dyn ObjectStore> {
    static LOCAL: OnceLock<Arc<Local>> = OnceLock::new();
    Arc::clone(LOCAL.get_or_init(|| Arc::new(Local::new()))) as Arc<dyn ObjectStore>
}

/// What all locations of one bucket share.
#[derive(Debug)]
pub(super) struct Store {
    chain: Arc<dyn ObjectStore>,
    health: Arc<Health>,
    single_writer: bool,
}

impl Store {
    /// Opens the store of a bucket; nothing is contacted yet.
    ///
    /// # Errors
    /// If an option or a setting is wrong.
    pub(super) fn open(scheme: &str, bucket: &str, options: &StorageOptions) -> Result<Self, OpenError> {
        Ok(Self::over(Provider::open(scheme, bucket, options)?, options))
    }

    /// The decorators, from the provider's client to the caller.
    fn over(provider: Provider, options: &StorageOptions) -> Self {
        let StorageOptions { retry, single_writer, .. } = *options;
        let (provider, health) = (Arc::new(provider), Arc::new(Health::default()));
        // Below all, `counted` counts the provider's HTTP requests: each attempt of object_store, too.
        let retried = Retried::new(Arc::clone(&provider), Arc::clone(&health), retry);
        let settled = Settled::new(Arc::new(retried), Arc::clone(&health), retry, single_writer);
        let chain = Arc::new(Redacted::new(settled, provider));
        Self { chain, health, single_writer }
    }

    /// The chain over a store of a test.
    #[cfg(test)]
    pub(super) fn of_test(store: Arc<dyn ObjectStore>, options: &StorageOptions) -> Self {
        Self::over(Provider::of_store(store), options)
    }

    /// The whole chain.
    pub(super) fn chain(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.chain)
    }

    /// What the store has done so far.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether the user asserts that no other process writes.
    pub(super) fn single_writer(&self) -> bool {
        self.single_writer
    }
}
