//! The store of a cloud provider, opened with the credentials of now.
//!
//! Where options name files of credentials, a refused request opens the store again once a file has changed.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, ObjectStore};

use super::counted::CountedConnector;
use super::redacted::{Secrets, is_secret, variables};
use super::{RetryLimits, StorageOptions};

/// A stalled answer is given up and asked for again after this long without a byte. A part of an upload has to
/// be sent within it, too: four parts of 8 MiB need 1.6 MB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// A bucket of a provider.
pub(super) struct Provider {
    /// `scheme://bucket`.
    name: String,
    opened: RwLock<Opened>,
    /// What to open again; `None` for a store of a test.
    recipe: Option<Recipe>,
}

/// A store, with the option values that it was opened with.
struct Opened {
    store: Arc<dyn ObjectStore>,
    secrets: Secrets,
    options: Vec<(String, String)>,
    /// How often it was opened again.
    generation: u64,
}

struct Recipe {
    scheme: String,
    bucket: String,
    options: StorageOptions,
}

/// Why a store cannot be opened.
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
        write!(f, "Provider({})", self.name)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Provider {
    /// Opens the store of a bucket; nothing is contacted yet.
    ///
    /// # Errors
    /// If an option or a setting is wrong.
    pub(super) fn open(scheme: &str, bucket: &str, options: &StorageOptions) -> Result<Self, OpenError> {
        let recipe = Recipe { scheme: scheme.into(), bucket: bucket.into(), options: options.clone() };
        let opened = RwLock::new(recipe.open(0)?);
        Ok(Self { name: format!("{scheme}://{bucket}"), opened, recipe: Some(recipe) })
    }

    /// A store that is open already.
    #[cfg(test)]
    pub(super) fn of_store(store: Arc<dyn ObjectStore>) -> Self {
        let opened = Opened { store, secrets: Secrets::new([]), options: Vec::new(), generation: 0 };
        Self { name: "memory://".into(), opened: RwLock::new(opened), recipe: None }
    }

    /// The store with the credentials of now, and their generation.
    pub(super) fn current(&self) -> (Arc<dyn ObjectStore>, u64) {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&opened.store), opened.generation)
    }

    /// After a refusal of a generation's credentials: whether there are now others to try.
    pub(super) fn has_new_credentials(&self, generation: u64) -> bool {
        let Some(recipe) = self.recipe.as_ref().filter(|recipe| recipe.options.names_files()) else {
            return false;
        };
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        if opened.generation != generation {
            return true;
        }
        match recipe.open(generation + 1) {
            Ok(again) if again.options != opened.options => {
                tracing::info!("{self}: the files of credentials were read again");
                *opened = again;
                true
            }
            // A file that is just being replaced counts as unchanged.
            Ok(_) | Err(_) => false,
        }
    }

    /// Calls a function with the secrets of now.
    pub(super) fn with_secrets<T>(&self, call: impl FnOnce(&Secrets) -> T) -> T {
        call(&self.opened.read().unwrap_or_else(PoisonError::into_inner).secrets)
    }
}

impl Recipe {
    fn open(&self, generation: u64) -> Result<Opened, OpenError> {
        let options = self.options.resolve().map_err(OpenError::Option)?;
        let given = options.iter().filter(|(key, _)| is_secret(key));
        let secrets = Secrets::new(given.map(|(_, value)| value.clone()));
        let store = open_store(&self.scheme, &self.bucket, &options, self.options.retry);
        let store = store.map_err(|error| match error {
            OpenError::Option(reason) => OpenError::Option(secrets.redact_text(&reason)),
            OpenError::Settings(reason) => OpenError::Settings(secrets.redact_text(&reason)),
        })?;
        Ok(Opened { store, secrets, options, generation })
    }
}

/// The store of a bucket, with the environment's settings and then those of `options`.
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
            // Once more: setting the client's options has dropped those of the environment.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_a_store_does_not_know_is_named() {
        let options = StorageOptions::new(vec![("aws_endpiont".into(), "x".into())]);
        let error = Provider::open("s3", "bucket", &options).expect_err("unknown");
        assert_eq!(error, OpenError::Option("unknown option `aws_endpiont` for s3 stores".into()));
    }

    #[test]
    fn a_debugged_provider_shows_no_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key");
        #[expect(clippy::disallowed_methods, reason = "a secret as an orchestrator mounts it")]
        std::fs::write(&file, "hunter2hunter2").expect("a file");
        let pairs = vec![
            ("aws_access_key_id".into(), "me".into()),
            ("aws_secret_access_key".into(), format!("@{}", file.display())),
        ];
        let provider = Provider::open("s3", "bucket", &StorageOptions::new(pairs)).expect("opened");
        assert_eq!(format!("{provider:?}"), "Provider(s3://bucket)");
    }
}
