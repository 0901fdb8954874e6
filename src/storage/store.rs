//! Object stores, as a chain of decorators.

mod counted;
mod fault;
mod local;
mod provider;
mod redacted;
mod retried;
mod settled;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::{BackoffConfig, ObjectStore, RetryConfig};

pub use self::counted::Traffic;
pub(super) use self::fault::{Fault, Health, is_below_a_file};
use self::local::Local;
pub(super) use self::provider::OpenError;
use self::provider::Provider;
pub(super) use self::redacted::one_line;
use self::redacted::{Redacted, is_secret};
use self::retried::Retried;
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

/// A signed request is repeated as it is; stores refuse a signature older than some minutes.
const SIGNATURE_LIFE: Duration = Duration::from_secs(240);

/// When to give up retrying a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryLimits {
    /// No attempt begins later than this after the first.
    pub time: Duration,
    /// The most attempts after the first.
    pub tries: usize,
}

impl Default for RetryLimits {
    /// Outlives an outage of a minute: the defaults of object_store give up after two seconds of 503.
    fn default() -> Self {
        Self { time: Duration::from_secs(180), tries: 100 }
    }
}

impl RetryLimits {
    /// Retries within object_store: short pauses for single faults, then long ones for outages.
    fn config(self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(10),
                base: 3.0,
            },
            max_retries: self.tries,
            retry_timeout: self.time.min(SIGNATURE_LIFE),
        }
    }
}

/// Settings of object stores, as `key=value` pairs in the names of the object_store crate.
#[derive(Clone, Default)]
pub struct StorageOptions {
    pairs: Vec<(String, String)>,
    /// When to give up retrying a request.
    pub retry: RetryLimits,
    /// Asserts that no other process writes, so that a store need not create conditionally.
    pub single_writer: bool,
}

impl StorageOptions {
    /// Options from `key=value` pairs, which win over the environment.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs, ..Self::default() }
    }

    /// Whether a value comes from a file.
    fn names_files(&self) -> bool {
        self.pairs.iter().any(|(_, value)| value.starts_with('@'))
    }

    /// The pairs, each `@FILE` replaced by what the file holds now.
    ///
    /// # Errors
    /// If a file cannot be read, or a secret is on the command line.
    fn resolve(&self) -> Result<Vec<(String, String)>, String> {
        self.pairs.iter().map(|(key, value)| Ok((key.clone(), resolve(key, value)?))).collect()
    }
}

impl fmt::Debug for StorageOptions {
    /// Shows the keys alone: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pairs.iter().map(|(key, _)| key)).finish()
    }
}

fn resolve(key: &str, value: &str) -> Result<String, String> {
    match value.strip_prefix('@') {
        Some(file) => match std::fs::read_to_string(file) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(format!("cannot read the file of `{key}`: {error}")),
        },
        None if is_secret(key) => Err(format!(
            "`{key}` would be visible in the process list; set it in the environment, or pass {key}=@FILE"
        )),
        None => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_taken_from_a_file_and_not_from_the_command_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key");
        #[expect(clippy::disallowed_methods, reason = "a secret as an orchestrator mounts it")]
        std::fs::write(&file, "hunter2\n").expect("a file");
        let error = resolve("aws_secret_access_key", "hunter2").expect_err("visible to all");
        assert!(error.contains("@FILE") && !error.contains("hunter2"), "{error}");
        let at_file = format!("@{}", file.display());
        assert_eq!(resolve("aws_secret_access_key", &at_file).as_deref(), Ok("hunter2"));
        assert_eq!(resolve("aws_endpoint", "http://localhost:7480").as_deref(), Ok("http://localhost:7480"));
    }
}
