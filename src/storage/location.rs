//! Names of files and folders: plain paths and URLs. Nothing is read or contacted here.

use std::fmt;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;

use object_store::path::{Path, PathPart};

use super::StorageError;
use super::address::{Address, local_path, without_credentials, without_dots};
use super::store::{OpenError, StorageOptions, Store};

/// A file or a folder, on this machine or in an object store.
#[derive(Clone)]
pub struct Location {
    key: Path,
    shown: String,
    /// The path, for a location on this machine.
    local: Option<PathBuf>,
    /// The object store, for any other.
    store: Option<Arc<Store>>,
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
    /// Parses `/a/path`, `a/path`, `file:///a/path`, `s3://bucket/key`, `gs://…` or `az://…`.
    ///
    /// A text that is almost a URL, or that only a shell expands, is an error that suggests the likely meaning.
    /// Credentials and endpoint come from the environment in the object_store crate's names, then from
    /// `options`. Nothing is contacted yet.
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] where the text or `options` are wrong, [`StorageError::Settings`] where the
    /// environment's settings of the store are.
    pub fn parse(text: &str, options: &StorageOptions) -> Result<Self, StorageError> {
        let bad = |reason: String| StorageError::BadLocation { text: without_credentials(text), reason };
        let (scheme, bucket, key) = match Address::parse(text).map_err(bad)? {
            Address::Local(path) => return Self::from_path(&path),
            Address::Remote { scheme, bucket, key } => (scheme, bucket, key),
        };
        let key = Path::parse(&key).map_err(|error| bad(error.to_string()))?;
        let store = Store::open(&scheme, &bucket, options).map_err(|error| match error {
            OpenError::Option(reason) => bad(reason),
            OpenError::Settings(reason) => StorageError::Settings { location: text.to_owned(), reason },
        })?;
        let shown = text.trim_end_matches('/').to_owned();
        Ok(Self { key, shown, local: None, store: Some(Arc::new(store)) })
    }

    /// Parses a path of this machine, by the rules of [`Location::parse`].
    ///
    /// # Errors
    /// [`StorageError::BadLocation`] where the text names an object store or is wrong.
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
                "control characters are not supported; rename the folder or use a link to it".into()
            ));
        }
        let absolute = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
        let absolute = without_dots(&absolute);
        let key = Path::from_absolute_path(&absolute).map_err(|error| bad(error.to_string()))?;
        Ok(Self { key, shown: path.display().to_string(), local: Some(absolute), store: None })
    }

    /// The location of `relative` (with `/` between folders) below this folder.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let mut key = self.key.clone();
        let mut local = self.local.clone();
        for part in relative.split('/').filter(|part| !part.is_empty()) {
            // A part that a store listed is legal already; it must not be encoded again.
            key = match PathPart::parse(part) {
                Ok(legal) => key.join(legal),
                Err(_) => key.join(part),
            };
            if let Some(local) = &mut local {
                local.push(part);
            }
        }
        let shown = format!("{}/{relative}", self.shown.trim_end_matches('/'));
        Self { key, shown, local, store: self.store.clone() }
    }

    /// The location of another file in the same folder; `None` for a bucket itself.
    #[must_use]
    pub fn with_file_name(&self, name: &str) -> Option<Self> {
        let parts: Vec<_> = self.key.parts().collect();
        let (_, folder) = parts.split_last()?;
        let shown = match self.shown.trim_end_matches('/').rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{name}"),
            None => name.to_owned(),
        };
        Some(Self {
            key: Path::from_iter(folder.iter().cloned()).join(name),
            shown,
            local: self.local.as_ref().map(|path| path.with_file_name(name)),
            store: self.store.clone(),
        })
    }

    /// The folder that holds this file; `None` for a bucket itself.
    #[must_use]
    pub fn folder(&self) -> Option<Self> {
        let parts: Vec<_> = self.key.parts().collect();
        let (_, folder) = parts.split_last()?;
        let local = self.local.as_ref().and_then(|path| path.parent()).map(LocalPath::to_owned);
        let shown = self.shown.trim_end_matches('/');
        let (above, name) = shown.rsplit_once('/').unwrap_or((".", shown));
        let shown = match &local {
            // What is above `.` and `..` has no name in the text.
            Some(path) if name == "." || name == ".." => path.display().to_string(),
            _ if above.is_empty() => "/".to_owned(),
            _ => above.to_owned(),
        };
        Some(Self { key: Path::from_iter(folder.iter().cloned()), shown, local, store: self.store.clone() })
    }

    /// The path on this machine, where the location has one.
    pub fn local_path(&self) -> Option<&LocalPath> {
        self.local.as_deref()
    }

    /// The last part of the name; empty for a bucket.
    pub fn file_name(&self) -> &str {
        let local = self.local.as_ref().and_then(|path| path.file_name()?.to_str());
        local.unwrap_or_else(|| self.shown.rsplit('/').find(|part| !part.is_empty()).unwrap_or(""))
    }

    /// The object store; `None` on this machine.
    pub(super) fn object_store(&self) -> Option<&Store> {
        self.store.as_deref()
    }

    /// The key within the store.
    pub(super) fn key(&self) -> &Path {
        &self.key
    }

    /// A location in an object store in memory.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::on_store(Arc::new(object_store::memory::InMemory::new()), &StorageOptions::default())
    }

    /// A location in a store of a test.
    #[cfg(test)]
    pub(super) fn on_store(store: Arc<dyn object_store::ObjectStore>, options: &StorageOptions) -> Self {
        let store = Arc::new(Store::of_test(store, options));
        Self { key: Path::from("test"), shown: "memory://test".into(), local: None, store: Some(store) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_and_file_urls_name_the_same_path() {
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
    fn a_path_with_a_control_character_is_rejected_and_shown() {
        let error = Location::parse("/data/tab\there", &StorageOptions::default()).expect_err("a tab");
        assert!(error.to_string().contains("`/data/tab\\there`: control characters"), "{error}");
    }

    #[test]
    fn a_folder_above_a_relative_path_has_its_own_name() {
        let here = std::env::current_dir().expect("a folder");
        let name = here.file_name().and_then(|name| name.to_str()).expect("a name");
        let above = here.parent().expect("a folder above");
        let file = Location::from_path(LocalPath::new("step-1")).expect("a location");
        let folder = file.folder().expect("a folder");
        assert_eq!((folder.file_name(), folder.to_string().as_str()), (name, "."));
        let dot = Location::from_path(LocalPath::new(".")).expect("a location");
        for folder in [folder, dot] {
            assert_eq!(folder.file_name(), name, "{folder}");
            let run = folder.folder().expect("a folder above");
            assert_eq!(run.local_path(), Some(above), "{folder}");
            assert_eq!(run.to_string(), above.display().to_string(), "{folder}");
        }
        let plain = Location::from_path(LocalPath::new("runs/a/step-1")).expect("a location");
        assert_eq!(plain.folder().map(|folder| folder.to_string()).as_deref(), Some("runs/a"));
        let root = Location::from_path(LocalPath::new("/")).expect("a location");
        assert_eq!(root.file_name(), "");
    }

    #[test]
    fn an_unknown_scheme_is_named() {
        let error = Location::parse("ftp://host/x", &StorageOptions::default()).expect_err("ftp");
        assert!(error.to_string().contains("unknown scheme `ftp`"), "{error}");
    }
}
