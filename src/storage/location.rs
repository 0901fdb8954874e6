//! Names of files and folders: plain paths and URLs.

use std::fmt;
use std::path::{Component, Path as LocalPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::StorageError;

/// A stalled body is given up and resumed after this long without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the object stores, as `key=value` pairs in the object_store crate's own names.
#[derive(Clone, Default)]
pub struct StorageOptions {
    pairs: Vec<(String, String)>,
}

impl StorageOptions {
    /// Options from `key=value` pairs; they win over the environment.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs }
    }
}

impl fmt::Debug for StorageOptions {
    /// Shows the keys alone: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pairs.iter().map(|(key, _)| key)).finish()
    }
}

/// A file or a folder, on this machine or in an object store.
#[derive(Clone)]
pub struct Location {
    store: Arc<dyn ObjectStore>,
    path: Path,
    shown: String,
    local: Option<PathBuf>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.shown)
    }
}

impl Location {
    /// Reads `/a/path`, `a/path`, `file:///a/path`, `s3://bucket/key`, `gs://…` or `az://…`.
    ///
    /// Credentials and endpoint come from the environment in the object_store crate's names, then from
    /// `options`. Nothing is contacted yet.
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] for an unknown scheme, or where the store's settings are incomplete.
    pub fn parse(text: &str, options: &StorageOptions) -> Result<Self, StorageError> {
        let bad = |reason: String| StorageError::BadLocation { text: without_credentials(text), reason };
        if text.is_empty() {
            return Err(bad("it is empty".into()));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Self::from_path(LocalPath::new(text));
        };
        if scheme == "file" {
            let url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
            let path = url.to_file_path().map_err(|()| bad("it names no path of this machine".into()))?;
            return Self::from_path(&path);
        }
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains('@') {
            return Err(bad("it must name a bucket, and no credentials".into()));
        }
        let store = remote_store(scheme, bucket, options).map_err(bad)?;
        let path = Path::parse(key.trim_end_matches('/')).map_err(|error| bad(error.to_string()))?;
        Ok(Self { store, path, shown: text.trim_end_matches('/').to_owned(), local: None })
    }

    /// A location on this machine; a relative path starts at the working directory.
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] if the path cannot be expressed.
    pub fn from_path(path: &LocalPath) -> Result<Self, StorageError> {
        let bad = |reason: String| StorageError::BadLocation { text: path.display().to_string(), reason };
        let absolute = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
        let absolute = without_dots(&absolute);
        let key = Path::from_absolute_path(&absolute).map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            store: Arc::new(LocalFileSystem::new().with_fsync(true)),
            path: key,
            shown: path.display().to_string(),
            local: Some(absolute),
        })
    }

    /// The location of `relative` (with `/` between folders) below this folder.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let mut path = self.path.clone();
        let mut local = self.local.clone();
        for part in relative.split('/').filter(|part| !part.is_empty()) {
            path = path.join(part);
            if let Some(local) = &mut local {
                local.push(part);
            }
        }
        let shown = format!("{}/{relative}", self.shown.trim_end_matches('/'));
        Self { store: Arc::clone(&self.store), path, shown, local }
    }

    /// The location of another file in the same folder; `None` for a bucket itself.
    #[must_use]
    pub fn with_file_name(&self, name: &str) -> Option<Self> {
        let parts: Vec<_> = self.path.parts().collect();
        let (_, folder) = parts.split_last()?;
        let shown = match self.shown.trim_end_matches('/').rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{name}"),
            None => name.to_owned(),
        };
        Some(Self {
            store: Arc::clone(&self.store),
            path: Path::from_iter(folder.iter().cloned()).join(name),
            shown,
            local: self.local.as_ref().map(|path| path.with_file_name(name)),
        })
    }

    /// The path on this machine, where the location has one.
    pub fn local_path(&self) -> Option<&LocalPath> {
        self.local.as_deref()
    }

    /// The last part of the name; empty for a bucket.
    pub fn file_name(&self) -> &str {
        self.shown.rsplit('/').find(|part| !part.is_empty()).unwrap_or("")
    }

    /// The store behind the location.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The key within the store.
    pub fn key(&self) -> &Path {
        &self.path
    }

    /// A place in the memory of this process, which behaves as an object store.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        let store = Arc::new(object_store::memory::InMemory::new());
        Self { store, path: Path::from("test"), shown: "memory://test".into(), local: None }
    }

    /// Puts the location's name to an error of the store.
    pub(super) fn failed(&self, operation: &'static str, error: object_store::Error) -> StorageError {
        let location = self.shown.clone();
        let local = self.local.is_some();
        match error {
            object_store::Error::NotFound { .. } => StorageError::NotFound { location, local },
            // A path below a file: nothing can be there.
            ref error if operation != "write" && is_below_a_file(error) => {
                StorageError::NotFound { location, local }
            }
            object_store::Error::AlreadyExists { .. } => StorageError::AlreadyExists { location },
            source => StorageError::Failed { operation, location, local, source: Box::new(source) },
        }
    }
}

fn is_below_a_file(error: &object_store::Error) -> bool {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|io| io.kind() == std::io::ErrorKind::NotADirectory)
}

/// Resolves `.` and `..` by name alone, as a shell's `cd` does.
fn without_dots(path: &LocalPath) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

fn without_credentials(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}…{}", &text[..scheme + 3], &text[at..]),
        _ => text.to_owned(),
    }
}

/// Retries outlive an outage of a minute: the defaults of object_store give up after two seconds of 503.
fn patience() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(15),
            base: 3.0,
        },
        max_retries: 15,
        retry_timeout: Duration::from_secs(180),
    }
}

fn remote_store(
    scheme: &str,
    bucket: &str,
    options: &StorageOptions,
) -> Result<Arc<dyn ObjectStore>, String> {
    let client = ClientOptions::new().with_timeout_disabled().with_read_timeout(READ_TIMEOUT);
    let unknown = |key: &str| format!("{key:?} is no option of {scheme} stores");
    macro_rules! build {
        ($builder:expr) => {{
            let mut builder = $builder.with_client_options(client).with_retry(patience());
            for (key, value) in &options.pairs {
                let known = key.to_lowercase().parse().map_err(|_| unknown(key))?;
                builder = builder.with_config(known, value);
            }
            let store = builder.build().map_err(|error| error.to_string())?;
            Ok(Arc::new(store) as Arc<dyn ObjectStore>)
        }};
    }
    match scheme {
        "s3" | "s3a" => build!(AmazonS3Builder::from_env().with_bucket_name(bucket)),
        "gs" => build!(GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket)),
        "az" | "abfs" | "abfss" => build!(MicrosoftAzureBuilder::from_env().with_container_name(bucket)),
        _ => Err(format!("scheme {scheme:?} is unknown; use a path, file://, s3://, gs:// or az://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_and_file_urls_name_the_same_place() {
        let options = StorageOptions::default();
        let plain = Location::parse("/data/../data/in1k", &options).expect("a path");
        let url = Location::parse("file:///data/in1k", &options).expect("a URL");
        assert_eq!(plain.local_path(), url.local_path());
        assert_eq!(plain.join("train/shard").local_path(), Some(LocalPath::new("/data/in1k/train/shard")));
    }

    #[test]
    fn credentials_never_reach_an_error() {
        let error = Location::parse("s3://key:hunter2@bucket/x", &StorageOptions::default())
            .expect_err("credentials in a URL");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let options = StorageOptions::new(vec![("aws_secret_access_key".into(), "hunter2".into())]);
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn an_unknown_scheme_is_named() {
        let error = Location::parse("ftp://host/x", &StorageOptions::default()).expect_err("ftp");
        assert!(error.to_string().contains("\"ftp\" is unknown"), "{error}");
    }
}
