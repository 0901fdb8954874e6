//! Object stores: their settings, and how long they are given.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::secrets::{Secrets, is_secret};
use super::traffic::Counting;

/// A stalled answer is given up and asked for again after this long without a byte. A part of an upload has to
/// be on its way within it, too: four parts of 8 MiB want 1.6 MB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// A signed request is sent again as it is; stores refuse a signature that is older than some minutes.
pub(super) const SIGNATURE_LIFE: Duration = Duration::from_secs(240);

/// After an operation was given up, the job ends and tidies up: what it still asks of the store is given so long,
/// or each step of that would take the whole time once more.
pub(super) const LAST_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// A store that was given up may be back after so long, for a job that went on without it.
const GONE: Duration = Duration::from_secs(60);

/// How long and how often a request is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryLimits {
    /// No new attempt begins so long after the first.
    pub time: Duration,
    /// So many attempts follow the first.
    pub tries: usize,
}

impl Default for RetryLimits {
    /// Outlives an outage of a minute: the defaults of object_store give up after two seconds of 503.
    fn default() -> Self {
        Self { time: Duration::from_secs(180), tries: 100 }
    }
}

impl RetryLimits {
    /// The first pauses are short, for single faults; the last long, for outages.
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

/// Settings of the object stores, as `key=value` pairs in the object_store crate's own names.
#[derive(Clone, Default)]
pub struct StorageOptions {
    pub(super) pairs: Vec<(String, String)>,
    /// How long and how often a request is tried.
    pub retry: RetryLimits,
    /// The user says that no other process writes, so a store need not create conditionally.
    pub single_writer: bool,
}

impl StorageOptions {
    /// Options from `key=value` pairs; they win over the environment.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs, ..Self::default() }
    }
}

impl fmt::Debug for StorageOptions {
    /// Shows the keys alone: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pairs.iter().map(|(key, _)| key)).finish()
    }
}

/// What all locations of one store share.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) retry: RetryLimits,
    pub(super) single_writer: bool,
    /// Set when a probe found that the store creates conditionally.
    pub(super) creates: OnceLock<()>,
    pub(super) secrets: Secrets,
    /// When an operation was given up; nothing once the store has answered again.
    given_up: Mutex<Option<Instant>>,
}

impl Remote {
    /// Notes that the store answers, or that it was given up.
    pub(super) fn note(&self, answers: bool) {
        let given_up = (!answers).then(Instant::now);
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
    }

    /// Whether the store was given up a short time ago.
    pub(super) fn is_gone(&self) -> bool {
        let given_up = *self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.is_some_and(|at| at.elapsed() < GONE)
    }

    pub(super) fn new(options: &StorageOptions) -> Arc<Self> {
        let StorageOptions { retry, single_writer, .. } = *options;
        let given = options.pairs.iter().filter(|(key, _)| is_secret(key));
        let given = given.filter_map(|(key, value)| value_of(key, value).ok());
        let (creates, secrets, given_up) = (OnceLock::new(), Secrets::new(given), Mutex::new(None));
        Arc::new(Self { retry, single_writer, creates, secrets, given_up })
    }
}

/// The value of an option: itself, or what the file after `@` holds.
fn value_of(key: &str, value: &str) -> Result<String, String> {
    match value.strip_prefix('@') {
        Some(file) => match std::fs::read_to_string(file) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(format!("the file of {key} cannot be read: {error}")),
        },
        None if is_secret(key) => Err(format!(
            "{key} would be seen in the list of processes; set it in the environment, or give {key}=@FILE"
        )),
        None => Ok(value.to_owned()),
    }
}

/// The store of a bucket.
pub(super) fn open_store(
    scheme: &str,
    bucket: &str,
    options: &StorageOptions,
) -> Result<Arc<dyn ObjectStore>, String> {
    let client = ClientOptions::new().with_timeout_disabled().with_read_timeout(READ_TIMEOUT);
    let unknown = |key: &str| format!("{key:?} is no option of {scheme} stores");
    macro_rules! configured {
        ($prefix:expr, $builder:expr) => {{
            let mut builder = $builder.with_client_options(client).with_retry(options.retry.config());
            // Once more: setting the client's options has dropped those of the environment.
            for (key, value) in std::env::vars().filter(|(key, _)| key.starts_with($prefix)) {
                if let Ok(known) = key.to_lowercase().parse() {
                    builder = builder.with_config(known, value);
                }
            }
            for (key, value) in &options.pairs {
                let known = key.to_lowercase().parse().map_err(|_| unknown(key))?;
                builder = builder.with_config(known, value_of(key, value)?);
            }
            builder.with_http_connector(Counting)
        }};
    }
    macro_rules! built {
        ($builder:expr) => {{
            let store = $builder.build().map_err(|error| error.to_string())?;
            Ok(Arc::new(store) as Arc<dyn ObjectStore>)
        }};
    }
    match scheme {
        "s3" | "s3a" => {
            let builder = configured!("AWS_", AmazonS3Builder::from_env().with_bucket_name(bucket));
            let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).unwrap_or_default();
            if endpoint.contains('@') {
                return Err("the endpoint must hold no credentials".into());
            }
            built!(builder)
        }
        "gs" => {
            built!(configured!("GOOGLE_", GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket)))
        }
        "az" | "abfs" | "abfss" => {
            built!(configured!("AZURE_", MicrosoftAzureBuilder::from_env().with_container_name(bucket)))
        }
        _ => Err(format!("scheme {scheme:?} is unknown; use a path, file://, s3://, gs:// or az://")),
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
        let error = value_of("aws_secret_access_key", "hunter2").expect_err("seen by all");
        assert!(error.contains("@FILE") && !error.contains("hunter2"), "{error}");
        let at_file = format!("@{}", file.display());
        assert_eq!(value_of("aws_secret_access_key", &at_file).as_deref(), Ok("hunter2"));
        assert_eq!(value_of("aws_endpoint", "http://localhost:7480").as_deref(), Ok("http://localhost:7480"));
    }

    #[test]
    fn an_option_that_a_store_does_not_know_is_named() {
        let options = StorageOptions::new(vec![("aws_endpiont".into(), "x".into())]);
        let error = open_store("s3", "bucket", &options).expect_err("unknown");
        assert_eq!(error, "\"aws_endpiont\" is no option of s3 stores");
    }
}
