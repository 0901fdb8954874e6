//! Object stores: their settings, and how long they are given.

pub(super) mod counted;
pub(super) mod redacted;
pub(super) mod retried;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use self::counted::Counting;
use self::redacted::{Secrets, is_secret};
use super::StorageError;

/// A stalled answer is given up and asked for again after this long without a byte. A part of an upload has to
/// be on its way within it, too: four parts of 8 MiB want 1.6 MB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// A signed request is sent again as it is; stores refuse a signature that is older than some minutes.
pub(in crate::storage) const SIGNATURE_LIFE: Duration = Duration::from_secs(240);

/// After an operation was given up, the job ends and tidies up: what it still asks of the store is given so long,
/// or each step of that would take the whole time once more.
pub(in crate::storage) const LAST_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
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
    pub(in crate::storage) pairs: Vec<(String, String)>,
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

impl StorageOptions {
    /// Whether a value comes from a file.
    fn names_files(&self) -> bool {
        self.pairs.iter().any(|(_, value)| value.starts_with('@'))
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
pub(in crate::storage) struct Remote {
    pub(in crate::storage) retry: RetryLimits,
    pub(in crate::storage) single_writer: bool,
    /// Set when a probe found that the store creates conditionally.
    pub(in crate::storage) creates: OnceLock<()>,
    opened: RwLock<Opened>,
    /// What to open anew where files of the options have changed; nothing for a store of a test.
    recipe: Option<Recipe>,
    /// The operations that the store has done for this process.
    worked: Mutex<BTreeSet<&'static str>>,
    /// When an operation was given up; nothing once the store has answered again.
    given_up: Mutex<Option<Instant>>,
}

/// A store, with the values of its options at the time.
#[derive(Debug)]
struct Opened {
    store: Arc<dyn ObjectStore>,
    secrets: Secrets,
    values: Vec<String>,
    /// How often it was opened anew.
    generation: u64,
}

#[derive(Debug)]
struct Recipe {
    scheme: String,
    bucket: String,
    options: StorageOptions,
}

/// Why a store cannot be opened.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::storage) enum Unopened {
    /// An option of the command line is wrong.
    Option(String),
    /// The settings, most of them from the environment, are wrong or incomplete.
    Settings(String),
}

impl Unopened {
    /// The error of the location that the text names.
    pub(in crate::storage) fn at(self, text: &str) -> StorageError {
        let text = text.to_owned();
        match self {
            Self::Option(reason) => StorageError::BadLocation { text, reason },
            Self::Settings(reason) => StorageError::Settings { location: text, reason },
        }
    }
}

impl Remote {
    /// Opens the store of a bucket.
    pub(in crate::storage) fn open(
        scheme: &str,
        bucket: &str,
        options: &StorageOptions,
    ) -> Result<Arc<Self>, Unopened> {
        let recipe = Recipe { scheme: scheme.into(), bucket: bucket.into(), options: options.clone() };
        let opened = recipe.open(0)?;
        Ok(Self::new(opened, Some(recipe), options))
    }

    /// For a store that is open.
    #[cfg(test)]
    pub(in crate::storage) fn of_store(store: Arc<dyn ObjectStore>, options: &StorageOptions) -> Arc<Self> {
        let opened = Opened { store, secrets: Secrets::new([]), values: Vec::new(), generation: 0 };
        Self::new(opened, None, options)
    }

    fn new(opened: Opened, recipe: Option<Recipe>, options: &StorageOptions) -> Arc<Self> {
        let StorageOptions { retry, single_writer, .. } = *options;
        Arc::new(Self {
            retry,
            single_writer,
            creates: OnceLock::new(),
            opened: RwLock::new(opened),
            recipe,
            worked: Mutex::default(),
            given_up: Mutex::default(),
        })
    }

    pub(in crate::storage) fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.opened.read().unwrap_or_else(PoisonError::into_inner).store)
    }

    /// How often the store was opened anew so far.
    pub(in crate::storage) fn generation(&self) -> u64 {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// After a refusal by the store of a generation: whether there is now one with other credentials, since a file
    /// that an option names holds something else than before.
    pub(in crate::storage) fn has_new_credentials(&self, generation: u64) -> bool {
        let Some(recipe) = self.recipe.as_ref().filter(|recipe| recipe.options.names_files()) else {
            return false;
        };
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if opened.generation != generation {
            return true;
        }
        match recipe.open(generation + 1) {
            Ok(anew) if anew.values != opened.values => {
                tracing::info!(
                    "{}://{}: the files of credentials were read again",
                    recipe.scheme,
                    recipe.bucket
                );
                *opened = anew;
                true
            }
            // A file that is just being replaced is as good as one that is the same.
            Ok(_) | Err(_) => false,
        }
    }

    /// An error of the store, without secrets.
    pub(in crate::storage) fn told(&self, error: &object_store::Error) -> String {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).secrets.told(error)
    }

    /// Notes that the store has done an operation.
    pub(in crate::storage) fn note_done(&self, operation: &'static str) {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner).insert(operation);
    }

    /// Whether the store has done this operation, or any, for this process.
    pub(in crate::storage) fn has_worked(&self, operation: Option<&'static str>) -> bool {
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        operation.map_or(!worked.is_empty(), |operation| worked.contains(operation))
    }

    /// Notes that the store answers, or that it was given up.
    pub(in crate::storage) fn note(&self, answers: bool) {
        let given_up = (!answers).then(Instant::now);
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
    }

    /// Whether the store was given up a short time ago.
    pub(in crate::storage) fn is_gone(&self) -> bool {
        let given_up = *self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.is_some_and(|at| at.elapsed() < GONE)
    }
}

impl Recipe {
    fn open(&self, generation: u64) -> Result<Opened, Unopened> {
        let pairs = &self.options.pairs;
        let values = pairs.iter().map(|(key, value)| value_of(key, value)).collect::<Result<Vec<_>, _>>();
        let values = values.map_err(Unopened::Option)?;
        let given = pairs.iter().zip(&values).filter(|((key, _), _)| is_secret(key));
        let secrets = Secrets::new(given.map(|(_, value)| value.clone()));
        let keys = pairs.iter().map(|(key, _)| key.as_str()).zip(values.iter().map(String::as_str));
        let store = open_store(&self.scheme, &self.bucket, keys, self.options.retry);
        let store = store.map_err(|error| match error {
            Unopened::Option(reason) => Unopened::Option(secrets.told_text(&reason)),
            Unopened::Settings(reason) => Unopened::Settings(secrets.told_text(&reason)),
        })?;
        Ok(Opened { store, secrets, values, generation })
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

/// The store of a bucket, with the environment's settings and those of `pairs`.
fn open_store<'a>(
    scheme: &str,
    bucket: &str,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
    retry: RetryLimits,
) -> Result<Arc<dyn ObjectStore>, Unopened> {
    let pairs: Vec<_> = pairs.collect();
    let client = ClientOptions::new().with_timeout_disabled().with_read_timeout(READ_TIMEOUT);
    let unknown = |key: &str| Unopened::Option(format!("`{key}` is no option of {scheme} stores"));
    macro_rules! configured {
        ($prefix:expr, $builder:expr) => {{
            let mut builder = $builder.with_client_options(client).with_retry(retry.config());
            // Once more: setting the client's options has dropped those of the environment.
            for (key, value) in std::env::vars().filter(|(key, _)| key.starts_with($prefix)) {
                if let Ok(known) = key.to_lowercase().parse() {
                    builder = builder.with_config(known, value);
                }
            }
            for &(key, value) in &pairs {
                let known = key.to_lowercase().parse().map_err(|_| unknown(key))?;
                builder = builder.with_config(known, value);
            }
            builder.with_http_connector(Counting)
        }};
    }
    macro_rules! built {
        ($builder:expr) => {{
            let store = $builder.build().map_err(|error| Unopened::Settings(error.to_string()))?;
            Ok(Arc::new(store) as Arc<dyn ObjectStore>)
        }};
    }
    match scheme {
        "s3" | "s3a" => {
            let mut builder = configured!("AWS_", AmazonS3Builder::from_env().with_bucket_name(bucket));
            let is_endpoint =
                |key: &str| matches!(key.to_lowercase().parse(), Ok(AmazonS3ConfigKey::Endpoint));
            if let Some((_, endpoint)) = pairs.iter().rfind(|(key, _)| is_endpoint(key)) {
                // An option wins over AWS_ENDPOINT_URL_S3 in the environment.
                builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, *endpoint);
            }
            for key in [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint] {
                if builder.get_config_value(&key).unwrap_or_default().contains('@') {
                    return Err(Unopened::Settings("the endpoint must hold no credentials".into()));
                }
            }
            built!(builder)
        }
        "gs" => {
            built!(configured!("GOOGLE_", GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket)))
        }
        _ => built!(configured!("AZURE_", MicrosoftAzureBuilder::from_env().with_container_name(bucket))),
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
        let error = Remote::open("s3", "bucket", &options).expect_err("unknown");
        assert_eq!(error, Unopened::Option("`aws_endpiont` is no option of s3 stores".into()));
    }
}
