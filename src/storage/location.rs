//! Names of files and folders: plain paths and URLs.

use std::fmt;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::{Arc, OnceLock};

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::{Path, PathPart};

use super::StorageError;
use super::address::{Address, local_path, without_credentials, without_dots};
use super::store::{Remote, StorageOptions};
use crate::storage::store::redacted::Redacted;

/// A file or a folder, on this machine or in an object store.
#[derive(Clone)]
pub struct Location {
    path: Path,
    shown: String,
    local: Option<PathBuf>,
    remote: Option<Arc<Remote>>,
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
    /// A text that is almost a URL, or that only a shell expands, is an error that says what was probably meant.
    /// Credentials and endpoint come from the environment in the object_store crate's names, then from
    /// `options`. Nothing is contacted yet.
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] where the text or an option of `options` is wrong, [`StorageError::Settings`]
    /// where the environment's settings of the store are.
    pub fn parse(text: &str, options: &StorageOptions) -> Result<Self, StorageError> {
        let bad = |reason: String| StorageError::BadLocation { text: without_credentials(text), reason };
        let (scheme, bucket, key) = match Address::parse(text).map_err(bad)? {
            Address::Local(path) => return Self::from_path(&path),
            Address::Remote { scheme, bucket, key } => (scheme, bucket, key),
        };
        let path = Path::parse(&key).map_err(|error| bad(error.to_string()))?;
        let remote = Remote::open(&scheme, &bucket, options).map_err(|error| error.at(text))?;
        let shown = text.trim_end_matches('/').to_owned();
        Ok(Self { path, shown, local: None, remote: Some(remote) })
    }

    /// The path of this machine that a text names, by the rules of [`Location::parse`].
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] where it names none.
    pub fn parse_local(text: &str) -> Result<PathBuf, StorageError> {
        local_path(text)
            .map_err(|reason| StorageError::BadLocation { text: without_credentials(text), reason })
    }

    /// A location on this machine; a relative path starts at the working directory.
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] if the path cannot be expressed.
    pub fn from_path(path: &LocalPath) -> Result<Self, StorageError> {
        let text = path.to_string_lossy();
        let bad =
            |reason: String| StorageError::BadLocation { text: text.escape_debug().to_string(), reason };
        if text.contains(|c: char| c.is_ascii_control()) {
            return Err(bad(
                "a control character in a path is not supported; rename the folder, or name it by a link"
                    .into(),
            ));
        }
        let absolute = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
        let absolute = without_dots(&absolute);
        let key = Path::from_absolute_path(&absolute).map_err(|error| bad(error.to_string()))?;
        Ok(Self { path: key, shown: path.display().to_string(), local: Some(absolute), remote: None })
    }

    /// The location of `relative` (with `/` between folders) below this folder.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let mut path = self.path.clone();
        let mut local = self.local.clone();
        for part in relative.split('/').filter(|part| !part.is_empty()) {
            // What a store listed is a legal part already; it must not be encoded again.
            path = match PathPart::parse(part) {
                Ok(legal) => path.join(legal),
                Err(_) => path.join(part),
            };
            if let Some(local) = &mut local {
                local.push(part);
            }
        }
        let shown = format!("{}/{relative}", self.shown.trim_end_matches('/'));
        Self { path, shown, local, ..self.clone() }
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
            path: Path::from_iter(folder.iter().cloned()).join(name),
            shown,
            local: self.local.as_ref().map(|path| path.with_file_name(name)),
            remote: self.remote.clone(),
        })
    }

    /// The folder that holds this file; `None` for a bucket itself.
    #[must_use]
    pub fn folder(&self) -> Option<Self> {
        let parts: Vec<_> = self.path.parts().collect();
        let (_, folder) = parts.split_last()?;
        let shown = self.shown.trim_end_matches('/');
        let shown =
            shown.rsplit_once('/').map_or(".", |(folder, _)| if folder.is_empty() { "/" } else { folder });
        Some(Self {
            path: Path::from_iter(folder.iter().cloned()),
            shown: shown.to_owned(),
            local: self.local.as_ref().and_then(|path| path.parent()).map(LocalPath::to_owned),
            remote: self.remote.clone(),
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

    /// What it shares with other locations of an object store; `None` on this machine.
    pub(super) fn remote(&self) -> Option<&Remote> {
        self.remote.as_deref()
    }

    /// The store behind the location, with the credentials of now.
    pub(super) fn store(&self) -> Arc<dyn ObjectStore> {
        static LOCAL: OnceLock<Arc<LocalFileSystem>> = OnceLock::new();
        match &self.remote {
            Some(remote) => remote.store(),
            None => {
                let local = LOCAL.get_or_init(|| Arc::new(LocalFileSystem::new().with_fsync(true)));
                Arc::clone(local) as Arc<dyn ObjectStore>
            }
        }
    }

    /// The key within the store.
    pub(super) fn key(&self) -> &Path {
        &self.path
    }

    /// A place in the memory of this process, which behaves as an object store.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::in_memory_within(super::RetryLimits::default())
    }

    #[cfg(test)]
    pub(super) fn in_memory_within(retry: super::RetryLimits) -> Self {
        let options = StorageOptions { retry, ..StorageOptions::default() };
        Self::on_store(Arc::new(object_store::memory::InMemory::new()), &options)
    }

    /// A place in some store.
    #[cfg(test)]
    pub(super) fn on_store(store: Arc<dyn ObjectStore>, options: &StorageOptions) -> Self {
        let (path, shown) = (Path::from("test"), "memory://test".into());
        Self { path, shown, local: None, remote: Some(Remote::of_store(store, options)) }
    }

    /// Puts the location's name to an error of this machine's file system.
    pub(super) fn failed_locally(&self, operation: &'static str, error: std::io::Error) -> StorageError {
        let location = self.shown.clone();
        StorageError::Failed { operation, location, local: true, source: Box::new(error) }
    }

    /// Puts the location's name to an error of the store, and says what kind of error it is.
    pub(super) fn failed(&self, operation: &'static str, error: object_store::Error) -> StorageError {
        let location = self.shown.clone();
        let Some(remote) = self.remote() else { return failed_locally(operation, location, error) };
        let reason = remote.told(&error);
        match fault(&error, &reason) {
            Some(Fault::Setting(advice)) => StorageError::Settings {
                location,
                reason: format!("{advice} ({operation} failed: {reason})"),
            },
            Some(Fault::NoBucket) => StorageError::NoBucket { operation, location, reason },
            Some(Fault::NoCredentials) => {
                StorageError::NoCredentials { operation, location, worked: remote.has_worked(None), reason }
            }
            Some(Fault::Denied) => StorageError::Denied {
                operation,
                location,
                worked: remote.has_worked(Some(operation)),
                reason,
            },
            Some(Fault::Expired) => {
                StorageError::Denied { operation, location, worked: remote.has_worked(None), reason }
            }
            Some(Fault::Key(reason)) => StorageError::BadKey { location, reason },
            None => match error {
                object_store::Error::NotFound { .. } => StorageError::NotFound { location, local: false },
                object_store::Error::AlreadyExists { .. } => StorageError::AlreadyExists { location },
                _ => StorageError::Failed {
                    operation,
                    location,
                    local: false,
                    source: Box::new(Redacted(reason)),
                },
            },
        }
    }

    /// Whether an error of the store of a generation (see [`Location::generation`]) is a refusal, and there are now
    /// other credentials to try.
    pub(super) fn has_new_credentials(&self, error: &object_store::Error, generation: u64) -> bool {
        self.remote().is_some_and(|remote| {
            let fault = fault(error, &remote.told(error));
            matches!(fault, Some(Fault::Denied | Fault::Expired)) && remote.has_new_credentials(generation)
        })
    }

    /// Whether an error of the store says what is wrong with a bucket or, unless a file was absent, with credentials.
    pub(super) fn explains(&self, error: &object_store::Error, was_absent: bool) -> bool {
        match fault(error, &self.told(error)) {
            Some(Fault::NoBucket) => true,
            Some(Fault::Denied | Fault::Expired) => !was_absent,
            _ => false,
        }
    }

    /// Which of the stores that were opened for the location is the one of now.
    pub(super) fn generation(&self) -> u64 {
        self.remote().map_or(0, Remote::generation)
    }

    /// What may be said of an error of the store.
    pub(super) fn told(&self, error: &object_store::Error) -> String {
        self.remote.as_ref().map_or_else(|| error.to_string(), |remote| remote.told(error))
    }
}

fn failed_locally(operation: &'static str, location: String, error: object_store::Error) -> StorageError {
    match error {
        object_store::Error::NotFound { .. } => StorageError::NotFound { location, local: true },
        // A path below a file: nothing can be there.
        ref error if ["read", "look up", "delete", "list"].contains(&operation) && is_below_a_file(error) => {
            StorageError::NotFound { location, local: true }
        }
        object_store::Error::AlreadyExists { .. } => StorageError::AlreadyExists { location },
        source => StorageError::Failed { operation, location, local: true, source: Box::new(source) },
    }
}

/// Faults that no retry mends, or only where the store has worked before.
enum Fault {
    /// What has to be set.
    Setting(&'static str),
    NoBucket,
    NoCredentials,
    Denied,
    /// Keys that were good for a time.
    Expired,
    /// A key in the store that has no name here, and why.
    Key(String),
}

/// The fault behind an error of a store, by what the store says in `told`.
///
/// # Source
/// The error codes of S3, of Azure Blob Storage and of Cloud Storage; the texts of object_store and reqwest.
fn fault(error: &object_store::Error, told: &str) -> Option<Fault> {
    let says = |marks: &[&str]| marks.iter().any(|mark| told.contains(mark));
    if let object_store::Error::InvalidPath { source } = error {
        return Some(Fault::Key(unnamed_key(source)));
    }
    if says(&["URL scheme is not allowed"]) {
        return Some(Fault::Setting(
            "the endpoint is an http URL; set AWS_ALLOW_HTTP=true, AZURE_ALLOW_HTTP=true or GOOGLE_ALLOW_HTTP=true, \
             or give an https one",
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
        return Some(Fault::NoBucket);
    }
    if says(&["169.254.169.254", "169.254.170.2", "metadata.google.internal"]) {
        return Some(Fault::NoCredentials);
    }
    if says(&["ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed"]) {
        return Some(Fault::Expired);
    }
    let denied = matches!(
        error,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }
    );
    (denied || says(&["InvalidToken", "InvalidAccessKeyId"])).then_some(Fault::Denied)
}

/// Why a key of a store has no name here; control characters are shown as such.
fn unnamed_key(error: &object_store::path::Error) -> String {
    use object_store::path::Error;
    let (path, reason) = match error {
        Error::EmptySegment { path } => (path, "it has an empty part (`//`)".to_owned()),
        Error::BadSegment { path, .. } => {
            let dots = path.split('/').any(|part| part == "." || part == "..");
            let reason = if dots { "it has a part `.` or `..`" } else { "it has a control character" };
            (path, reason.to_owned())
        }
        other => return other.to_string(),
    };
    format!("the key `{}` has no name here: {reason}", path.escape_debug())
}

fn is_below_a_file(error: &object_store::Error) -> bool {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|io| io.kind() == std::io::ErrorKind::NotADirectory)
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
    fn a_bucket_that_is_not_there_is_no_file_that_is_not_there() {
        let failed = |answer: &str| {
            let source = Box::new(std::io::Error::other(answer.to_owned()));
            let error = object_store::Error::NotFound { path: "x".into(), source };
            Location::in_memory().join("x").failed("read", error)
        };
        let error = failed("<Error><Code>NoSuchBucket</Code><Message>No.</Message></Error>");
        assert_eq!(error.failure(), crate::failure::Failure::Config);
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
        assert!(failed("<Error><Code>NoSuchKey</Code><Message>No.</Message></Error>").is_not_found());
    }

    #[test]
    fn a_path_with_a_control_character_is_refused_and_shown() {
        let error = Location::parse("/data/tab\there", &StorageOptions::default()).expect_err("a tab");
        assert!(error.to_string().contains("`/data/tab\\there`: a control character"), "{error}");
    }

    #[test]
    fn an_unknown_scheme_is_named() {
        let error = Location::parse("ftp://host/x", &StorageOptions::default()).expect_err("ftp");
        assert!(error.to_string().contains("`ftp` is unknown"), "{error}");
    }
}
