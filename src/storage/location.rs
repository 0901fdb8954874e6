//! Names of files and folders: plain paths and URLs.

use std::fmt;
use std::path::{Component, Path as LocalPath, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::{Path, PathPart};
use url::Url;

use super::StorageError;
use super::remote::{Remote, StorageOptions, open_store};
use super::secrets::Told;

/// A file or a folder, on this machine or in an object store.
#[derive(Clone)]
pub struct Location {
    store: Arc<dyn ObjectStore>,
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
        let remote = Remote::new(options);
        let store =
            open_store(scheme, bucket, options).map_err(|reason| bad(remote.secrets.told_text(&reason)))?;
        let path = Path::parse(key.trim_end_matches('/')).map_err(|error| bad(error.to_string()))?;
        let shown = text.trim_end_matches('/').to_owned();
        Ok(Self { store, path, shown, local: None, remote: Some(remote) })
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
            remote: None,
        })
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
            store: Arc::clone(&self.store),
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
            store: Arc::clone(&self.store),
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

    /// The store behind the location.
    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
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
        let (path, shown, remote) = (Path::from("test"), "memory://test".into(), Some(Remote::new(options)));
        Self { store, path, shown, local: None, remote }
    }

    /// Puts the location's name to an error of this machine's file system.
    pub(super) fn failed_locally(&self, operation: &'static str, error: std::io::Error) -> StorageError {
        let location = self.shown.clone();
        StorageError::Failed { operation, location, local: true, source: Box::new(error) }
    }

    /// Puts the location's name to an error of the store.
    pub(super) fn failed(&self, operation: &'static str, error: object_store::Error) -> StorageError {
        let location = self.shown.clone();
        let local = self.local.is_some();
        if let Some(reason) = self.remote().map(|_| self.told(&error)).filter(|told| names_no_bucket(told)) {
            return StorageError::NoBucket { operation, location, reason };
        }
        match error {
            object_store::Error::NotFound { .. } => StorageError::NotFound { location, local },
            // A path below a file: nothing can be there.
            ref error if operation != "write" && is_below_a_file(error) => {
                StorageError::NotFound { location, local }
            }
            object_store::Error::AlreadyExists { .. } => StorageError::AlreadyExists { location },
            ref error @ (object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. })
                if !local =>
            {
                StorageError::Denied { operation, location, reason: self.told(error) }
            }
            source if local => StorageError::Failed { operation, location, local, source: Box::new(source) },
            source => {
                let source = Box::new(Told(self.told(&source)));
                StorageError::Failed { operation, location, local, source }
            }
        }
    }

    /// What may be said of an error of the store.
    pub(super) fn told(&self, error: &object_store::Error) -> String {
        self.remote.as_ref().map_or_else(|| error.to_string(), |remote| remote.secrets.told(error))
    }
}

/// Whether the store says that the bucket's name or the region is wrong, which no retry mends.
fn names_no_bucket(told: &str) -> bool {
    ["NoSuchBucket", "incorrectly configured region"].iter().any(|mark| told.contains(mark))
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
    fn an_unknown_scheme_is_named() {
        let error = Location::parse("ftp://host/x", &StorageOptions::default()).expect_err("ftp");
        assert!(error.to_string().contains("\"ftp\" is unknown"), "{error}");
    }
}
