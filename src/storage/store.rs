//! Object stores, as decorators around the store of a cloud provider.
//!
//! [`Store`] decorates the provider's store, and `counted` its HTTP client. They have the methods that [`ObjectStore`]
//! requires; the trait implements its other methods by these. [`Provider`] is opened with the current credentials. If
//! options name files of credentials, a refused request reopens the store once a file has changed. [`Fault`] classifies
//! the errors of a store; [`Health`] records whether it still answers.

mod counted;
mod local;
mod redacted;
mod retried;
mod settled;

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{fmt, io};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpError;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Error as PathError;
use object_store::{BackoffConfig, ClientOptions, Error, ObjectStore, RetryConfig};

pub use self::counted::Traffic;
pub(super) use self::retried::Store;
pub(super) use self::settled::{CONDITIONAL_CREATE, writer_id};

use self::counted::CountedConnector;
use self::local::Local;
use self::redacted::{Secrets, is_secret, one_line, variables};

/// Returns the file system of this machine, which needs no retries and has no secrets.
pub(super) fn local() -> Arc<dyn ObjectStore> {
    static LOCAL: OnceLock<Arc<Local>> = OnceLock::new();
    Arc::clone(LOCAL.get_or_init(|| Arc::new(Local::new()))) as Arc<dyn ObjectStore>
}

/// Lifetime of a signature. A signed request is repeated as it is; stores refuse a signature older than some minutes.
const SIGNATURE_LIFE: Duration = Duration::from_secs(240);

/// Limits after which a request is no longer retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryLimits {
    /// Time after the first attempt beyond which no other begins.
    pub time: Duration,
    /// Maximum number of attempts after the first.
    pub tries: usize,
}

impl Default for RetryLimits {
    /// Outlives an outage of a minute; the defaults of object_store give up after two seconds of 503.
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
    /// Limits of retries for each request.
    pub retry: RetryLimits,
    /// Asserts that no other process writes, so that a store need not create conditionally.
    pub single_writer: bool,
}

impl StorageOptions {
    /// Makes options from `key=value` pairs, which win over the environment.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs, ..Self::default() }
    }

    fn names_files(&self) -> bool {
        self.pairs.iter().any(|(_, value)| value.starts_with('@'))
    }

    /// Returns the pairs, with each `@FILE` replaced by the file's current contents.
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

/// Time without a byte after which a stalled answer is given up and requested again. A part of an upload must also be
/// sent within it: four parts of 8 MiB need 1.6 MB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// A bucket of a provider.
struct Provider {
    opened: RwLock<Opened>,
    recipe: Recipe,
}

/// A store, with the option values used to open it.
struct Opened {
    store: Arc<dyn ObjectStore>,
    secrets: Secrets,
    options: Vec<(String, String)>,
    /// Number of times that the store was reopened.
    generation: u64,
}

/// Parameters to reopen the store once a file of credentials has changed.
struct Recipe {
    scheme: String,
    bucket: String,
    options: StorageOptions,
}

/// Reason why a store cannot be opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// An option of the command line is wrong.
    Option(String),
    /// The settings, most of them from the environment, are wrong or incomplete.
    Settings(String),
}

impl fmt::Debug for Provider {
    /// Shows the bucket alone: stores and options hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provider({self})")
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.recipe.scheme, self.recipe.bucket)
    }
}

impl Provider {
    /// Opens the store of a bucket; nothing is contacted yet.
    ///
    /// # Errors
    /// If an option or a setting is wrong.
    fn open(scheme: &str, bucket: &str, options: &StorageOptions) -> Result<Self, OpenError> {
        let recipe = Recipe { scheme: scheme.into(), bucket: bucket.into(), options: options.clone() };
        Ok(Self { opened: RwLock::new(recipe.open(0)?), recipe })
    }

    #[cfg(test)]
    fn of_store(store: Arc<dyn ObjectStore>) -> Self {
        let opened = Opened { store, secrets: Secrets::new([]), options: Vec::new(), generation: 0 };
        let options = StorageOptions::default();
        let recipe = Recipe { scheme: "memory".into(), bucket: String::new(), options };
        Self { opened: RwLock::new(opened), recipe }
    }

    /// Returns the store with the current credentials, and their generation.
    fn current(&self) -> (Arc<dyn ObjectStore>, u64) {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&opened.store), opened.generation)
    }

    /// Returns whether there are newer credentials to try, after a refusal of this generation's.
    fn has_new_credentials(&self, generation: u64) -> bool {
        if !self.recipe.options.names_files() {
            return false;
        }
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if opened.generation != generation {
            return true;
        }
        match self.recipe.open(generation + 1) {
            Ok(again) if again.options != opened.options => {
                tracing::info!("{self}: the files of credentials were read again");
                *opened = again;
                true
            }
            // A file that is being replaced at this moment counts as unchanged.
            Ok(_) | Err(_) => false,
        }
    }

    /// Describes an error and its causes on one line, without the current secrets.
    fn describe(&self, error: &Error) -> String {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).secrets.redact(&one_line(error))
    }
}

impl Recipe {
    fn open(&self, generation: u64) -> Result<Opened, OpenError> {
        let options = self.options.resolve().map_err(OpenError::Option)?;
        let given = options.iter().filter(|(key, _)| is_secret(key));
        let secrets = Secrets::new(given.map(|(_, value)| value.clone()));
        let store = open_store(&self.scheme, &self.bucket, &options, self.options.retry);
        let store = store.map_err(|error| match error {
            OpenError::Option(reason) => OpenError::Option(secrets.redact(&reason)),
            OpenError::Settings(reason) => OpenError::Settings(secrets.redact(&reason)),
        })?;
        Ok(Opened { store, secrets, options, generation })
    }
}

/// Opens the store of a bucket, with the environment's settings overridden by `options`.
fn open_store(
    scheme: &str,
    bucket: &str,
    options: &[(String, String)],
    retry: RetryLimits,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let client = ClientOptions::new().with_timeout_disabled().with_read_timeout(READ_TIMEOUT);
    let unknown = |key: &str| OpenError::Option(format!("unknown option `{key}` for {scheme} stores"));
    macro_rules! configured {
        ($prefix:expr, $builder:expr) => {{
            let mut builder = $builder.with_client_options(client).with_retry(retry.config());
            // Set again, since the client's options above have dropped those of the environment.
            for (key, value) in variables().filter(|(key, _)| key.starts_with($prefix)) {
                if let Ok(known) = key.to_lowercase().parse() {
                    builder = builder.with_config(known, value);
                }
            }
            for (key, value) in options {
                let known = key.to_lowercase().parse().map_err(|_| unknown(key))?;
                builder = builder.with_config(known, value);
            }
            builder.with_http_connector(CountedConnector)
        }};
    }
    macro_rules! built {
        ($builder:expr) => {{
            let store = $builder.build().map_err(|error| OpenError::Settings(error.to_string()))?;
            Ok(Arc::new(store) as Arc<dyn ObjectStore>)
        }};
    }
    match scheme {
        "s3" | "s3a" => {
            let mut builder = configured!("AWS_", AmazonS3Builder::from_env().with_bucket_name(bucket));
            let is_endpoint =
                |key: &str| matches!(key.to_lowercase().parse(), Ok(AmazonS3ConfigKey::Endpoint));
            if let Some((_, endpoint)) = options.iter().rfind(|(key, _)| is_endpoint(key)) {
                // An option wins over AWS_ENDPOINT_URL_S3 in the environment.
                builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
            }
            for key in [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint] {
                if builder.get_config_value(&key).unwrap_or_default().contains('@') {
                    return Err(OpenError::Settings("the endpoint must not contain credentials".into()));
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

/// A fault that no retry fixes, in the settings or in the store's contents.
pub(crate) enum Fault {
    /// Advice on the setting to change.
    Setting(&'static str),
    NoBucket,
    NoCredentials,
    Denied,
    /// The credentials have expired.
    Expired,
    /// An unsupported key, with the reason.
    Key(String),
}

impl Fault {
    /// Classifies an error of a store; `None` if it is none of these faults.
    ///
    /// # Source
    /// The error codes of S3, of Azure Blob Storage and of Cloud Storage; the texts of object_store and reqwest.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        if let Error::InvalidPath { source } = error {
            return Some(Self::Key(unsupported_key(source)));
        }
        let text = one_line(error);
        let says = |marks: &[&str]| marks.iter().any(|mark| text.contains(mark));
        if says(&["URL scheme is not allowed"]) {
            return Some(Self::Setting(
                "the endpoint is an http URL; set AWS_ALLOW_HTTP=true, AZURE_ALLOW_HTTP=true or \
                 GOOGLE_ALLOW_HTTP=true, or use an https URL",
            ));
        }
        let bucket = [
            "NoSuchBucket",
            "InvalidBucketName",
            "The specified bucket does not exist",
            "ContainerNotFound",
            "InvalidResourceName",
            "incorrectly configured region",
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
        ];
        if says(&bucket) {
            return Some(Self::NoBucket);
        }
        if says(&["169.254.169.254", "169.254.170.2", "metadata.google.internal"]) {
            return Some(Self::NoCredentials);
        }
        if says(&["ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed"]) {
            return Some(Self::Expired);
        }
        let denied = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
        (denied || says(&["InvalidToken", "InvalidAccessKeyId"])).then_some(Self::Denied)
    }

    /// Returns whether other credentials may fix the fault.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied | Self::Expired)
    }
}

/// Describes the unsupported key, with control characters escaped.
fn unsupported_key(error: &PathError) -> String {
    let (path, reason) = match error {
        PathError::EmptySegment { path } => (path, "empty segment (`//`)"),
        PathError::BadSegment { path, .. } => {
            let dots = path.split('/').any(|part| part == "." || part == "..");
            (path, if dots { "segment `.` or `..`" } else { "control character" })
        }
        other => return other.to_string(),
    };
    format!("unsupported key `{}`: {reason}", path.escape_debug())
}

/// Returns whether the request or its answer was lost in transit, as opposed to being refused.
fn is_lost(error: &Error) -> bool {
    let error: Option<&(dyn StdError + 'static)> = matches!(error, Error::Generic { .. }).then_some(error);
    // A request that cannot be built, such as http:// if that is not allowed, was not lost.
    std::iter::successors(error, |&error| error.source())
        .find(|error| error.is::<HttpError>())
        .is_some_and(|error| !error.to_string().contains("builder error"))
}

/// Returns whether the store is down: the request was lost, or every answer was 5xx or 429 until the crate gave up.
fn is_outage(error: &Error) -> bool {
    // The crate hides the status. 501 means that the store lacks the operation.
    let says = |text: &str, status: &str| text.contains(&format!("non-2xx status code: {status}"));
    let is_refused = |text: &str| (says(text, "5") && !says(text, "501")) || says(text, "429");
    is_lost(error) || (matches!(error, Error::Generic { .. }) && is_refused(&one_line(error)))
}

/// Returns whether the answer was a bare 400, as from S3 for an expired token.
fn is_bare_refusal(error: &Error) -> bool {
    matches!(error, Error::Generic { .. }) && error.to_string().contains("400 Bad Request")
}

/// Returns the operating system's errors among the causes of an error.
fn io_causes(error: &Error) -> impl Iterator<Item = &io::Error> {
    let causes = std::iter::successors(Some(error as &(dyn StdError + 'static)), |&error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>())
}

/// Returns whether an error of the file system means that a path continues below a file.
pub(crate) fn is_below_a_file(error: &Error) -> bool {
    io_causes(error).any(|io| io.kind() == io::ErrorKind::NotADirectory)
}

/// Time after which a store that was given up may be back, for a job that continued without it.
const GONE: Duration = Duration::from_secs(60);

/// Record of the successes and failures of one store.
#[derive(Debug, Default)]
pub(crate) struct Health {
    worked: Mutex<BTreeSet<&'static str>>,
    /// Time at which an operation was given up; `None` once the store has answered again.
    given_up: Mutex<Option<Instant>>,
}

impl Health {
    fn note_done(&self, operation: &'static str) {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner).insert(operation);
    }

    /// Returns whether an operation has succeeded; for `None`, whether any has.
    pub(crate) fn has_worked(&self, operation: Option<&'static str>) -> bool {
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        operation.map_or(!worked.is_empty(), |operation| worked.contains(operation))
    }

    /// Records whether the store answers or was given up.
    fn note_answers(&self, answers: bool) {
        let given_up = (!answers).then(Instant::now);
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
    }

    /// Returns whether the store was given up a short time ago.
    pub(crate) fn is_gone(&self) -> bool {
        let given_up = *self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.is_some_and(|at| at.elapsed() < GONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a secret to a file, as an orchestrator mounts it; returns the option's value.
    #[expect(clippy::disallowed_methods, reason = "a file of another program")]
    fn at_file(folder: &std::path::Path) -> String {
        std::fs::write(folder.join("key"), "hunter2hunter2\n").expect("a file");
        format!("@{}", folder.join("key").display())
    }

    #[test]
    fn a_secret_is_taken_from_a_file_and_not_from_the_command_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = resolve("aws_secret_access_key", "hunter2").expect_err("visible to all");
        assert!(error.contains("@FILE") && !error.contains("hunter2"), "{error}");
        let resolved = resolve("aws_secret_access_key", &at_file(dir.path()));
        assert_eq!(resolved.as_deref(), Ok("hunter2hunter2"));
        assert_eq!(resolve("aws_endpoint", "http://localhost:7480").as_deref(), Ok("http://localhost:7480"));
    }

    #[test]
    fn an_option_that_a_store_does_not_know_is_named() {
        let options = StorageOptions::new(vec![("aws_endpiont".into(), "x".into())]);
        let error = Provider::open("s3", "bucket", &options).expect_err("unknown");
        assert_eq!(error, OpenError::Option("unknown option `aws_endpiont` for s3 stores".into()));
    }

    #[test]
    fn a_debugged_provider_shows_no_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let pairs = vec![
            ("aws_access_key_id".into(), "me".into()),
            ("aws_secret_access_key".into(), at_file(dir.path())),
        ];
        let provider = Provider::open("s3", "bucket", &StorageOptions::new(pairs)).expect("opened");
        assert_eq!(format!("{provider:?}"), "Provider(s3://bucket)");
    }
}
